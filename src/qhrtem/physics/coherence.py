"""Partial coherence: focus and source distributions as incoherent sums of coherent images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhrtem.grid import Grid, ifft2
from qhrtem.physics.aberrations import chi, chi_gradient
from qhrtem.physics.electron import wavelength


@dataclass(frozen=True)
class Transfer:
    """A set of coherent transfer functions and their weights (sum one)."""

    functions: Tensor  # (F, rows, columns), complex, FFT order
    weights: Tensor  # (F,)


def gauss_hermite(sigma: float, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights (sum one) of a normal distribution with standard deviation `sigma`."""
    if sigma == 0 or nodes == 1:
        return np.zeros(1), np.ones(1)
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    return sigma * x, w / w.sum()


def focal_transfer(
    grid: Grid,
    energy: float,
    coefficients: Mapping[str, complex],
    focal_spread: float,
    semi_convergence: float,
    nodes: int = 7,
) -> Transfer:
    """Return transfer functions over the focus distribution, each with its source envelope.

    coefficients: Å, keys of `aberrations.TERMS`; focal_spread: one standard deviation, Å; semi_convergence:
    1/e half angle of a Gaussian source, rad. Temporal coherence is exact up to the quadrature; the source
    enters by exp(-(α/2)²|∇χ|²) at each focus (Frank 1973), which includes the cross term between both.
    """
    ky, kx = grid.frequencies()
    k2 = kx**2 + ky**2
    base = chi(grid, energy, coefficients)
    gy, gx = chi_gradient(grid, energy, coefficients)
    lam = wavelength(energy)
    focus, weight = gauss_hermite(focal_spread, nodes)
    out = []
    for f in focus:
        phase = base + math.pi * lam * f * k2
        slope2 = (gy + f * lam * ky) ** 2 + (gx + f * lam * kx) ** 2
        envelope = torch.exp(-((semi_convergence * math.pi / lam) ** 2) * slope2)
        out.append(torch.polar(envelope, -phase).to(grid.complex_dtype))
    return Transfer(torch.stack(out), torch.as_tensor(weight, dtype=grid.dtype, device=grid.device))


def source_transfer(
    grid: Grid,
    energy: float,
    coefficients: Mapping[str, complex],
    focal_spread: float,
    semi_convergence: float,
    nodes: int = 7,
    source_nodes: int = 3,
) -> Transfer:
    """Return transfer functions over focus and source angle, both summed (exact up to the quadrature).

    Each source angle θ evaluates χ(w + θ), whose linear part at w = 0 shifts the image; symbols as in
    `focal_transfer`. A Gaussian with 1/e half angle α has the standard deviation α/√2.
    """
    lam = wavelength(energy)
    theta, tw = gauss_hermite(semi_convergence / math.sqrt(2), source_nodes)
    focus, fw = gauss_hermite(focal_spread, nodes)
    functions, weights = [], []
    for ty, wy in zip(theta, tw, strict=True):
        for tx, wx in zip(theta, tw, strict=True):
            for f, wf in zip(focus, fw, strict=True):
                shifted = dict(coefficients)
                shifted["C1"] = coefficients.get("C1", 0) + f
                phase = chi(grid, energy, shifted, (tx / lam, ty / lam))
                functions.append(torch.polar(torch.ones_like(phase), -phase).to(grid.complex_dtype))
                weights.append(wy * wx * wf)
    return Transfer(
        torch.stack(functions), torch.as_tensor(np.array(weights), dtype=grid.dtype, device=grid.device)
    )


def image_waves(spectrum: Tensor, transfer: Transfer) -> Tensor:
    """Return the coherent image waves (F, rows, columns) of an exit-wave spectrum (rows, columns)."""
    return ifft2(spectrum * transfer.functions)


def intensity(spectrum: Tensor, transfer: Transfer) -> Tensor:
    """Return the partially coherent image (rows, columns), vacuum = 1, of an exit-wave spectrum."""
    total = torch.zeros(spectrum.shape[-2:], dtype=transfer.weights.dtype, device=spectrum.device)
    for function, weight in zip(transfer.functions, transfer.weights, strict=True):
        wave = ifft2(spectrum * function)
        total = total + weight * (wave.real**2 + wave.imag**2)
    return total
