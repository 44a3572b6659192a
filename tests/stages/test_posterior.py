"""Sampling of column ends: the same probabilities as listing every combination."""

from __future__ import annotations

import numpy as np
import pytest

from benches import descent_of, listed, trapped
from qhrtem.stages.counts import LEAN, collective_moves
from qhrtem.stages.descent import Descent
from qhrtem.stages.posterior import sample
from qhrtem.stages.walks import Walks
from slabs import Slab, slab

COLUMNS = 2  # few enough to list every combination


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


def test_marginals_are_those_of_every_combination(island: Slab) -> None:
    descent, _ = descent_of(island, 60.0, COLUMNS)
    model, inflation = descent.model, 1.5
    every, cost = listed(descent)
    weight = np.exp(-0.5 * (cost - cost.min()) / inflation)
    weight /= weight.sum()
    marginals = sample(descent, inflation, np.random.default_rng(0), 50, 1500)
    table = np.array(every)
    for n, found in enumerate(marginals.probability):
        exact = np.array([weight[table[:, n] == s].sum() for s in range(len(found))])
        assert found.sum() == pytest.approx(1)
        assert np.abs(found - exact).max() < 0.05
    assert max(p.max() for p in marginals.probability) < 0.999  # so dim that something is open
    spread = np.array([model.step(model.picked(np.array(c))) for c in every])
    spread = spread - weight @ spread
    exact_variance = (weight[:, None] * spread**2).sum(0)
    assert np.allclose(np.diag(marginals.continuous), exact_variance, rtol=0.35, atol=1e-9)


def test_states_that_no_step_of_one_column_joins_share_the_probability(island: Slab) -> None:
    """Three columns that gain 6 together, behind a barrier of 30 that no cold walk crosses in its time."""
    descent = trapped(*descent_of(island, 300.0, 3), alone=30.0)
    marginals = sample(descent, 1.0, np.random.default_rng(0), 200, 1000)
    alone = [int(np.flatnonzero((p.pick[:, 0] == 1) & (p.pick.sum(1) == 1))[0]) for p in descent.local]
    moved = [found[s] for found, s in zip(marginals.probability, alone, strict=True)]
    assert np.allclose(moved, 1 / (1 + np.exp(-3.0)), atol=0.06)
    cold, generator = Walks(descent, 1), np.random.default_rng(0)
    for _ in range(200):
        cold.sweep(np.ones(1), generator)
    assert not cold.chosen.any()


def test_a_bright_image_leaves_nothing_open(island: Slab) -> None:
    descent, _ = descent_of(island, 1e6, COLUMNS)
    descent.run()
    chosen = descent.chosen.copy()
    marginals = sample(descent, 1.0, np.random.default_rng(1), 5, 20)
    for n, found in enumerate(marginals.probability):
        assert found[chosen[n]] > 0.99
    assert np.abs(marginals.continuous).max() < 0.1


def test_collective_moves_are_never_worse_and_free_of_the_lean(island: Slab) -> None:
    descent, _ = descent_of(island, 2000.0)
    descent.run()
    leant = collective_moves(descent, [1, 2])
    assert leant.cost() <= descent.cost() + 1e-6
    assert leant.model is descent.model
    assert len(LEAN) == 16 and max(np.hypot(*lean) for lean in LEAN) < 4e-3


def test_a_descent_over_another_model_is_one_made_anew(island: Slab) -> None:
    descent, support = descent_of(island, 2000.0)
    descent.run()
    held = descent.model.held([1, 2], np.array([0.5, -0.3]))
    anew = Descent(descent.columns, held, descent.surface, support)
    over = descent.over(held)
    for d in (anew, over):
        d.run()
    assert (anew.chosen == over.chosen).all() and over.cost() == pytest.approx(anew.cost())
    assert descent.chosen.any() and descent.model is not held
