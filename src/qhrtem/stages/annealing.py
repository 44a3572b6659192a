"""Annealing of column ends: out of states that no single column, pair or terrace leaves.

In a thin crystal the mistilt, C1 and the ends of all columns answer each other: states in which a hundred
columns stand one atom higher or lower fit almost as well, and a descent ends in the nearest. Many walks over
the move model at once, from hot to cold (Kirkpatrick, Gelatt and Vecchi, Science 220, 671, 1983), cross
between them. No image is simulated.
"""

from __future__ import annotations

import numpy as np

from qhrtem.stages.descent import Descent
from qhrtem.stages.terraces import settle
from qhrtem.stages.walks import Walks

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
