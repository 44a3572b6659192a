"""Costs of all options at once are those of each by itself; pairs cost what changing both really costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches import descent_of
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.descent import Descent
from slabs import slab


@pytest.fixture(scope="module")
def made() -> tuple[Descent, NeighbourStep]:
    return descent_of(slab(radius=4.5), 2000.0)


@pytest.fixture(scope="module")
def descent(made: tuple[Descent, NeighbourStep]) -> Descent:
    return made[0]


def somewhere(descent: Descent, seed: int) -> Descent:
    """Return the descent with options chosen at random among those that no rule bars."""
    out, rng = descent.over(descent.model), np.random.default_rng(seed)
    out.adopt(np.array([rng.choice(np.flatnonzero(np.isfinite(b))) for b in out.barred]))
    return out


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_all_costs_at_once_are_those_of_every_column(descent: Descent, seed: int) -> None:
    here = somewhere(descent, seed)
    every = here.every_cost()
    for n, row in enumerate(every):
        cost = here.local_cost(n)
        assert np.allclose(row[: len(cost)], cost, rtol=1e-9, atol=1e-6)
        assert np.isinf(row[len(cost) :]).all()


@pytest.mark.parametrize("held", [False, True])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_pair_costs_what_changing_both_costs(descent: Descent, held: bool, seed: int) -> None:
    """Also where the mistilt is held, and where the two share a step of the surface."""
    model = descent.model.held([1, 2], np.array([0.5, -0.3])) if held else descent.model
    here, rng = somewhere(descent.over(model), seed), np.random.default_rng(seed)
    change = here.every_change()
    for e in rng.choice(len(here.pairs.pairs), 3):
        i, j = here.pairs.pairs[e]
        both = here.pairs.together(np.array([e]), change[[i]], change[[j]], here.chosen)[0]
        s, t = (rng.choice(np.flatnonzero(np.isfinite(change[n]))) for n in (i, j))
        other = descent.over(model)
        chosen = here.chosen.copy()
        chosen[[i, j]] = s, t
        other.adopt(chosen)
        assert both[s, t] == pytest.approx(other.cost() - here.cost(), rel=1e-6, abs=1e-3)
    stay = here.pairs.together(np.arange(len(here.pairs.pairs)), *_changes(here, change), here.chosen)
    i, j = here.pairs.pairs.T
    assert np.allclose(stay[np.arange(len(i)), here.chosen[i], here.chosen[j]], 0, atol=1e-9)


def _changes(here: Descent, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return change[here.pairs.pairs[:, 0]], change[here.pairs.pairs[:, 1]]


def test_no_pair_can_do_better_where_a_descent_ends(made: tuple[Descent, NeighbourStep]) -> None:
    """A stiff surface holds atoms that only go together; after the descent none is left."""
    descent, support = made
    neighbours = Neighbours.within(descent.columns, 2.8)
    stiff = SurfaceEnergy(neighbours, bond=40.0)
    here = Descent(descent.columns, descent.model, stiff, support)
    here.run()
    change = here.every_change()
    assert change.min() > -1e-6
    both = here.pairs.together(np.arange(len(here.pairs.pairs)), *_changes(here, change), here.chosen)
    assert both.min() > -1e-3


def test_columns_couple_that_share_no_step_of_the_surface(made: tuple[Descent, NeighbourStep]) -> None:
    """Pairs of the support rule need not be pairs of the surface energy."""
    descent, support = made
    alone = SurfaceEnergy(Neighbours(np.zeros((0, 2), dtype=np.int64)))
    here = Descent(descent.columns, descent.model, alone, support)
    assert len(here.pairs.pairs) == len(descent.pairs.pairs) > 0
    assert not here.costs.counts.any()
    assert here.pairs.direct.any() and not np.allclose(here.pairs.direct, descent.pairs.direct)
