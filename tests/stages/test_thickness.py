"""Whole-specimen thickness: the starts from which neighbouring basins are explored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benches import bench_of
from qhrtem.model.diffuse import diffuse_image, frozen_phonon_image
from qhrtem.model.microscope import INDEX, nominal
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.checkpoint import Forgetful, Log, Parts, ReachedForm
from qhrtem.stages.objective import EFFECTIVE_ABSORPTION, Bench, State
from qhrtem.stages.thermal import corrected, stale
from qhrtem.stages.thickness import HOPELESS, Rival, explore, other_thicknesses, shifted
from slabs import slab


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


def test_a_specimen_a_period_too_thick_is_found_out() -> None:
    island = slab(radius=3.5)
    bench = bench_of(island, electrons=20000.0)
    extra = diffuse_image(island.model, island.columns, island.microscope, 12, np.random.default_rng(1))
    bench = Bench(bench.model, replace(bench.misfit, measured=bench.misfit.measured + extra))
    wrong = shifted(State(island.columns, island.microscope), 1)
    neighbours = Neighbours.within(island.columns, 2.8)
    steps: list[str] = []
    lens = [INDEX[n] for n in ("c1", "vibration_xx", "vibration_yy")]
    log = Log(lambda step: steps.append(step.note))
    parts, form = Parts(Forgetful(), log), ReachedForm(island.columns.projection)
    surface, support = SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0)
    found, rivals = other_thicknesses(
        bench, wrong, lens, surface, support, {}, 0, lambda name, make: parts(name, make, form), log
    )
    counts = island.columns.element_counts()
    assert (found.columns.element_counts() == counts).all()
    assert len(rivals) + 1 == len(steps) >= 4 and min(r.behind for r in rivals) > 10
    thicker = next(r for r in rivals if r.name.endswith("Å thicker"))
    assert not thicker.agrees(counts).any()


def test_the_correction_is_that_of_the_debye_waller_scale_reached() -> None:
    """Atoms that move much more than the CIF says: the slope alone would not lead there."""
    island = slab(radius=3.5, ends=(20.0, 30.0))
    lens = island.microscope.with_values(absorption=EFFECTIVE_ABSORPTION)
    lens.sigma[INDEX["b_scale"]] = 2.0
    hot = lens.with_values(b_scale=1.8)
    image = frozen_phonon_image(island.model, island.columns, hot, 8, np.random.default_rng(1))
    bench = bench_of(island, electrons=20000.0, seed=None)
    bench = Bench(bench.model, replace(bench.misfit, measured=image))
    begun = corrected(bench, State(island.columns, lens), 2, np.random.default_rng(2))
    neighbours = Neighbours.within(island.columns, 2.8)
    rules = SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0), dict[str, int]()
    found, cost = explore(bench, begun, 0, [INDEX["b_scale"]], *rules, np.inf, 0)
    assert found.microscope["b_scale"] == pytest.approx(1.8, abs=0.2)
    assert stale(replace(found, diffuse=begun.diffuse)) and not stale(found)
    assert np.isfinite(cost) and (found.columns.element_counts() == island.columns.element_counts()).all()


def test_a_specimen_that_cannot_catch_up_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a round where it is hopeless, after a second where it lags by more than that round gained."""
    island = slab(radius=3.5, ends=(20.0, 30.0))
    state = State(island.columns, island.microscope)
    neighbours = Neighbours.within(island.columns, 2.8)
    rules = SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0), dict[str, int]()
    monkeypatch.setattr("qhrtem.stages.thickness.corrected_with_scatter", lambda _, s, *__: (s, 0.0))

    def reached(target: float) -> float:
        costs = iter([1000.0, 900.0, 700.0, 700.0])
        monkeypatch.setattr("qhrtem.stages.thickness.basin_cost", lambda *_: next(costs))
        return explore(bench_of(island), state, 1, [INDEX["c1"]], *rules, target, 0)[1]

    assert reached(1000.0 - HOPELESS - 1) == 1000
    assert reached(750.0) == 900
    assert reached(850.0) == 700


def test_a_rival_with_other_columns_agrees_with_none() -> None:
    counts = np.array([[3, 0], [0, 2]])
    assert not Rival("another place", 0.0).agrees(counts).any()
    assert Rival("thicker", 0.0, np.array([[3, 0], [0, 3]])).agrees(counts).tolist() == [True, False]
