"""What a simulator has done, in units that no shortcut can hide: transforms and passes through the specimen.

A Jacobian of lens parameters reuses the exit wave and one of columns works in windows, so images say little
of what was computed. Here every two-dimensional FFT is counted, a smaller one by its share of the operations
(N log N), and every slice that a wave was carried through by its share of the area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Work:
    """A tally for one wave grid and one specimen."""

    pixels: int  # of the wave grid
    slices: int  # of one pass through the specimen
    ffts: float = 0.0  # transforms of the whole grid
    passes: float = 0.0  # waves carried through all slices

    def transforms(self, count: float, pixels: int | None = None) -> None:
        """Count FFTs on a grid of `pixels`, the whole one by default."""
        n = pixels or self.pixels
        self.ffts += count * n * math.log2(n) / (self.pixels * math.log2(self.pixels))

    def propagated(self, waves: int, pixels: int | None = None) -> None:
        """Count waves carried through one slice, two transforms each."""
        n = pixels or self.pixels
        self.transforms(2 * waves, n)
        self.passes += waves * n / (self.pixels * self.slices)

    def since(self, before: tuple[float, float]) -> tuple[float, float]:
        """Return FFTs and passes since `now` gave `before`."""
        return self.ffts - before[0], self.passes - before[1]

    @property
    def now(self) -> tuple[float, float]:
        """FFTs and passes so far."""
        return self.ffts, self.passes
