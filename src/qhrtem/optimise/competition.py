"""Who gets the next evaluation: descents, new starts and the surrogate compete on gain per second."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Choice = Literal["descend", "start", "explore"]

HOPE = 0.5  # relative gain granted in advance to starting elsewhere and to exploring,
HOPE_TRIALS = 24  # spread over the time of so many values: a descent's eight Jacobians


@dataclass
class Experience:
    """Relative gains and seconds of the latest evaluations of one kind."""

    length: int
    rows: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, gain: float, seconds: float) -> None:
        """Note one evaluation; the oldest is forgotten."""
        self.rows.append((gain, seconds))
        while len(self.rows) > self.length:
            self.rows.popleft()

    def fade(self) -> None:
        """Forget the oldest evaluation, as what was learned long ago says less of now."""
        if self.rows:
            self.rows.popleft()

    def rate(self, cost: float) -> float:
        """Return the gain per second to expect; cost: seconds of one evaluation of the value."""
        gain, seconds = HOPE + sum(g for g, _ in self.rows), HOPE_TRIALS * cost + sum(s for _, s in self.rows)
        return gain / seconds


def favoured(descend: float, start: float, explore: float, tolerance: float = 0.0) -> Choice:
    """Return what promises the most relative gain per second.

    descend: of the most promising descent under way, from its quadratic model. start: of descents so far,
    counted from their starts. explore: of trial points that the surrogate chose so far. Ties go to least
    squares, which needs fewer assumptions. tolerance: rates of descent below this count as nothing.
    """
    if descend > tolerance and descend >= max(start, explore):
        return "descend"
    return "start" if start >= explore else "explore"
