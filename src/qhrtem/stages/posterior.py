"""What the image leaves open of the whole numbers, and what that adds to every other error bar.

The move model gives the cost of any combination of column ends with everything continuous re-optimised.
A walk goes through the combinations that fit about equally well, so the probability of one column's counts
takes account of its neighbours' and, through what the moves do to lens and positions, of every ambiguity that
columns share. States of many columns that no step of one joins are reached by way of hotter walks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.stages.descent import Descent
from qhrtem.stages.walks import Walks

Floats = NDArray[np.float64]
BURN_IN, SWEEPS = 30, 150  # sweeps over all columns before and while probabilities are recorded
LADDER, STEP = 16, 1.2  # walks, each so many times as hot as the one before; the first is recorded


@dataclass(frozen=True)
class Marginals:
    """The posterior of the column ends under the move model."""

    probability: list[Floats]  # of each option of each column of the model
    continuous: Floats  # (P+T, P+T) covariance of the continuous unknowns by undecided ends alone


def sample(
    descent: Descent,
    inflation: float,
    generator: np.random.Generator,
    burn_in: int = BURN_IN,
    sweeps: int = SWEEPS,
) -> Marginals:
    """Return the marginals around the chosen options of a descent.

    inflation: what costs are divided by, the model error. The probability of an option is the mean of its
    conditional probabilities along the walk, which varies less than its frequency (Gelfand and Smith 1990).
    """
    model = descent.model
    total = [np.zeros(len(o.first)) for o in model.options]
    ends = np.zeros((sweeps, len(model.h)))
    walks, temperature = Walks(descent, LADDER), inflation * np.power(STEP, np.arange(LADDER))
    for number in range(-burn_in, sweeps):
        for n in generator.permutation(len(model.options)):
            weight = walks.draw(int(n), temperature, generator)
            if number >= 0:
                total[n] += weight[0]
        walks.exchange(temperature, number % 2 == 1, generator)
        if number >= 0:
            ends[number] = model.picked(walks.chosen[0])
    moved = np.stack([model.step(s) for s in ends])
    moved -= moved.mean(0)
    return Marginals([t / t.sum() for t in total], moved.T @ moved / sweeps)
