"""Annealing of column ends: out of states that no single column, pair or terrace leaves.

In a thin crystal the mistilt, C1 and the ends of all columns answer each other: states in which a hundred
columns stand one atom higher or lower fit almost as well, and a descent ends in the nearest. Many walks over
the move model at once, from hot to cold (Kirkpatrick, Gelatt and Vecchi, Science 220, 671, 1983), cross
between them. No image is simulated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qhrtem.stages.descent import Descent
from qhrtem.stages.terraces import settle

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WALKS = 16
HOT = (8.0, 16.0)  # what costs are divided by at first; half of the walks each
STAGES, SWEEPS = 5, 4  # halvings of the temperature down to 1 or less, sweeps over all columns in each
LEAST_GAIN = 1.0  # χ² units


def anneal(descent: Descent, generator: np.random.Generator) -> Descent:
    """Return the best of the descents that start where annealed walks end, or the one given."""
    walks = Walks(descent, WALKS)
    hot = np.repeat(HOT, WALKS // len(HOT))
    for stage in range(STAGES):
        for _ in range(SWEEPS):
            walks.sweep(np.maximum(hot / 2**stage, 1.0), generator)
    best, lowest = descent, descent.cost() - LEAST_GAIN
    for chosen in walks.chosen:
        cold = descent.over(descent.model)
        cold.adopt(chosen)
        cold.run()
        cost = cold.cost()
        if cost < lowest:
            best, lowest = cold, cost
    if best is not descent:
        settle(best)
    return best


class Walks:
    """K walks over the options of N columns, from where a descent stands; columns are drawn one by one."""

    def __init__(self, descent: Descent, walks: int) -> None:
        self.model, self.local, self.costs = descent.model, descent.local, descent.costs
        self.column = np.array([o.column for o in descent.model.options], dtype=np.int64)
        self.chosen = np.repeat(descent.chosen[None], walks, axis=0)  # (K, N)
        self.field = np.repeat(descent.field[None], walks, axis=0)  # (K, M)
        self.along = np.repeat(descent.along[None], walks, axis=0)  # (K, P)
        self.depth = np.repeat(descent.depth[None], walks, axis=0)  # (K, C, 2) Å

    def cost(self, n: int) -> Floats:
        """Return the cost (K, S) of every option of column number n, the others as each walk has them."""
        p, model = self.local[n], self.model
        through = 2 * (self.along @ model.answer) @ model.reach[:, p.own]
        slope = self.field[:, p.own] - through - 2 * p.pick[self.chosen[:, n]] @ p.coupling
        cost = slope @ p.pick.T + p.square + self.costs.fixed[n, : len(p.pick)]
        if len(p.near):
            step = p.surface[None, :, None, :] - self.depth[:, p.near][:, None]
            cost = cost + self.costs.energy.pair_cost(step, p.allowed[None, None, :, None]).sum((2, 3))
        return np.asarray(cost)

    def sweep(self, temperature: Floats, generator: np.random.Generator) -> None:
        """Draw every column of every walk anew; temperature: (K,) what costs are divided by."""
        k = np.arange(len(self.chosen))
        for n in generator.permutation(len(self.local)):
            p = self.local[n]
            cost = self.cost(int(n)) / temperature[:, None]
            weight = np.exp(-0.5 * (cost - cost.min(1, keepdims=True))).cumsum(1)
            drawn = (weight < generator.random(len(k))[:, None] * weight[:, -1:]).sum(1)
            change = p.pick[drawn] - p.pick[self.chosen[:, n]]
            if change.any():
                self.field[:, p.beside] += 2 * change @ p.pulls
                self.along += change @ self.model.reach[:, p.own].T
            self.chosen[:, n] = drawn
            self.depth[:, self.column[n]] = p.surface[drawn]
