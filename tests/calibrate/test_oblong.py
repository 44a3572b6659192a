"""Rectangular pixels: told from square ones by the lattice, refused for a fit, made square by the remedy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy import signal

import crystals
from qhrtem.calibrate.lattice import Lattice, register, require_square
from qhrtem.calibrate.survey import survey
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import simulate
from qhrtem.errors import InputError
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import SimulatePlan, plan_from_tables
from qhrtem.simulate.phantom import Parameters, job_of, planned_lens
from qhrtem.simulate.specimen import make_specimen

PIXEL_A, TURN = 0.112, 20.0
GAIN, ELECTRONS = 12.0, 250.0


@pytest.fixture(scope="module")
def oblong() -> tuple[np.ndarray, tuple[float, float]]:
    """Counts of BaTiO3 [110] and their (row, col) pitch: a simulated image, evaluated on rows farther apart.

    The simulation is a sum of waves, so its value anywhere is exact; nothing is interpolated.
    """
    torch.set_num_threads(1)
    asked = SimulatePlan(field_nm=(4.0, 4.0), thickness_nm=2.5, rotation_deg=TURN, vacuum_nm=1.0)
    plan = plan_from_tables(
        {
            "image": {"path": "x.tif", "pixel_size_A": PIXEL_A},
            "microscope": {"high_tension_kV": 300.0, "c1_nm": 5.5},
            "structure": {"path": "x.cif", "zone_axis": [1, 1, 0]},
        }
    )
    microscope = planned_lens(plan, Parameters())
    specimen = make_specimen(
        asked, crystals.projection("BaTiO3", (1, 1, 0)), PIXEL_A, microscope.delocalisation()
    )
    field = specimen.field
    with torch.inference_mode():
        sharp = simulate(
            Ours(), job_of(specimen, microscope, asked), 0, np.random.default_rng(0), lambda n: None
        )
        whole = ForwardModel(field, microscope.energy).detect(
            sharp, ForwardModel(field, microscope.energy).response(microscope)
        )
    image = whole.double().numpy()
    rows = round(image.shape[0] * PIXEL_A / 0.118)
    pitch = image.shape[0] * PIXEL_A / rows
    spectrum = np.fft.fftshift(np.fft.fft(image, axis=0), axes=0)
    cut = (image.shape[0] - rows) // 2
    kept = np.fft.ifftshift(spectrum[cut + (image.shape[0] % 2 < rows % 2) :][:rows], axes=0)
    fewer = np.fft.ifft(kept, axis=0).real * rows / image.shape[0]
    pad = round(field.pad[0] * PIXEL_A / pitch)
    part = fewer[pad : rows - pad, field.pad[1] : -field.pad[1]]
    rng = np.random.default_rng(3)
    return GAIN * rng.poisson(ELECTRONS * np.maximum(part, 0)) + 100.0, (pitch, PIXEL_A)


def found(counts: np.ndarray, pitch: tuple[float, float] | float | None) -> Lattice:
    image = (counts - 100.0) / (GAIN * ELECTRONS)
    return register(
        image, np.ones(image.shape, bool), pitch, crystals.projection("BaTiO3", (1, 1, 0)), "x.tif"
    )


def test_stated_rectangular_pixels_are_confirmed_and_refused_with_the_remedy(oblong) -> None:
    counts, pitch = oblong
    lattice = found(counts, pitch)
    assert lattice.pitch_A == pytest.approx(pitch, rel=1e-3) and lattice.shear < 0.004
    assert lattice.rotation_deg == pytest.approx(TURN, abs=0.1)
    with pytest.raises(
        InputError, match=r"must be square.*resample\(image, \d+, axis=1\).*pixel_size_A"
    ) as error:
        require_square(lattice, "x.tif")
    # What the message says is done, and the fit's own lattice stage takes the result.
    count, axis = (int(n) for n in re.search(r"image, (\d+), axis=(\d)", str(error.value)).groups())
    pixel = float(re.search(r"pixel_size_A = ([\d.]+)", str(error.value)).group(1))
    square = signal.resample(counts, count, axis=axis)
    again = found(square, pixel)
    require_square(again, "x.tif")
    true = pitch[1] * counts.shape[1] / count  # of the columns; that of the rows differs by rounding
    assert again.pixel_size_A == pytest.approx(np.sqrt(pitch[0] * true), rel=1e-3)
    assert again.rotation_deg == pytest.approx(TURN, abs=0.15) and again.shear < 0.006
    # Counts keep their level, and noise stays as white as it was.
    assert square.mean() == pytest.approx(counts.mean(), rel=1e-4)


def test_pixels_that_are_square_whatever_the_file_says_are_used_so(oblong) -> None:
    counts, pitch = oblong
    count = round(counts.shape[1] * pitch[1] / pitch[0])
    square = signal.resample(counts, count, axis=1)
    lattice = found(square, (0.115, 0.121))
    require_square(lattice, "x.tif")
    assert lattice.aspect == 1.0 and any("fits square ones" in n for n in lattice.notes)


def test_a_distortion_that_is_not_stated_is_told(oblong) -> None:
    counts, pitch = oblong
    lattice = found(counts, float(np.sqrt(pitch[0] * pitch[1])))
    assert lattice.shear == pytest.approx(pitch[0] / pitch[1] - 1, abs=0.005)
    assert any("distorted by" in n and "taken for strain" in n for n in lattice.notes)


def test_inspect_says_that_a_fit_would_be_refused(oblong) -> None:
    counts, pitch = oblong
    plan = plan_from_tables(
        {
            "image": {"path": "x.tif", "offset_counts": 100.0},
            "microscope": {"high_tension_kV": 300.0},
            "structure": {"path": "x.cif", "zone_axis": [1, 1, 0]},
        }
    ).image
    said = survey(RawImage(counts, "x.tif", pitch), plan, crystals.crystal("BaTiO3"), (1, 1, 0))
    assert said.lattice is not None and any("Pixels must be square for a fit" in r for r in said.refusals)
