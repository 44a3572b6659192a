"""Walks: costs as a descent has them, every state as often as it is likely, and the way out of a trap."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benches import descent_of, listed, trapped
from qhrtem.stages.walks import WALKS, Walks, anneal
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


def test_walks_see_the_costs_of_a_descent(island: Slab) -> None:
    descent, _ = descent_of(island, 2000.0)
    descent.run()
    walks = Walks(descent, 3)
    walks.sweep(np.full(3, 50.0), np.random.default_rng(0))
    assert (walks.chosen != descent.chosen).any(1).all()
    for k, chosen in enumerate(walks.chosen):
        here = descent.over(descent.model)
        here.adopt(chosen)
        for n in range(len(chosen)):
            assert np.allclose(walks.cost(n)[k], here.local_cost(n), rtol=1e-9, atol=1e-6)


def test_a_walk_visits_states_as_often_as_they_are_likely(island: Slab) -> None:
    descent, _ = descent_of(island, 60.0, 2)
    every, cost = listed(descent)
    temperature = 1.5
    weight = np.exp(-0.5 * (cost - cost.min()) / temperature)
    weight /= weight.sum()
    walks, generator = Walks(descent, 200), np.random.default_rng(0)
    seen: list[NDArray[np.int64]] = []
    for number in range(60):
        walks.sweep(np.full(200, temperature), generator)
        if number >= 20:
            seen.append(walks.chosen.copy())
    table, found = np.array(every), np.concatenate(seen)
    assert weight.max() < 0.9  # something is open
    for n in range(2):
        for s in range(len(descent.local[n].pick)):
            assert (found[:, n] == s).mean() == pytest.approx(weight[table[:, n] == s].sum(), abs=0.02)


def test_annealing_finds_what_only_three_columns_gain_together(island: Slab) -> None:
    descent = trapped(*descent_of(island, 300.0, 3), alone=6.0)
    _, cost = listed(descent)
    assert cost.min() == pytest.approx(-6.0)
    descent.run()
    assert descent.cost() == 0.0 and not descent.chosen.any()
    found = anneal(descent, np.random.default_rng(0))
    assert found.cost() == pytest.approx(-6.0) and found.chosen.all()


def test_annealing_leaves_what_is_decided_and_repeats_itself(island: Slab) -> None:
    bright, _ = descent_of(island, 1e6)
    bright.run()
    assert anneal(bright, np.random.default_rng(0)) is bright
    dim, _ = descent_of(island, 300.0)
    a, b = (anneal(dim, np.random.default_rng(1)) for _ in range(2))
    assert a.cost() < dim.cost() and (a.chosen == b.chosen).all()
    assert not dim.chosen.any() and a.model is dim.model
    assert WALKS % 2 == 0
