"""Contenders race: who leads, who may still overtake, who is left behind as a rival."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from qhrtem.stages import structure
from qhrtem.stages.checkpoint import Forgetful, Log, Parts, Reached
from qhrtem.stages.structure import EARLY, EARLY_ROUNDS, LENS, ROUNDS, leading

Course = tuple[tuple[float, float], ...]  # cost after each stretch of rounds, and what its last round gained


class Scripted:
    """Rounds of a contender whose costs are known beforehand; the contender is its course."""

    def __init__(self, contender: Any, parts: Parts, seed: int) -> None:
        self.contender = contender
        self.ran: list[range] = []
        self.asked: list[tuple[str, ...]] = []

    def part(self, name: str, make: partial[Reached]) -> Reached:
        return Reached(None)  # type: ignore[arg-type]

    def positions(self, state: Any) -> Reached:
        raise AssertionError("only named, never computed")

    def run(self, done: Reached, numbers: range) -> Reached:
        self.ran.append(numbers)
        return Reached(None, self.contender.course[len(self.ran) - 1][1])  # type: ignore[arg-type]

    def cost(self, state: Any, names: tuple[str, ...]) -> float:
        self.asked.append(names)
        return self.contender.course[len(self.ran) - 1][0]


class Entrant:
    """What stands for a contender."""

    def __init__(self, course: Course) -> None:
        self.course, self.state = course, None


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Callable[..., structure.Lead]:
    monkeypatch.setattr(structure, "Rounds", Scripted)
    parts = Parts(Forgetful(), Log(lambda step: None))
    return lambda *courses: leading(0, [Entrant(c) for c in courses], parts)  # type: ignore[misc]


def test_one_alone_goes_through_the_first_rounds_once(race: Callable[..., Any]) -> None:
    lead = race(((100.0, 0.0),))
    assert lead.rounds.ran == [range(EARLY_ROUNDS)] and lead.begun == EARLY_ROUNDS
    assert lead.rivals == () and lead.rounds.asked == [EARLY]


def test_one_that_lags_by_less_than_it_gains_may_overtake(race: Callable[..., Any]) -> None:
    lead = race(((1000.0, 700.0), (600.0, 9.0)), ((1100.0, 900.0), (550.0, 9.0)), ((3000.0, 500.0),))
    assert lead.done.number == 9.0 and lead.rounds.contender.course[0][0] == 1100.0
    assert lead.rounds.ran == [range(EARLY_ROUNDS), range(EARLY_ROUNDS, ROUNDS)]
    assert lead.rounds.asked == [EARLY, LENS] and lead.begun == ROUNDS
    assert [(r.name[-3:], r.behind) for r in lead.rivals] == [("(1)", 50.0), ("(3)", 2000.0)]


def test_one_that_lags_by_more_is_a_rival_at_once(race: Callable[..., Any]) -> None:
    lead = race(((1000.0, 10.0),), ((1100.0, 90.0),))
    assert lead.begun == EARLY_ROUNDS and [r.behind for r in lead.rivals] == [100.0]
