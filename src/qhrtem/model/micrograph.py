"""Micrograph: a measured image on the absolute scale where vacuum is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RawImage:
    """An image as its file holds it, with what the file says about it."""

    counts: NDArray[np.float64]  # [row, col], detector counts
    path: str  # where it came from, for messages and provenance
    pixel_size_A: tuple[float, float] | None = None  # (row, col) pitch stated by the file
    metadata: dict[str, str] | None = None  # flat, as stated by the file; never trusted
    usable: NDArray[np.bool_] | None = None  # [row, col], False where the user rules a pixel out
    also: tuple[RawImage, ...] = ()  # further images of the same area, to be fitted together with this one


@dataclass(frozen=True)
class Micrograph:
    """A normalised image: intensity relative to vacuum, its variance model and its usable pixels."""

    intensity: NDArray[np.float64]  # [row, col], vacuum = 1
    valid: NDArray[np.bool_]  # [row, col], False where a pixel must not be used
    pixel_size_A: float  # nominal pitch, a prior until the lattice is registered
    electrons_per_pixel: float  # vacuum electrons in one pixel (shot-noise variance = intensity / this)
    readout_variance: float  # variance at zero intensity, units of vacuum²
    scale_sigma: float  # relative standard deviation of the vacuum level
    notes: tuple[str, ...] = ()  # what was assumed
    vacuum: NDArray[np.bool_] | None = None  # [row, col], where vacuum was found; all False where none was
    gain: float = math.nan  # counts per electron
    gain_sigma: float = math.nan  # one standard deviation, 0 where it was given
    noise_correlation: float = math.nan  # noise power at low frequencies over that of a pixel; 1 = white
    transfer: tuple[float, float] | None = None  # (a, b) of the noise's transfer where it stands for the MTF
    offset_sigma: float = (
        0.0  # of the detector's offset, share of the vacuum level: (I - 1) is off by as much
    )

    def variance(self, intensity: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pixel variance (vacuum²) expected at a model intensity (vacuum = 1)."""
        return np.maximum(intensity, 0.02) / self.electrons_per_pixel + self.readout_variance
