"""The noise spectrum of the vacuum, and what it tells of the camera's transfer.

Electrons arrive independently, so the power of their noise is g² N NTF²(q), with gain g, N electrons a pixel
and the noise transfer NTF of the camera; readout adds white noise. Each electron scatters otherwise in a
scintillator, which blurs the image but not the noise, so the MTF lies at or below the NTF (Meyer and
Kirkland, Microsc. Res. Tech. 49 (2000) 269; Niermann et al., Ultramicroscopy 115 (2012) 68). Drift and
vibration of the image move where electrons land and leave the noise as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from qhrtem.calibrate.vacuum import LOWEST_RING, covered, mean_spectrum, squares

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
EDGES = (64, 48, 32, 24)  # pixels; of the squares whose spectra are averaged, the largest that fit well
WELL_USED = 0.5  # share of the vacuum that squares must cover to fit well
FEWEST_PIXELS = 3000  # covered by squares, below which a spectrum says too little
EVIDENCE = 25.0  # Δχ² from which noise is not white: 5 standard deviations
LEAST_FALL = 0.05  # of the noise power, from which it is worth a curve
NYQUIST = 0.5  # cycles/pixel


@dataclass(frozen=True)
class NoiseSpectrum:
    """Mean power of the noise on rings, and a curve through it."""

    q: Floats  # (N,) cycles/pixel
    power: Floats  # (N,) counts²; of white noise, the variance of a pixel
    sigma: Floats  # (N,) one standard deviation
    pixels: int  # of the vacuum that was used
    level: float  # power of the curve at q = 0, counts², readout left out
    floor: float  # power of the readout noise, counts², 0 where it is not known
    transfer: tuple[float, float] | None  # (a, b) of NTF = (1 - a)/(1 + (q/b)²) + a; None where it is white
    transfer_sigma: tuple[float, float] = (math.nan, math.nan)
    level_sigma: float = math.nan  # counts², one standard deviation

    def at(self, q: Floats | float) -> Floats:
        """Return the noise transfer at q (cycles/pixel), 1 where the noise is white."""
        a, b = self.transfer or (1.0, 1.0)
        return np.asarray((1 - a) / (1 + (np.asarray(q) / b) ** 2) + a)

    @property
    def fall_sigma(self) -> float:
        """One standard deviation of the ratio of the power at high frequencies to that at low ones."""
        low, high = self.q < NYQUIST / 2, self.q >= NYQUIST / 2
        variance = [1 / np.sum((self.power[part] / self.sigma[part]) ** 2) for part in (low, high)]
        return float(math.sqrt(sum(variance)))

    def sentence(self) -> str:
        """Say in words what the noise tells of the transfer."""
        if self.transfer is None:
            return (
                f"The noise of the vacuum is white within {200 * self.fall_sigma:.2g} %, so it does not show "
                "the MTF."
            )
        (a, b), (da, db) = self.transfer, self.transfer_sigma
        at_nyquist = float(self.at(NYQUIST))
        curve = f"a = {a:.3f} ± {da:.1g}, b = {b:.3f} ± {db:.1g} cycles/pixel"
        readout = "" if self.floor else " Readout noise, if there is any, makes it look better than it is."
        return (
            f"The noise of the vacuum falls with frequency, to a transfer of {at_nyquist:.2f} at Nyquist "
            f"({curve}). The MTF lies at or below it.{readout}"
        )


def noise_spectrum(counts: Floats, where: Bools, readout: float | None = None) -> NoiseSpectrum | None:
    """Return the noise spectrum of the pixels `where`, or None where they are too few or without noise.

    readout: one standard deviation of the readout noise in counts, None where it is not known.
    """
    for edge in EDGES:
        corners = squares(where, edge, edge // 4)
        pixels = int(covered(corners, edge, where.shape).sum())
        if pixels >= max(FEWEST_PIXELS, WELL_USED * where.sum()):
            break
    if pixels < FEWEST_PIXELS:
        return None
    mean, ring = mean_spectrum(counts, corners, edge)
    f = np.fft.fftfreq(edge)
    radius = np.hypot(f[:, None], f[None, :])
    rings = [ring == n for n in range(LOWEST_RING, edge // 2 + 1)]
    q, power = (np.array([table[r].mean() for r in rings]) for table in (radius, mean))
    # Of N real pixels, half as many complex amplitudes are independent, each with a power of relative σ 1.
    if not (power > 0).all():
        return None
    many = pixels * np.array([r.mean() for r in rings]) / 2
    return _fitted(q, power, many, pixels, 0.0 if readout is None else readout**2)


def _fitted(q: Floats, power: Floats, many: Floats, pixels: int, floor: float) -> NoiseSpectrum:
    """Return the spectrum with the curve that the noise justifies: none, or a transfer.

    many: independent amplitudes in each ring. The mean of n powers follows a gamma law, whose deviance from
    a model m is 2n (p/m - 1 - ln p/m); least squares with the scatter seen would favour rings that are low.
    """
    mean = float((many * power).sum() / many.sum())

    def deviance(model: Floats) -> Floats:
        ratio = power / model
        return np.asarray(np.sign(ratio - 1) * np.sqrt(2 * many * np.maximum(ratio - 1 - np.log(ratio), 0)))

    def left(p: Floats) -> Floats:
        level, a, b = p
        return deviance(mean * level * ((1 - a) / (1 + (q / b) ** 2) + a) ** 2 + floor)

    best = min(
        (
            optimize.least_squares(left, [1.5, a, b], bounds=([1e-3, 0, 0.03], [100, 1, 2]))
            for a in (0.1, 0.6)
            for b in (0.1, 0.4)
        ),
        key=lambda found: float(found.cost),
    )
    level, a, b = best.x
    at_nyquist = (1 - a) / (1 + (NYQUIST / b) ** 2) + a
    white = float((deviance(np.full(len(q), mean)) ** 2).sum())
    sigma = power / np.sqrt(many)
    if white - 2 * best.cost < EVIDENCE or 1 - at_nyquist**2 < LEAST_FALL:
        return NoiseSpectrum(q, power, sigma, pixels, mean - floor, floor, None)
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * max(1.0, 2 * best.cost / max(len(q) - 3, 1))
    errors = np.sqrt(np.diag(covariance))
    curve = (float(a), float(b)), (float(errors[1]), float(errors[2]))
    return NoiseSpectrum(q, power, sigma, pixels, mean * float(level), floor, *curve, mean * float(errors[0]))
