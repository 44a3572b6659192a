"""The move model: what holding an imaging parameter means, and what options say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from benches import bench_of, with_last
from qhrtem.model.microscope import INDEX
from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A, refine, total_cost
from qhrtem.stages.linearise import linearise, possible_moves, prior_normal
from qhrtem.stages.move_model import MoveModel, profile
from qhrtem.stages.objective import State
from slabs import slab


def random_model(seed: int, lens: int = 3, positions: int = 4, moves: int = 5) -> tuple[MoveModel, dict]:
    """A model from a random positive quadratic cost over continuous unknowns z and moves s."""
    rng = np.random.default_rng(seed)
    k = lens + positions
    root = rng.normal(size=(k + moves, k + moves + 4))
    normal, gradient = root @ root.T, rng.normal(size=k + moves)
    a, cross = normal[lens:k, lens:k], normal[lens:k, k:]
    through = np.linalg.solve(a, normal[lens:k, :lens])
    follow, rest = np.linalg.solve(a, cross), np.linalg.solve(a, gradient[lens:k])
    answer = np.linalg.inv(normal[:lens, :lens] - normal[:lens, lens:k] @ through)
    reach = normal[:lens, k:] - through.T @ cross
    pull = gradient[:lens] - through.T @ gradient[lens:k]
    h = gradient[k:] - cross.T @ rest - reach.T @ answer @ pull
    near = sparse.csr_array(normal[k:, k:] - cross.T @ follow)
    model = MoveModel(h, near, reach, answer, pull, sparse.csc_array(follow), rest, through, [])
    return model, {"normal": normal, "gradient": gradient, "k": k}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), index=st.sampled_from([[0], [2], [0, 1]]))
def test_a_held_parameter_costs_what_the_constrained_minimum_does(seed: int, index: list[int]) -> None:
    """Differences between move sets equal those of the full quadratic, minimised with the parameter fixed."""
    model, full = random_model(seed)
    rng = np.random.default_rng(seed + 1)
    value = rng.normal(size=len(index))
    held = model.held(index, value)
    k, normal, gradient = full["k"], full["normal"], full["gradient"]
    free = [i for i in range(k) if i not in index]

    def constrained(s: np.ndarray) -> float:
        fixed = np.zeros(len(gradient))
        fixed[index], fixed[k:] = value, s
        slope = gradient[free] - normal[free] @ fixed
        best = fixed.copy()
        best[free] = np.linalg.solve(normal[np.ix_(free, free)], slope)
        return float(-2 * gradient @ best + best @ normal @ best)

    def modelled(s: np.ndarray) -> float:
        return held.cost(s)

    nothing = np.zeros(len(model.h))
    for _ in range(3):
        s = (rng.random(len(model.h)) < 0.5).astype(float)
        assert modelled(s) - modelled(nothing) == pytest.approx(
            constrained(s) - constrained(nothing), rel=1e-7, abs=1e-7
        )


def test_holding_a_parameter_where_it_would_go_changes_nothing_for_that_choice() -> None:
    model, _ = random_model(3)
    s = np.array([1.0, 0, 1, 0, 0])
    where = model.step(s)[:2]
    held = model.held([0, 1], where)
    slope = -2 * model.h + 2 * model.dense() @ s
    assert np.allclose(-2 * held.h + 2 * held.dense() @ s, slope, atol=1e-9)


@pytest.mark.parametrize(("name", "apart_off"), [("O", 0.05), ("Ti", 0.25)])
def test_a_column_that_slides_costs_what_the_image_says(name: str, apart_off: float) -> None:
    """Along the beam in a tilted crystal, its position following; its two ends by themselves are off."""
    island = slab(radius=4.0, ends=(4.0, 36.0))
    columns, c = island.columns, island.nearest(name)
    lens = island.microscope.with_values(tilt_x=3e-3)
    bench = bench_of(island, microscope=lens, electrons=20000.0, seed=None)
    state = State(columns, lens)
    model = profile(state, linearise(bench, state, [], [c], {c: possible_moves(columns, c)}))
    (options,) = model.options
    by = np.stack([options.first - columns.first[c], options.last - columns.last[c]], axis=1).tolist()
    for n in (-1, 1):
        slid = by.index([n, n])
        picked = model.picked(np.array([slid]))
        assert picked.sum() == 1
        start = replace(state, columns=columns.with_ends(*model.ends(columns, np.array([slid]))))
        exact = refine(bench, start, [], [c], 4).cost - total_cost(bench, state, [])
        assert model.cost(picked) == pytest.approx(exact, rel=0.03)
        apart = model.picked(np.array([by.index([n, 0])])) + model.picked(np.array([by.index([0, n])]))
        assert abs(model.cost(apart) / exact - 1) > apart_off


@pytest.mark.slow
def test_columns_beyond_each_others_windows_follow_through_the_lens() -> None:
    """On an island wider than two windows the local elimination agrees with that of the whole matrix."""
    island = slab(shape=(150, 40), radius=12.0)
    columns = island.columns
    middle = float(np.median(columns.anchor[:, 1]))
    line = [int(c) for c in np.flatnonzero(np.abs(columns.anchor[:, 1] - middle) < 1.5)]
    reach = np.ptp(columns.anchor[line, 0])
    assert reach > 20  # Å, twice a window
    state = State(columns, island.microscope)
    bench = bench_of(island, with_last(columns, {line[0]: -1, line[-1]: -1}), electrons=5000.0)
    moving = {c: possible_moves(columns, c) for c in (line[0], line[len(line) // 2], line[-1])}
    q = linearise(bench, state, [INDEX["c1"], INDEX["tilt_x"]], line, moving)
    model = profile(state, q)
    k = q.continuous
    prior, slope = prior_normal(state, q, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    a, cross = q.matrix.dense()[:k, :k] + prior.dense(), q.matrix.dense()[:k, k:]
    gradient = q.gradient[:k] + slope
    g = q.matrix.dense()[k:, k:] - cross.T @ np.linalg.solve(a, cross)
    h = q.gradient[k:] - cross.T @ np.linalg.solve(a, gradient)
    scale = np.sqrt(np.diag(g))
    assert (np.abs(model.dense() - g) / np.outer(scale, scale)).max() < 5e-3
    assert np.allclose(model.h, h, rtol=1e-5, atol=1e-4 * np.abs(h).max())
    rng = np.random.default_rng(0)
    for _ in range(4):
        s = (rng.random(len(h)) < 0.3).astype(float)
        step = np.linalg.solve(a, gradient - cross @ s)
        sigma = np.sqrt(np.diag(np.linalg.inv(a)))
        assert (np.abs(model.step(s) - step) / sigma).max() < 0.1
