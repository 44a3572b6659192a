"""CMA-ES with margin: Hamano, Saito, Nomura, Shirakawa, GECCO 2022, by the package cmaes.

Discrete parameters, categoricals included, are steps of the unit cube, and the margin keeps all reachable.
Restarted from a Sobol point with the population doubled (IPOP; Auger and Hansen, CEC 2005).
"""

from __future__ import annotations

import numpy as np

from qhrtem.optimise.scripted import Script, Scripted

SIGMA = 0.25  # starting standard deviation, unit cube: a quarter of the range (Hansen, arXiv 1604.00772)
RESTARTS_DOUBLING = 4  # the population grows by 2 to this power at most


class CmaEs(Scripted):
    """CMA-ES with margin, restarted."""

    def script(self, generator: np.random.Generator) -> Script:
        """Return one run, to the package's own stopping criteria."""
        from cmaes import CMA, CMAwM

        start = self.start_points(1, generator)[0]
        levels = self.free_levels
        n = max(len(start), 2)  # the package needs two dimensions; a spare one is ignored
        mean = np.full(n, 0.5)
        mean[: len(start)] = start if self.restarts > 0 else 0.5
        half = np.zeros(n)
        half[: len(start)] = np.where(levels > 0, 0.5 / np.maximum(levels, 1), 0.0)
        steps = 2 * half
        bounds = np.stack([half, 1.0 - half], axis=1)
        seed = int(generator.integers(2**31))
        size = (4 + int(3 * np.log(n))) * 2 ** min(self.restarts, RESTARTS_DOUBLING)
        if not steps.any():
            plain = CMA(mean, SIGMA, bounds, seed=seed, population_size=size)
            while not plain.should_stop():
                points = [plain.ask() for _ in range(size)]
                answers = yield [p[: len(start)] for p in points]
                plain.tell([(p, a.value) for p, a in zip(points, answers, strict=True)])
            return
        margin = CMAwM(mean, SIGMA, bounds, steps, seed=seed, population_size=size)
        while not margin.should_stop():
            pairs = [margin.ask() for _ in range(size)]
            answers = yield [at[: len(start)] for at, _ in pairs]
            margin.tell([(p, a.value) for (_, p), a in zip(pairs, answers, strict=True)])
