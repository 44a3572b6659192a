"""Grid: the sampling of a field, its spatial frequencies, and the only FFT calls of the package."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Beams(Protocol):
    """Where spectra are sampled, as much as propagators, aberrations and tapers need of it."""

    @property
    @abstractmethod
    def device(self) -> str:
        """Device of all tensors."""

    @property
    @abstractmethod
    def complex_dtype(self) -> torch.dtype:
        """Type of waves."""

    @abstractmethod
    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return k_y and k_x, 1/Å, in FFT order; together of the shape of a wave."""

    @abstractmethod
    def band_limit(self) -> float:
        """Return the circular band limit in 1/Å."""

    def in_band(self) -> Tensor:
        """Return which frequencies (rows, columns) lie within the circular band limit."""
        ky, kx = self.frequencies()
        return kx**2 + ky**2 <= self.band_limit() ** 2


@dataclass(frozen=True)
class Grid(Beams):
    """A periodic rectangular sampling of the plane normal to the beam."""

    shape: tuple[int, int]  # (rows, columns)
    pixel: tuple[float, float]  # Å, pitch along (row, column)
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # real dtype; waves are the matching complex dtype

    @property
    def complex_dtype(self) -> torch.dtype:
        """Complex dtype that matches the real dtype."""
        return torch.complex64 if self.dtype == torch.float32 else torch.complex128

    @property
    def extent(self) -> tuple[float, float]:
        """Edge lengths (y, x) in Å."""
        return self.shape[0] * self.pixel[0], self.shape[1] * self.pixel[1]

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return k_y of shape (rows, 1) and k_x of shape (1, columns), 1/Å, in FFT order."""
        ky = torch.fft.fftfreq(self.shape[0], self.pixel[0], dtype=torch.float64, device=self.device)
        kx = torch.fft.fftfreq(self.shape[1], self.pixel[1], dtype=torch.float64, device=self.device)
        return ky[:, None], kx[None, :]

    def band_limit(self) -> float:
        """Return the circular band limit in 1/Å: two thirds of the smaller Nyquist frequency.

        A hair more, so that rounding does not decide over beams that lie on the circle: they are kept.
        """
        return min(1 / (2 * self.pixel[0]), 1 / (2 * self.pixel[1])) * 2 / 3 * (1 + 1e-6)

    def window(self, size: int) -> Grid:
        """Return a square grid of `size` pixels with the same pitch."""
        return Grid((size, size), self.pixel, self.device, self.dtype)


def fft2(a: Tensor) -> Tensor:
    """Return the unnormalised forward transform over the last two axes."""
    return torch.fft.fft2(a)


def ifft2(a: Tensor) -> Tensor:
    """Return the inverse transform (1/N) over the last two axes."""
    return torch.fft.ifft2(a)


def rfft2(a: Tensor) -> Tensor:
    """Return the unnormalised forward transform of a real field over the last two axes."""
    return torch.fft.rfft2(a)


def irfft2(a: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the real inverse transform (1/N) over the last two axes."""
    return torch.fft.irfft2(a, s=shape)


def resample_half(spectrum: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return the half spectrum of a real field moved to another sampling of the same extent.

    spectrum: (..., source rows, source columns // 2 + 1). Frequencies beyond either Nyquist limit are
    dropped, which is exact for band-limited fields; values keep their scale under `irfft2`.
    """
    rows = min(source[0], target[0]) // 2
    cols = min(source[1], target[1]) // 2
    out = torch.zeros(
        (*spectrum.shape[:-2], target[0], target[1] // 2 + 1), dtype=spectrum.dtype, device=spectrum.device
    )
    out[..., :rows, :cols] = spectrum[..., :rows, :cols]
    out[..., 1 - rows :, :cols] = spectrum[..., 1 - rows :, :cols]
    return out * (target[0] * target[1] / (source[0] * source[1]))


def is_smooth(n: int) -> bool:
    """Return whether n has no prime factor above 5, so that its FFT is fast."""
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def good_size(n: int) -> int:
    """Return the smallest even 5-smooth integer >= n."""
    size = n + n % 2
    while not is_smooth(size):
        size += 2
    return size
