"""The lens refuses what no microscope has, in one line that names the remedy."""

from __future__ import annotations

import math

import pytest
import torch

from qhrtem.errors import PlanError
from qhrtem.grid import Grid
from qhrtem.physics.coherence import focal_transfer
from qhrtem.physics.electron import wavelength
from qhrtem.physics.lens import Aperture, Lens

GRID = Grid((48, 60), (0.1, 0.1), dtype=torch.float64)
ENERGY = 300e3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"energy": 300.0}, "was it given in V"),
        ({"aberrations": {"C9": 1.0}}, "unknown aberration C9"),
        ({"aberrations": {"C1": math.nan}}, "aberration C1 must be a finite length in Å"),
        ({"focal_spread": -1.0}, "focal spread must be within"),
        ({"focal_spread": math.nan}, "focal spread must be within"),
        ({"semi_convergence": 0.3}, "was it given in mrad instead of rad"),
        ({"beam_tilt": (0.0, 1.0)}, "beam tilt must be within 200 mrad"),
    ],
)
def test_a_lens_that_cannot_be(wrong: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Lens(**{"energy": ENERGY, **wrong})


def test_an_aperture_that_cannot_be() -> None:
    with pytest.raises(PlanError, match="was it given in mrad instead of rad"):
        Aperture(22.0)
    with pytest.raises(PlanError, match="smoothness"):
        Aperture(0.02, -0.1)


def test_sampling_too_coarse_for_the_aperture_is_refused() -> None:
    passed = wavelength(ENERGY) * GRID.band_limit()
    focal_transfer(GRID, Lens(ENERGY, aperture=Aperture(0.9 * passed)))
    with pytest.raises(PlanError, match=r"use at most 0\.0\d+ Å"):
        focal_transfer(GRID, Lens(ENERGY, aperture=Aperture(1.5 * passed)))


def test_a_hard_aperture_passes_its_disc() -> None:
    """The share of beams passed, and that a shifted centre moves the disc along x."""
    radius = 0.02
    ky, kx = torch.broadcast_tensors(*GRID.frequencies())
    lam = wavelength(ENERGY)
    for centre in ((0.0, 0.0), (0.008, -0.004)):
        lens = Lens(ENERGY, aperture=Aperture(radius, 0.0, centre))
        passed = focal_transfer(GRID, lens).functions[0].abs()
        inside = torch.hypot(lam * kx - centre[0], lam * ky - centre[1]) <= radius
        assert torch.equal(passed > 0.5, inside)


def test_a_soft_edge_is_half_open_at_the_radius() -> None:
    aperture = Aperture(0.02, 0.05)
    at = aperture.transmits(torch.tensor([0.0, 0.02, 0.04]), torch.zeros(3))
    assert at.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)


def test_beam_tilt_moves_the_aberration_function() -> None:
    """A tilted beam sees χ(w + t): defocus acts as a shift of the image, C3 adds coma."""
    tilt = (2e-3, -1e-3)
    c1 = 80.0
    tilted = focal_transfer(GRID, Lens(ENERGY, {"C1": c1}, beam_tilt=tilt)).functions[0]
    plain = focal_transfer(GRID, Lens(ENERGY, {"C1": c1})).functions[0]
    ky, kx = torch.broadcast_tensors(*GRID.frequencies())
    shift = torch.exp(-2j * math.pi * c1 * (kx * tilt[0] + ky * tilt[1]))
    ratio = tilted / plain * torch.polar(torch.ones(()).double(), torch.tensor(0.0).double())
    keep = plain.abs() > 0
    expected = shift * (tilted[0, 0] / plain[0, 0])
    assert torch.allclose(ratio[keep], expected[keep], atol=1e-9)
