"""Count moves: removed and added atoms are found, and the discrete descent is right."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from benches import bench_of, with_last
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.counts import count_round
from qhrtem.stages.descent import Descent
from qhrtem.stages.joint import total_cost
from qhrtem.stages.linearise import Quadratic, linearise, possible_moves
from qhrtem.stages.move_model import MoveModel, profile
from qhrtem.stages.objective import State
from slabs import Slab, slab

FREE = [INDEX[n] for n in ("c1", "a1_x", "vibration_xx")]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


@pytest.fixture(scope="module")
def rules(island: Slab) -> tuple[SurfaceEnergy, NeighbourStep]:
    neighbours = Neighbours.within(island.columns, 2.8)
    return SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0)


@pytest.mark.parametrize(("name", "sites"), [("Ti", -1), ("O", -1), ("BaO", -1), ("BaO", 1)])
def test_a_wrong_count_is_corrected(
    island: Slab, rules: tuple[SurfaceEnergy, NeighbourStep], name: str, sites: int
) -> None:
    """The image lacks (or holds one more of) an atom at the exit surface of one column."""
    c = island.nearest(name)
    true = with_last(island.columns, {c: sites})
    bench = bench_of(island, true, electrons=20000.0)
    everything = list(range(len(true)))
    rejected: dict[str, int] = {}
    start = State(island.columns, island.microscope)
    done = count_round(bench, start, FREE, everything, everything, *rules, rejected)
    assert done.changed >= 1 and done.gain > 20
    assert (done.state.columns.element_counts() == true.element_counts()).all()
    changed = done.state.columns.element_counts() != island.columns.element_counts()
    assert changed.any(1).nonzero()[0].tolist() == [c]
    assert rejected["neighbour step"] >= 0
    before = total_cost(bench, start, FREE) + rules[0].cost(start.columns)
    after = total_cost(bench, done.state, FREE) + rules[0].cost(done.state.columns)
    assert before - after == pytest.approx(done.gain)


@pytest.mark.parametrize(("name", "sites"), [("O", 1), ("O", -1), ("BaO", 2), ("BaO", -1)])
def test_a_column_that_stands_too_high_or_low_slides_back(
    island: Slab, rules: tuple[SurfaceEnergy, NeighbourStep], name: str, sites: int
) -> None:
    c = island.nearest(name)
    first, last = island.columns.first.copy(), island.columns.last.copy()
    first[c] += sites
    last[c] += sites
    bench = bench_of(island, electrons=40000.0, seed=2)
    everything = list(range(len(first)))
    start = State(island.columns.with_ends(first, last), island.microscope)
    done = count_round(bench, start, FREE, everything, everything, *rules, {})
    assert (done.state.columns.first == island.columns.first).all()
    assert (done.state.columns.last == island.columns.last).all()


@pytest.mark.parametrize("by", [(-2, -1), (1, 2)])
@pytest.mark.parametrize("far", [False, True])
def test_a_far_round_reaches_a_column_of_one_atom_too_many_a_site_away(
    island: Slab, rules: tuple[SurfaceEnergy, NeighbourStep], by: tuple[int, int], far: bool
) -> None:
    c = island.nearest("Ti")
    first, last = island.columns.first.copy(), island.columns.last.copy()
    first[c] += by[0]
    last[c] += by[1]
    bench = bench_of(island, electrons=40000.0, seed=2)
    start = State(island.columns.with_ends(first, last), island.microscope)
    every = list(range(len(first)))
    done = count_round(bench, start, FREE, every, every, *rules, {}, far=far)
    right = done.state.columns.first[c] == island.columns.first[c]
    assert bool(right and done.state.columns.last[c] == island.columns.last[c]) == far


def test_right_counts_stay(island: Slab, rules: tuple[SurfaceEnergy, NeighbourStep]) -> None:
    bench = bench_of(island, electrons=20000.0, seed=4)
    some = list(range(0, len(island.columns), 2))
    done = count_round(bench, State(island.columns, island.microscope), FREE, some, some, *rules, {})
    assert (done.state.columns.element_counts() == island.columns.element_counts()).all()


def test_a_lens_that_goes_too_far_does_not_hide_a_wrong_count(
    island: Slab, rules: tuple[SurfaceEnergy, NeighbourStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slope by A1 leads astray and the exact image refuses the step; less of it finds the atom."""
    astray = 3.0  # steps

    def misled(*args: Any, **kwargs: Any) -> Quadratic:
        quadratic = linearise(*args, **kwargs)
        quadratic.gradient[1] += astray * quadratic.matrix.corner[1, 1]
        return quadratic

    monkeypatch.setattr("qhrtem.stages.counts.linearise", misled)
    c = island.nearest("Ti")
    true = with_last(island.columns, {c: -1})
    bench = bench_of(island, true, electrons=20000.0)
    everything = list(range(len(true)))
    start = State(island.columns, island.microscope)
    done = count_round(bench, start, FREE, everything, everything, *rules, {})
    assert done.gain > 20
    assert done.state.columns.element_counts()[c].sum() == true.element_counts()[c].sum()
    step = PARAMETERS[FREE[1]].step
    assert abs(done.state.microscope["a1_x"] - start.microscope["a1_x"]) < astray * step


def test_continuous_unknowns_follow_by_schur_complement(island: Slab) -> None:
    """h, G of the moves are those of the quadratic model minimised over lens and positions."""
    bench = bench_of(island, with_last(island.columns, {0: -1}))
    state = State(island.columns, island.microscope)
    moving = {c: possible_moves(state.columns, c) for c in (0, island.nearest("Ti"))}
    q = linearise(bench, state, FREE, [0, island.nearest("Ti")], moving)
    model = profile(state, q)
    from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A
    from qhrtem.stages.linearise import prior_normal

    k = q.continuous
    prior, pull = prior_normal(state, q, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    matrix, gradient = q.matrix.dense(), q.gradient.copy()
    matrix[:k, :k] += prior.dense()
    gradient[:k] += pull
    rng = np.random.default_rng(0)
    for _ in range(5):
        s = (rng.random(len(q.moves)) < 0.3).astype(float)
        best = np.linalg.solve(matrix[:k, :k], gradient[:k] - matrix[:k, k:] @ s)
        z = np.concatenate([best, s])
        none = np.linalg.solve(matrix[:k, :k], gradient[:k])
        full = z @ matrix @ z - 2 * gradient @ z
        base = none @ matrix[:k, :k] @ none - 2 * gradient[:k] @ none
        reduced = model.cost(s)
        assert full - base == pytest.approx(reduced, rel=1e-4, abs=1e-3)
        assert model.step(s) == pytest.approx(best, rel=1e-4, abs=1e-5)


def test_descent_finds_the_best_combination(island: Slab) -> None:
    """Against exhaustive search over three columns, with couplings strong enough to trap single moves."""
    columns = island.columns
    chosen = [island.nearest(n) for n in ("BaO", "Ti", "O")]
    bench = bench_of(island, with_last(columns, {chosen[0]: -1, chosen[1]: -1}), electrons=300.0)
    q = linearise(
        bench,
        State(columns, island.microscope),
        FREE,
        chosen,
        {c: possible_moves(columns, c) for c in chosen},
    )
    model = profile(State(columns, island.microscope), q)
    rng = np.random.default_rng(1)
    a = rng.normal(size=model.near.shape)
    coupled = replace(model, near=sparse.csr_array(model.near.toarray() + 4 * a @ a.T))
    surface = SurfaceEnergy(Neighbours.within(columns, 2.8))
    support = NeighbourStep(surface.neighbours, 6.0)
    for m in (model, coupled):
        descent = Descent(columns, m, surface, support)
        descent.run()
        best = min(
            cost_of(island, m, surface, o)
            for o in itertools.product(*[range(len(o.moves)) for o in m.options])
        )
        mine = cost_of(island, m, surface, tuple(int(v) for v in descent.chosen))
        assert mine <= best + 0.3 * abs(best) + 1e-6
        # No single column can do better on its own.
        for n in range(3):
            cost = descent.local_cost(n)
            assert cost[descent.chosen[n]] <= cost.min() + 1e-6
    descent = Descent(columns, model, surface, support)
    descent.run()
    assert cost_of(island, model, surface, tuple(int(v) for v in descent.chosen)) == pytest.approx(
        min(
            cost_of(island, model, surface, o)
            for o in itertools.product(*[range(len(o.moves)) for o in model.options])
        )
    )


def cost_of(island: Slab, model: MoveModel, surface: SurfaceEnergy, option: tuple[int, ...]) -> float:
    """Quadratic cost plus surface energy of one option per column."""
    s = np.zeros(len(model.h))
    first, last = island.columns.first.copy(), island.columns.last.copy()
    for o, n in zip(model.options, option, strict=True):
        s[list(o.moves[n])] = 1
        first[o.column], last[o.column] = o.first[n], o.last[n]
    surface_cost = surface.cost(island.columns.with_ends(first, last)) - surface.cost(island.columns)
    return float(model.cost(s) + surface_cost)


def test_unsupported_options_are_barred(island: Slab) -> None:
    columns = island.columns
    c = island.nearest("Ti")
    bench = bench_of(island, electrons=300.0)
    q = linearise(bench, State(columns, island.microscope), [], [], {c: possible_moves(columns, c)})
    model = profile(State(columns, island.microscope), q)
    surface = SurfaceEnergy(Neighbours.within(columns, 2.8))
    strict = Descent(columns, model, surface, NeighbourStep(surface.neighbours, 1.0))
    loose = Descent(columns, model, surface, NeighbourStep(surface.neighbours, 60.0))
    assert strict.rejected > 0 and loose.rejected == 0
    assert np.isinf(strict.local_cost(0)).sum() == strict.rejected
    assert np.isfinite(strict.local_cost(0)[0])


def test_a_column_beyond_the_image_is_left_alone(island: Slab, rules: tuple) -> None:
    """Its moves change no pixel that counts, so nothing speaks for any of them."""
    columns = island.columns
    away = replace(columns, anchor=columns.anchor.copy())
    c = island.nearest("Ti")
    away.anchor[c] = (-60.0, -60.0)
    state = State(away, island.microscope)
    moving = {i: possible_moves(away, i) for i in (c, island.nearest("O"))}
    q = linearise(bench_of(island, electrons=300.0), state, FREE, sorted(moving), moving)
    descent = Descent(away, profile(state, q), *rules)
    descent.run()
    assert np.isfinite(descent.cost())
