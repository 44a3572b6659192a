"""Statements about the quality of a fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benches import bench_of
from qhrtem.calibrate.lattice import Lattice
from qhrtem.io.twin import read_twin, write_results
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.model.twin import Twin
from qhrtem.plan import Plan
from qhrtem.simulate.again import fitted_image
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.assess import Evidence, assess, claimed
from qhrtem.stages.counts import count_round
from qhrtem.stages.covariance import position_errors
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import State, white_noise
from qhrtem.stages.result import make_twin
from qhrtem.stages.start import Start
from qhrtem.stages.thickness import Rival
from slabs import Slab, slab

TILT = (2e-3, -1e-3)  # x, y
FREE = [INDEX[n] for n in ("c1", "vibration_xx")]


@pytest.fixture(scope="module")
def island() -> Slab:
    made = slab(radius=4.5)
    return replace(made, microscope=made.microscope.with_values(c1=55.0, tilt_x=TILT[0], tilt_y=TILT[1]))


def start_of(island: Slab) -> Start:
    return Start(island.model.field, island.columns, island.microscope, np.ones(len(island.columns), bool))


def twin_of(island: Slab, rivals: tuple[Rival, ...] = (), free: list[int] = FREE) -> Twin:
    """The twin of a fit that starts at the truth."""
    bench = bench_of(island, electrons=20000.0)
    everything = list(range(len(island.columns)))
    neighbours = Neighbours.within(island.columns, 2.8)
    rules = SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0)
    state = State(island.columns, island.microscope)
    refined = refine(bench, state, free, everything, 2, probe=white_noise(bench, 0, 2))
    final = count_round(bench, refined.state, free, everything, everything, *rules, {})
    evidence = Evidence(free, refined, final, *rules, {"neighbour step": 3}, rivals)
    shape = island.model.field.image_shape
    pixel = island.model.field.detector_pixel
    vectors = island.columns.projection.vectors
    lattice = Lattice(island.columns.frame / pixel, vectors, pixel, 0.0, 0.0, 100.0, np.ones(shape, bool))
    micrograph = Micrograph(np.ones(shape), np.ones(shape, bool), pixel, 20000.0, 0.0, 0.002)
    plan = Plan.model_validate(
        {
            "image": {"path": "image.tif"},
            "microscope": {"high_tension_kV": 300.0},
            "structure": {"path": "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        }
    )
    start = start_of(island)
    assessed = assess(bench, final.state, start, lattice, evidence, 0)
    return make_twin(plan, final.state, start, lattice, micrograph, assessed, (), ("a note",))


@pytest.fixture(scope="module")
def twin(island: Slab) -> Twin:
    return twin_of(island)


def test_the_twin_of_a_known_island(island: Slab, twin: Twin) -> None:
    assert twin.passed and twin.chi2_crystal == pytest.approx(1.0, abs=0.1)
    assert (twin.columns.counts == island.columns.element_counts()).all()
    atoms = np.array(twin.atoms.element)
    assert [int((atoms == e).sum()) for e in twin.columns.elements] == twin.columns.counts.sum(0).tolist()
    assert twin.rules == {"neighbour step": 3} and "a note" in twin.notes
    assert ((twin.columns.p_exact > 0.5) & (twin.columns.p_exact <= 1)).mean() > 0.9


def test_positions_are_those_of_the_tilted_columns(island: Slab, twin: Twin) -> None:
    """The model's frame moves with the tilted columns and meets the true one at the pivot."""
    field, columns = island.model.field, island.columns
    atoms = columns.atoms()
    depth = np.bincount(atoms.column, atoms.z * (atoms.group == 0)) / np.bincount(
        atoms.column, atoms.group == 0
    )
    true = columns.group_position()[:, 0] - np.array(TILT[::-1]) * (field.pivot - depth)[:, None]
    error = (twin.columns.position_px - field.to_detector(true)) * field.detector_pixel
    assert np.sqrt((error**2).mean()) < 0.02
    assert np.median(np.abs(error) / (twin.columns.sigma_px * field.detector_pixel)) < 2.0
    # Along one column of atoms the true positions run with the tilt.
    mine = twin.atoms.column == int(np.argmax(twin.columns.counts.sum(1)))
    slope = np.polyfit(twin.atoms.position_A[mine, 2], twin.atoms.position_A[mine, 0], 1)[0]
    assert slope == pytest.approx(math.tan(TILT[0]), rel=1e-3)


def test_c1_is_quoted_from_the_exit_plane(island: Slab, twin: Twin) -> None:
    c1 = next(e for e in twin.microscope if e.label == "C1")
    columns = island.columns
    deepest = columns.site_depth(np.arange(len(columns)), columns.last).max()
    exit_z = columns.projection.origin + (columns.slice_of(deepest) + 0.5) * columns.projection.plane
    expected = (55.0 + island.model.field.reference_z - exit_z) / 10
    assert c1.unit == "nm" and c1.value == pytest.approx(expected, abs=6 * c1.sigma)
    assert c1.note.startswith("overfocus")


def test_a_specimen_that_may_be_thicker_is_less_certain(island: Slab, twin: Twin) -> None:
    tied = twin_of(island, (Rival("thicker", 0.0),))
    assert np.allclose(tied.columns.p_exact, twin.columns.p_exact / 2)
    assert any("thicker (Δχ² 0)" in n for n in tied.notes)
    # Columns that the other specimen has with the same counts are as certain as before.
    other = island.columns.element_counts()
    other[0] += 1
    tied = twin_of(island, (Rival("stepped", 0.0, other),))
    ratio = tied.columns.p_exact / twin.columns.p_exact
    assert ratio[0] == pytest.approx(0.5) and np.allclose(ratio[1:], 1.0)


def test_columns_beyond_the_image_are_not_claimed(island: Slab) -> None:
    field = island.model.field
    down = np.array([20 * field.detector_pixel, 0.0])
    lowered = replace(island.columns, anchor=island.columns.anchor + down)
    found = claimed(lowered, start_of(island))
    row = field.to_detector(lowered.anchor)[:, 0]
    assert 0 < len(found) < len(lowered)
    assert found.tolist() == np.flatnonzero(row < field.image_shape[0] - 0.5).tolist()


def test_joint_errors_hold_the_claimed_ones(island: Slab, twin: Twin) -> None:
    """Without a refined mistilt the errors of heaviest elements are the standard deviations of the table."""
    errors, table = twin.position_errors, twin.columns
    assert errors is not None
    index = errors.index(len(table.kind), len(table.elements))
    heaviest = np.array([list(table.elements).index(k.removesuffix("O") or "O") for k in table.kind])
    mine = index[np.arange(len(table.kind)), heaviest]
    sigma = errors.sigma_A()[mine][:, ::-1] / twin.pixel_size_A
    assert (mine >= 0).all()
    assert np.allclose(sigma, table.sigma_px, rtol=2e-3)  # stored in single precision
    assert errors.common_name[: len(FREE)] == ("imaging c1", "imaging vibration_xx")
    assert any(name.startswith("prior O") for name in errors.common_name)


def test_error_bars_of_the_table_are_those_of_the_covariance_under_an_uncertain_mistilt(island: Slab) -> None:
    """The table states the place at the columns' own depth, not where the refined coordinate stands."""
    twin = twin_of(island, free=[*FREE, INDEX["tilt_x"], INDEX["tilt_y"]])
    assert twin.position_errors is not None
    table, errors = twin.columns, twin.position_errors
    index = errors.index(len(table.kind), len(table.elements))
    order = [table.elements.index(e) for e in ("Ba", "Ti", "O")]
    heaviest = np.array([next(e for e in order if c[e]) for c in table.counts])
    mine = index[np.arange(len(table.kind)), heaviest]
    assert (mine >= 0).all()
    sigma = errors.sigma_A()[mine][:, ::-1] / twin.pixel_size_A
    assert np.allclose(sigma, table.sigma_px, rtol=2e-3)


def test_common_errors_of_a_tilted_column_follow_its_depth(island: Slab) -> None:
    """An uncertain mistilt moves what lies higher farther, all columns together."""
    bench = bench_of(island, electrons=20000.0)
    free = [INDEX["tilt_x"]]
    refined = refine(bench, State(island.columns, island.microscope), free, [], 1)
    keep = np.arange(len(island.columns))
    z = island.model.field.pivot
    errors = position_errors(refined, island.columns, keep, z)
    assert len(errors.column) == 0  # nothing was refined, so nothing is stated
    refined = refine(bench, State(island.columns, island.microscope), free, keep.tolist(), 1)
    errors = position_errors(refined, island.columns, keep, z)
    wider = replace(refined, column_error=4.0)
    doubled = position_errors(wider, island.columns, keep, z)
    assert np.allclose(doubled.common_A[:, 0], 2 * errors.common_A[:, 0], rtol=1e-5)
    total = errors.local_A2.toarray() + errors.common_A.astype(float) @ errors.common_A.T.astype(float)
    assert np.allclose(total, total.T, atol=1e-9)
    assert np.linalg.eigvalsh(total).min() > -1e-7
    along_y = errors.axis == 1
    # Columns that overlap pass some of it on to the other axis.
    typical = [float(np.median(np.abs(errors.common_A[w, 0]))) for w in (~along_y, along_y)]
    assert typical[0] > 5 * typical[1]


def test_model_error_in_common_widens_what_is_shared(island: Slab) -> None:
    bench = bench_of(island, electrons=20000.0)
    keep = list(range(len(island.columns)))
    refined = refine(bench, State(island.columns, island.microscope), [INDEX["tilt_x"]], keep, 1)
    plain = refined.covariance
    own = replace(refined, column_error=2.0).covariance
    assert np.allclose(own, 2 * plain)
    shared = replace(refined, column_error=2.0, common_error=6.0).covariance
    assert shared[0, 0] == pytest.approx(6 * plain[0, 0])
    # What a position does on its own is left at the smaller factor.
    alone = plain[1:, 1:] - np.outer(plain[1:, 0], plain[0, 1:]) / plain[0, 0]
    left = shared[1:, 1:] - np.outer(shared[1:, 0], shared[0, 1:]) / shared[0, 0]
    assert np.allclose(left, 2 * alone, atol=1e-9)
    assert np.linalg.eigvalsh(shared).min() > 0


def test_the_stored_model_gives_the_fitted_image_again(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    again = read_twin(tmp_path)
    assert again.fitted is not None and again.position_errors is not None and again.imaging_errors is not None
    image = fitted_image(again.fitted)
    assert np.array_equal(image, twin.match.simulated)
    assert again.position_errors.common_name == twin.position_errors.common_name  # type: ignore[union-attr]
    assert again.imaging_errors.name == tuple(PARAMETERS[i].key for i in FREE)
    variance = dict(zip(again.imaging_errors.name, np.diag(again.imaging_errors.covariance), strict=True))
    for e in twin.microscope:
        if e.refined:
            assert variance[e.name] == pytest.approx(e.sigma**2)


def test_bent_debye_waller_factors_are_refused_and_a_strained_lens_is_named(island: Slab) -> None:
    def judged(**values: float) -> Twin:
        return twin_of(replace(island, microscope=island.microscope.with_values(**values)))

    def gate(twin: Twin) -> bool:
        return next(g for g in twin.gates if g.name.startswith("Debye")).passed

    bent = judged(b_scale=2.8)
    assert not gate(bent) and gate(judged(b_scale=0.5))
    strained = judged(c1=1.0e3)
    assert any("Far from what was expected: C1" in n for n in strained.notes)


def test_several_bent_parameters_at_once_are_refused_one_is_not(island: Slab) -> None:
    """A plan may state one of them wrongly; only a wrong structure bends several."""

    def bent(**away: float) -> bool:
        values = {n: PARAMETERS[INDEX[n]].mean + z * PARAMETERS[INDEX[n]].sigma for n, z in away.items()}
        free = [*FREE, *(INDEX[n] for n in ("c3", "b_scale"))]
        twin = twin_of(replace(island, microscope=island.microscope.with_values(**values)), free=free)
        return not next(g for g in twin.gates if g.name.startswith("imaging parameters far")).passed

    assert not bent()
    assert not bent(c3=7.0)
    assert bent(c3=7.0, b_scale=6.0)
