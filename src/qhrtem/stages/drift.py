"""Drift: how far the specimen moved from one frame to the next.

A crystal looks the same after any lattice translation, so the frames' own correlation has many peaks. The
last simulated image also knows where the crystal ends and how thick it is where; the misfit of the new frame
against it, moved, tells the translations apart by as much χ² as these differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from qhrtem.grid import fft2, ifft2
from qhrtem.model.forward import Field
from qhrtem.model.micrograph import Micrograph

Floats = NDArray[np.float64]
LIMIT_A = 6.0  # largest drift from frame to frame that is looked for
APART_A = 1.0  # minima nearer than this are one
MOST = 12  # minima that are compared
SHARE = 0.5  # of the limit: one standard deviation of the drift expected, along each axis


@dataclass(frozen=True)
class Drift:
    """A movement of the specimen in the frame of the image."""

    step_A: Floats  # (2,) y, x
    behind: float  # χ² units by which the next best movement is worse; inf where there is none


def find_drift(image: Tensor, micrograph: Micrograph, field: Field, limit: float = LIMIT_A) -> Drift:
    """Return the movement between a simulated image of the last frame and a new frame.

    image: image grid, vacuum = 1, margin included; limit: Å, at most what the margin holds. The misfit of the
    frame against the image moved, Σ (I - S)²/v over usable pixels, is laid out by correlation for whole
    pixels; its best minima are then sought between the pixels, where the image is as well known.
    """
    misfit = _Misfit(image, micrograph, field)
    pixel = field.detector_pixel
    reach = min(limit, min(field.pad) * pixel)
    cost = misfit.at_pixels()
    rows, cols = (np.fft.fftfreq(n, 1 / n).round() for n in cost.shape)
    distance = np.hypot(rows[:, None], cols[None, :]) * pixel
    cost = np.where(distance <= reach, cost, np.inf)
    lowest = ndimage.minimum_filter(cost, size=2 * max(round(APART_A / pixel / 2), 1) + 1, mode="wrap")
    places = np.argwhere((cost == lowest) & np.isfinite(cost))
    places = places[np.argsort(cost[tuple(places.T)])][:MOST]
    found = []
    for row, col in places:
        step, value = misfit.least(np.array([rows[row], cols[col]]))
        found.append((value + 2 * (float(np.hypot(*step)) * pixel / (SHARE * reach)) ** 2, step * pixel))
    found.sort(key=lambda f: f[0])
    best = found[0]
    others = [value for value, step in found[1:] if np.hypot(*(step - best[1])) > APART_A]
    return Drift(best[1], min(others, default=math.inf) - best[0])


class _Misfit:
    """Σ (I - S)²/v of a frame against an image moved by s pixels, a level between the two taken out.

    S is band-limited, so its correlations are known between the pixels too, by their Fourier series.
    """

    def __init__(self, image: Tensor, micrograph: Micrograph, field: Field) -> None:
        usable = micrograph.valid & np.isfinite(micrograph.intensity)
        self.pixels = float(usable.sum())
        mean = float(micrograph.intensity[usable].mean())
        weight = torch.as_tensor(field.embed(usable.astype(np.float64), 0.0))
        inside = np.where(usable, micrograph.intensity - mean, 0.0)
        measured = torch.as_tensor(field.embed(inside, 0.0))
        moved = image.cpu().double() - mean
        self.own = float((inside**2).sum())
        self.variance = float(micrograph.variance(np.ones(1))[0])
        shape = measured.shape
        self.terms = [
            fft2(a) * fft2(b).conj() for a, b in ((measured, moved), (weight, moved), (weight, moved**2))
        ]
        self.ky, self.kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape)

    def at_pixels(self) -> Floats:
        """Return the misfit for movements by whole pixels, in the order of a transform."""
        cross, level, square = (ifft2(t).real.numpy() for t in self.terms)
        return self._total(cross, level, square)

    def at(self, step: Floats) -> float:
        """Return the misfit for a movement (2,) in pixels."""
        y, x = (2j * math.pi * k * float(v) for k, v in zip((self.ky, self.kx), step, strict=True))
        phase = torch.exp(y)[:, None] * torch.exp(x)[None, :]
        cross, level, square = (float((t * phase).real.mean()) for t in self.terms)
        return float(self._total(np.array(cross), np.array(level), np.array(square)))

    def _total(self, cross: Floats, level: Floats, square: Floats) -> Floats:
        return np.asarray((self.own - 2 * cross + square - level**2 / self.pixels) / self.variance)

    def least(self, step: Floats) -> tuple[Floats, float]:
        """Return the minimum near a movement (2,) in pixels, by parabolas of shrinking width."""
        step = step.astype(float)
        value = self.at(step)
        for width in (0.5, 0.2, 0.05):
            for axis in (0, 1):
                away = width * np.eye(2)[axis]
                low, high = self.at(step - away), self.at(step + away)
                curvature = low - 2 * value + high
                if curvature > 0:
                    step = step + np.clip((low - high) / (2 * curvature), -2, 2) * away
                    value = self.at(step)
        return step, value


def moved_image(image: Tensor, field: Field, step: Floats) -> Tensor:
    """Return an image (image grid) moved by y, x in Å, by its Fourier transform; what leaves comes back."""
    ky, kx = field.image_grid.frequencies()
    phase = -2 * math.pi * (ky * float(step[0]) + kx * float(step[1]))
    turned = fft2(image.to(torch.float64)) * torch.polar(torch.ones_like(phase), phase).to(torch.complex128)
    return ifft2(turned).real.to(image.dtype)
