"""The wave aberration of the objective lens and its gradient, to fifth order."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qhrtem.errors import PlanError
from qhrtem.grid import Beams
from qhrtem.physics.electron import wavelength

# name: (weight, power of w, power of conjugate w); χ = (2π/λ) Re Σ weight·coefficient·w^p·w̄^q
# (Uhlemann and Haider 1998, notation of the CEOS correctors).
TERMS: dict[str, tuple[float, int, int]] = {
    "C1": (1 / 2, 1, 1),
    "A1": (1 / 2, 0, 2),
    "B2": (1.0, 2, 1),
    "A2": (1 / 3, 0, 3),
    "C3": (1 / 4, 2, 2),
    "S3": (1.0, 3, 1),
    "A3": (1 / 4, 0, 4),
    "B4": (1.0, 3, 2),
    "D4": (1.0, 4, 1),
    "A4": (1 / 5, 0, 5),
    "C5": (1 / 6, 3, 3),
    "S5": (1.0, 4, 2),
    "R5": (1.0, 5, 1),
    "A5": (1 / 6, 0, 6),
}
ROUND = ("C1", "C3", "C5")  # real coefficients

# Krivanek C_{n,m} = factor × coefficient here (Krivanek, Dellby and Lupini 1999).
KRIVANEK: dict[str, tuple[str, float]] = {
    "C1": ("C10", 1),
    "A1": ("C12", 1),
    "B2": ("C21", 3),
    "A2": ("C23", 1),
    "C3": ("C30", 1),
    "S3": ("C32", 4),
    "A3": ("C34", 1),
    "B4": ("C41", 5),
    "D4": ("C43", 5),
    "A4": ("C45", 1),
    "C5": ("C50", 1),
    "S5": ("C52", 6),
    "R5": ("C54", 6),
    "A5": ("C56", 1),
}


class _Monomials:
    """Real and imaginary parts of w^p w̄^q over a set of scattering angles, each computed once."""

    def __init__(self, wx: Tensor, wy: Tensor) -> None:
        self._powers: list[tuple[Tensor, Tensor]] = [(torch.ones_like(wx), torch.zeros_like(wx)), (wx, wy)]
        self._squares = [self._powers[0][0], wx**2 + wy**2]

    def __call__(self, p: int, q: int) -> tuple[Tensor, Tensor]:
        wx, wy = self._powers[1]
        while len(self._powers) <= abs(p - q):
            x, y = self._powers[-1]
            self._powers.append((x * wx - y * wy, x * wy + y * wx))
        while len(self._squares) <= min(p, q):
            self._squares.append(self._squares[-1] * self._squares[1])
        (x, y), r = self._powers[abs(p - q)], self._squares[min(p, q)]
        return x * r, (y if p >= q else -y) * r


def _parts(name: str, value: complex | Tensor) -> tuple[float | Tensor, float | Tensor] | None:
    """Return real and imaginary part of a coefficient, None for a plain zero (which costs nothing)."""
    if isinstance(value, Tensor):
        return (value.real, value.imag) if value.is_complex() else (value, 0.0)
    value = complex(value)
    if name in ROUND and value.imag != 0:
        raise PlanError(f"{name} is a round aberration and must be real, got {value:g}; it has no direction")
    return (value.real, value.imag) if value != 0 else None


def chi_at(kx: Tensor, ky: Tensor, energy: float, coefficients: Mapping[str, complex | Tensor]) -> Tensor:
    """Return the aberration phase χ (rad) at spatial frequencies kx, ky (1/Å, float64, any equal shape).

    coefficients: Å, keys of `TERMS`, numbers or 0-d tensors (complex where not round); differentiable in them
    and in kx, ky. energy: eV.
    """
    lam = wavelength(energy)
    monomial = _Monomials(lam * kx, lam * ky)
    total = torch.zeros_like(kx)
    for name, value in coefficients.items():
        weight, p, q = TERMS[name]
        parts = _parts(name, value)
        if parts is not None:
            x, y = monomial(p, q)
            total = total + weight * (parts[0] * x - parts[1] * y)
    return 2 * math.pi / lam * total


def slope_at(
    kx: Tensor, ky: Tensor, energy: float, coefficients: Mapping[str, complex | Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (∂χ/∂θ_y, ∂χ/∂θ_x)/(2π/λ) in Å at spatial frequencies; arguments as in `chi_at`."""
    lam = wavelength(energy)
    monomial = _Monomials(lam * kx, lam * ky)
    gx, gy = torch.zeros_like(kx), torch.zeros_like(kx)
    for name, value in coefficients.items():
        weight, p, q = TERMS[name]
        parts = _parts(name, value)
        if parts is None:
            continue
        re, im = parts
        # ∂w/∂x = ∂w̄/∂x = 1; ∂w/∂y = i, ∂w̄/∂y = -i.
        ax, ay = monomial(p - 1, q) if p else (torch.zeros_like(kx), torch.zeros_like(kx))
        bx, by = monomial(p, q - 1) if q else (torch.zeros_like(kx), torch.zeros_like(kx))
        sx, sy, dx, dy = p * ax + q * bx, p * ay + q * by, p * ax - q * bx, p * ay - q * by
        gx = gx + weight * (re * sx - im * sy)
        gy = gy - weight * (re * dy + im * dx)
    return gy, gx


def chi(
    grid: Beams,
    energy: float,
    coefficients: Mapping[str, complex | Tensor],
    offset: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    """Return the aberration phase χ (rad, float64) on the grid; coefficients in Å, keys of `TERMS`.

    offset: (x, y) in 1/Å added to k before evaluation (a tilted source or beam). The image wave is
    IFT[ψ(k)·exp(-iχ)]; C1 > 0 is overfocus.
    """
    ky, kx = torch.broadcast_tensors(*grid.frequencies())
    return chi_at(kx + offset[0], ky + offset[1], energy, coefficients)


def chi_gradient(
    grid: Beams, energy: float, coefficients: Mapping[str, complex | Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (∂χ/∂θ_y, ∂χ/∂θ_x)/(2π/λ) in Å: the beam displacement at each scattering angle, float64."""
    ky, kx = torch.broadcast_tensors(*grid.frequencies())
    return slope_at(kx, ky, energy, coefficients)


def delocalisation(
    energy: float, coefficients: Mapping[str, complex | Tensor], resolution: float = 1.0
) -> float:
    """Return the farthest that the lens carries detail in Å: the largest |∇χ|/2π up to 1/resolution.

    energy: eV; coefficients: Å; resolution: finest spacing considered, Å.
    """
    lam = wavelength(energy)
    farthest = 0.0
    for k in (0.25, 0.5, 0.7, 0.85, 1.0):
        for n in range(16):
            w = lam * k / resolution * cmath.exp(2j * math.pi * n / 16)
            gradient = 0j
            for name, c in coefficients.items():
                weight, p, q = TERMS[name]
                value = complex(c)
                along = p * w ** (p - 1) * w.conjugate() ** q if p else 0
                across = q * w**p * w.conjugate() ** (q - 1) if q else 0
                slope_x, slope_y = (value * (along + across)).real, (value * 1j * (along - across)).real
                gradient += weight * complex(slope_x, slope_y)
            farthest = max(farthest, abs(gradient))
    return farthest


def to_krivanek(name: str, value: complex) -> tuple[str, float, float]:
    """Return (C_nm name, C_nm,a, C_nm,b) in cartesian Krivanek notation for a coefficient of `TERMS`.

    χ holds Re{c·w^p w̄^q}; Krivanek's holds C_a cos(mφ) + C_b sin(mφ), φ the azimuth of w.
    """
    label, factor = KRIVANEK[name]
    _, p, q = TERMS[name]
    value = complex(value)
    return label, factor * value.real, factor * (value.imag if q > p else -value.imag)
