"""The outline: missing rim columns are added, invented ones removed."""

from __future__ import annotations

import numpy as np
import pytest

from benches import bench_of, without
from qhrtem.model.microscope import INDEX
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.objective import State
from qhrtem.stages.surfaces import outline_round, primed, rim
from slabs import Slab, slab

FREE = [INDEX[n] for n in ("c1", "a1_x", "vibration_xx")]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


@pytest.fixture(scope="module")
def neighbours(island: Slab) -> Neighbours:
    return Neighbours.within(island.columns, 2.8)


def outermost(island: Slab, name: str) -> int:
    """The column of a kind that is farthest from the middle."""
    columns = island.columns
    d = np.linalg.norm(columns.anchor - columns.anchor.mean(0), axis=1)
    return max((i for i in range(len(columns)) if columns.kind_of(i).name == name), key=lambda i: float(d[i]))


def test_a_missing_column_is_added(island: Slab, neighbours: Neighbours) -> None:
    c = outermost(island, "Ti")
    state = State(without(island, c), island.microscope)
    assert rim(state.columns, neighbours)[1] == [c]
    bench = bench_of(island)
    found, changed = outline_round(bench, state, FREE, [], set(range(len(island.columns))), neighbours)
    assert changed == 1
    assert found.columns.last[c] - found.columns.first[c] == island.columns.last[c] - island.columns.first[c]
    assert bench.cost(found) < bench.cost(state) - 16


def test_an_invented_column_is_removed(island: Slab, neighbours: Neighbours) -> None:
    c = outermost(island, "BaO")
    gone = without(island, c)
    # A site that is empty next to it makes it part of the rim.
    beside = next(int(p[0] if p[1] == c else p[1]) for p in neighbours.pairs if c in p)
    last = gone.last.copy()
    last[beside] = gone.first[beside] - 1
    truth = gone.with_ends(gone.first, last)
    last = island.columns.last.copy()
    last[beside] = island.columns.first[beside] - 1
    state = State(island.columns.with_ends(island.columns.first, last), island.microscope)
    assert c in rim(state.columns, neighbours)[0]
    bench = bench_of(island, truth)
    found, changed = outline_round(bench, state, FREE, [], set(range(len(truth))), neighbours)
    assert changed == 1 and found.columns.last[c] < found.columns.first[c]
    assert ((found.columns.last >= found.columns.first) == (truth.last >= truth.first)).all()


def test_a_right_outline_stays(island: Slab, neighbours: Neighbours) -> None:
    c = outermost(island, "Ti")
    truth = without(island, c)
    bench = bench_of(island, truth)
    found, changed = outline_round(
        bench, State(truth, island.microscope), FREE, [], set(range(len(truth))), neighbours
    )
    assert changed == 0
    assert ((found.columns.last >= found.columns.first) == (truth.last >= truth.first)).all()


def test_only_eligible_columns_change(island: Slab, neighbours: Neighbours) -> None:
    c = outermost(island, "Ti")
    state = State(without(island, c), island.microscope)
    bench = bench_of(island)
    everything_else = set(range(len(island.columns))) - {c}
    found, _ = outline_round(bench, state, FREE, [], everything_else, neighbours)
    assert found.columns.last[c] < found.columns.first[c]


def test_empty_sites_are_primed_like_their_neighbours(island: Slab, neighbours: Neighbours) -> None:
    c = outermost(island, "Ti")
    columns = without(island, c)
    shifted = columns.shift.copy()
    shifted[:, 0] = [0.03, -0.01]
    columns.shift[:] = shifted
    model, fill = primed(columns, [c], neighbours)
    assert model.last[c] == model.first[c] - 1
    assert fill[c] == island.columns.last[c] - island.columns.first[c] + 1
    assert model.first[c] == island.columns.first[c]
    assert model.shift[c, 0] == pytest.approx([0.03, -0.01])
    other = np.arange(len(columns)) != c
    assert (model.first[other] == columns.first[other]).all() and (
        model.last[other] == columns.last[other]
    ).all()
    columns.shift[:] = 0
