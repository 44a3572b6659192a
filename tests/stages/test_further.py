"""Further images of one area: told from others, laid where they belong, or left out when that stays open."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benches import bench_of
from phantoms import small_phantom, small_plan
from qhrtem.calibrate.lattice import Lattice
from qhrtem.errors import InputError
from qhrtem.io.twin import read_twin, write_results
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import INDEX, Microscope
from qhrtem.model.twin import Twin
from qhrtem.physics.detector import add_noise
from qhrtem.plan import FurtherPlan, Plan, plan_from_tables
from qhrtem.run.identity import result_hash
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.stages.assess import assess
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.checkpoint import Forgetful, Log, Parts, ReachedForm, Snapshot
from qhrtem.stages.further import (
    Further,
    Laid,
    LaidForm,
    Overlay,
    calibrated,
    displaced,
    lay,
    own_plans,
    together,
)
from qhrtem.stages.objective import State
from qhrtem.stages.pipeline import settled_together
from qhrtem.stages.result import make_twin
from qhrtem.stages.start import Start
from qhrtem.stages.structure import Contender
from slabs import Slab, slab

ELECTRONS = 400.0  # per pixel of vacuum


def plan_of(**image: object) -> Plan:
    return plan_from_tables(
        {
            "image": {"path": "a.npy", "pixel_size_A": 0.18, **image},
            "microscope": {"high_tension_kV": 300.0, "c1_nm": 5.0},
            "structure": {"path": "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        }
    )


def parts() -> Parts:
    return Parts(Forgetful(), Log(lambda step: None))


@pytest.fixture(scope="module")
def island() -> Slab:
    """An island in vacuum whose columns are up to a site longer or shorter."""
    made = slab(radius=4.0)
    rng = np.random.default_rng(4)
    last = made.columns.last + rng.integers(-1, 2, len(made.columns))
    return replace(made, columns=made.columns.with_ends(made.columns.first, last))


def reference_of(island: Slab) -> tuple[Contender, State, Lattice]:
    """The first image of an island, its structure known."""
    bench = bench_of(island, electrons=ELECTRONS)
    field, columns = island.model.field, island.columns
    start = Start(field, columns, island.microscope, np.ones(len(columns), bool))
    state = State(columns, island.microscope)
    pixel, shape = field.detector_pixel, field.image_shape
    vectors = columns.projection.vectors
    lattice = Lattice(columns.frame / pixel, vectors, pixel, 0.0, 0.0, 100.0, np.ones(shape, bool))
    return Contender(bench, state, start, 0.0), state, lattice


def further_of(
    island: Slab, whole: tuple[int, int], lens: Microscope, drift_px: tuple[float, float] | None = None
) -> Further:
    """A further image of the island, farther along by whole pixels and what the lens says."""
    field = island.model.field
    image = field.crop(torch.roll(island.model.image(island.columns, lens), whole, (0, 1))).double()
    counts = add_noise(image, ELECTRONS, 1.0, 0.0, 0.0, torch.Generator().manual_seed(9)) / ELECTRONS
    valid = np.ones(tuple(image.shape), bool)
    valid[3:6, 10:12] = False
    micrograph = Micrograph(counts.numpy(), valid, field.detector_pixel, ELECTRONS, 0.0, 0.002, ("a note",))
    plan = own_plans(plan_of(also=[{"path": "b.npy"}]), 1)[0][0]
    return Further(2, "b.npy", plan, micrograph, None, drift_px)


def test_an_image_is_laid_where_it_belongs_with_its_own_lens(island: Slab) -> None:
    reference, state, lattice = reference_of(island)
    lens = island.microscope.with_values(c1=85.0, shift_y=0.06, shift_x=-0.04)
    joined, placed, notes = together(reference, state, [further_of(island, (9, -11), lens)], lattice, parts())
    assert [p.whole for p in placed] == [(9, -11)] and placed[0].path == "b.npy"
    found = joined.state.others[0].microscope
    assert found["c1"] == pytest.approx(85, abs=2)
    assert found["shift_y"] == pytest.approx(0.06, abs=0.02)
    assert found["shift_x"] == pytest.approx(-0.04, abs=0.02)
    assert joined.bench.chi2(joined.state) == pytest.approx(1, abs=0.1)
    # Only what the first image uses as well counts, and no pixel that is masked.
    used = joined.bench.others[0].used
    assert not (used & ~reference.bench.misfit.used).any()
    assert 0.6 < float(used.sum() / reference.bench.misfit.used.sum()) < 1
    assert "Image 2: a note" in notes


def test_an_image_whose_place_stays_open_is_left_out() -> None:
    """A flat crystal without an edge looks the same a lattice vector farther along."""
    flat = slab(radius=9.0)
    reference, state, lattice = reference_of(flat)
    image = further_of(flat, (2, 3), flat.microscope.with_values(c1=60.0))
    joined, placed, notes = together(reference, state, [image], lattice, parts())
    assert not placed and not joined.state.others and not joined.bench.others
    (note,) = notes
    assert note.startswith("Image 2 (b.npy) was left out") and note.endswith("state drift_px to use it.")


def test_a_stated_drift_settles_where_it_belongs() -> None:
    flat = slab(radius=9.0)
    reference, state, lattice = reference_of(flat)
    image = further_of(flat, (2, 3), flat.microscope.with_values(c1=60.0), drift_px=(4.0, 1.0))
    _, placed, _ = together(reference, state, [image], lattice, parts())
    assert [p.whole for p in placed] == [(2, 3)]


def test_an_image_of_something_else_is_refused(island: Slab) -> None:
    reference, state, lattice = reference_of(island)
    noise = np.random.default_rng(0).poisson(ELECTRONS, island.model.field.image_shape) / ELECTRONS
    image = further_of(island, (0, 0), island.microscope)
    other = replace(image, micrograph=replace(image.micrograph, intensity=noise), drift_px=(0.0, 0.0))
    with pytest.raises(InputError, match=r"^b\.npy: image 2 must show the area and the structure"):
        together(reference, state, [other], lattice, parts())


def test_a_set_change_of_focus_is_where_the_lens_is_looked_for(island: Slab) -> None:
    reference, state, _ = reference_of(island)
    image = replace(further_of(island, (0, 0), island.microscope.with_values(c1=82.0)), c1_step_A=30.0)
    laid = lay(reference, state, image, parts())
    lens = laid.state.microscope
    assert lens.mean[INDEX["c1"]] == island.microscope["c1"] + 30 and lens.sigma[INDEX["c1"]] == 20
    assert lens["c1"] == pytest.approx(82, abs=2)


def test_a_laid_image_comes_back_the_same(island: Slab) -> None:
    reference, state, _ = reference_of(island)
    diffuse = Diffuse(torch.linspace(0, 1 / 7, 12).reshape(3, 4))
    form = LaidForm(ReachedForm(state.columns.projection))
    for lead in (31.5, np.inf):
        before = Laid(State(state.columns, state.microscope.with_values(c1=1 / 3), diffuse), (-3, 4), lead)
        after = form.load(form.save(before))
        assert (after.whole, after.lead) == ((-3, 4), lead)
        assert torch.equal(after.state.diffuse.image, diffuse.image) and after.state.microscope["c1"] == 1 / 3  # type: ignore[arg-type]


def test_the_overlay_says_what_is_explained_where_the_images_overlap() -> None:
    rng = np.random.default_rng(1)
    world = rng.normal(1, 0.2, (70, 80))
    simulated, measured = world[10:50, 20:68], world[6:46, 23:71].copy()
    valid = rng.random(measured.shape) > 0.1
    window = np.zeros(simulated.shape, bool)
    window[4:-4, 5:-3] = True
    measured[~valid] = 1e3
    overlay = Overlay(measured, valid, window)
    found = overlay.gain(simulated)
    rows, cols = overlay.drifts()
    r, c = np.unravel_index(int(found.argmax()), found.shape)
    # What is at a place of the simulated image lies four rows farther on in the measured one.
    assert (rows[r, 0], cols[0, c]) == (4, -3)
    for drift in ((4, -3), (0, 0), (7, -11)):
        there = displaced(measured, drift, 1.0)
        both = displaced(valid, drift, False) & window
        expected = ((there - 1)[both] ** 2 - (there - simulated)[both] ** 2).sum()
        assert found[drift[0] % len(rows), drift[1] % cols.shape[1]] == pytest.approx(expected)
    assert np.isinf(found[len(rows) // 2, 0])


def test_displaced_images_come_back_where_both_have_pixels() -> None:
    image = np.arange(30.0).reshape(5, 6)
    moved = displaced(image, (1, -2), -1.0)
    assert moved[0, 2] == image[1, 0] and (moved[:, :2] == -1).all() and (moved[4] == -1).all()
    back = displaced(moved, (-1, 2), -1.0)
    assert (back[1:, :4] == image[1:, :4]).all()
    assert (displaced(image, (9, 0), 0.0) == 0).all()


def test_plans_of_further_images_take_over_what_the_camera_has_in_common() -> None:
    plan = plan_of(
        frames=[0, 2, 3],
        focus_step_nm=4.0,
        offset_counts=7.0,
        mask="mask.npy",
        also=[{"path": "c.npy", "offset_counts": 9.0, "c1_nm": 13.0, "drift_px": [3.0, -2]}],
    )
    second, third, fourth = own_plans(plan, 3)
    assert [second[1], third[1], fourth[1]] == [40.0, 80.0, None]
    assert second[0].microscope.c1_nm is None and fourth[0].microscope.c1_nm == 13.0
    assert second[0].image.mask == plan.image.mask and fourth[0].image.mask is None
    assert second[0].image.offset_counts == 7.0 and fourth[0].image.offset_counts == 9.0
    assert fourth[2] == (3.0, -2.0) and fourth[0].image.pixel_size_A == 0.18
    assert fourth[0].image.path.name == "c.npy" and fourth[0].image.also is None


def raw_of(counts: NDArray[np.float32], name: str, pixel: float | None = None) -> RawImage:
    return RawImage(counts.astype(float), name, None if pixel is None else (pixel, pixel))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("cut", r"^b: image 2 must have the 107 × 160 pixels of the first image, got 100 × 160; was it b"),
        ("coarse", r"^b: image 2 must have the pixel size of the first image, 0\.15 Å, .* got 0\.165 Å"),
        ("turned", r"^b: the crystal in image 2 must lie as in the first image, to 0\.\d Å at the corners"),
    ],
)
def test_images_that_do_not_belong_together_are_refused(change: str, said: str) -> None:
    plan = small_plan({"also": [{"path": "b.tif"}]}, dose_e_per_A2=5e3)
    made = small_phantom(dose_e_per_A2=5e3)
    other = small_phantom(dose_e_per_A2=5e3, rotation_deg=6.0 if change == "turned" else 0.0)
    counts = other.counts[:100] if change == "cut" else other.counts
    second = raw_of(counts, "b", 0.165 if change == "coarse" else 0.15)
    raw = replace(raw_of(made.counts, "a", 0.15), also=(second,))
    projection = project(read_cif(plan.structure.path), plan.structure.zone_axis)
    micrograph, lattice = calibrate(plan, raw, projection, parts())
    with pytest.raises(InputError, match=said):
        calibrated(plan, raw, micrograph, lattice, projection, parts())


def test_what_a_poor_image_does_not_show_is_taken_from_the_first() -> None:
    """No vacuum and too few electrons for a lattice: level and lattice are those of the first image."""
    plan = small_plan({"also": [{"path": "b.tif"}]}, dose_e_per_A2=5e3)
    made = small_phantom(dose_e_per_A2=5e3)
    poor = np.random.default_rng(0).poisson(made.counts.mean(), made.counts.shape).astype(float)
    poor += 40 * np.sin(np.arange(poor.shape[0]) / 9)[:, None]  # nowhere flat
    raw = replace(raw_of(made.counts, "a", 0.15), also=(raw_of(poor, "b", 0.15),))
    projection = project(read_cif(plan.structure.path), plan.structure.zone_axis)
    micrograph, lattice = calibrate(plan, raw, projection, parts())
    (image,) = calibrated(plan, raw, micrograph, lattice, projection, parts())
    level = 5e3 * 0.15**2
    assert image.plan.image.vacuum_counts == pytest.approx(level, rel=0.02)
    assert image.micrograph.scale_sigma == 0.02
    assert any("no vacuum was found" in n for n in image.micrograph.notes)
    assert any("its lattice could not be registered" in n for n in image.micrograph.notes)


def test_a_further_image_needs_something_of_its_own() -> None:
    assert FurtherPlan(frame=1).path is None
    with pytest.raises(ValueError, match="needs a path, a dataset or a frame of its own"):
        FurtherPlan(c1_nm=5.0)


class Kept(Forgetful):
    """A memory of the finished parts of a fit, in the order in which they came."""

    def __init__(self, known: dict[str, Snapshot]) -> None:
        self.known = known

    def recall(self, part: str) -> Snapshot | None:
        return deepcopy(self.known.get(part))

    def keep(self, part: str, snapshot: Snapshot) -> None:
        self.known[part] = deepcopy(snapshot)


def fitted_together(island: Slab, known: dict[str, Snapshot]) -> Twin:
    """Two images of an island, fitted from its structure on, what is known not computed again."""
    reference, _, lattice = reference_of(island)
    image = further_of(island, (3, -4), island.microscope.with_values(c1=85.0))
    work = Parts(Kept(known), Log(lambda step: None))
    rounds, state, rivals, placed, notes = settled_together(0, [reference], [image], lattice, work)
    state, evidence = rounds.last(state, rivals)
    assessed = assess(rounds.bench, state, reference.start, lattice, evidence, 0)
    micrograph = image.micrograph
    plan = plan_of(also=[{"path": "b.npy"}])
    return make_twin(plan, state, reference.start, lattice, micrograph, assessed, (), notes, None, placed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_images_are_fitted_together_and_a_resumed_fit_gives_the_same_bits(
    island: Slab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Fewer of the steps that all fits have in common.
    monkeypatch.setattr("qhrtem.stages.structure.PHONON_PAIRS", (1, 1, 1))
    monkeypatch.setattr("qhrtem.stages.thickness.PHONON_PAIRS", (1, 1, 1))
    monkeypatch.setattr("qhrtem.stages.further.PHONON_PAIRS", (1, 1, 1))
    monkeypatch.setattr("qhrtem.stages.thickness.MOST_PERIODS", 0)
    known: dict[str, Snapshot] = {}
    twin = fitted_together(island, known)
    (second,) = twin.further
    lens = {e.name: e for e in second.microscope}
    assert abs(lens["c1_nm"].value - 8.5) < 4 * lens["c1_nm"].sigma < 1
    # The mistilt is the specimen's: one value, one error.
    first = {e.name: e for e in twin.microscope}
    assert (lens["tilt_x_mrad"].value, lens["tilt_x_mrad"].sigma) == (
        first["tilt_x_mrad"].value,
        first["tilt_x_mrad"].sigma,
    )
    assert second.drift_px == pytest.approx((3, -4), abs=0.15) and second.chi2_crystal < 1.3
    assert {"reduced chi-square of further images"} <= {g.name for g in twin.gates}
    assert any(n.startswith("Image 2 (b.npy) was fitted together with the first") for n in twin.notes)
    assert twin.imaging_errors is not None and "c1_nm of image 2" in twin.imaging_errors.name
    assert twin.position_errors is not None and "imaging c1 of image 2" in twin.position_errors.common_name
    write_results(twin, tmp_path)
    assert result_hash(read_twin(tmp_path).further) == result_hash(twin.further)
    names = list(known)
    part = {n: known[n] for n in names[: names.index("joint positions") + 1]}
    assert result_hash(fitted_together(island, part)) == result_hash(twin)
