"""Terraces: a plane too many, held in place by its neighbours, is found out and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from benches import bench_of
from qhrtem.model.microscope import INDEX
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.descent import Descent
from qhrtem.stages.linearise import linearise, possible_moves
from qhrtem.stages.move_model import profile
from qhrtem.stages.objective import State
from qhrtem.stages.terraces import settle, terrace_sweep
from slabs import Slab, slab

FREE = [INDEX[n] for n in ("c1", "vibration_xx")]
STIFF = 300.0  # χ² units a step: no atom moves alone


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


def cut(island: Slab, top: float, bottom: float) -> ColumnModel:
    n = len(island.columns)
    return island.columns.filled(np.full(n, top), np.full(n, bottom))


def descent_of(island: Slab, start: ColumnModel) -> Descent:
    state = State(start, island.microscope)
    bench = bench_of(island, island.columns, electrons=20000.0, seed=3)
    every = list(range(len(start)))
    quadratic = linearise(bench, state, FREE, every, {c: possible_moves(start, c) for c in every})
    surface = SurfaceEnergy(Neighbours.within(start, 4.2), bond=STIFF)
    support = NeighbourStep(Neighbours.within(start, 2.8), 6.0)
    return Descent(start, profile(state, quadratic), surface, support)


def counts_of(descent: Descent) -> np.ndarray:
    start = descent.columns
    return start.with_ends(*descent.model.ends(start, descent.chosen)).element_counts()


@pytest.mark.parametrize(("top", "bottom"), [(20.0, 35.4), (21.4, 34.0), (20.0, 36.8)])
def test_a_plane_too_many_or_too_few_is_found_out(island: Slab, top: float, bottom: float) -> None:
    descent = descent_of(island, cut(island, top, bottom))
    right = island.columns.element_counts()
    assert (counts_of(descent) != right).any(1).sum() > 5
    gain = terrace_sweep(descent)
    assert gain > 0 and descent.cost() == pytest.approx(-gain, rel=1e-5, abs=1e-2)
    settle(descent)
    assert (counts_of(descent) == right).all()


def test_columns_and_pairs_alone_leave_a_plane_too_many(island: Slab) -> None:
    descent = descent_of(island, cut(island, 20.0, 35.4))
    descent.run()
    assert not descent.chosen.any()


def test_the_right_planes_stay(island: Slab) -> None:
    descent = descent_of(island, island.columns)
    descent.run()
    chosen = descent.chosen.copy()
    assert terrace_sweep(descent) == 0.0
    assert (descent.chosen == chosen).all()
    assert descent.cost() == pytest.approx(0.0, abs=1e-6) or (chosen != 0).any()
