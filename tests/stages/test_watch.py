"""What those who watch are shown: the images and numbers of the state itself, in what JSON and files hold."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benches import bench_of
from qhrtem.model.microscope import INDEX, PARAMETERS, watched_rows
from qhrtem.stages.checkpoint import Forgetful, Log, Parts, Reached, ReachedForm, Snapshot
from qhrtem.stages.objective import Bench, State
from qhrtem.stages.start import Start
from qhrtem.stages.watch import View, lens_sigma
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=3.5)


@pytest.fixture(scope="module")
def bench(island: Slab) -> Bench:
    return bench_of(island, electrons=20000.0)


@pytest.fixture(scope="module")
def view(island: Slab, bench: Bench) -> View:
    everything = np.ones(len(island.columns), dtype=bool)
    return View(bench, Start(bench.model.field, island.columns, island.microscope, everything))


def test_images_are_those_that_the_misfit_is_taken_of(island: Slab, bench: Bench, view: View) -> None:
    state = State(island.columns, island.microscope)
    shown = view(Reached(state))
    a, f = shown.arrays, shown.facts
    assert {v.shape for v in a.values()} == {bench.model.field.image_shape}
    variance = np.maximum(a["image"], 0.02) / f["electrons"] + f["readout_variance"]
    chi2 = (((a["measured"] - a["image"]) ** 2 / variance)[a["used"]]).mean()
    assert chi2 == pytest.approx(bench.chi2(state), rel=1e-5)
    assert a["measured"].dtype == a["image"].dtype == np.float32 and a["used"].dtype == bool
    assert f["field_A"] == [n * bench.model.field.detector_pixel for n in a["image"].shape]


def test_parameters_are_in_users_units_with_c1_from_the_exit_plane(island: Slab, view: View) -> None:
    columns, lens = island.columns, island.microscope
    sigma = lens_sigma([INDEX["c1"], INDEX["c3"]], np.array([0.5, 2.0]))
    facts = json.loads(
        json.dumps(view(Reached(State(columns, lens), lens_sigma=sigma)).facts, allow_nan=False)
    )
    rows = {row[0]: row[1:] for row in facts["lens"]}
    assert set(rows) == {PARAMETERS[i].key for i in lens.free()} - {"shift_x_pm", "shift_y_pm"}
    assert rows["c3_um"] == ["C3", "µm", pytest.approx(1e-4 * lens["c3"]), pytest.approx(2.0 * 0.3)]
    assert rows["c1_nm"][3] == pytest.approx(0.5 * 0.2) and rows["a1_x_nm"][3] is None
    # A period more below: the same lens is that much nearer to the exit plane.
    sites = np.array([len(k.sites) for k in columns.projection.kinds])[columns.kind]
    longer = columns.with_ends(columns.first, np.where(columns.occupied, columns.last + sites, columns.last))
    after = {r[0]: r[3] for r in view(Reached(State(longer, lens))).facts["lens"]}
    assert rows["c1_nm"][2] - after["c1_nm"] == pytest.approx(0.1 * columns.projection.period, rel=1e-5)


def test_what_is_shown_is_kept_and_never_loaded(island: Slab, view: View) -> None:
    kept: list[Snapshot] = []

    class Memory(Forgetful):
        def keep(self, part: str, snapshot: Snapshot) -> None:
            kept.append(snapshot)

    def came_back(form: ReachedForm) -> Reached:
        state = State(island.columns, island.microscope)
        return Parts(Memory(), Log(lambda step: None))("part", lambda: Reached(state, 0.5), form)

    plain = came_back(ReachedForm(island.columns.projection))
    seen = came_back(ReachedForm(island.columns.projection, view=view))
    without, along = kept
    assert "view" in along.facts and {"image", "measured", "used"} <= set(along.arrays)
    assert without.facts == {k: v for k, v in along.facts.items() if k != "view"}
    assert all(without.arrays[k].tobytes() == along.arrays[k].tobytes() for k in without.arrays)
    assert plain.number == seen.number and seen.lens_sigma is None
    assert plain.state.microscope.values.tobytes() == seen.state.microscope.values.tobytes()


def test_what_is_not_known_is_none() -> None:
    rows = watched_rows([INDEX["c1"], INDEX["b_scale"]], np.array([55.0, 1.1]), np.array([np.nan, np.inf]))
    assert rows == [["c1_nm", "C1", "nm", 5.5, None], ["b_scale", "Debye-Waller scale", "", 1.1, None]]
