"""Search space: named parameters with units, mapped to the unit cube, and rules that forbid vectors.

The unit cube is where models and regions live. A continuous parameter maps linearly, a log parameter
linearly in its logarithm. An integer with n levels divides [0, 1] into n equal cells; its levels sit at the
cell centres, so uniform draws make all levels equally likely and a snapped point is a fixed point of the map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import PlanError

Kind = Literal["continuous", "log", "integer"]

MAX_DRAWS = 32768  # Sobol points tried before the rules are declared unsatisfiable
DRAWS_PER_POINT = 256  # and this many for each point wanted, where that is fewer


@dataclass(frozen=True)
class Parameter:
    """One named quantity with its bounds."""

    name: str
    low: float  # lower bound, in `unit`
    high: float  # upper bound, in `unit`, inclusive
    unit: str = ""
    kind: Kind = "continuous"

    def __post_init__(self) -> None:
        """Raise PlanError for bounds that describe no interval."""
        where = f"parameter {self.name}: bounds [{self.low:g}, {self.high:g}] {self.unit}".rstrip()
        if self.kind not in ("continuous", "log", "integer"):
            kinds = "continuous, log or integer"
            raise PlanError(f"parameter {self.name}: kind must be {kinds}, got {self.kind!r}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= self.high):
            raise PlanError(f"{where} must be finite and in rising order; were they swapped?")
        if self.kind == "log" and self.low <= 0:
            raise PlanError(f"{where} must be positive on a log scale; use kind 'continuous' or raise them")
        if self.kind == "integer" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise PlanError(f"{where} must be whole numbers for an integer; round them")

    @property
    def levels(self) -> int | None:
        """Number of values an integer can take; None for the other kinds."""
        return int(self.high - self.low) + 1 if self.kind == "integer" else None


class Rule(Protocol):
    """A named test that a vector must pass before an evaluation is spent on it."""

    @property
    def name(self) -> str:
        """What the report calls the rule."""
        ...

    def allows(self, vector: NDArray[np.float64]) -> bool:
        """Return whether a vector (d,) in natural units is permitted."""
        ...


@dataclass(frozen=True)
class LinearRule:
    """coefficients · vector ≤ bound, in natural units."""

    name: str
    coefficients: tuple[float, ...]  # (d,)
    bound: float

    def allows(self, vector: NDArray[np.float64]) -> bool:
        """Return whether the inequality holds, within rounding."""
        terms = np.asarray(self.coefficients) * vector
        return bool(terms.sum() <= self.bound + 1e-12 * (abs(self.bound) + np.abs(terms).sum()))


@dataclass(frozen=True)
class SearchSpace:
    """Ordered parameters, and the rules their vectors must obey."""

    parameters: tuple[Parameter, ...]
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        """Raise PlanError for an empty space or repeated names."""
        object.__setattr__(self, "parameters", tuple(self.parameters))
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.parameters:
            raise PlanError("a search space needs at least one parameter, got none")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise PlanError(f"parameter names must differ, got {', '.join(repeated)} more than once")

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the order of a vector's entries."""
        return tuple(p.name for p in self.parameters)

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return len(self.parameters)

    @cached_property
    def is_integer(self) -> NDArray[np.bool_]:
        """(d,) True for integer parameters."""
        return np.array([p.kind == "integer" for p in self.parameters])

    @cached_property
    def is_log(self) -> NDArray[np.bool_]:
        """(d,) True for parameters mapped by their logarithm."""
        return np.array([p.kind == "log" for p in self.parameters])

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """(d,) number of values of each integer parameter, 0 for the other kinds."""
        return np.array([p.levels or 0 for p in self.parameters], dtype=np.int64)

    @cached_property
    def low(self) -> NDArray[np.float64]:
        """(d,) lower bounds in natural units."""
        return np.array([p.low for p in self.parameters], dtype=np.float64)

    @cached_property
    def high(self) -> NDArray[np.float64]:
        """(d,) upper bounds in natural units."""
        return np.array([p.high for p in self.parameters], dtype=np.float64)

    @property
    def size(self) -> int | None:
        """Number of distinct vectors when all parameters are integers or fixed, otherwise None."""
        count = 1
        for p in self.parameters:
            if p.low < p.high:
                if p.levels is None:
                    return None
                count *= p.levels
        return count

    def snap(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return vectors (..., d) clipped to the bounds, integers rounded to the nearest level."""
        x = np.clip(np.asarray(vectors, dtype=np.float64), self.low, self.high)
        return np.where(self.is_integer, np.floor(x + 0.5), x) + 0.0  # + 0.0 turns −0 into 0

    def to_unit(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return natural vectors (..., d) as points of the unit cube; a parameter of one value maps to ½."""
        x = self.snap(vectors)
        start, span = self._scale
        moved = np.where(self.is_log, np.log(np.where(self.is_log, x, 1.0)), x) - start
        unit = np.where(span > 0, moved / np.where(span > 0, span, 1.0), 0.5)
        return np.clip(unit, 0.0, 1.0)

    def from_unit(self, unit: ArrayLike) -> NDArray[np.float64]:
        """Return points (..., d) of the unit cube as natural vectors, integers snapped to whole numbers."""
        u = np.clip(np.asarray(unit, dtype=np.float64), 0.0, 1.0)
        start, span = self._scale
        x = start + u * span
        return self.snap(np.where(self.is_log, np.exp(np.where(self.is_log, x, 0.0)), x))

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(d,) start and span of the linear map; integers get half a cell on either side."""
        low = np.where(self.is_log, np.log(np.where(self.is_log, self.low, 1.0)), self.low)
        high = np.where(self.is_log, np.log(np.where(self.is_log, self.high, 1.0)), self.high)
        half = np.where(self.is_integer & (high > low), 0.5, 0.0)
        return low - half, high - low + 2 * half

    def vector(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        """Return named values as a snapped vector (d,); raise PlanError for a missing or unknown name."""
        missing, unknown = set(self.names) - set(values), set(values) - set(self.names)
        if missing or unknown:
            wrong = [f"missing {n}" for n in sorted(missing)] + [f"unknown {n}" for n in sorted(unknown)]
            raise PlanError(f"a vector needs exactly the parameters of its space: {', '.join(wrong)}")
        return self.snap([values[n] for n in self.names])

    def refused_by(self, vector: NDArray[np.float64]) -> str | None:
        """Return the name of the first rule that forbids a natural vector (d,), None when all allow it."""
        return next((rule.name for rule in self.rules if not rule.allows(vector)), None)

    def admit(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.bool_], dict[str, int]]:
        """Return which natural vectors (n, d) obey all rules, and how many each rule was first to reject."""
        verdicts = [self.refused_by(v) for v in vectors]
        rejected = Counter(name for name in verdicts if name is not None)
        return np.array([v is None for v in verdicts], dtype=bool), dict(rejected)

    def sobol(
        self, n: int, generator: np.random.Generator, rejected: Counter[str] | None = None
    ) -> NDArray[np.float64]:
        """Return up to n distinct natural vectors (m ≤ n, d), scrambled Sobol points that obey the rules.

        Fewer come back where few exist or where the rules refuse almost everything. `rejected` is increased
        by what each rule refused. Raises PlanError, naming the rules, when no point at all is allowed.
        """
        from scipy.stats import qmc

        sequence = qmc.Sobol(self.dimension, scramble=True, rng=generator)
        tally: Counter[str] = Counter()
        found: dict[bytes, NDArray[np.float64]] = {}
        drawn, block = 0, 1 << max(3, int(np.ceil(np.log2(max(n, 1)))))
        while len(found) < n and drawn < min(MAX_DRAWS, max(DRAWS_PER_POINT * n, 4096)):
            vectors = self.from_unit(sequence.random(block))
            drawn += block
            if self.rules:
                allowed, refused = self.admit(vectors)
                vectors = vectors[allowed]
                tally.update(refused)
            found.update((v.tobytes(), v) for v in vectors)
            if self.size is not None and drawn >= 64 * self.size:
                break
        if rejected is not None:
            rejected.update(tally)
        if n > 0 and not found:
            raise PlanError(self._unsatisfiable(tally, drawn))
        return np.array(list(found.values())[:n]).reshape(-1, self.dimension)

    def all_vectors(self) -> NDArray[np.float64]:
        """Return every vector (size, d) of a finite space; raise PlanError for an endless one."""
        if self.size is None:
            raise PlanError("only a space of integers can be listed in full; fix its other parameters")
        axes = [np.arange(p.low, p.high + 1) if p.kind == "integer" else [p.low] for p in self.parameters]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dimension)

    def _unsatisfiable(self, tally: Counter[str], drawn: int) -> str:
        """Return the message for rules that left nothing, the strictest rule first."""
        share = ", ".join(f"{name} ({count} of {drawn})" for name, count in tally.most_common())
        noun = "rule" if len(tally) == 1 else "rules"
        return (
            f"the {noun} {share} rejected every one of {drawn} vectors drawn within the bounds; "
            "loosen or switch off the rule, or widen the bounds it looks at"
        )
