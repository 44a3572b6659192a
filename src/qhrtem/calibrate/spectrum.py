"""The power spectrum of an image over its background: its spots, and how far they reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
NYQUIST_SHARE = 0.47  # cycles/pixel; beyond it the axes' own aliases begin
PEAK_POWER = 14.0  # over the background: exp(-14) times the number of pixels is far below one
MOST_PEAKS = 60
WEAKEST_PEAK = 0.01  # of the strongest: weaker ones are side lobes and streaks as often as spots
STANDING = PEAK_POWER  # power over that of its surroundings, which hold the spot itself
AROUND = 3.0  # natural widths of a spot; one standard deviation of the area that counts as its surroundings
LARGEST_TRANSFORM = 2048  # pixels; a spectrum needs no finer sampling than its window gives


def flattened(image: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Return the image [row, col] without its slow variation, unusable pixels filled from around them."""
    weight = ndimage.gaussian_filter(valid.astype(float), 2.0)
    around = ndimage.gaussian_filter(np.where(valid, image, 0.0), 2.0)
    middle = float(np.median(image[valid]))
    filled = np.where(valid, image, np.where(weight > 0.05, around / np.maximum(weight, 1e-3), middle))
    flat = filled - ndimage.gaussian_filter(filled, max(8.0, min(image.shape) / 24))
    return np.asarray(flat)


def amplitudes(image: Floats, weight: Floats, frequency: Floats) -> NDArray[np.complex128]:
    """Return Σ w I exp(-2πi f·r)/Σ w for (row, col) frequencies (K, 2) in cycles per pixel."""
    y = np.exp(-2j * np.pi * frequency[:, :1] * np.arange(image.shape[0]))
    x = np.exp(-2j * np.pi * frequency[:, 1:] * np.arange(image.shape[1]))
    return np.einsum("ky,ky->k", y, (image * weight @ x.T).T) / weight.sum()


@dataclass(frozen=True)
class Peaks:
    """Spots of a spectrum, one of each Friedel pair, the strongest first."""

    frequency: Floats  # (J, 2) row, col, cycles/pixel
    snr: Floats  # (J,) power over the background

    @property
    def weight(self) -> Floats:
        """What a spot counts, (J,): the logarithm keeps a few strong ones from deciding everything."""
        return np.log1p(self.snr)


class Spectrum:
    """Power spectrum over its radial background, looked up at any frequency (cycles per pixel)."""

    def __init__(self, flat: Floats) -> None:
        """flat: image [row, col] without its slow variation."""
        size = max(flat.shape)
        n = 2 ** int(np.ceil(np.log2(size)) + 1)
        if n > LARGEST_TRANSFORM:
            n = 2 ** int(np.ceil(np.log2(size)))
        window = np.hanning(flat.shape[0])[:, None] * np.hanning(flat.shape[1])[None, :]
        power = np.abs(np.fft.fftshift(np.fft.fft2(flat * window, (n, n)))) ** 2
        self.n = n
        self.resolution = 1 / min(flat.shape)  # cycles/pixel: what the window of the image can separate
        f = np.fft.fftshift(np.fft.fftfreq(n))
        radius = np.hypot(f[:, None], f[None, :])
        bins = np.minimum((radius * n / 4).astype(int), n // 8 + 2)
        order = np.argsort(bins.ravel(), kind="stable")
        edges = np.searchsorted(bins.ravel()[order], np.arange(bins.max() + 2))
        ranked = power.ravel()[order]
        background = np.array(
            [np.median(ranked[a:b]) if b > a else np.nan for a, b in zip(edges[:-1], edges[1:], strict=True)]
        )
        known = np.isfinite(background)
        background = np.interp(np.arange(len(background)), np.flatnonzero(known), background[known])
        # Where the image has no power at all, such as beyond a band-pass, there is nothing to compare with.
        floor = 1e-9 * float(power.max()) + np.finfo(float).tiny
        self.snr = power / np.maximum(background[bins] / np.log(2), floor)
        self._standing = power / self._around(power, floor)  # out of the surroundings, not of the ring
        self.radius = radius

    def _around(self, power: Floats, floor: float) -> Floats:
        """Background from the surroundings of each frequency: streaks of scans, rims of filters, fringes."""
        width = AROUND * self.resolution * self.n
        smooth = ndimage.gaussian_filter(np.log(power + floor), width, mode="wrap")
        return np.asarray(np.exp(smooth + np.euler_gamma))  # the mean of noise whose mean logarithm that is

    def at(self, frequency: Floats) -> Floats:
        """Return power over background at (row, col) frequencies (..., 2) in cycles per pixel."""
        return self._lookup(self.snr, frequency, 1)

    def near(self, frequency: Floats) -> Floats:
        """Return the largest power over background within the window's resolution of frequencies (..., 2)."""
        if not hasattr(self, "_dilated"):
            reach = 2 * round(0.5 * self.resolution * self.n) + 1
            self._dilated = ndimage.maximum_filter(self.snr, max(reach, 3))
        return self._lookup(self._dilated, frequency, 0)

    def _lookup(self, table: Floats, frequency: Floats, order: int) -> Floats:
        index = frequency * self.n + self.n / 2
        inside = (np.abs(frequency) < NYQUIST_SHARE).all(-1)
        value = ndimage.map_coordinates(
            table, np.moveaxis(index, -1, 0).reshape(2, -1), order=order, mode="nearest"
        )
        return np.where(inside, value.reshape(frequency.shape[:-1]), np.nan)

    def peaks(self) -> Peaks:
        """Return the spots that stand out of the background."""
        n = self.n
        apart = max(round(1.5 * self.resolution * n), 2)
        top = (self.snr == ndimage.maximum_filter(self.snr, 2 * apart + 1)) & (self.snr > PEAK_POWER)
        top &= self._standing > STANDING
        top &= (self.radius > 3 * self.resolution) & (self.radius < NYQUIST_SHARE)
        top[: n // 2] = False
        top[n // 2, : n // 2] = False
        rows, cols = np.nonzero(top)
        order = np.argsort(self.snr[rows, cols])[::-1]
        frequency: list[Floats] = []
        snr: list[float] = []
        for r, c in zip(rows[order], cols[order], strict=True):
            f = self._summit(int(r), int(c))
            height = self.snr[r, c]
            if snr and height < WEAKEST_PEAK * snr[0]:
                break
            # Weak maxima beside a strong spot are the side lobes of the window and of the crystal's outline.
            distance = [min(np.hypot(*(f - g)), np.hypot(*(f + g))) for g in frequency]
            if any(d < 6 * self.resolution and height < 0.02 * s for d, s in zip(distance, snr, strict=True)):
                continue
            frequency.append(f)
            snr.append(float(height))
            if len(snr) == MOST_PEAKS:
                break
        return Peaks(np.array(frequency).reshape(-1, 2), np.array(snr))

    def _summit(self, row: int, col: int) -> Floats:
        """Return the frequency of a local maximum to a fraction of a pixel: parabolas through logarithms."""
        out = []
        for axis, at in ((0, row), (1, col)):
            if not 0 < at < self.n - 1:
                out.append(float(at))
                continue
            line = self.snr[:, col] if axis == 0 else self.snr[row]
            a, b, c = np.log(line[at - 1 : at + 2] + 1e-12)
            bend = a - 2 * b + c
            out.append(at + (float(np.clip(0.5 * (a - c) / bend, -0.5, 0.5)) if bend < 0 else 0.0))
        return (np.array(out) - self.n / 2) / self.n
