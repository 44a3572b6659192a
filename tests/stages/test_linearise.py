"""The quadratic model against whole-field differences, and the prior against its own cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benches import bench_of
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.model.window import Move, Response, SiteChange, Tangent, WindowModel
from qhrtem.stages.joint import apply_step
from qhrtem.stages.linearise import (
    EVEN,
    EndMove,
    end_move,
    linearise,
    possible_moves,
    present_groups,
    prior_cost,
    prior_normal,
)
from qhrtem.stages.objective import Bench, State
from slabs import Slab, slab

FREE = [INDEX[n] for n in ("c1", "a1_y", "vibration_xx", "tilt_x")]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.0)


@pytest.fixture(scope="module")
def state(island: Slab) -> State:
    rng = np.random.default_rng(5)
    shift = np.zeros_like(island.columns.shift)
    shift[:, 0] = rng.normal(0, 0.03, (len(shift), 2))
    shift[:, 1] = shift[:, 0] + rng.normal(0, 0.01, (len(shift), 2))
    return State(replace(island.columns, shift=shift), island.microscope.with_values(c1=56.0, a1_y=-4.0))


def difference(bench: Bench, state: State, tangent: tuple[int, int, int]) -> NDArray[np.float64]:
    """∂image/∂position of one element group by central differences."""
    c, group, axis = tangent
    h, pair = 0.005, []
    for sign in (1, -1):
        shift = state.columns.shift.copy()
        shift[c, group, axis] += sign * h
        pair.append(bench.image(replace(state, columns=replace(state.columns, shift=shift))).double().numpy())
    return np.asarray((pair[0] - pair[1]) / (2 * h))


def test_matrix_and_gradient_match_whole_field_differences(island: Slab, state: State) -> None:
    bench = bench_of(island)
    columns = state.columns
    moving = {
        c: [EndMove(c, 1, -1), EndMove(c, 0, -1), EndMove(c, 0, 1, 2)]
        for c in (island.nearest("BaO"), island.nearest("Ti"))
    }
    positions = [island.nearest(name) for name in ("BaO", "Ti", "O")]
    q = linearise(bench, state, FREE, positions, moving)
    assert q.continuous == len(FREE) + 2 * 4 and len(q.moves) == 6
    base = bench.image(state)
    rows = list(bench.global_jacobian(state, FREE).astype(float))
    rows += [difference(bench, state, t) for t in q.tangents]
    for m in q.moves:
        first, last = columns.first.copy(), columns.last.copy()
        first[m.column] += m.by[0]
        last[m.column] += m.by[1]
        moved = replace(state, columns=columns.with_ends(first, last))
        rows.append((bench.image(moved) - base).double().numpy())
    flat = np.array([r.ravel() for r in rows])
    weight = bench.misfit.weight(base).double().numpy().ravel()
    matrix = (flat * weight) @ flat.T
    size = np.sqrt(np.diag(matrix))
    assert (np.abs(q.matrix.dense() - matrix) / np.outer(size, size)).max() < 0.02
    assert np.allclose(q.matrix.diagonal(), np.diag(matrix), rtol=0.04)
    dense = q.matrix.dense()
    assert np.allclose(dense, dense.T, rtol=1e-5, atol=1e-3)
    residual = (bench.misfit.measured - base).double().numpy().ravel() * weight
    # In units of one standard deviation along each direction.
    assert (np.abs(q.gradient - flat @ residual) / size).max() < 0.02 * np.abs(flat @ residual / size).max()
    # The columns were moved, so there is something to gain.
    assert np.abs(q.gradient / size).max() > 10


@pytest.mark.parametrize("c1", [60.0, 300.0])
def test_an_image_that_wants_less_than_no_semi_convergence_is_curved(island: Slab, c1: float) -> None:
    """The cost away from the least semi-convergence, where squares of slopes tell a third of it."""
    start = island.microscope.with_values(c1=c1, semi_convergence=PARAMETERS[EVEN].low)
    sharper = start.with_values(vibration_xx=0.03, vibration_yy=0.03)
    bench = bench_of(island, microscope=sharper, electrons=20000.0, seed=None)
    state = State(island.columns, start)
    q = linearise(bench, state, [EVEN], [], {})
    for z in (2.0, 4.0):
        cost = bench.cost(apply_step(state, q, np.array([z]))) - bench.cost(state)
        assert z**2 * q.matrix.corner[0, 0] - 2 * z * q.gradient[0] == pytest.approx(cost, rel=0.25)


def test_more_threads_change_nothing(island: Slab, state: State) -> None:
    one, three = bench_of(island), bench_of(island)
    three.workers = 3
    seen: list[float] = []
    positions = list(range(6))
    a = linearise(one, state, FREE, positions, {}, seen.append)
    b = linearise(three, state, FREE, positions, {})
    assert np.array_equal(a.matrix.dense(), b.matrix.dense()) and np.array_equal(a.gradient, b.gradient)
    assert a.tangents == b.tangents
    assert seen == pytest.approx([(n + 1) / 6 for n in range(6)])


def test_end_moves_name_their_atoms(island: Slab) -> None:
    columns = island.columns
    c = island.nearest("O")
    f, n = int(columns.first[c]), int(columns.last[c])
    cases = {
        (0, 1): SiteChange((f,), -1),
        (0, -2): SiteChange((f - 2, f - 1), 1),
        (1, 2): SiteChange((n + 1, n + 2), 1),
        (1, -1): SiteChange((n,), -1),
    }
    for (end, sites), expected in cases.items():
        assert end_move(columns, EndMove(c, end, sites)).changes == (expected,)
    slides = {1: (SiteChange((f,), -1), SiteChange((n + 1,), 1))}
    slides[-1] = (SiteChange((f - 1,), 1), SiteChange((n,), -1))
    for sites, both in slides.items():
        assert end_move(columns, EndMove(c, 0, sites, sites)).changes == both
        assert EndMove(c, 1, 2, sites).by == (sites, 2)


def test_possible_moves_leave_an_atom(island: Slab) -> None:
    columns = island.columns
    for name, reach in (("BaO", 2), ("O", 2), ("Ti", 1)):
        c = island.nearest(name)
        moves = possible_moves(columns, c)
        either = [n for n in range(-reach, reach + 1) if n]
        alone = {(n, 0) for n in either} | {(0, n) for n in either}
        far = (1, 2) if name == "BaO" else (1,)
        slides = {(s * a, s * b) for s in (-1, 1) for a in far for b in far}
        assert sorted(m.by for m in moves) == sorted(alone | slides)
        either, number = range(-2, 3), int(columns.last[c] - columns.first[c] + 1)
        wide = {
            (a, b) for a in either for b in either if (a * b > 0 or (a == 0) != (b == 0)) and number + b > a
        }
        assert sorted(m.by for m in possible_moves(columns, c, far=True)) == sorted(wide)
        single = columns.with_ends(
            columns.first, np.where(np.arange(len(columns)) == c, columns.first, columns.last)
        )
        left = possible_moves(single, c)
        assert all((m.sites < 0) == (m.end == 0) for m in left if not m.other)
        assert all(m.by[1] >= m.by[0] for m in left)


def test_present_groups_are_those_with_atoms(island: Slab) -> None:
    columns = island.columns
    c = island.nearest("BaO")
    assert present_groups(columns, c) == [0, 1]
    one = columns.with_ends(columns.first, columns.first)
    group = columns.kind_of(c).sites[columns.first[c] % 2].group
    assert present_groups(one, c) == [group]
    assert present_groups(columns, island.nearest("Ti")) == [0]


def test_prior_is_the_expansion_of_its_cost(island: Slab, state: State) -> None:
    """Δcost = -2 gᵀz + zᵀPz, exactly, for any step within the bounds."""
    bench = bench_of(island, seed=None)
    positions = list(range(len(state.columns)))
    q = linearise(bench, state, FREE, positions, {})
    prior, pull = prior_normal(state, q, 0.2, 0.05)
    precision = prior.dense()
    rng = np.random.default_rng(3)
    for _ in range(5):
        z = np.concatenate([rng.normal(0, 1, len(FREE)), rng.normal(0, 0.03, len(q.tangents))])
        after = apply_step(state, q, z)
        change = prior_cost(after, FREE, 0.2, 0.05) - prior_cost(state, FREE, 0.2, 0.05)
        assert change == pytest.approx(z @ precision @ z - 2 * pull @ z, rel=1e-6, abs=1e-6)
    assert np.allclose(precision, precision.T)
    assert (np.linalg.eigvalsh(precision) > 0).all()
    assert precision[0, 0] == pytest.approx((PARAMETERS[FREE[0]].step / state.microscope.sigma[FREE[0]]) ** 2)


def test_prior_of_a_column_that_lost_its_heaviest_element(island: Slab, state: State) -> None:
    c = island.nearest("BaO")
    last = state.columns.last.copy()
    first = state.columns.first.copy()
    first[c] = 1  # the oxygen site of a BaO column
    last[c] = 1
    lonely = replace(state, columns=state.columns.with_ends(first, last))
    assert lonely.columns.element_counts()[c].sum() == 1
    q = linearise(bench_of(island, seed=None), lonely, [], [c], {})
    prior, pull = prior_normal(lonely, q, 0.2, 0.05)
    precision = prior.dense()
    z = np.full(len(q.tangents), 0.05)
    change = prior_cost(apply_step(lonely, q, z), [], 0.2, 0.05) - prior_cost(lonely, [], 0.2, 0.05)
    assert change == pytest.approx(z @ precision @ z - 2 * pull @ z, rel=1e-6)


def test_a_lagged_bench_keeps_derivatives_and_sees_residuals(island: Slab, state: State) -> None:
    bench = bench_of(island).lagging()
    c = island.nearest("Ti")
    begin = linearise(bench, state, FREE, [c], {})
    on = replace(state, microscope=state.microscope.with_values(c1=58.0))
    later, fresh = (linearise(b, on, FREE, [c], {}) for b in (bench, bench_of(island)))
    share = [q.matrix.local.toarray()[:2, :2] / fresh.matrix.local.toarray()[:2, :2] for q in (begin, later)]
    # Weights follow the image, derivatives do not.
    assert np.diag(share[1]) == pytest.approx(np.diag(share[0]), rel=3e-3)
    assert not np.allclose(np.diag(share[1]), 1, rtol=1e-4)
    assert later.gradient == pytest.approx(fresh.gradient, rel=0.2, abs=0.05 * np.abs(fresh.gradient).max())
    # Simulated anew: a column beside one of other ends, and changes that nobody asked for before.
    ends = state.columns.with_ends(
        state.columns.first, state.columns.last - (np.arange(len(state.columns)) == c)
    )
    other = replace(on, columns=ends)
    for s, moving in [(other, {}), (on, {c: possible_moves(on.columns, c)})]:
        lagged, exact = (
            linearise(replace(b, _derivatives={}), s, [], [c], moving) for b in (bench, bench_of(island))
        )
        assert lagged.matrix.local.toarray() == pytest.approx(exact.matrix.local.toarray(), rel=1e-5)


def test_a_lagged_bench_simulates_only_changes_that_it_does_not_know(island: Slab, state: State) -> None:
    bench, c = bench_of(island).lagging(), island.nearest("O")
    asked: list[int] = []
    respond = WindowModel.respond

    def counted(self: WindowModel, c: int, changes: Sequence[Move | Tangent]) -> Response:
        asked.append(len(changes))
        return respond(self, c, changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowModel, "respond", counted)
        for far in (False, True, False):
            found = linearise(bench, state, [], [c], {c: possible_moves(state.columns, c, far)})
            fresh = linearise(bench_of(island), state, [], [c], {c: possible_moves(state.columns, c, far)})
            assert found.matrix.local.toarray() == pytest.approx(fresh.matrix.local.toarray(), rel=1e-4)
            assert found.moves == fresh.moves
    near, far_moves = (len(possible_moves(state.columns, c, far)) for far in (False, True))
    assert asked == [2 + near, 2 + near, far_moves - near, 2 + far_moves, 2 + near]
    # A lens that delocalises more needs wider windows: nothing known fits in.
    wide = replace(state, microscope=state.microscope.with_values(c1=250.0))
    assert wide.microscope.delocalisation() > state.microscope.delocalisation()
    anew = linearise(bench, wide, [], [c], {c: [*possible_moves(state.columns, c, True), EndMove(c, 0, -3)]})
    fresh = linearise(bench_of(island), wide, [], [c], {c: anew.moves})
    assert anew.matrix.local.toarray() == pytest.approx(fresh.matrix.local.toarray(), rel=1e-4)
