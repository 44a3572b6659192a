"""Differential evolution (Storn and Price 1997) by scipy, a generation a batch, discrete parameters whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.scripted import Answer, Script, Scripted, idle, inverted

PER_DIMENSION = 5  # population a dimension: the lower end of what Storn and Price 1997 advise
GENERATIONS = 10_000  # a run ends by its own convergence test before


class DifferentialEvolution(Scripted):
    """scipy's best/1/bin with dither, Sobol start, no polishing, restarted when it has converged."""

    def script(self, generator: np.random.Generator) -> Script:
        """Return one run."""
        from scipy.optimize import differential_evolution

        self.start_points(1, generator)  # says early when the rules allow nothing
        levels = self.free_levels
        if len(levels) == 0:
            return idle()
        bounds = [(0.0, float(n - 1)) if n else (0.0, 1.0) for n in levels]

        def cube(points: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where(levels > 0, (points + 0.5) / np.maximum(levels, 1), points)

        def minimise(evaluate: Callable[[NDArray[np.float64]], list[Answer]]) -> None:
            def generation(columns: NDArray[np.float64]) -> NDArray[np.float64]:
                return np.array([a.value for a in evaluate(cube(columns.T))])

            differential_evolution(
                generation,
                bounds,
                popsize=PER_DIMENSION,
                maxiter=GENERATIONS,
                init="sobol",
                polish=False,
                vectorized=True,
                updating="deferred",
                integrality=levels > 0,
                rng=generator,
            )

        return inverted(minimise)
