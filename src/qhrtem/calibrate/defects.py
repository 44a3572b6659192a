"""Pixels that must not be used: dead, hot and saturated ones, zingers, and what is not finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
OUTLIER = 6.5  # robust standard deviations beyond the median of the neighbours: one pixel in 10^10 of noise
NEIGHBOURHOOD = 15  # pixels over which the usual deviation is taken
FEWEST_SATURATED = 8  # pixels at one greatest value from which it is taken for the end of the scale
RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


@dataclass(frozen=True)
class Defects:
    """What is wrong with single pixels of an image."""

    outlying: Bools  # [row, col] dead, hot or hit by a zinger
    saturated: Bools  # [row, col] at the end of the detector's scale
    unknown: Bools  # [row, col] not finite

    @property
    def valid(self) -> Bools:
        """Pixels that can be used."""
        return ~(self.outlying | self.saturated | self.unknown)

    def notes(self) -> tuple[str, ...]:
        """Say what was masked."""
        said = []
        for mask, what in (
            (self.outlying, "dead, hot or hit by a zinger"),
            (self.saturated, "saturated"),
            (self.unknown, "not finite"),
        ):
            if mask.any():
                said.append(f"{int(mask.sum())} pixels ({100 * mask.mean():.2g} %) are {what} and not used.")
        return tuple(said)


def find_defects(counts: Floats) -> Defects:
    """Return the defects of an image [row, col] in counts.

    A pixel is an outlier where it leaves the median of its eight neighbours by more than noise and lattice do
    nearby; found ones are taken out of the medians and the search goes on, so that clusters are found.
    """
    finite = np.isfinite(counts)
    filled = np.where(finite, counts, np.median(counts[finite]))
    saturated = _saturated(filled) & finite
    bad = ~finite
    current = filled
    for _ in range(3):
        around = ndimage.median_filter(current, footprint=RING, mode="reflect")
        off = filled - around
        typical = _local_deviation(off, NEIGHBOURHOOD)
        found = (np.abs(off) > OUTLIER * typical) & ~saturated
        if not (found & ~bad).any():
            break
        bad |= found
        current = np.where(bad, around, filled)
    return Defects(bad & finite, saturated, ~finite)


def _local_deviation(off: Floats, size: int) -> Floats:
    """Return the local standard deviation of mostly normal numbers, outliers clipped, never below the global.

    The global one is taken by quantiles; a flat corner must not make ordinary noise look strange.
    """
    middle = 1.4826 * float(np.median(np.abs(off)))
    if middle <= 0:
        middle = float(np.mean(np.abs(off))) + np.finfo(float).tiny
    clipped = np.clip(off, -3 * middle, 3 * middle)
    local = np.sqrt(ndimage.uniform_filter(clipped**2, size))
    return np.asarray(np.maximum(local, 0.6 * middle))


def _saturated(counts: Floats) -> Bools:
    """Pixels at the image's greatest value where so many share it that the scale must end there."""
    top = counts.max()
    at_top = counts >= top
    many = int(at_top.sum())
    if many < FEWEST_SATURATED or many > 0.5 * counts.size:
        return np.zeros(counts.shape, dtype=bool)
    # On a coarse grey scale some pixels share any value: the end stands out against the values just below.
    levels = np.unique(counts)
    step = levels[-1] - levels[-2] if len(levels) > 1 else 0.0
    below = int((counts == levels[-2]).sum()) if step > 0 else 0
    return at_top if many > 3 * max(below, 2) else np.zeros(counts.shape, dtype=bool)
