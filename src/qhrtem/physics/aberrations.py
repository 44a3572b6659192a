"""The wave aberration of the objective lens and its gradient, to fifth order."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qhrtem.grid import Grid
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


def chi(
    grid: Grid, energy: float, coefficients: Mapping[str, complex], offset: tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Return the aberration phase χ (rad, float64) on the grid; coefficients in Å, keys of `TERMS`.

    offset: (x, y) in 1/Å added to k before evaluation (a tilted source or beam). The image wave is
    IFT[ψ(k)·exp(-iχ)]; C1 > 0 is overfocus.
    """
    ky, kx = grid.frequencies()
    kx, ky = kx + offset[0], ky + offset[1]
    lam = wavelength(energy)
    w = lam * torch.complex(kx + 0 * ky, ky + 0 * kx)
    total = torch.zeros(grid.shape, dtype=torch.float64, device=grid.device)
    for name, c in coefficients.items():
        if c != 0:
            weight, p, q = TERMS[name]
            total = total + weight * (complex(c) * w**p * w.conj() ** q).real
    return 2 * math.pi / lam * total


def chi_gradient(grid: Grid, energy: float, coefficients: Mapping[str, complex]) -> tuple[Tensor, Tensor]:
    """Return (∂χ/∂θ_y, ∂χ/∂θ_x)/(2π/λ) in Å: the beam displacement at each scattering angle, float64."""
    ky, kx = grid.frequencies()
    lam = wavelength(energy)
    w = lam * torch.complex(kx + 0 * ky, ky + 0 * kx)
    gx = torch.zeros(grid.shape, dtype=torch.float64, device=grid.device)
    gy = torch.zeros_like(gx)
    for name, c in coefficients.items():
        if c == 0:
            continue
        weight, p, q = TERMS[name]
        # d/dx: dw = dw̄ = 1; d/dy: dw = i, dw̄ = -i.
        a = p * w ** max(p - 1, 0) * w.conj() ** q if p else torch.zeros_like(w)
        b = q * w**p * w.conj() ** max(q - 1, 0) if q else torch.zeros_like(w)
        gx = gx + weight * (complex(c) * (a + b)).real
        gy = gy + weight * (complex(c) * 1j * (a - b)).real
    return gy, gx


def delocalisation(energy: float, coefficients: Mapping[str, complex], resolution: float = 1.0) -> float:
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
