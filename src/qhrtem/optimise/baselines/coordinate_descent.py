"""Coordinate descent: whole numbers ±1 one at a time, continuous parameters by a shrinking pattern search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.scripted import Script, Scripted

STEP, STEP_MIN = 0.1, 1e-5  # of continuous parameters, unit cube: a tenth of the range at first
START_POINTS = 8  # Sobol points among which a run chooses its start


class CoordinateDescent(Scripted):
    """Both neighbours along one coordinate after another; steps halve when a whole round has failed.

    Hooke and Jeeves 1961 without the pattern move; a run ends when neither kind of step helps.
    """

    BATCH = 2

    def script(self, generator: np.random.Generator) -> Script:
        """Return one descent."""
        levels = self.free_levels
        label = self.space.is_categorical[self.free]
        points = self.start_points(START_POINTS, generator)
        answers = yield list(points)
        first = int(np.argmin([a.value for a in answers]))
        x, value, step = points[first], answers[first].value, STEP
        while True:
            improved = False
            for i in generator.permutation(len(x)):
                trials = self._neighbours(x, int(i), step, int(levels[i]), bool(label[i]))
                answers = yield trials
                worth = [a.value if a.ok else np.inf for a in answers]
                if worth and min(worth) < value:
                    k = int(np.argmin(worth))
                    x, value, improved = trials[k], worth[k], True
            if not improved:
                step /= 2
                if step < STEP_MIN or (levels > 0).all():
                    return

    def _neighbours(
        self, x: NDArray[np.float64], i: int, step: float, n: int, label: bool
    ) -> list[NDArray[np.float64]]:
        """Return the points next to x (d,) along coordinate i inside the cube; of a label, all others."""
        width = 1.0 / n if n else step
        offsets = [k * width for k in range(-n, n + 1) if k] if label else [width, -width]
        ends = [float(x[i] + o) for o in offsets]
        if not n:
            ends = [float(np.clip(e, 0.0, 1.0)) for e in ends]
        out = []
        for end in ends:
            if -1e-9 < end < 1 + 1e-9 and end != x[i]:
                moved = x.copy()
                moved[i] = end
                out.append(moved)
        return out
