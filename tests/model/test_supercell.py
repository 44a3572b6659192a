"""Exit waves of supercells: waves of Dr. Probe, sub-pixel exactness, slicing, what is refused."""

from __future__ import annotations

import math
import runpy
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import drprobe
from qhrtem.errors import PlanError
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.model.supercell import SupercellModel, grid_of
from qhrtem.physics.coherence import focal_transfer, intensity
from qhrtem.physics.drprobe import object_tilt
from qhrtem.physics.electron import gamma, potential_per_scattering_factor, wavelength
from qhrtem.physics.lens import Aperture, Lens, check_aperture
from qhrtem.physics.multislice import exit_wave, propagator, transmission
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import (
    Slicing,
    Supercell,
    atomic_planes,
    displaced,
    equal_slices,
    make_supercell,
    read_supercell,
    repeat,
    sheared,
)

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "drprobe"
PLAIN = Thermal(absorption_scale=0)


@pytest.mark.parametrize(
    ("name", "thermal"),
    [
        ("elastic", Thermal(rigid=True)),
        ("dwf", PLAIN),
        ("dwf_abs", Thermal()),
        ("dwf_abf07", Thermal(absorption_scale=0, proportional=0.07)),
        ("elastic_lapro", Thermal(rigid=True)),
        ("elastic_tilt", Thermal(rigid=True)),
    ],
)
def test_waves_match_dr_probe(name: str, thermal: Thermal) -> None:
    """BaTiO3 [110] up to 6.8 nm, all thicknesses from one pass."""
    stored = drprobe.data()[f"wave_{name}"]
    repeats = [1, 2, 4, 8, 12] if len(stored) == 5 else [4, 12]
    tilt = (math.radians(0.4), math.radians(-0.25)) if name.endswith("tilt") else (0.0, 0.0)
    thickness, mistilt = object_tilt(np.full(4, drprobe.PLANE_A), tilt)
    kind = "secant" if name.endswith("lapro") else "fresnel"
    waves = drprobe.model(thermal, kind, thickness).exit_waves(repeats, mistilt)
    for wave, theirs in zip(waves, stored, strict=True):
        assert drprobe.rms(wave, theirs) < 5e-4


@pytest.mark.parametrize(("name", "thermal"), [("elastic", Thermal(rigid=True)), ("dwf_abs", Thermal())])
def test_projected_potentials_match_dr_probe(name: str, thermal: Thermal) -> None:
    model = drprobe.model(thermal)
    to_volt = potential_per_scattering_factor() / (wavelength(drprobe.ENERGY) * gamma(drprobe.ENERGY))
    ours = model.phases()[list(model.order)] * to_volt / drprobe.PLANE_A
    assert drprobe.rms(ours, drprobe.data()[f"projected_potential_V_{name}"]) < 5e-4


@pytest.mark.parametrize(("name", "thermal"), [("elastic", Thermal(rigid=True)), ("dwf_abs", Thermal())])
def test_waves_of_strontium_titanate_match_dr_probe(name: str, thermal: Thermal) -> None:
    """SrTiO3 [001], two slices a period; another crystal and another square grid."""
    a = 3.905
    elements, x, y, z = (
        ["Sr", "O", "Ti", "O", "O"],
        [0, 0.5, 0.5, 0.5, 0],
        [0, 0.5, 0.5, 0, 0.5],
        [1, 1, 3, 3, 3],
    )
    position = a * np.array([[v, u, w / 4] for u, v, w in zip(x, y, z, strict=True)])
    b = np.array([0.62, 0.72, 0.44, 0.72, 0.72])
    cell = make_supercell(elements, position, np.full(3, a), b, np.ones(5))
    grid = Grid((54, 54), (a / 54, a / 54), dtype=torch.float64)
    waves = drprobe.model_of(cell, grid, 2, thermal).exit_waves([4, 8, 16])
    for wave, theirs in zip(waves, drprobe.data()[f"sto001_wave_{name}"], strict=True):
        assert drprobe.rms(wave, theirs) < 5e-4


def test_the_wave_of_a_stepped_surface_matches_dr_probe() -> None:
    """853 atoms displaced in plane, steps at both faces, vacuum at the edges: nothing repeats."""
    cell = read_supercell(drprobe.FOLDER / "bto110_surface.extxyz")
    grid = Grid((320, 320), (cell.extent[0] / 320, cell.extent[1] / 320), dtype=torch.float64)
    wave = drprobe.model_of(cell, grid, 20, Thermal()).exit_wave()
    ky, kx = grid.frequencies()
    beams = (fft2(wave) / wave.numel())[kx**2 + ky**2 <= grid.band_limit() ** 2]
    assert drprobe.rms(beams, drprobe.data()["surface_beams_dwf_abs"]) < 5e-4


GRID = Grid((40, 42), (4.2 / 40, 4.0 / 42), dtype=torch.float64)


def cell_of(z: tuple[float, ...] = (0.5, 1.9, 3.1)) -> Supercell:
    position = np.array([[0.37 + 1.3 * i, 0.81 + 0.9 * i, v] for i, v in enumerate(z)])
    n = len(z)
    return make_supercell(
        ["Ti", "Sr", "O"][:n], position, np.array([4.2, 4.0, 4.4]), np.full(n, 0.6), np.ones(n)
    )


@pytest.mark.parametrize(("taper", "limit"), [("soft", "potential"), ("nyquist", "transmission")])
def test_a_shift_by_parts_of_a_pixel_shifts_the_wave(taper: str, limit: str) -> None:
    cell = cell_of()
    dy, dx = 0.0413, -0.0717
    moved = Supercell(cell.species, cell.kind, cell.position + [dy, dx, 0], cell.extent)
    first, second = (
        SupercellModel(c, equal_slices(c, 3), GRID, 300e3, Thermal(), "lobato", taper, limit).exit_wave(5)  # type: ignore[arg-type]
        for c in (cell, moved)
    )
    ky, kx = GRID.frequencies()
    shifted = ifft2(fft2(first) * torch.exp(-2j * math.pi * (ky * dy + kx * dx)))
    # What is left of "nyquist" is exp(iφ) folded at the Nyquist limit, as in every multislice on a grid.
    assert drprobe.rms(second - 1, shifted - 1) < (1e-5 if taper == "soft" else 5e-3)


def test_direct_series_and_fast_spreading_agree() -> None:
    """Within the band limit the kernels of both ways to sum atoms give the same phases."""
    cell = cell_of()
    slicing = equal_slices(cell, 3)
    direct = SupercellModel(cell, slicing, GRID, 300e3, Thermal(), taper="nyquist")
    fast = SupercellModel(cell, slicing, GRID, 300e3, Thermal(), taper="soft")
    a, b = fft2(direct.phases()), fft2(fast.phases())
    ky, kx = GRID.frequencies()
    inner = (kx**2 + ky**2) ** 0.5 < 0.8 * GRID.band_limit()
    assert drprobe.rms(b[:, inner], a[:, inner]) < 1e-5
    assert a.is_complex() and b.is_complex()


def test_identical_slices_are_computed_once() -> None:
    cell = repeat(cell_of((0.5, 2.9)), 1, 1, 3)
    model = SupercellModel(cell, equal_slices(cell, 6), GRID, 300e3)
    assert model.order == (0, 1, 0, 1, 0, 1) and len(model.gratings()) == 2
    shaken = displaced(cell, np.random.default_rng(0))
    assert len(SupercellModel(shaken, equal_slices(cell, 6), GRID, 300e3).gratings()) == 6


def test_a_transmission_function_is_held_from_its_first_use_to_its_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slices that all differ are never held together, those that repeat are computed once."""
    cell = repeat(cell_of((0.5, 2.9)), 1, 1, 3)
    shaken = displaced(cell, np.random.default_rng(0))
    made: list[weakref.ref[torch.Tensor]] = []
    held = []
    compute = SupercellModel.gratings

    def watched(self: SupercellModel, only: slice = slice(None)) -> torch.Tensor:
        out = compute(self, only).clone()
        made.append(weakref.ref(out))
        held.append(sum(r() is not None for r in made))
        return out

    monkeypatch.setattr(SupercellModel, "gratings", watched)
    for specimen, computed, most in ((shaken, 6, 2), (cell, 2, 2)):
        made.clear()
        held.clear()
        SupercellModel(specimen, equal_slices(cell, 6), GRID, 300e3).exit_wave()
        assert len(made) == computed and max(held) <= most


def test_all_thicknesses_come_from_one_pass() -> None:
    cell = cell_of()
    model = SupercellModel(cell, equal_slices(cell, 3), GRID, 300e3)
    waves = model.exit_waves([3, 1, 0])
    assert torch.allclose(waves[1], model.exit_wave(1)) and torch.allclose(
        waves[2], torch.ones_like(waves[2])
    )
    thick = repeat(cell, 1, 1, 3)
    whole = SupercellModel(thick, equal_slices(thick, 9), GRID, 300e3).exit_wave()
    assert torch.allclose(waves[0], whole, atol=1e-12)
    assert torch.allclose(model.exit_waves([2], wave=waves[1])[0], waves[0])
    with pytest.raises(PlanError, match="repeats along the beam"):
        model.exit_waves([])


def test_the_model_is_the_multislice_of_its_gratings() -> None:
    cell = cell_of()
    model = SupercellModel(cell, equal_slices(cell, 3), GRID, 300e3, PLAIN, propagation="exact")
    tilt = (4e-3, -3e-3)
    step = propagator(GRID, 4.4 / 3, 300e3, tilt, "exact")
    expected = exit_wave(transmission(model.phases()).to(torch.complex128), [0, 1, 2] * 2, step)
    assert torch.allclose(model.exit_wave(2, tilt), expected)


def test_slices_at_the_atomic_planes_are_the_limit_of_thin_slices() -> None:
    """Atoms act at their depth: thin equal slices converge to planes with exact distances between them."""
    cell = cell_of()
    planes = SupercellModel(cell, atomic_planes(cell), GRID, 300e3).exit_wave(4)

    def wave(slices: int) -> torch.Tensor:
        psi = SupercellModel(cell, equal_slices(cell, slices), GRID, 300e3).exit_wave(4)
        # The thin slices end at the exit face, the planes where the first plane of the next cell would be.
        return ifft2(fft2(psi) * propagator(GRID, float(cell.position[:, 2].min()), 300e3))

    coarse, fine = (drprobe.rms(wave(n), planes) for n in (4, 440))
    assert fine < 3e-3 and coarse > 5 * fine


def test_a_sheared_supercell_is_a_mistilt() -> None:
    """Atoms moved by +z tan t give the tilted wave, carried back into the frame of the columns."""
    cell = repeat(cell_of(), 1, 1, 5)
    tilt = (6e-3, -4e-3)
    slicing = atomic_planes(cell)
    tilted = SupercellModel(cell, slicing, GRID, 300e3, PLAIN).exit_wave(1, tilt)
    leaning = sheared(cell, tilt, float(cell.position[:, 2].min()))
    wave = SupercellModel(leaning, slicing, GRID, 300e3, PLAIN).exit_wave()
    ky, kx = GRID.frequencies()
    depth = float(cell.extent[2])
    back = torch.exp(2j * math.pi * depth * (kx * math.tan(tilt[0]) + ky * math.tan(tilt[1])))
    assert drprobe.rms(ifft2(fft2(wave) * back) - 1, tilted - 1) < 1e-4
    assert drprobe.rms(wave - 1, tilted - 1) > 0.05


def test_images_are_those_of_the_lens() -> None:
    cell = cell_of()
    model = SupercellModel(cell, equal_slices(cell, 3), GRID, 300e3)
    lens = Lens(300e3, {"C1": 60.0, "C3": -15e4}, 30.0, 3e-4, Aperture(0.03))
    expected = intensity(fft2(model.exit_wave(3)), focal_transfer(GRID, lens, 5))
    assert torch.equal(model.image(lens, 3, foci=5), expected)


def test_a_sampling_too_coarse_for_the_aperture_is_refused() -> None:
    """The band limit must pass the aperture with its soft edge and off-centre part."""
    angle = GRID.band_limit() * wavelength(300e3)
    check_aperture(GRID, Lens(300e3))
    check_aperture(GRID, Lens(300e3, aperture=Aperture(0.98 * angle, 0.01)))
    for aperture in (Aperture(1.01 * angle), Aperture(0.9 * angle, 0.03, (0.0, 0.1 * angle))):
        with pytest.raises(
            PlanError, match="only carry .* mrad; use pixels of|only carry .* mrad; use at most"
        ):
            check_aperture(GRID, Lens(300e3, aperture=aperture))
    cell = cell_of()
    model = SupercellModel(cell, equal_slices(cell, 3), GRID, 300e3)
    with pytest.raises(PlanError, match="objective aperture"):
        model.image(Lens(300e3, aperture=Aperture(2 * angle)))


def test_grid_and_slicing_must_belong_to_the_cell() -> None:
    cell = cell_of()
    with pytest.raises(PlanError, match=r"cover the supercell of 4\.2 x 4 Å"):
        SupercellModel(cell, equal_slices(cell, 3), Grid((40, 42), (0.1, 0.1)), 300e3)
    with pytest.raises(PlanError, match="slicing is of 2 atoms"):
        SupercellModel(cell, Slicing(np.array([0, 1]), np.ones(2)), GRID, 300e3)
    grid = grid_of(cell, 0.11)
    assert grid.shape == (40, 38) and max(grid.pixel) <= 0.11 and grid.extent == pytest.approx((4.2, 4.0))


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the full reference data are not here")
def test_all_reference_data_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wave set and every image of the reference folder, through the benchmark itself."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "drprobe_agreement.py"), run_name="agreement")
    report = tmp_path / "agreement.md"
    options = ["--folder", str(REFERENCE), "--report", str(report), "--configurations", "6"]
    assert benchmark["main"](options) == 0
    assert "bto110_surface" in report.read_text("utf-8") and "drprobe_folder" in sys.modules
