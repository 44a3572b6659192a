"""Search space: named parameters with units, mapped to the unit cube, and rules that forbid vectors.

The unit cube is where models and regions live. A continuous parameter maps linearly, a log parameter
linearly in its logarithm. An integer, ordinal or categorical with n levels divides [0, 1] into n equal cells;
its levels sit at the cell centres, so uniform draws make all levels equally likely and a snapped point is a
fixed point of the map. The order of a categorical's cells means nothing: models see `encode`, which gives
each label a coordinate of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import PlanError
from qhrtem.optimise.rules import LinearRule, Rule, RuleBook

__all__ = ["Kind", "LinearRule", "Parameter", "Rule", "RuleBook", "SearchSpace"]

Kind = Literal["continuous", "log", "integer", "ordinal", "categorical"]
KINDS = ("continuous", "log", "integer", "ordinal", "categorical")

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
    values: tuple[float, ...] = ()  # what an ordinal can be, in `unit`, rising
    labels: tuple[str, ...] = ()  # of a categorical; a vector holds the position, 0 … n − 1
    swept: bool = False  # one evaluation can yield the values at all levels, as a pass does for thicknesses

    @classmethod
    def ordinal(cls, name: str, values: Sequence[float], unit: str = "") -> Parameter:
        """Return a parameter that takes one of the listed values, such as the size of a transform."""
        rising = tuple(float(v) for v in values)
        return cls(name, *((rising[0], rising[-1]) if rising else (0.0, 0.0)), unit, "ordinal", values=rising)

    @classmethod
    def categorical(cls, name: str, labels: Sequence[str]) -> Parameter:
        """Return a parameter that takes one of the labels, which have no order."""
        return cls(name, 0, len(labels) - 1, "", "categorical", labels=tuple(labels))

    def __post_init__(self) -> None:
        """Raise PlanError for bounds that describe no interval."""
        where = f"parameter {self.name}: bounds [{self.low:g}, {self.high:g}] {self.unit}".rstrip()
        if self.kind not in KINDS:
            raise PlanError(
                f"parameter {self.name}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}"
            )
        self._check_levels()
        if self.swept and self.levels is None:
            raise PlanError(f"parameter {self.name}: only a discrete parameter can be swept, got {self.kind}")
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low <= self.high):
            raise PlanError(f"{where} must be finite and in rising order; were they swapped?")
        if self.kind == "log" and self.low <= 0:
            raise PlanError(f"{where} must be positive on a log scale; use kind 'continuous' or raise them")
        if self.kind == "integer" and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise PlanError(f"{where} must be whole numbers for an integer; round them")

    def _check_levels(self) -> None:
        """Raise PlanError for an ordinal or a categorical whose levels are missing or out of order."""
        who = f"parameter {self.name}"
        if self.kind == "ordinal":
            rising = len(self.values) > 0 and all(np.diff(self.values) > 0)
            if not (rising and self.low == self.values[0] and self.high == self.values[-1]):
                raise PlanError(
                    f"{who}: an ordinal needs its values in rising order between its bounds, got "
                    f"{list(self.values)}; build it with Parameter.ordinal"
                )
        if self.kind == "categorical":
            n = len(self.labels)
            if n == 0 or len(set(self.labels)) < n or (self.low, self.high) != (0, n - 1):
                raise PlanError(
                    f"{who}: a categorical needs distinct labels, got {list(self.labels)}; build it with "
                    "Parameter.categorical"
                )

    @property
    def levels(self) -> int | None:
        """Number of values of a discrete parameter; None for the other kinds."""
        if self.kind == "ordinal":
            return len(self.values)
        return int(self.high - self.low) + 1 if self.kind in ("integer", "categorical") else None

    @property
    def level_values(self) -> NDArray[np.float64]:
        """(n,) what a discrete parameter can be, in `unit`; a fixed parameter's value; empty otherwise."""
        if self.kind == "ordinal":
            return np.array(self.values)
        if self.levels is not None:
            return np.arange(self.low, self.high + 1)
        return np.array([self.low]) if self.low == self.high else np.empty(0)


@dataclass(frozen=True)
class SearchSpace:
    """Ordered parameters, and the rules their vectors must obey."""

    parameters: tuple[Parameter, ...]
    rules: RuleBook | tuple[Rule, ...] = ()  # kept as a RuleBook

    def __post_init__(self) -> None:
        """Raise PlanError for an empty space or repeated names."""
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if not isinstance(self.rules, RuleBook):
            object.__setattr__(self, "rules", RuleBook(self.rules))
        if not self.parameters:
            raise PlanError("a search space needs at least one parameter, got none")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise PlanError(f"parameter names must differ, got {', '.join(repeated)} more than once")
        swept = [p.name for p in self.parameters if p.swept]
        if len(swept) > 1:
            raise PlanError(f"at most one parameter can be swept, got {', '.join(swept)}; enumerate one")

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in the order of a vector's entries."""
        return tuple(p.name for p in self.parameters)

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return len(self.parameters)

    @property
    def book(self) -> RuleBook:
        """The rules with their switches and tallies."""
        assert isinstance(self.rules, RuleBook)
        return self.rules

    @cached_property
    def is_discrete(self) -> NDArray[np.bool_]:
        """(d,) True for integer, ordinal and categorical parameters."""
        return np.array([p.levels is not None for p in self.parameters])

    @cached_property
    def is_categorical(self) -> NDArray[np.bool_]:
        """(d,) True for parameters whose levels have no order."""
        return np.array([p.kind == "categorical" for p in self.parameters])

    @cached_property
    def is_free(self) -> NDArray[np.bool_]:
        """(d,) False for parameters of one value."""
        return self.low < self.high

    @cached_property
    def swept(self) -> int | None:
        """Position of the parameter all of whose levels one evaluation yields, None without one."""
        return next((i for i, p in enumerate(self.parameters) if p.swept and p.low < p.high), None)

    @cached_property
    def is_log(self) -> NDArray[np.bool_]:
        """(d,) True for parameters mapped by their logarithm."""
        return np.array([p.kind == "log" for p in self.parameters])

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """(d,) number of values of each discrete parameter, 0 for the other kinds."""
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
        """Number of distinct vectors when all parameters are discrete or fixed, otherwise None."""
        count = 1
        for p in self.parameters:
            if p.low < p.high:
                if p.levels is None:
                    return None
                count *= p.levels
        return count

    def snap(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return vectors (..., d) clipped to the bounds, discrete parameters moved to the nearest level."""
        x = np.clip(np.asarray(vectors, dtype=np.float64), self.low, self.high)
        x = np.where(self._is_whole, np.floor(x + 0.5), x) + 0.0  # + 0.0 turns −0 into 0
        for i, values in self._ordinals:
            x[..., i] = values[np.abs(x[..., i, None] - values).argmin(axis=-1)]
        return x

    def to_unit(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return natural vectors (..., d) as points of the unit cube; a parameter of one value maps to ½."""
        x = self.snap(vectors)
        for i, values in self._ordinals:
            x[..., i] = np.searchsorted(values, x[..., i])
        start, span = self._scale
        moved = np.where(self.is_log, np.log(np.where(self.is_log, x, 1.0)), x) - start
        unit = np.where(span > 0, moved / np.where(span > 0, span, 1.0), 0.5)
        return np.clip(unit, 0.0, 1.0)

    def from_unit(self, unit: ArrayLike) -> NDArray[np.float64]:
        """Return points (..., d) of the unit cube as natural vectors, discrete parameters at their levels."""
        u = np.clip(np.asarray(unit, dtype=np.float64), 0.0, 1.0)
        start, span = self._scale
        x = start + u * span
        for i, values in self._ordinals:
            x[..., i] = values[np.clip(np.floor(x[..., i] + 0.5), 0, len(values) - 1).astype(int)]
        return self.snap(np.where(self.is_log, np.exp(np.where(self.is_log, x, 0.0)), x))

    def slopes(self, vector: ArrayLike) -> NDArray[np.float64]:
        """Return dx/du (d,) at a natural vector: what turns derivatives per unit into those in the cube.

        For an ordinal, the mean spacing to its neighbouring values takes the place of the unit step; 0 for
        categoricals, which have no slope, and for fixed parameters.
        """
        x = self.snap(vector)
        slope = np.where(self.is_log, x, 1.0) * self._scale[1]
        for i, values in self._ordinals:
            at = int(np.searchsorted(values, x[i]))
            near = values[max(at - 1, 0) : at + 2]
            slope[i] *= (near[-1] - near[0]) / max(len(near) - 1, 1)
        return np.where(self.is_categorical, 0.0, slope)

    def encode(self, unit: ArrayLike) -> NDArray[np.float64]:
        """Return points (n, d) of the unit cube as a model sees them (n, D).

        Each categorical becomes one column a label, 1/√2 for its own and 0 for the others, so that any two
        labels are at distance 1; the columns stand at the end. Without any, D = d and nothing changes.
        """
        u = np.asarray(unit, dtype=np.float64)
        if not self.is_categorical.any():
            return u
        columns = [u[..., ~self.is_categorical]]
        for i in np.flatnonzero(self.is_categorical):
            n = int(self.levels[i])
            level = np.clip(np.floor(u[..., i] * n), 0, n - 1).astype(int)
            columns.append(np.eye(n)[level] / np.sqrt(2.0))
        return np.concatenate(columns, axis=-1)

    def decode(self, encoded: ArrayLike) -> NDArray[np.float64]:
        """Return the points (n, d) of the unit cube that `encode` turned into (n, D)."""
        e = np.asarray(encoded, dtype=np.float64)
        if not self.is_categorical.any():
            return e
        u = np.empty((*e.shape[:-1], self.dimension))
        at = int((~self.is_categorical).sum())
        u[..., ~self.is_categorical] = e[..., :at]
        for i in np.flatnonzero(self.is_categorical):
            n = int(self.levels[i])
            u[..., i] = (e[..., at : at + n].argmax(axis=-1) + 0.5) / n
            at += n
        return u

    @cached_property
    def _is_whole(self) -> NDArray[np.bool_]:
        """(d,) True where a vector holds whole numbers."""
        return np.array([p.kind in ("integer", "categorical") for p in self.parameters])

    @cached_property
    def _ordinals(self) -> tuple[tuple[int, NDArray[np.float64]], ...]:
        """Position and values of each ordinal."""
        return tuple((i, np.array(p.values)) for i, p in enumerate(self.parameters) if p.kind == "ordinal")

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(d,) start and span of the linear map; discrete parameters get half a cell on either side."""
        low = np.where(self.is_log, np.log(np.where(self.is_log, self.low, 1.0)), self.low)
        high = np.where(self.is_log, np.log(np.where(self.is_log, self.high, 1.0)), self.high)
        for i, values in self._ordinals:
            low[i], high[i] = 0.0, len(values) - 1.0
        half = np.where(self.is_discrete & (high > low), 0.5, 0.0)
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
        return self.book.refused_by(vector)

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
            if len(self.book):
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
            raise PlanError("only a space of discrete parameters can be listed in full; fix the others")
        axes = [p.level_values for p in self.parameters]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dimension)

    def _unsatisfiable(self, tally: Counter[str], drawn: int) -> str:
        """Return the message for rules that left nothing, the strictest rule first."""
        share = ", ".join(f"{name} ({count} of {drawn})" for name, count in tally.most_common())
        noun = "rule" if len(tally) == 1 else "rules"
        return (
            f"the {noun} {share} rejected every one of {drawn} vectors drawn within the bounds; "
            "loosen or switch off the rule, or widen the bounds it looks at"
        )
