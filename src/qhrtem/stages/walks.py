"""Walks over the end states of all columns under the move model, many side by side.

Each step draws one column anew from what its options cost while the others stay (Gibbs sampling: Geman and
Geman, IEEE Trans. PAMI 6, 721, 1984). Walks at several temperatures may change places, or cool down together
to find the way out of states that no single column, pair or terrace leaves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qhrtem.stages.descent import Descent
from qhrtem.stages.terraces import settle

Floats = NDArray[np.float64]
WALKS = 16
HOT = (8.0, 16.0)  # what costs are divided by at first; half of the walks each
STAGES, SWEEPS = 5, 4  # halvings of the temperature down to 1 or less, sweeps over all columns in each
LEAST_GAIN = 1.0  # χ² units


class Walks:
    """K walks over the options of N columns, from where a descent stands; columns are drawn one by one."""

    def __init__(self, descent: Descent, walks: int) -> None:
        self.model, self.local, self.costs = descent.model, descent.local, descent.costs
        self.column = np.array([o.column for o in descent.model.options], dtype=np.int64)
        self.chosen = np.repeat(descent.chosen[None], walks, axis=0)  # (K, N)
        self.field = np.repeat(descent.field[None], walks, axis=0)  # (K, M)
        self.along = np.repeat(descent.along[None], walks, axis=0)  # (K, P)
        self.depth = np.repeat(descent.depth[None], walks, axis=0)  # (K, C, 2) Å
        self.climbed = np.zeros(walks)  # (K,) χ² units, cost of each walk over that of the start

    def cost(self, n: int) -> Floats:
        """Return the cost (K, S) of every option of column number n, the others as each walk has them."""
        p, model = self.local[n], self.model
        through = 2 * (self.along @ model.answer) @ model.reach[:, p.own]
        slope = self.field[:, p.own] - through
        cost = p.cost(slope, self.chosen[:, n], self.depth[:, p.near], self.costs.energy)
        return np.asarray(cost + self.costs.fixed[n, : len(p.pick)])

    def sweep(self, temperature: Floats, generator: np.random.Generator) -> None:
        """Draw every column of every walk anew; temperature: (K,) what costs are divided by."""
        for n in generator.permutation(len(self.local)):
            self.draw(int(n), temperature, generator)

    def draw(self, n: int, temperature: Floats, generator: np.random.Generator) -> Floats:
        """Draw column number n of every walk anew; return the probabilities (K, S) it was drawn by."""
        p, k, cost = self.local[n], np.arange(len(self.chosen)), self.cost(n)
        weight = np.exp(-0.5 * (cost - cost.min(1, keepdims=True)) / temperature[:, None])
        weight /= weight.sum(1, keepdims=True)
        drawn = (weight.cumsum(1) < generator.random(len(k))[:, None] * (1 - 1e-12)).sum(1)
        before = self.chosen[:, n]
        change = p.pick[drawn] - p.pick[before]
        if change.any():
            self.field[:, p.beside] += 2 * change @ p.pulls
            self.along += change @ self.model.reach[:, p.own].T
        self.climbed += cost[k, drawn] - cost[k, before]
        self.chosen[:, n] = drawn
        self.depth[:, self.column[n]] = p.surface[drawn]
        return np.asarray(weight)

    def exchange(self, temperature: Floats, odd: bool, generator: np.random.Generator) -> None:
        """Let neighbours on a ladder of temperatures (K,) change places, so that cold walks cross barriers.

        Each keeps its Boltzmann distribution (Swendsen and Wang, Phys. Rev. Lett. 57, 2607, 1986).
        """
        for a in range(int(odd), len(self.chosen) - 1, 2):
            gain = (self.climbed[a + 1] - self.climbed[a]) * (1 / temperature[a + 1] - 1 / temperature[a]) / 2
            if np.log(generator.random()) < gain:
                for rows in (self.chosen, self.field, self.along, self.depth, self.climbed):
                    rows[[a, a + 1]] = rows[[a + 1, a]]


def anneal(descent: Descent, generator: np.random.Generator) -> Descent:
    """Return the best of the descents that start where annealed walks end, or the one given.

    In a thin crystal the mistilt, C1 and the ends of all columns answer each other: states in which a hundred
    columns stand one atom higher or lower fit almost as well, and a descent ends in the nearest. Walks that
    cool down cross between them (Kirkpatrick, Gelatt and Vecchi, Science 220, 671, 1983). No image is
    simulated.
    """
    walks = Walks(descent, WALKS)
    hot = np.repeat(HOT, WALKS // len(HOT))
    for stage in range(STAGES):
        for _ in range(SWEEPS):
            walks.sweep(np.maximum(hot / 2**stage, 1.0), generator)
    best, lowest = descent, descent.cost() - LEAST_GAIN
    for chosen in np.unique(walks.chosen, axis=0):
        cold = descent.over(descent.model)
        cold.adopt(chosen)
        cold.run()
        cost = cold.cost()
        if cost < lowest:
            best, lowest = cold, cost
    if best is not descent:
        settle(best)
    return best
