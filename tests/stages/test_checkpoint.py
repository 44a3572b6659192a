"""Parts of a fit: what goes into a memory comes back the same bit by bit and is never computed twice."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crystals import projection
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.microscope import nominal
from qhrtem.model.twin import Step
from qhrtem.specimen.columns import lattice_columns
from qhrtem.stages.checkpoint import (
    Forgetful,
    Form,
    HypothesisForm,
    LatticeForm,
    Log,
    Parts,
    RankingForm,
    Reached,
    ReachedForm,
    Snapshot,
)
from qhrtem.stages.imaging import Hypothesis
from qhrtem.stages.objective import OwnLens, State

STO = projection("SrTiO3", (0, 0, 1))


class Shelf(Forgetful):
    """A memory that holds JSON text and array bytes, as a folder would."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, dict[str, tuple[bytes, str, tuple[int, ...]]]]] = {}

    def recall(self, part: str) -> Snapshot | None:
        if part not in self.held:
            return None
        facts, arrays = self.held[part]
        loaded = {k: np.frombuffer(b, dtype).reshape(shape).copy() for k, (b, dtype, shape) in arrays.items()}
        return Snapshot(json.loads(facts), loaded)

    def keep(self, part: str, snapshot: Snapshot) -> None:
        assert part not in self.held
        assert all(a.flags.c_contiguous for a in snapshot.arrays.values())
        packed = {k: (a.tobytes(), a.dtype.str, a.shape) for k, a in snapshot.arrays.items()}
        self.held[part] = json.dumps(snapshot.facts, allow_nan=False), packed


def through(form: Form[Any], value: Any) -> tuple[Any, Any]:
    """Return a value as the run that made it goes on with it, and as a later one does."""
    shelf = Shelf()
    now = Parts(shelf, Log(lambda step: None))("part", lambda: value, form)

    def never() -> Any:
        raise AssertionError("computed twice")

    return now, Parts(shelf, Log(lambda step: None))("part", never, form)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(), b.numpy()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return bool(a == b)


MAP = torch.linspace(0, 1 / 7, 30).reshape(5, 6)


def same_addition(a: Diffuse, b: Diffuse) -> bool:
    return same(a.image, b.image) and same(a.slope, b.slope) and a.b_scale == b.b_scale


def reached(seed: int, diffuse: Diffuse, mtf: Any = (0.35, 0.28)) -> Reached:
    rng = np.random.default_rng(seed)
    empty = lattice_columns(STO, np.zeros(2), np.array([[0.1, 1.0], [1.0, -0.1]]), (0.0, 0.0, 9.0, 9.0))
    full = empty.filled(np.full(len(empty), 10.0), np.full(len(empty), 30.0))
    columns = full.with_ends(full.first, full.last + rng.integers(-9, 3, len(full)))
    lens = nominal(3e5)
    moved = lens.with_vector(list(range(10)), rng.normal(size=10) * 1e3)
    return Reached(
        State(columns, type(lens)(moved.energy, moved.values, lens.mean, lens.sigma, mtf), diffuse), 1 / 3
    )


@pytest.mark.parametrize("mtf", [(0.35, 0.28), np.array([[0.0, 0.25, 0.5], [1.0, 0.6, 0.3]])])
@pytest.mark.parametrize("diffuse", [Diffuse(), Diffuse(0.1), Diffuse(MAP, -MAP, 1 / 3)])
def test_a_state_comes_back_the_same(diffuse: Diffuse, mtf: Any) -> None:
    before = reached(3, diffuse, mtf)
    for after in through(ReachedForm(STO), before):
        assert after.number == before.number
        assert same_addition(before.state.diffuse, after.state.diffuse)
        for name in ("values", "mean", "sigma", "mtf", "energy"):
            assert same(getattr(before.state.microscope, name), getattr(after.state.microscope, name))
        for name in ("kind", "cell", "anchor", "frame", "rise", "shift", "first", "last"):
            assert same(getattr(before.state.columns, name), getattr(after.state.columns, name))
        assert after.state.columns.projection is STO


def test_further_images_come_back_the_same() -> None:
    """Each with its own lens, MTF and thermal correction."""
    before = reached(3, Diffuse(0.1))
    second, third = reached(4, Diffuse(MAP)), reached(5, Diffuse(), np.eye(2))
    others = tuple(OwnLens(r.state.microscope, r.state.diffuse) for r in (second, third))
    whole = Reached(replace(before.state, others=others), 1 / 3)
    for after in through(ReachedForm(STO), whole):
        assert len(after.state.others) == 2
        for a, b in zip(others, after.state.others, strict=True):
            assert same_addition(a.diffuse, b.diffuse)
            for name in ("values", "mean", "sigma", "mtf", "energy"):
                assert same(getattr(a.microscope, name), getattr(b.microscope, name))
        assert same(after.state.microscope.values, before.state.microscope.values)


def test_counters_and_generator_go_on_where_they_were() -> None:
    shelf = Shelf()
    form = ReachedForm(STO, {"support": 1}, np.random.default_rng([5, 1]))

    def work() -> Reached:
        assert form.generator is not None
        form.rejected["support"] += 41
        form.generator.standard_normal(17)
        return reached(0, Diffuse())

    Parts(shelf, Log(lambda step: None))("part", work, form)
    later = ReachedForm(STO, {}, np.random.default_rng([5, 1]))
    Parts(shelf, Log(lambda step: None))("part", work, later)
    assert later.rejected == {"support": 42}
    assert form.generator is not None and later.generator is not None
    assert form.generator.standard_normal(5).tobytes() == later.generator.standard_normal(5).tobytes()


def test_lattice_ranking_and_hypothesis_come_back_the_same() -> None:
    rng = np.random.default_rng(0)
    # Layout is a part of identity: sums over a transposed array are added in another order.
    frame = rng.normal(size=(2, 2)).T
    lattice = Lattice(frame, STO.vectors, 0.1 + 0.2, -3.3, 1e-17, 99.0, rng.random((7, 5)).T > 0.5)
    for after in through(LatticeForm(), lattice):
        assert all(same(np.ascontiguousarray(getattr(lattice, n)), getattr(after, n)) for n in ("crystal",))
        assert after.pixel_size_A == 0.1 + 0.2 and after.frame.flags.c_contiguous
    ranking = [(0.1, np.eye(2)), (0.3, np.array([[0.0, 1], [1, 0]]))]
    for found in through(RankingForm(), ranking):
        assert [m for m, _ in found] == [0.1, 0.3] and same(found[1][1], ranking[1][1])
    guess = Hypothesis(frame, nominal(3e5), (1 / 3, 2 / 3), np.arange(4), 0.07)
    for hypothesis in through(HypothesisForm(), guess):
        assert hypothesis.origin == (1 / 3, 2 / 3) and hypothesis.misfit == 0.07
        assert same(hypothesis.thickness, guess.thickness) and same(hypothesis.frame, frame.copy(order="C"))


@given(known=st.integers(0, 6))
def test_history_is_the_same_from_whichever_part_a_fit_goes_on(known: int) -> None:
    def fit(shelf: Shelf, parts: int, told: list[Step]) -> list[Step]:
        log = Log(told.append)
        run = Parts(shelf, log)
        for n in range(parts):

            def work(n: int = n) -> list[tuple[float, Any]]:
                log.done += 0.1 * (n % 2)
                log("counts", float("nan") if n == 0 else 1 / n, f"round {n}")
                log("joint", 2.0)
                return [(float(n), np.eye(2))]

            run(f"part {n}", work, RankingForm())
        return log.steps

    shelf = Shelf()
    first = fit(shelf, known, [])
    told: list[Step] = []
    history = fit(shelf, 6, told)
    assert repr(history[: len(first)]) == repr(first)
    assert [s.done for s in history] == [s.done for s in fit(Shelf(), 6, [])]
    assert told == history[len(first) :]
    assert [s.iteration for s in history if s.stage == "counts"] == list(range(6))
    assert all(a.seconds <= b.seconds for a, b in zip(history, history[1:], strict=False))
