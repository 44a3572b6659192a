"""Bounded least squares with exact Jacobians from many starts: scipy's trust-region reflective method.

Branch, Coleman and Li, SIAM J. Sci. Comput. 21, 1 (1999). Discrete parameters are relaxed first: between
levels the residual is continued linearly from the nearest one. They are then rounded and held, and the rest
is solved again. Without Jacobians told, all that remains of the method is its Sobol starts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.scripted import Answer, Script, Scripted, inverted

Vector = NDArray[np.float64]
TOLERANCE = 1e-8  # of the cost, the step and the gradient; scipy's own default
EVALUATIONS = 60  # of one solve


class NoDerivatives(Exception):
    """A point came back without what least squares needs."""


class Residuals:
    """Residual and Jacobian over the coordinates that move, from answers at snapped points."""

    def __init__(
        self, evaluate: Callable[[Vector], list[Answer]], start: Vector, moving: NDArray[np.intp]
    ) -> None:
        """Raise NoDerivatives on the first call when the start has none."""
        self.evaluate, self.point, self.moving = evaluate, start.copy(), moving
        self._last: dict[bytes, tuple[Vector, Vector]] = {}
        self.length = 0

    def residual(self, x: Vector) -> Vector:
        """Return the residual; not finite, which the solver takes for a refused step, where there is none."""
        at = self.point.copy()
        at[self.moving] = x
        model = self.evaluate(at)[0].quadratic
        if model is None:
            if self.length == 0:
                raise NoDerivatives
            return np.full(self.length, np.nan)
        r, j = model.residual_form()
        self.length = len(r)
        r = r + j @ (at - model.vector)
        self._last = {x.tobytes(): (r, j[:, self.moving])}
        return r

    def jacobian(self, x: Vector) -> Vector:
        """Return the Jacobian where the residual was evaluated last, or again elsewhere."""
        if x.tobytes() not in self._last:
            self.residual(x)
        return self._last[x.tobytes()][1]


class MultistartLeastSquares(Scripted):
    """One solve from each Sobol point."""

    BATCH = 1
    ORIGIN = "refined"
    WANTS = "jacobian"

    def script(self, generator: np.random.Generator) -> Script:
        """Return the solve from one start: everything relaxed, then with whole numbers held."""
        from scipy.optimize import least_squares

        start = self.start_points(1, generator)[0]
        levels, label = self.free_levels, self.space.is_categorical[self.free]
        half = np.where(levels > 0, 0.5 / np.maximum(levels, 1), 0.0)

        def solve(evaluate: Callable[[Vector], list[Answer]], at: Vector, moving: NDArray[np.intp]) -> Vector:
            problem = Residuals(evaluate, at, moving)
            fit = least_squares(
                problem.residual,
                np.clip(at, half, 1.0 - half)[moving],
                jac=problem.jacobian,
                bounds=(half[moving], 1.0 - half[moving]),
                x_scale="jac",
                ftol=TOLERANCE,
                xtol=TOLERANCE,
                gtol=TOLERANCE,
                max_nfev=EVALUATIONS,
            )
            end = at.copy()
            end[moving] = fit.x
            return end

        def minimise(evaluate: Callable[[Vector], list[Answer]]) -> None:
            try:
                end, relaxed = start, np.flatnonzero(~label)
                if relaxed.size:
                    end = solve(evaluate, start, relaxed)
                held = np.flatnonzero(levels == 0)
                if held.size and held.size < relaxed.size:
                    n = np.maximum(levels, 1)
                    whole = np.where(levels > 0, (np.floor(end * n).clip(0, n - 1) + 0.5) / n, end)
                    solve(evaluate, whole, held)
                elif relaxed.size == 0:
                    evaluate(start)
            except NoDerivatives:
                return

        return inverted(minimise)
