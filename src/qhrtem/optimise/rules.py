"""Rules that forbid vectors, and the book that switches them and counts what each saved."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import PlanError


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
class RuleRecord:
    """What one rule has done."""

    name: str
    on: bool
    tested: int  # vectors
    rejected: int  # vectors, by this rule first
    seconds: float  # spent in its test


class RuleBook:
    """Rules in the order in which they are tried, each with a switch and a tally.

    The tally describes this process only: it is no part of a search's state.
    """

    def __init__(self, rules: Iterable[Rule] = (), off: Iterable[str] = ()) -> None:
        """Raise PlanError for two rules of one name or an unknown name in `off`."""
        self.rules = tuple(rules)
        self._on = {rule.name: True for rule in self.rules}
        if len(self._on) < len(self.rules):
            names = Counter(rule.name for rule in self.rules)
            repeated = ", ".join(n for n, count in names.items() if count > 1)
            raise PlanError(f"rule names must differ, got {repeated} more than once")
        self._tested: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        for name in off:
            self.switch(name, False)

    def __len__(self) -> int:
        return len(self.active)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.active)

    @property
    def active(self) -> tuple[Rule, ...]:
        """The rules that are switched on."""
        return tuple(rule for rule in self.rules if self._on[rule.name])

    def switch(self, name: str, on: bool) -> None:
        """Switch a rule on or off; raise PlanError for a name that no rule has."""
        if name not in self._on:
            known = ", ".join(self._on) or "none"
            raise PlanError(f"no rule is named {name!r}; the rules are: {known}")
        self._on[name] = on

    def refused_by(self, vector: NDArray[np.float64]) -> str | None:
        """Return the name of the first active rule that forbids a natural vector (d,), None if none does."""
        for rule in self.active:
            began = time.perf_counter()
            allowed = rule.allows(vector)
            self._seconds[rule.name] += time.perf_counter() - began  # type: ignore[assignment]
            self._tested[rule.name] += 1
            if not allowed:
                self._rejected[rule.name] += 1
                return rule.name
        return None

    def records(self) -> tuple[RuleRecord, ...]:
        """Return what every rule has done so far."""
        return tuple(
            RuleRecord(n, on, self._tested[n], self._rejected[n], float(self._seconds[n]))
            for n, on in self._on.items()
        )
