"""The objective lens: aberrations, aperture, beam tilt and the spreads of focus and source angle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qhrtem.errors import PlanError
from qhrtem.grid import Grid
from qhrtem.physics.aberrations import TERMS
from qhrtem.physics.electron import check_energy, wavelength

Number = float | Tensor  # a plain number, or a 0-d tensor to differentiate by


@dataclass(frozen=True)
class Aperture:
    """A round objective aperture with a soft edge, ½ - ½ tanh(π(|w - w₀| - r)/(r s)) as in Dr. Probe."""

    radius: float  # r, rad
    smoothness: float = 0.03  # s, width of the edge relative to the radius; 0 is a hard edge
    centre: tuple[float, float] = (0.0, 0.0)  # w₀ = (x, y), rad

    def __post_init__(self) -> None:
        """Raise `PlanError` for a radius that passes nothing or is no angle of an objective aperture."""
        if not 1e-4 <= self.radius <= 10:
            raise PlanError(
                f"aperture radius must be within 0.1 to 10000 mrad, got {self.radius * 1e3:g} mrad; "
                "was it given in mrad instead of rad?"
            )
        if not self.smoothness >= 0:
            raise PlanError(f"aperture smoothness must not be negative, got {self.smoothness:g}")

    def transmits(self, wx: Tensor, wy: Tensor) -> Tensor:
        """Return the amplitude transmission at scattering angles (x, y) in rad."""
        beyond = torch.sqrt((wx - self.centre[0]) ** 2 + (wy - self.centre[1]) ** 2) - self.radius
        if self.smoothness == 0:
            return (beyond <= 0).to(wx.dtype)
        return 0.5 - 0.5 * torch.tanh(math.pi * beyond / (self.radius * self.smoothness))


@dataclass(frozen=True)
class Lens:
    """All that turns an exit wave into image waves; every number may be a 0-d tensor to differentiate by."""

    energy: float  # eV
    aberrations: Mapping[str, complex | Tensor] = field(default_factory=dict)  # Å, keys of aberrations.TERMS
    focal_spread: Number = 0.0  # one standard deviation of focus, Å
    semi_convergence: Number = 0.0  # 1/e half angle of a Gaussian source, rad
    aperture: Aperture | None = None
    beam_tilt: tuple[Number, Number] = (0.0, 0.0)  # (x, y) of the incident beam against the axis, rad

    def __post_init__(self) -> None:
        """Raise `PlanError` for unknown aberrations, numbers that are none, or spreads out of range."""
        check_energy(self.energy)
        unknown = sorted(set(self.aberrations) - set(TERMS))
        if unknown:
            raise PlanError(f"unknown aberration {', '.join(unknown)}; known are {', '.join(TERMS)}")
        for name, value in self.aberrations.items():
            if not math.isfinite(abs(complex(_plain(value)))):
                raise PlanError(f"aberration {name} must be a finite length in Å, got {value}")
        spread, angle = float(_plain(self.focal_spread)), float(_plain(self.semi_convergence))
        if not 0 <= spread <= 1e4:
            raise PlanError(f"focal spread must be within 0 to 1000 nm, got {spread / 10:g} nm")
        if not 0 <= angle <= 0.1:
            raise PlanError(
                f"semi-convergence must be within 0 to 100 mrad, got {angle * 1e3:g} mrad; "
                "was it given in mrad instead of rad?"
            )
        tilts = [float(_plain(t)) for t in self.beam_tilt]
        if not all(abs(t) <= 0.2 for t in tilts):
            tilt = " and ".join(f"{t * 1e3:g}" for t in tilts)
            raise PlanError(f"beam tilt must be within 200 mrad, got {tilt} mrad; was it given in mrad?")


def check_aperture(grid: Grid, lens: Lens) -> None:
    """Raise `PlanError` where the sampling cuts off beams that the objective aperture lets through."""
    if lens.aperture is None:
        return
    edge = lens.aperture.radius * (1 + lens.aperture.smoothness) + math.hypot(*lens.aperture.centre)
    limit = grid.band_limit() * wavelength(lens.energy)
    if edge > limit:
        finest = wavelength(lens.energy) / (3 * edge)
        raise PlanError(
            f"the objective aperture passes up to {edge * 1e3:.1f} mrad, but pixels of "
            f"{max(grid.pixel):.4g} Å only carry {limit * 1e3:.1f} mrad; use at most {finest:.4g} Å, "
            "or leave the aperture out"
        )


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
