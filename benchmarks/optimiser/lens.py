"""A lens that is quick to change: aberrations enter through precomputed basis phases.

The physics is `qhrtem.physics.coherence.focal_transfer`; χ and its gradient are linear in the coefficients,
so one evaluation is a matrix product and the complex exponentials, taken inside the band limit alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from qhrtem.grid import Grid, ifft2, irfft2, resample_half, rfft2
from qhrtem.physics.aberrations import ROUND, chi, chi_gradient
from qhrtem.physics.coherence import equidistant
from qhrtem.physics.detector import vibration_filter
from qhrtem.physics.electron import wavelength

NAMES = ("C1", "A1", "B2", "A2", "C3", "S3", "A3", "C5")


class Lens:
    """Transfer functions of one grid for any aberrations of `NAMES`."""

    def __init__(self, grid: Grid, energy: float, foci: int = 7) -> None:
        self.grid, self.energy, self.foci = grid, energy, foci
        ky, kx = grid.frequencies()
        k2 = (ky**2 + kx**2).reshape(-1)
        self.inside = torch.nonzero(k2 <= grid.band_limit() ** 2).ravel()
        self.keys = [(n, unit) for n in NAMES for unit in ((1.0,) if n in ROUND else (1.0, 1j))]
        phase = [chi(grid, energy, {n: u}).reshape(-1)[self.inside] for n, u in self.keys]
        slope = [
            torch.stack(chi_gradient(grid, energy, {n: u})).reshape(2, -1)[:, self.inside]
            for n, u in self.keys
        ]
        self.phase, self.slope = torch.stack(phase), torch.stack(slope, dim=1)  # (K, P), (2, K, P)
        self.k2 = k2[self.inside]
        both = (ky + 0 * kx).reshape(-1), (kx + 0 * ky).reshape(-1)
        self.k = torch.stack([b[self.inside] for b in both])
        self._held: tuple[object, tuple[Tensor, Tensor]] | None = None

    def transfer(
        self, aberrations: Mapping[str, complex], focal_spread: float, semi_convergence: float
    ) -> tuple[Tensor, Tensor]:
        """Return transfer functions (F, rows, columns) and weights (F,); Å, one σ; rad, 1/e half angle."""
        asked = (tuple(sorted(aberrations.items())), focal_spread, semi_convergence)
        if self._held is None or self._held[0] != asked:
            self._held = asked, self._transfer(aberrations, focal_spread, semi_convergence)
        return self._held[1]

    def _transfer(
        self, aberrations: Mapping[str, complex], focal_spread: float, semi_convergence: float
    ) -> tuple[Tensor, Tensor]:
        lam = wavelength(self.energy)
        value = torch.tensor(
            [complex(aberrations.get(n, 0)).imag if u == 1j else complex(aberrations.get(n, 0)).real
             for n, u in self.keys],
            dtype=torch.float64,
        )  # fmt: skip
        base = value @ self.phase
        gradient = torch.einsum("k,ckp->cp", value, self.slope)
        rule = equidistant(self.foci)
        f = torch.as_tensor(rule.offset * focal_spread)[:, None]
        phase = (base + math.pi * lam * f * self.k2).float()
        # |∇χ + fλk|² without forming it at every focus.
        slope2 = (gradient**2).sum(0) + 2 * lam * f * (gradient * self.k).sum(0) + (lam * f) ** 2 * self.k2
        envelope = torch.exp(-((semi_convergence * math.pi / lam) ** 2) * slope2.float())
        out = torch.zeros((len(f), self.grid.shape[0] * self.grid.shape[1]), dtype=torch.complex64)
        out[:, self.inside] = torch.polar(envelope, -phase)
        return out.reshape(-1, *self.grid.shape), torch.as_tensor(rule.weight, dtype=torch.float32)


def coherent_sum(waves: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w |wave|² over the first axis of waves (F, rows, columns)."""
    return torch.einsum("f,fyx->yx", weights, waves.real**2 + waves.imag**2)


def intensity(spectrum: Tensor, transfer: Tensor, weights: Tensor) -> Tensor:
    """Return the partially coherent image (rows, columns) of an exit-wave spectrum."""
    return coherent_sum(ifft2(spectrum * transfer), weights)


def vibration_response(grid: Grid, vibration: tuple[float, float, float]) -> Tensor:
    """Return the filter of an image spread: rms (Å) along two axes, the first `angle` degrees from +x."""
    first, second, angle = vibration
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    a, b = first**2, second**2
    return vibration_filter(
        grid, a * s * s + b * c * c, a * c * c + b * s * s, (a - b) * s * c
    ).to(torch.complex64)  # fmt: skip


def detect(sharp: Tensor, response: Tensor, target: tuple[int, int]) -> Tensor:
    """Return intensities (..., rows, columns) filtered and on `target` pixels of the same extent."""
    source = (sharp.shape[-2], sharp.shape[-1])
    half = rfft2(sharp)
    if source != target:
        half = resample_half(half, source, target)
    return irfft2(half * response, target)


def resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a periodic band-limited image on another sampling of the same extent."""
    source = (image.shape[0], image.shape[1])
    half = resample_half(rfft2(torch.as_tensor(image, dtype=torch.float64)), source, shape)
    return np.asarray(irfft2(half, shape))
