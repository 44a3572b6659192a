"""Walks: costs as a descent has them, and every state as often as it is likely."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benches import descent_of, listed
from qhrtem.stages.walks import Walks
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
