"""What a benchmark problem is: a space, an objective with optional derivatives, a truth and targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.least_squares import levenberg_marquardt
from qhrtem.optimise.space import SearchSpace

Floats = NDArray[np.float64]
Wants = Literal["value", "residual", "jacobian", "levels"]
# Reduced χ² above the oracle's that counts as a rough and a fair solution; a good one is within one expected
# statistical fluctuation, d in χ² for d parameters.
EXCESS = (0.1, 0.03)


@dataclass(frozen=True)
class Evaluation:
    """What one call of an objective returned and what it cost."""

    value: float  # to be minimised; χ² where there is a residual
    simulations: int  # images computed, a column of a Jacobian by differences counting as one
    ffts: float = 0.0  # see `work.Work`
    passes: float = 0.0
    residual: Floats | None = None  # (m,) in standard deviations
    jacobian: Floats | None = None  # (m, d) per natural unit
    levels: Floats | None = None  # (n,) values at every level of the parameter that one pass yields in full


@dataclass(frozen=True)
class Quality:
    """How near a vector is to the truth."""

    errors: dict[str, float] = field(default_factory=dict)  # rms or absolute error by name, unit in the name
    exact: float | None = None  # share of integers that are right
    within_one: float | None = None  # share of integers within one of the truth


class Problem(Protocol):
    """What the harness needs."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> SearchSpace: ...

    @property
    def truth(self) -> Floats: ...

    @property
    def pixels(self) -> int:
        """Compared pixels; 0 where the value is no χ²."""
        ...

    @property
    def fft_seconds(self) -> float:
        """Nominal seconds of one transform on the wave grid; without transforms, of one value."""
        ...

    def evaluate(self, vector: Floats, wants: Wants = "value") -> Evaluation: ...

    def targets(self) -> tuple[float, float, float]:
        """Return three values to be reached, the easiest first."""
        ...

    def quality(self, vector: Floats) -> Quality: ...


def oracle(problem: Problem) -> float:
    """Return the χ² of the least-squares fit that starts at the truth and keeps its integers.

    It removes what noise, another simulator and a wrong model add and no method can know of.
    """

    def model(x: Floats) -> tuple[Floats, Floats]:
        e = problem.evaluate(x, "jacobian")
        assert e.residual is not None and e.jacobian is not None
        return e.residual, np.where(held, 0.0, e.jacobian)

    held = problem.space.is_discrete
    low, high = (np.where(held, problem.truth, b) for b in (problem.space.low, problem.space.high))
    fit = levenberg_marquardt(
        model, problem.truth, lower=low, upper=high, max_evaluations=12, cost_tolerance=1e-6
    )
    return 2 * fit.data_cost


def chi2_targets(problem: Problem, pixels: int) -> tuple[float, float, float]:
    """Return the χ² to be reached: rough, fair and good."""
    best = oracle(problem)
    return best + EXCESS[0] * pixels, best + EXCESS[1] * pixels, best + problem.space.dimension


def integer_quality(space: SearchSpace, vector: Floats, truth: Floats) -> tuple[float | None, float | None]:
    """Return the shares of integers that are exact and within one; None without integers."""
    whole = space.is_discrete
    if not whole.any():
        return None, None
    apart = np.abs(vector - truth)[whole]
    return float((apart < 0.5).mean()), float((apart < 1.5).mean())
