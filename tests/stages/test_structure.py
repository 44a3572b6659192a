"""Contenders race: who leads, who may still overtake, who is left behind as a rival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from benches import bench_of
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import SurfaceEnergy
from qhrtem.stages import structure
from qhrtem.stages.checkpoint import Forgetful, Log, Parts, Reached
from qhrtem.stages.objective import State
from qhrtem.stages.start import Start
from qhrtem.stages.structure import EARLY, EARLY_ROUNDS, LENS, ROUNDS, Contender, Rounds, leading
from slabs import slab

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


def roughened(columns: ColumnModel, share: float) -> ColumnModel:
    """Return the columns with a share of them one site longer."""
    longer = np.random.default_rng(0).random(len(columns)) < share
    return columns.with_ends(columns.first, np.where(longer, columns.last + 1, columns.last))


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_rounds_ask_for_a_flatter_specimen_than_the_one_they_find(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    island = slab(radius=6.0)
    state = State(roughened(island.columns, share), island.microscope)
    shown = np.ones(len(state.columns), dtype=bool)
    start = Start(island.model.field, state.columns, state.microscope, shown)
    contender = Contender(bench_of(island), state, start, 0.0)
    rounds = Rounds(contender, Parts(Forgetful(), Log(lambda step: None)), 0)
    asked: list[SurfaceEnergy] = []

    def counts(
        self: Rounds, state: State, lens: list[int], surface: SurfaceEnergy, walk: np.random.Generator
    ) -> Reached:
        asked.append(surface)
        return Reached(state)

    monkeypatch.setattr(Rounds, "counts", counts)
    monkeypatch.setattr(Rounds, "outline", lambda self, state, lens: Reached(state))
    monkeypatch.setattr(Rounds, "thermal", lambda self, state: Reached(state))
    rounds.run(Reached(state), range(ROUNDS))

    usual = rounds.surface(state)
    first, *later = asked
    assert first == rounds.energy  # nothing is known yet
    assert len(later) == ROUNDS - 1
    for surface in later:
        assert surface.bond > 1.3 * usual.bond > 0
        assert replace(surface, bond=usual.bond) == usual  # heights as before
        flat, rough = (surface.cost(c) - usual.cost(c) for c in (island.columns, state.columns))
        assert rough > flat
