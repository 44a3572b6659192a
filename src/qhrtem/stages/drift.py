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
SHARE = 0.5  # of the limit: one standard deviation of the drift expected, along each axis


@dataclass(frozen=True)
class Drift:
    """A movement of the specimen in the frame of the image."""

    step_A: Floats  # (2,) y, x
    behind: float  # χ² units by which the next best movement is worse; inf where there is none


def find_drift(image: Tensor, micrograph: Micrograph, field: Field, limit: float = LIMIT_A) -> Drift:
    """Return the movement between a simulated image of the last frame and a new frame.

    image: image grid, vacuum = 1, margin included; limit: Å, at most what the margin holds. The misfit of the
    frame against the image moved by whole pixels, Σ (I - S)²/v over usable pixels, by correlation; the best
    minimum is then interpolated. A level that differs between the two is taken out.
    """
    pixel = field.detector_pixel
    usable = micrograph.valid & np.isfinite(micrograph.intensity)
    intensity = np.where(usable, micrograph.intensity, 0.0)
    variance = float(micrograph.variance(np.ones(1))[0])
    mean = float(intensity[usable].mean())
    weight = torch.as_tensor(field.embed(usable.astype(np.float64), 0.0))
    measured = torch.as_tensor(field.embed(np.where(usable, intensity - mean, 0.0), 0.0))
    simulated = image.cpu().double() - mean
    pixels = float(usable.sum())

    def against(a: Tensor, b: Tensor) -> Floats:
        """Correlation Σ a(p)·b(p - s) as a function of s, on the image grid."""
        return np.asarray(ifft2(fft2(a) * fft2(b).conj()).real.numpy())

    level = against(weight, simulated) / pixels
    square = against(weight, simulated**2) - pixels * level**2
    cost = (float((measured**2).sum()) - 2 * against(measured, simulated) + square) / variance
    reach = min(limit, min(field.pad) * pixel)
    rows, cols = (np.fft.fftfreq(n, 1 / n).round() for n in cost.shape)
    distance = np.hypot(rows[:, None], cols[None, :]) * pixel
    cost = cost + 2 * (distance / (SHARE * reach)) ** 2
    cost = np.where(distance <= reach, cost, np.inf)
    lowest = ndimage.minimum_filter(cost, size=2 * max(round(APART_A / pixel / 2), 1) + 1, mode="wrap")
    places = np.argwhere((cost == lowest) & np.isfinite(cost))
    value = cost[tuple(places.T)]
    order = np.argsort(value)
    best = places[order[0]]
    behind = float(value[order[1]] - value[order[0]]) if len(order) > 1 else math.inf
    whole = np.array([rows[best[0]], cols[best[1]]])
    return Drift((whole + _vertex(cost, best)) * pixel, behind)


def _vertex(cost: Floats, place: NDArray[np.int64]) -> Floats:
    """Return how far (rows, cols) the vertex of a parabola through a minimum and its neighbours is off it."""
    out = np.zeros(2)
    for axis in (0, 1):
        step = np.eye(2, dtype=np.int64)[axis]
        low, middle, high = (float(cost[tuple((place + k * step) % cost.shape)]) for k in (-1, 0, 1))
        curvature = low - 2 * middle + high
        if math.isfinite(curvature) and curvature > 0:
            out[axis] = np.clip((low - high) / (2 * curvature), -0.5, 0.5)
    return out


def moved_image(image: Tensor, field: Field, step: Floats) -> Tensor:
    """Return an image (image grid) moved by y, x in Å, by its Fourier transform; what leaves comes back."""
    ky, kx = field.image_grid.frequencies()
    phase = -2 * math.pi * (ky * float(step[0]) + kx * float(step[1]))
    turned = fft2(image.to(torch.float64)) * torch.polar(torch.ones_like(phase), phase).to(torch.complex128)
    return ifft2(turned).real.to(image.dtype)
