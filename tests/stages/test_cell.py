"""The repeated cell against the multislice and the image formation of the field."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import drprobe
from crystals import projection
from qhrtem.grid import fft2
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.physics.coherence import focal_transfer, intensity
from qhrtem.physics.multislice import exit_wave, propagator, transmission
from qhrtem.physics.potential import Thermal
from qhrtem.stages.cell import RepeatedCell

UPRIGHT = np.array([[0.0, 1.0], [1.0, 0.0]])
TILT = (4e-3, -2e-3)


def lens() -> Microscope:
    return nominal(drprobe.ENERGY).with_values(
        c1=62.0,
        a1_x=15.0,
        a1_y=-10.0,
        b2_x=90.0,
        a2_y=200.0,
        tilt_x=TILT[0],
        tilt_y=TILT[1],
        semi_convergence=2e-4,
    )


def exit_spectrum(slices: int) -> torch.Tensor:
    """The same crystal on the reference grid; the cell's first slice is the oxygen plane there called 1."""
    gratings = transmission(drprobe.phases(Thermal())).to(torch.complex128)
    order = [(n + 1) % 4 for n in range(slices)]
    return fft2(exit_wave(gratings, order, propagator(drprobe.GRID, drprobe.PLANE_A, drprobe.ENERGY, TILT)))


def low_orders(spectrum: torch.Tensor, rows_are_x: bool, limit: int = 9) -> NDArray[np.complex128]:
    """Coefficients (h along x, k along y) up to `limit`, per incident electron."""
    a = spectrum.numpy()
    h = np.arange(-limit, limit + 1)
    return np.asarray(a[np.ix_(h, h)] if rows_are_x else a[np.ix_(h, h)].T)


@pytest.fixture(scope="module")
def cell() -> RepeatedCell:
    return RepeatedCell(projection("BaTiO3", (1, 1, 0)), UPRIGHT, drprobe.ENERGY, 24)


def test_the_cell_repeats_where_its_columns_do(cell: RepeatedCell) -> None:
    """Neighbouring lattice rows are half a period apart in depth, so two make the cell."""
    assert cell.repeat == (2, 1)
    assert cell.area == pytest.approx(drprobe.A_A * drprobe.C_A, rel=1e-6)


@pytest.mark.parametrize("slices", [1, 6, 24])
def test_waves_of_every_thickness_match_the_multislice(cell: RepeatedCell, slices: int) -> None:
    spectra = cell.spectra(lens())
    found = low_orders(spectra[slices - 1], True)
    expected = low_orders(exit_spectrum(slices), False) / (60 * 80)
    assert drprobe.rms(found, expected) < 4e-3
    found[9, 9] = expected[9, 9] = 0  # the unscattered beam, which hides differences
    assert drprobe.rms(found, expected) < 0.01


def test_images_match_those_of_the_field(cell: RepeatedCell) -> None:
    m, slices = lens(), 16
    image = cell.image_coefficients(cell.spectra(m), np.array([slices]), m, centre=slices, foci=5)[0]
    transfer = focal_transfer(drprobe.GRID, m.lens(), 5)
    # What the mistilt moved is moved back by half the thickness: the mid-plane stays where it is.
    ky, kx = drprobe.GRID.frequencies()
    back = math.pi * slices * drprobe.PLANE_A * (kx * math.tan(TILT[0]) + ky * math.tan(TILT[1]))
    spectrum = exit_spectrum(slices) * torch.polar(torch.ones_like(back), -back)
    expected = fft2(intensity(spectrum, transfer)) / (60 * 80)
    a, b = low_orders(image, True, 6), low_orders(expected, False, 6)
    # What absorption takes from the mean comes back as a background.
    assert a[6, 6] == 1.0 and 0.9 < abs(b[6, 6]) < 0.99
    a[6, 6] = b[6, 6]
    assert drprobe.rms(a, b) < 5e-3
    a[6, 6] = b[6, 6] = 0
    assert drprobe.rms(a, b) < 0.02


def test_other_thicknesses_share_the_mid_plane(cell: RepeatedCell) -> None:
    """A cell thinner than `centre` is imaged from half the difference further up."""
    m = lens().with_values(tilt_x=0.0, tilt_y=0.0)
    spectra = cell.spectra(m)
    plane = cell.projection.plane
    one = cell.image_coefficients(spectra, np.array([8]), m, centre=20)[0]
    focus = m.with_values(c1=m["c1"] + (20 - 8) / 2 * plane)
    two = cell.image_coefficients(spectra, np.array([8]), focus, centre=8)[0]
    assert torch.allclose(one, two, atol=2e-4)


def test_turning_the_crystal_turns_the_image() -> None:
    """With round aberrations a turned cell has the same coefficients."""
    p = projection("SrTiO3", (1, 1, 1))
    m = nominal(300e3)
    angle = 0.7
    frame = np.array([[math.sin(angle), math.cos(angle)], [math.cos(angle), -math.sin(angle)]])
    images = []
    for f in (UPRIGHT, frame):
        cell = RepeatedCell(p, f, 300e3, 12)
        images.append(cell.image_coefficients(cell.spectra(m), np.array([12]), m, 12))
    assert torch.allclose(images[0], images[1], atol=1e-4)
    astigmatic = m.with_values(a1_x=40.0)
    cell = RepeatedCell(p, frame, 300e3, 12)
    image = cell.image_coefficients(cell.spectra(astigmatic), np.array([12]), astigmatic, 12)
    assert not torch.allclose(image, images[0], atol=1e-3)


def test_gratings_follow_the_thermal_parameters(cell: RepeatedCell) -> None:
    m = lens()
    first = cell.spectra(m)
    hot = cell.spectra(m.with_values(b_scale=1.5))
    assert not torch.allclose(first, hot, atol=1e-3)
    assert torch.equal(cell.spectra(m), first)
    still = cell.spectra(m.with_values(absorption=0.0))
    assert float((still[-1].abs() ** 2).sum()) == pytest.approx(1, abs=2e-3)
    assert float((first[-1].abs() ** 2).sum()) < 0.995
