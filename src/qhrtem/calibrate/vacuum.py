"""The vacuum in an image: where it is, its level, and the noise that it shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
BLOCK = 12  # pixels; local statistics are taken over blocks of about this size
SMOOTH = 1.5  # pixels; one standard deviation of the smoothing that lets a lattice stand out of shot noise
FLAT = 1.9  # roughness over that of noise alone up to which an area counts as flat
SUM = 8  # pixels; edge of the squares whose sums show the noise at low frequencies
HIGH_PASS = 0.3  # cycles/pixel; beyond it a well-sampled lattice has nothing left
LEAST_SPREAD = 0.05  # relative spread of the local mean below which shot and readout noise look the same


@dataclass(frozen=True)
class Vacuum:
    """What an empty area of the image shows, in counts."""

    level: float  # mean
    level_sigma: float  # one standard deviation, uneven illumination included
    variance: float  # of a pixel
    low_frequency: (
        float  # variance per pixel of sums over squares: what the pixels' noise has in common shows
    )
    pixels: int

    @property
    def correlation(self) -> float:
        """Noise power at low frequencies over that of a pixel: 1 for independent pixels."""
        return self.low_frequency / self.variance

    @property
    def correlated(self) -> bool:
        """Whether neighbouring pixels share noise, by more than its own uncertainty allows."""
        sigma = math.sqrt(2 / max(self.pixels / SUM**2 - 1, 1.0))
        return self.correlation > 1 + max(3 * sigma, 0.25)


def local_roughness(counts: Floats, size: int = BLOCK) -> Floats:
    """Return the local standard deviation of the lightly smoothed image, [row, col], counts.

    Smoothing suppresses shot noise, so lattice contrast stands out against vacuum.
    """
    smooth = ndimage.gaussian_filter(counts, SMOOTH)
    mean = ndimage.uniform_filter(smooth, size)
    square = ndimage.uniform_filter(smooth**2, size)
    return np.asarray(np.sqrt(np.maximum(square - mean**2, 0)))


def find_vacuum(counts: Floats) -> Bools:
    """Return pixels that look like vacuum: a connected area whose roughness is that of noise alone.

    Empty (all False) when the image shows none.
    """
    rough = local_roughness(counts)
    noise = np.median(np.abs(counts - ndimage.gaussian_filter(counts, 1.0))) / 0.6745 / 0.92
    # White noise through the same smoothing leaves 1/(2σ√π) of its standard deviation.
    floor = noise / (2 * SMOOTH * np.sqrt(np.pi))
    flat = rough < FLAT * floor
    flat = ndimage.binary_opening(flat, iterations=3)
    label, n = ndimage.label(flat)
    nothing = np.zeros(counts.shape, dtype=bool)
    if n == 0:
        return nothing
    size = ndimage.sum_labels(flat, label, np.arange(1, n + 1))
    keep = label == 1 + int(np.argmax(size))
    keep = ndimage.binary_erosion(keep, iterations=BLOCK // 2, border_value=1)
    return keep if keep.sum() >= max(400, 0.005 * counts.size) else nothing


def measure_vacuum(counts: Floats, where: Bools) -> Vacuum:
    """Return level and noise of the pixels `where`, which look at vacuum and are usable."""
    values = counts[where]
    level = float(values.mean())
    rows, cols = (n // SUM * SUM for n in counts.shape)
    squares = where[:rows, :cols].reshape(rows // SUM, SUM, cols // SUM, SUM)
    whole = squares.all((1, 3))
    mean = counts[:rows, :cols].reshape(squares.shape).mean((1, 3))
    variance = _smooth_variance(counts, where)
    low = variance
    uneven = 0.0
    if whole.sum() >= 8:
        at = np.argwhere(whole).astype(float)
        design = np.column_stack([np.ones(len(at)), at - at.mean(0)])
        plane = np.linalg.lstsq(design, mean[whole], rcond=None)[0]
        left = mean[whole] - design @ plane
        low = float((left**2).sum() / max(len(left) - 3, 1) * SUM**2)
        uneven = float(np.std(design[:, 1:] @ plane[1:]))
    sigma = math.sqrt(max(low, variance) / len(values) + uneven**2)
    return Vacuum(level, sigma, variance, low, len(values))


def _smooth_variance(counts: Floats, where: Bools) -> float:
    """Variance of a pixel about its surroundings' level, uneven illumination taken out."""
    weight = ndimage.gaussian_filter(where.astype(float), BLOCK)
    slow = ndimage.gaussian_filter(np.where(where, counts, 0.0), BLOCK) / np.maximum(weight, 1e-6)
    return float(np.mean((counts - slow)[where] ** 2) / (1 - 1 / (4 * np.pi * BLOCK**2)))


def pixel_noise(counts: Floats, valid: Bools) -> float:
    """Return the variance of a pixel from differences of neighbours, where the image has no vacuum.

    It takes the pixels as independent and the lattice as well sampled.
    """
    d = counts[1:, 1:] - counts[1:, :-1] - counts[:-1, 1:] + counts[:-1, :-1]
    whole = valid[1:, 1:] & valid[1:, :-1] & valid[:-1, 1:] & valid[:-1, :-1]
    return float((np.median(np.abs(d[whole])) / 0.6745) ** 2 / 4)


@dataclass(frozen=True)
class Transfer:
    """Variance against mean: variance = slope · counts + intercept."""

    slope: float  # counts per electron
    slope_sigma: float
    intercept: float  # counts²: readout variance less slope · offset
    centre: float  # counts at which slope and variance are least correlated
    variance: float  # counts² there

    def offset(self, readout: float) -> float:
        """Return the counts at which only the readout noise (one standard deviation) would be left."""
        return self.centre - (self.variance - readout**2) / self.slope


def photon_transfer(counts: Floats, valid: Bools) -> Transfer | None:
    """Return how the noise rises with the local mean, or None where the image has too little contrast for it.

    The noise is what lies beyond `HIGH_PASS`, where a well-sampled lattice has nothing; its square in each
    pixel is regressed on the local mean. Pixels are taken as independent.
    """
    filled = np.where(valid, counts, ndimage.median_filter(counts, 5))
    fy = np.fft.fftfreq(counts.shape[0])[:, None]
    fx = np.fft.rfftfreq(counts.shape[1])[None, :]
    passed = np.hypot(fy, fx) > HIGH_PASS
    spectrum = np.fft.rfft2(filled)
    high = np.fft.irfft2(spectrum * passed, s=counts.shape)
    doubled = np.broadcast_to(np.where((fx == 0) | (fx == 0.5), 1.0, 2.0), passed.shape)
    share = float((passed * doubled).sum() / counts.size)
    # The variance at a pixel is that of its surroundings under the squared response of the filter, so its
    # mean is taken under it too; both are smoothed alike, lest a pixel's own noise move its mean.
    response = np.fft.rfft2(np.fft.irfft2(passed.astype(float), s=counts.shape) ** 2)
    mean = ndimage.gaussian_filter(np.fft.irfft2(spectrum * response, s=counts.shape) / share, SMOOTH)
    power = ndimage.gaussian_filter(high**2, SMOOTH) / share
    inner = ndimage.binary_erosion(valid, iterations=3, border_value=0)
    inner[:8], inner[-8:], inner[:, :8], inner[:, -8:] = False, False, False, False
    x, y = mean[inner], power[inner]
    if len(x) < 2000 or np.std(x) < LEAST_SPREAD * abs(float(np.mean(x))):
        return None
    edges = np.quantile(x, np.linspace(0, 1, 21))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, 19)
    many = np.bincount(place, minlength=20).astype(float)
    if many.min() < 20:
        return None
    bx = np.bincount(place, x, minlength=20) / many
    by = np.bincount(place, y, minlength=20) / many
    # The square of a normal number varies by √2 of itself; only a share of the pixels is independent.
    by_sigma = np.sqrt(2 / (many * share)) * by
    weight = 1 / by_sigma**2
    centre = float((weight * bx).sum() / weight.sum())
    spread = float((weight * (bx - centre) ** 2).sum())
    slope = float((weight * (bx - centre) * by).sum() / spread)
    middle = float((weight * by).sum() / weight.sum())
    if slope <= 0:
        return None
    left = (by - middle - slope * (bx - centre)) / by_sigma
    scatter = max(1.0, float((left**2).sum() / 18))
    return Transfer(slope, math.sqrt(scatter / spread), middle - slope * centre, centre, middle)
