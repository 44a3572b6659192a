"""Where to begin again once a descent has ended: a chain of descents that hop from basin to basin.

Iterated local search (Lourenço, Martin and Stützle, Handbook of Metaheuristics, 2003): each descent starts at
the chain's best end, moved, and the chain goes where that is better. Four ways to move it:
- *soft*: along the directions that the value hardly notices, by as much as would double it; along them, one
  parameter makes up for another, and the basins of a lens lie beside each other there;
- *ladder*: one discrete parameter by a few levels, such as a thickness by a slice or a period;
- *shaken*: every parameter a little, one discrete one by up to a quarter of its levels;
- *redrawn*: a few continuous parameters anywhere, such as one that got stuck at a bound.
A chain that has failed `PATIENCE` times in a row is given up, and another begins at a fresh point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]

PATIENCE = 12  # descents of a chain in a row that found nothing better
BETTER = 1e-3  # relative gain by which an end counts as better
SOFTEST = 0.5  # of the cube's side, most that a soft move takes along one direction
LADDER = (1, 2, 3, 4, 8)  # levels
SHAKE = 0.1  # standard deviation of a shaken parameter, unit cube
SHAKEN_SHARE = 0.25  # of the levels of a discrete parameter, either way
REDRAWN = 4  # parameters, at most
WAYS = ("soft", "ladder", "shaken", "redrawn")


@dataclass
class Chain:
    """The best end of a chain of descents, and how often it was left in vain since."""

    end: Quadratic | None = None  # unit cube; None before the first descent has ended
    failures: int = 0  # in a row

    @property
    def value(self) -> float:
        """The value at the best end, infinite before there is one."""
        return self.end.value if self.end is not None else math.inf

    @property
    def spent(self) -> bool:
        """True when the next descent should begin at a fresh point."""
        return self.end is None or self.failures >= PATIENCE

    def ended(self, end: Quadratic) -> None:
        """Note where a descent has ended."""
        if end.value < self.value - BETTER * abs(self.value) or self.end is None:
            self.end, self.failures = end, 0
        else:
            self.failures += 1

    def to_dict(self) -> dict[str, Any]:
        """Return the chain in JSON types."""
        return {"end": self.end.to_dict() if self.end else None, "failures": self.failures}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Chain:
        """Return what `to_dict` wrote."""
        return cls(Quadratic.from_dict(state["end"]) if state["end"] else None, state["failures"])


def hop(end: Quadratic, space: SearchSpace, generator: np.random.Generator) -> Vector:
    """Return a point (d,) of the unit cube away from the end of a descent."""
    whole = np.flatnonzero(space.is_discrete & space.is_free)
    smooth = np.flatnonzero(~space.is_discrete & space.is_free)
    ways = [
        w for w in WAYS if (w not in ("soft", "redrawn") or smooth.size) and (w != "ladder" or whole.size)
    ]
    way = ways[int(generator.integers(len(ways)))]
    moved = end.vector.copy()
    if way == "soft":
        moved[smooth] += soft_step(end.curvature[np.ix_(smooth, smooth)], end.value, generator)
    elif way == "ladder":
        i = int(generator.choice(whole))
        moved[i] += generator.choice(LADDER) * generator.choice((-1, 1)) / space.levels[i]
    elif way == "redrawn":
        few = generator.choice(
            smooth, min(int(generator.integers(1, REDRAWN + 1)), smooth.size), replace=False
        )
        moved[few] = generator.random(few.size)
    else:
        moved[smooth] += SHAKE * generator.standard_normal(smooth.size)
        if whole.size:
            moved[int(generator.choice(whole))] += generator.uniform(-SHAKEN_SHARE, SHAKEN_SHARE)
    return np.clip(moved, 0.0, 1.0)


def soft_step(curvature: Vector, value: float, generator: np.random.Generator) -> Vector:
    """Return a normal step (n,) that raises a quadratic of some curvature (n, n) by ½·|value| a direction."""
    levels, directions = np.linalg.eigh(curvature)
    stiff = np.maximum(levels, max(abs(value) / SOFTEST**2, 1e-300))
    step: Vector = directions @ (np.sqrt(abs(value) / stiff) * generator.standard_normal(len(levels)))
    return step
