"""Consensus: one lens for a field that was fitted in tiles, and a mistilt that may change across it.

All tiles were recorded through one lens, so what each says of it is information on the same numbers, which
adds up once the prior of its fit is taken out. A bent foil changes the mistilt from tile to tile, which two
slopes along each axis describe. Its height changes too, but columns that stand higher or lower say that
themselves: C1 refers to one plane for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope

Floats = NDArray[np.float64]
TILTS = (INDEX["tilt_y"], INDEX["tilt_x"])
BEND_SIGMA = 2e-5  # rad/Å, prior of the change of mistilt: 2 mrad over 10 nm, a bend of 5 µm radius
UNIT_A = 100.0  # slopes are solved for over this length, so that all unknowns are of order one


@dataclass(frozen=True)
class TileLens:
    """What one tile says of the P refined imaging parameters, in units of their steps."""

    values: Floats  # (P,) as fitted
    covariance: Floats  # (P, P) of its posterior
    prior_mean: Floats  # (P,) of its fit
    prior_sigma: Floats  # (P,)
    share: float  # of its pixels that no other tile counts
    away: Floats  # (2,) Å, y and x of its middle from that of the field

    def information(self) -> tuple[Floats, Floats]:
        """Return precision (P, P) of its image alone and the values (P,) weighted with it."""
        precision = np.linalg.inv(self.covariance)
        prior = np.diag(1 / self.prior_sigma**2)
        alone = precision - prior
        # Rounding, and curvature that the image lacks, may leave directions that know less than nothing.
        value, vector = np.linalg.eigh((alone + alone.T) / 2)
        alone = (vector * np.maximum(value, 0.0)) @ vector.T
        weighted = precision @ self.values - prior @ self.prior_mean
        return self.share * alone, self.share * weighted


@dataclass(frozen=True)
class FieldLens:
    """The imaging parameters of a whole field, in units of their steps."""

    imaging: tuple[int, ...]  # (P,) index into PARAMETERS
    solution: Floats  # (P+B,) values in the middle of the field, then slopes of the mistilt over UNIT_A
    covariance: Floats  # (P+B, P+B)
    agreement: float  # mean squared difference of the tiles from it, over what their errors explain

    def at(self, away: Floats) -> tuple[Floats, Floats]:
        """Return values and standard deviations (P,) at a distance y, x (Å) from the middle."""
        a = design(self.imaging, away)
        a = a[:, : len(self.solution)]
        return a @ self.solution, np.sqrt(np.diag(a @ self.covariance @ a.T))

    def microscope(self, base: Microscope, away: Floats, prior: bool) -> Microscope:
        """Return the imaging parameters at a place; prior: as narrow a prior as the field knows them."""
        values, sigma = self.at(away)
        index = list(self.imaging)
        step = np.array([PARAMETERS[i].step for i in index])
        lens = base.with_vector(index, values * step)
        if not prior:
            return lens
        mean, width = base.mean.copy(), base.sigma.copy()
        mean[index], width[index] = values * step, sigma * step
        return Microscope(base.energy, lens.values, mean, width, base.mtf)

    @property
    def bend(self) -> Floats:
        """Change of the mistilt (2, 2) rad/Å, of y and x along y and x."""
        p = len(self.imaging)
        if len(self.solution) == p:
            return np.zeros((2, 2))
        return self.solution[p:].reshape(2, 2) * PARAMETERS[TILTS[0]].step / UNIT_A

    def bend_sigma(self) -> Floats:
        """Return the standard deviations (2, 2) of the bend, rad/Å."""
        p = len(self.imaging)
        if len(self.solution) == p:
            return np.zeros((2, 2))
        return np.sqrt(np.diag(self.covariance)[p:]).reshape(2, 2) * PARAMETERS[TILTS[0]].step / UNIT_A


def design(imaging: tuple[int, ...], away: Floats) -> Floats:
    """Return (P, P+4) how imaging parameters at a place follow from those in the middle and the slopes."""
    p = len(imaging)
    out = np.hstack([np.eye(p), np.zeros((p, 4))])
    for row, tilt in enumerate(TILTS):
        if tilt in imaging:
            out[imaging.index(tilt), p + 2 * row : p + 2 * row + 2] = np.asarray(away) / UNIT_A
    return out


def consensus(tiles: list[TileLens], imaging: tuple[int, ...], mean: Floats, sigma: Floats) -> FieldLens:
    """Return the lens that all tiles agree on.

    mean, sigma: (P,) prior of the whole field in steps. Tiles that differ by more than their errors say how
    wrong the model is where it is worst known, in what the whole field shares: the covariance grows with it.
    """
    bent = all(t in imaging for t in TILTS) and len(tiles) > 1
    p = len(imaging)
    size = p + 4 * bent
    slope = BEND_SIGMA * UNIT_A / PARAMETERS[TILTS[0]].step
    width = np.concatenate([sigma, np.full(4 * bent, slope)])
    precision = np.diag(1 / width**2)
    weighted = np.concatenate([mean, np.zeros(4 * bent)]) / width**2
    every = []
    for tile in tiles:
        a = design(imaging, tile.away)[:, :size]
        information, pull = tile.information()
        precision += a.T @ information @ a
        weighted += a.T @ pull
        every.append((a, information))
    covariance = np.linalg.inv(precision)
    covariance = (covariance + covariance.T) / 2
    solution = covariance @ weighted
    differences = [t.values - a @ solution for t, (a, _) in zip(tiles, every, strict=True)]
    squares = sum(float(d @ i @ d) for d, (_, i) in zip(differences, every, strict=True))
    freedom = p * len(tiles) - size
    agreement = max(1.0, squares / freedom) if freedom > 0 else 1.0
    return FieldLens(imaging, solution, covariance * agreement, agreement)
