"""What happens to the image between the lens and the file: vibration, modulation transfer, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qhrtem.grid import Grid, irfft2, rfft2


def half_frequencies(grid: Grid) -> tuple[Tensor, Tensor]:
    """Return k_y (rows, 1) and k_x (1, columns // 2 + 1) in 1/Å, the layout of a real transform."""
    ky, _ = grid.frequencies()
    kx = torch.fft.rfftfreq(grid.shape[1], grid.pixel[1], dtype=torch.float64, device=grid.device)[None, :]
    return ky, kx


def vibration_filter(grid: Grid, yy: float, xx: float, xy: float = 0.0) -> Tensor:
    """Return exp(-2π² kᵀΣk) for an image spread with covariance Σ (Å²), layout of a real transform."""
    ky, kx = half_frequencies(grid)
    return torch.exp(-2 * math.pi**2 * (yy * ky**2 + xx * kx**2 + 2 * xy * kx * ky))


def mtf_filter(grid: Grid, a: float, b: float) -> Tensor:
    """Return (1-a)/(1+(q/b)²)+a with q in cycles per detector pixel, layout of a real transform."""
    ky, kx = half_frequencies(grid)
    q2 = (ky * grid.pixel[0]) ** 2 + (kx * grid.pixel[1]) ** 2
    return (1 - a) / (1 + q2 / b**2) + a


def mtf_from_samples(grid: Grid, q: Tensor, value: Tensor) -> Tensor:
    """Return a tabulated MTF, linear between samples, the last held beyond; q in cycles per pixel."""
    ky, kx = half_frequencies(grid)
    radius = torch.sqrt((ky * grid.pixel[0]) ** 2 + (kx * grid.pixel[1]) ** 2)
    i = torch.clamp(torch.searchsorted(q, radius.contiguous()), 1, len(q) - 1)
    t = torch.clamp((radius - q[i - 1]) / (q[i] - q[i - 1]), 0, 1)
    return value[i - 1] + t * (value[i] - value[i - 1])


def pixel_sinc(grid: Grid) -> Tensor:
    """Return sinc(k_y d_y) sinc(k_x d_x), the response of square pixels; layout of a real transform."""
    ky, kx = half_frequencies(grid)
    return torch.sinc(ky * grid.pixel[0]) * torch.sinc(kx * grid.pixel[1])


def apply(image: Tensor, response: Tensor) -> Tensor:
    """Return images (..., rows, columns) filtered by a response in the layout of a real transform."""
    shape = (image.shape[-2], image.shape[-1])
    return irfft2(rfft2(image) * response, shape)


@dataclass(frozen=True)
class Resampling:
    """A window cut out of a periodic image on pixels of its own."""

    shape: tuple[int, int]  # (rows, columns)
    pitch: float  # Å, of both axes
    offset: tuple[float, float] = (0.0, 0.0)  # (x, y) of the first pixel, in pixels of the source
    rotation: float = 0.0  # rad, turns the content about the first pixel from +x towards +y

    def grid(self, source: Grid) -> Grid:
        """Return the grid of the window."""
        return replace(source, shape=self.shape, pixel=(self.pitch, self.pitch))


def bicubic(image: Tensor, grid: Grid, window: Resampling) -> Tensor:
    """Return the window of a periodic image (rows, columns) by cubic convolution with a = -½.

    Keys, IEEE Trans. Acoust. Speech Signal Process. 29 (1981) 1153.
    """
    y = torch.arange(window.shape[0], dtype=torch.float64, device=image.device)[:, None] * window.pitch
    x = torch.arange(window.shape[1], dtype=torch.float64, device=image.device)[None, :] * window.pitch
    c, s = math.cos(window.rotation), math.sin(window.rotation)
    col = window.offset[0] + (c * x + s * y) / grid.pixel[1]
    row = window.offset[1] + (c * y - s * x) / grid.pixel[0]
    out = torch.zeros(window.shape, dtype=image.dtype, device=image.device)
    for i in range(-1, 3):
        r = torch.floor(row) + i
        for j in range(-1, 3):
            q = torch.floor(col) + j
            value = image[r.long() % grid.shape[0], q.long() % grid.shape[1]]
            out = out + value * (_keys(row - r) * _keys(col - q)).to(image.dtype)
    return out


def _keys(t: Tensor) -> Tensor:
    """Return the cubic convolution kernel with a = -½ at distances t in pixels."""
    a = t.abs()
    inner, outer = (1.5 * a - 2.5) * a**2 + 1, ((-0.5 * a + 2.5) * a - 4) * a + 2
    return torch.where(a <= 1, inner, torch.where(a < 2, outer, torch.zeros_like(a)))


def add_noise(
    image: Tensor, electrons: float, gain: float, offset: float, readout: float, generator: torch.Generator
) -> Tensor:
    """Return detector counts: Poisson electrons at `electrons` per vacuum pixel, times gain, plus offset.

    readout: standard deviation of the readout noise, counts.
    """
    drawn = torch.poisson(torch.clamp(image.double(), min=0) * electrons, generator=generator)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return drawn * gain + offset + readout * noise
