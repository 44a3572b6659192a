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
CALM, CALMEST = 2.5, 5.0  # roughness over its CALMEST-th percentile up to which an area is as calm as vacuum
SPECTRUM_EDGE, FEWEST_SQUARES = 24, 4  # pixels; of squares whose spectra are averaged, and their least number
MOST_SQUARES = 4000
LOWEST_RING = 3  # 1/edge; below it the window spreads what was taken off
SPOT = 6.0  # standard deviations of the mean power from which a frequency is no noise
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
    found = _largest(rough < FLAT * floor)
    if found.any() and not measure_vacuum(counts, found).correlated:
        return found
    # A camera that spreads each electron leaves more in the smoothed image than independent pixels do. Then
    # the calmest area is vacuum, if its spectrum shows noise and no lattice.
    calm = _largest(rough < CALM * np.percentile(rough, CALMEST))
    return calm if calm.sum() > found.sum() and _featureless(counts, calm) else found


def _largest(flat: Bools) -> Bools:
    """Return the largest connected part of a mask, its rim left out; empty where it is too small."""
    flat = ndimage.binary_opening(flat, iterations=3)
    label, n = ndimage.label(flat)
    nothing = np.zeros(flat.shape, dtype=bool)
    if n == 0:
        return nothing
    size = ndimage.sum_labels(flat, label, np.arange(1, n + 1))
    keep = label == 1 + int(np.argmax(size))
    keep = ndimage.binary_erosion(keep, iterations=BLOCK // 2, border_value=1)
    return keep if keep.sum() >= max(400, 0.005 * flat.size) else nothing


def _featureless(counts: Floats, where: Bools) -> bool:
    """Whether the mean spectrum of an area falls smoothly with frequency, as that of noise does."""
    corners = squares(where, SPECTRUM_EDGE, SPECTRUM_EDGE // 4)
    many = covered(corners, SPECTRUM_EDGE, where.shape).sum() / SPECTRUM_EDGE**2
    if many < FEWEST_SQUARES:
        return False
    power, ring = mean_spectrum(counts, corners, SPECTRUM_EDGE)
    known = range(LOWEST_RING, SPECTRUM_EDGE // 2 + 1)
    rings = [power[ring == n] for n in known]
    # Without any noise there is nothing to compare with.
    return all(0 < r.mean() and r.max() < (1 + SPOT / math.sqrt(many)) * r.mean() for r in rings)


def squares(where: Bools, edge: int, step: int) -> NDArray[np.int64]:
    """Return corners (M, 2) row, col of squares on a raster that hold nothing but the pixels asked for."""
    table = np.zeros((where.shape[0] + 1, where.shape[1] + 1), dtype=np.int64)
    table[1:, 1:] = np.cumsum(np.cumsum(where, axis=0), axis=1)
    held = table[edge:, edge:] - table[:-edge, edge:] - table[edge:, :-edge] + table[:-edge, :-edge]
    raster = np.zeros(held.shape, dtype=bool)
    raster[::step, ::step] = True
    found = np.argwhere((held == edge**2) & raster)
    if len(found) > MOST_SQUARES:
        found = found[(found % (edge // 2) == 0).all(1)]
    return found[:: max(1, len(found) // MOST_SQUARES)]


def covered(corners: NDArray[np.int64], edge: int, shape: tuple[int, ...]) -> Bools:
    """Return the pixels that lie in one of the squares."""
    out = np.zeros(shape, dtype=bool)
    for r, c in corners:
        out[r : r + edge, c : c + edge] = True
    return out


def mean_spectrum(counts: Floats, corners: NDArray[np.int64], edge: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return mean power (edge, edge) over squares, and the ring, in 1/edge cycles/pixel, each belongs to.

    A plane is taken off each square first; the power of white noise is the variance of a pixel.
    """
    window = np.hanning(edge + 2)[1:-1]
    window = window[:, None] * window[None, :]
    t = np.arange(edge) - (edge - 1) / 2
    norm = 1 / (edge * (t**2).sum())
    total = np.zeros((edge, edge))
    for r, c in corners:
        square = counts[r : r + edge, c : c + edge]
        square = square - square.mean()
        slopes = norm * (square.sum(1) @ t), norm * (square.sum(0) @ t)
        square = square - slopes[0] * t[:, None] - slopes[1] * t[None, :]
        total += np.abs(np.fft.fft2(square * window)) ** 2
    f = np.fft.fftfreq(edge)
    ring = np.round(np.hypot(f[:, None], f[None, :]) * edge).astype(np.int64)
    return total / (len(corners) * (window**2).sum()), ring


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
