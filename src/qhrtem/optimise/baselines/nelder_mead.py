"""Nelder–Mead by scipy, from Sobol points, discrete parameters rounded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.scripted import Answer, Script, Scripted, idle, inverted

SIDE = 0.1  # of the first simplex, unit cube
TOLERANCE = 1e-6  # spread of the simplex, unit cube, and of its values relative to the best, at which it ends


class NelderMead(Scripted):
    """The adaptive simplex (Gao and Han 2012), restarted from the next Sobol point when it has shrunk."""

    BATCH = 1

    def script(self, generator: np.random.Generator) -> Script:
        """Return one run."""
        from scipy.optimize import minimize

        start = self.start_points(1, generator)[0]
        d = len(start)
        # A step must leave the cell of a discrete parameter, or all corners of the simplex look alike.
        side = np.maximum(SIDE, 1.0 / np.maximum(self.free_levels, 1) * (self.free_levels > 0))
        simplex = np.vstack([start, start + np.diag(np.where(start + side <= 1.0, side, -side))])

        def run(evaluate: Callable[[NDArray[np.float64]], list[Answer]]) -> None:
            scale = max((abs(a.value) for a in evaluate(simplex)), default=0.0) or 1.0
            minimize(
                lambda x: evaluate(x)[0].value / scale,
                start,
                method="Nelder-Mead",
                bounds=[(0.0, 1.0)] * d,
                options={
                    "initial_simplex": np.clip(simplex, 0.0, 1.0),
                    "adaptive": True,
                    "xatol": TOLERANCE,
                    "fatol": TOLERANCE,
                    "maxfev": 400 * d,
                },
            )

        return inverted(run) if d else idle()
