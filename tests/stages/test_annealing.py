"""Annealing: the way out of states that single columns and pairs do not leave."""

from __future__ import annotations

import numpy as np
import pytest

from benches import descent_of, listed, trapped
from qhrtem.stages.annealing import WALKS, anneal
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


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
