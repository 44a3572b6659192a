"""Multislice: a wave through a stack of thin phase gratings (Cowley and Moodie 1957)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.electron import wavelength
from qhrtem.physics.potential import radial_frequency


def propagator(
    grid: Grid, thickness: float, energy: float, mistilt: tuple[float, float] | Tensor = (0.0, 0.0)
) -> Tensor:
    """Return the Fresnel propagator exp(-iπλΔz k² + 2πiΔz k·tan t), band limited.

    thickness: Δz in Å; energy: eV; mistilt: (x, y) in rad. In the frame that moves with the tilted columns,
    so slices stay identical; the same as displacing atoms at depth z by +z·tan t. Shape of the grid, complex.
    """
    ky, kx = grid.frequencies()
    t = torch.as_tensor(mistilt, dtype=torch.float64, device=grid.device)
    phase = -math.pi * wavelength(energy) * thickness * (kx**2 + ky**2)
    phase = phase + 2 * math.pi * thickness * (kx * torch.tan(t[0]) + ky * torch.tan(t[1]))
    keep = radial_frequency(grid) <= grid.band_limit()
    return (torch.polar(torch.ones_like(phase), phase) * keep).to(grid.complex_dtype)


def transmission(phase: Tensor) -> Tensor:
    """Return exp(i·phase); a positive imaginary part of the phase damps the wave."""
    return torch.exp(1j * phase)


def transmit_propagate(wave: Tensor, grating: Tensor, step: Tensor) -> Tensor:
    """Return the wave after one slice: transmit by `grating`, then propagate by `step` (Fourier space)."""
    return ifft2(fft2(wave * grating) * step)


def exit_wave(gratings: Tensor, order: Sequence[int], step: Tensor, wave: Tensor | None = None) -> Tensor:
    """Return the wave behind the stack.

    gratings: (U, rows, columns) distinct transmission functions; order: which one each slice uses;
    step: propagator of one slice; wave: incident wave, default the unit plane wave.
    """
    psi = torch.ones_like(gratings[0]) if wave is None else wave
    for u in order:
        psi = transmit_propagate(psi, gratings[u], step)
    return psi


def all_waves(gratings: Tensor, order: Sequence[int], step: Tensor) -> Tensor:
    """Return the waves in front of every slice and behind the last, shape (slices + 1, rows, columns)."""
    out = torch.empty((len(order) + 1, *gratings.shape[1:]), dtype=gratings.dtype, device=gratings.device)
    out[0] = 1
    for j, u in enumerate(order):
        out[j + 1] = transmit_propagate(out[j], gratings[u], step)
    return out
