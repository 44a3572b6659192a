"""Projected phase of atoms at any sub-pixel position, exact up to the band limit.

Atoms are spread onto the grid with a smooth compact kernel whose Fourier transform is divided out again (a
non-uniform FFT of type 1), so shifting an atom by any part of a pixel shifts its Fourier series exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.grid import Beams, Grid, irfft2, rfft2
from qhrtem.physics.electron import gamma, wavelength
from qhrtem.physics.scattering import absorptive_form_factor, debye_waller, form_factor

# Width and shape of the "exponential of semicircle" kernel (Barnett, Magland, af Klinteberg, SIAM J. Sci.
# Comput. 41 (2019) C479): with frequencies used up to 2/3 of Nyquist, width 8 leaves errors of about 1e-6.
KERNEL_WIDTH = 8
KERNEL_SHAPE = 0.98 * math.pi * KERNEL_WIDTH * (1 - 1 / 3)


@dataclass(frozen=True)
class Species:
    """One kind of scatterer."""

    element: str
    b_iso: float  # Å²
    occupancy: float = 1.0


@dataclass(frozen=True)
class Thermal:
    """How thermal motion enters the coherent wave; numbers, or 0-d tensors to differentiate by."""

    b_scale: float | Tensor = 1.0  # multiplies every B
    absorption_scale: float | Tensor = 1.0  # multiplies the thermal-diffuse absorptive form factor
    proportional: float | Tensor = 0.0  # adds this fraction of the real part as imaginary part
    rigid: bool = False  # no damping and no absorption (frozen phonons)


def radial_frequency(grid: Grid, half: bool = False) -> Tensor:
    """Return |k| (1/Å) in FFT order; `half` keeps the non-negative k_x of a real transform."""
    ky, kx = grid.frequencies()
    if half:
        kx = torch.fft.rfftfreq(grid.shape[1], grid.pixel[1], dtype=torch.float64, device=grid.device)[
            None, :
        ]
    return torch.sqrt(ky**2 + kx**2)


def soft_band_limit(g: Tensor, grid: Beams) -> Tensor:
    """Return a radial taper that falls smoothly to zero at the band limit, so that potentials do not ring.

    With the potential itself limited, the transmission function needs no aperture of its own.
    """
    limit = grid.band_limit()
    return 0.5 * torch.special.erfc((g / limit - 0.94) / 0.025)


def nyquist_taper(g: Tensor, grid: Beams) -> Tensor:
    """Return Dr. Probe's taper ½ - ½ tanh(30(g/g_N - 0.9)), g_N the smaller Nyquist frequency.

    For rigid atoms, which scatter beyond the band limit: what the soft taper takes from them is missed.
    """
    return 0.5 - 0.5 * torch.tanh(30 * (g / (1.5 * grid.band_limit()) - 0.9))


TAPERS = {"soft": soft_band_limit, "nyquist": nyquist_taper}


def phase_factor(
    species: Species, g: Tensor, energy: float, thermal: Thermal, table: str = "lobato"
) -> Tensor:
    """Return the Fourier transform of an atom's complex phase σV (rad·Å²): λ(γ f_e exp(-Bg²/4) + i f').

    g: 1/Å, float64; energy: eV. Complex128; the imaginary part is positive and damps the wave.
    """
    elastic = gamma(energy) * form_factor(species.element, g, table)
    return thermal_phase_factor(elastic, species, g, energy, thermal, table)


def thermal_phase_factor(
    elastic: Tensor, species: Species, g: Tensor, energy: float, thermal: Thermal, table: str
) -> Tensor:
    """Return `phase_factor` from the rigid atom's γ f_e (Å) at g."""
    real, imag = elastic, torch.zeros_like(elastic)
    if not thermal.rigid:
        b = species.b_iso * thermal.b_scale
        real = real * debye_waller(g, b)
        if _counts(thermal.absorption_scale):
            absorbed = absorptive_form_factor(species.element, g, b, energy, table)
            imag = thermal.absorption_scale * absorbed
        if _counts(thermal.proportional):
            imag = imag + thermal.proportional * real
    return wavelength(energy) * species.occupancy * torch.complex(real, imag)


def _counts(value: float | Tensor) -> bool:
    """Return whether a factor differs from zero or its derivative is wanted."""
    return isinstance(value, Tensor) or value != 0


@lru_cache
def _kernel_transform_samples() -> tuple[np.ndarray, np.ndarray]:
    """Fourier transform of the kernel at 0..0.5 cycles per pixel, by Gauss–Legendre quadrature."""
    node, weight = np.polynomial.legendre.leggauss(64)
    value = np.exp(KERNEL_SHAPE * (np.sqrt(1 - node**2) - 1))
    f = np.linspace(0, 0.5, 2001)
    half = KERNEL_WIDTH / 2
    return f, half * (np.cos(2 * np.pi * f[:, None] * node * half) * value * weight).sum(1)


def _kernel_transform(n: int, half: bool, device: str) -> Tensor:
    f = np.abs(np.fft.rfftfreq(n) if half else np.fft.fftfreq(n))
    grid, value = _kernel_transform_samples()
    return torch.as_tensor(np.interp(f, grid, value), device=device)


def spread(position: Tensor, channel: Tensor, channels: int, weight: Tensor, grid: Grid) -> Tensor:
    """Return atoms spread onto the grid, shape (channels, rows, columns), in the grid's precision.

    position: (N, 2) y, x in Å; channel: (N,) integer target; weight: (N,). Differentiable in both.
    """
    rows, cols = grid.shape
    pixel = torch.tensor(grid.pixel, dtype=position.dtype, device=position.device)
    p = position / pixel
    base = torch.floor(p.detach() - KERNEL_WIDTH / 2).long() + 1
    step = torch.arange(KERNEL_WIDTH, device=position.device)
    z = (base[:, :, None] + step - p[:, :, None]) / (KERNEL_WIDTH / 2)  # (N, 2, W), within ±1
    value = torch.exp(KERNEL_SHAPE * (torch.sqrt(torch.clamp(1 - z**2, min=1e-12)) - 1))
    y = (base[:, 0, None] + step) % rows
    x = (base[:, 1, None] + step) % cols
    index = channel[:, None, None] * (rows * cols) + y[:, :, None] * cols + x[:, None, :]
    amount = (weight[:, None, None] * value[:, 0, :, None] * value[:, 1, None, :]).to(grid.dtype)
    out = torch.zeros(channels * rows * cols, dtype=grid.dtype, device=position.device)
    out.index_add_(0, index.reshape(-1), amount.reshape(-1))
    return out.reshape(channels, rows, cols)


class PhaseKernels:
    """Fourier-space phase kernels of all species on one grid, with the spreading kernel divided out."""

    def __init__(
        self,
        grid: Grid,
        species: Sequence[Species],
        energy: float,
        thermal: Thermal,
        table: str = "lobato",
        taper: str = "soft",
    ) -> None:
        """energy: eV; table: of `scattering.TABLES`; taper: of `TAPERS`."""
        self.grid = grid
        self.species = tuple(species)
        self.energy, self.table = energy, table
        self._g = radial_frequency(grid, half=True)
        spreading = (
            _kernel_transform(grid.shape[0], False, grid.device)[:, None]
            * _kernel_transform(grid.shape[1], True, grid.device)[None, :]
        )
        self._shape = TAPERS[taper](self._g, grid) / spreading / (grid.pixel[0] * grid.pixel[1])
        self._elastic = [gamma(energy) * form_factor(s.element, self._g, table) for s in self.species]
        self._move(thermal)

    def with_thermal(self, thermal: Thermal) -> PhaseKernels:
        """Return the kernels for other thermal motion; what does not depend on it is shared."""
        other = copy(self)
        other._move(thermal)
        return other

    def _move(self, thermal: Thermal) -> None:
        kernels = [
            thermal_phase_factor(f, s, self._g, self.energy, thermal, self.table)
            for f, s in zip(self._elastic, self.species, strict=True)
        ]
        parts = [(k.real * self._shape).to(self.grid.dtype) for k in kernels]
        self.real = torch.stack(parts)
        absorbs = any(k.requires_grad or bool((k.imag != 0).any()) for k in kernels)
        parts = [(k.imag * self._shape).to(self.grid.dtype) for k in kernels] if absorbs else []
        self.imag = torch.stack(parts) if absorbs else None

    def phases(
        self, position: Tensor, slice_index: Tensor, species_index: Tensor, weight: Tensor, slices: int
    ) -> Tensor:
        """Return the phase σV of each slice, (slices, rows, columns), complex where there is absorption.

        position: (N, 2) y, x in Å; slice_index, species_index: (N,); weight: (N,) occupancy factor.
        """
        if not bool(torch.isfinite(position).all()) or not bool(torch.isfinite(weight).all()):
            raise InputError("atom positions (Å) and occupancies must be finite numbers, got nan or infinity")
        if not len(position):  # transforms of nothing are refused
            dtype = self.grid.dtype if self.imag is None else self.grid.complex_dtype
            return torch.zeros((slices, *self.grid.shape), dtype=dtype, device=self.grid.device)
        n = len(self.species)
        used, channel = torch.unique(slice_index * n + species_index, return_inverse=True)
        density = rfft2(spread(position, channel, len(used), weight, self.grid))
        owner, kind = used // n, used % n
        shape = (slices, *density.shape[1:])
        lone = owner.tolist() == list(range(slices))  # every slice holds one species

        def synthesis(kernels: Tensor) -> Tensor:
            spectrum = density * kernels[kind]
            if not lone:
                total = torch.zeros(shape, dtype=density.dtype, device=density.device)
                spectrum = total.index_add_(0, owner, spectrum)
            return irfft2(spectrum, self.grid.shape)

        if self.imag is None:
            return synthesis(self.real)
        return torch.complex(synthesis(self.real), synthesis(self.imag))
