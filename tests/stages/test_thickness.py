"""Whole-specimen thickness: the starts from which neighbouring basins are explored."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.model.microscope import nominal
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.stages.objective import State
from qhrtem.stages.thickness import shifted


@pytest.fixture
def columns() -> ColumnModel:
    from importlib.resources import files

    projection = project(read_cif(str(files("qhrtem").joinpath("data/BaTiO3.cif"))), (1, 1, 0))
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    empty = lattice_columns(projection, np.array([2.0, 2.0]), frame, (0.0, 0.0, 12.0, 12.0))
    full = empty.filled(np.full(len(empty), 10.0), np.full(len(empty), 34.0))
    vacant = np.arange(len(full)) % 5 == 0
    return full.with_ends(full.first, np.where(vacant, full.first - 1, full.last))


@pytest.mark.parametrize("periods", [1, -1, 2])
def test_every_column_gains_the_content_of_whole_periods(columns: ColumnModel, periods: int) -> None:
    state = State(columns, nominal(3e5))
    moved = shifted(state, periods)
    gained = moved.columns.element_counts() - columns.element_counts()
    occupied = columns.last >= columns.first
    assert not gained[~occupied].any()
    per_period = {k.name: len(k.sites) for k in columns.projection.kinds}
    for c in np.flatnonzero(occupied):
        assert gained[c].sum() == periods * per_period[columns.kind_of(int(c)).name]


def test_mid_plane_stays_in_focus(columns: ColumnModel) -> None:
    state = State(columns, nominal(3e5))
    moved = shifted(state, 1)
    assert moved.microscope["c1"] - state.microscope["c1"] == pytest.approx(columns.projection.period / 2)
    assert shifted(moved, -1).microscope["c1"] == pytest.approx(state.microscope["c1"])


def test_no_column_vanishes(columns: ColumnModel) -> None:
    thin = shifted(State(columns, nominal(3e5)), -40).columns
    assert (thin.last >= thin.first).sum() == (columns.last >= columns.first).sum()
