"""Masks of the user: polygons and images rule out pixels, survive a plan's round trip, and are checked."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.calibrate.intensity import normalise
from qhrtem.errors import InputError, PlanError
from qhrtem.io.masks import read_planned
from qhrtem.plan import dump_plan, load_plan, plan_from_tables

SHAPE = (80, 100)


@pytest.fixture
def plan(tmp_path):
    """Plans of one image with changes to [image]."""
    np.save(tmp_path / "image.npy", np.random.default_rng(0).poisson(400.0, SHAPE).astype(float))

    def make(**image):
        return plan_from_tables(
            {
                "image": {"path": tmp_path / "image.npy", **image},
                "microscope": {"high_tension_kV": 300.0},
                "structure": {"path": "X.cif", "zone_axis": [0, 0, 1]},
            }
        )

    return make


def test_nothing_is_ruled_out_unasked(plan):
    assert read_planned(plan().image).usable is None


def test_frames_and_further_images_come_along_with_the_first(plan, tmp_path):
    stack = np.random.default_rng(1).poisson(400.0, (4, *SHAPE)).astype(float)
    np.save(tmp_path / "stack.npy", stack)
    inside = [[[0, 0], [0, 20], [20, 20], [20, 0]]]
    asked = plan(
        path=tmp_path / "stack.npy",
        frames=[2, 0],
        exclude=inside,
        also=[{"path": tmp_path / "image.npy"}, {"frame": 3, "exclude": [[[60, 60], [60, 99], [79, 99]]]}],
    )
    raw = read_planned(asked.image)
    assert (raw.counts == stack[2]).all() and len(raw.also) == 3
    second, third, fourth = raw.also
    assert (second.counts == stack[0]).all() and (fourth.counts == stack[3]).all()
    # Polygons are of the images that they were drawn on: all frames of a series, but no other file.
    assert not raw.usable[5, 5] and not second.usable[5, 5]
    assert third.usable is None and fourth.usable[5, 5] and not fourth.usable[65, 90]
    every = read_planned(plan(path=tmp_path / "stack.npy", frames="all").image)
    assert len(every.also) == 3 and (every.also[2].counts == stack[3]).all()
    with pytest.raises(InputError, match="frames needs a series of at least two images, got one"):
        read_planned(plan(frames="all").image)
    with pytest.raises(InputError, match="frame must be 0 to 3, got 7"):
        read_planned(plan(path=tmp_path / "stack.npy", frames=[0, 7]).image)


def test_polygons_rule_out_rows_and_columns_as_named(plan):
    raw = read_planned(plan(exclude=[[[10.0, 20.0], [10.0, 60.0], [30.0, 60.0], [30.0, 20.0]]]).image)
    assert not raw.usable[20, 40] and raw.usable[40, 20] and raw.usable[20, 70]
    assert (~raw.usable).sum() == pytest.approx(20 * 40, rel=0.1)


def test_a_mask_image_and_a_polygon_add_up(plan, tmp_path):
    mask = np.ones(SHAPE)
    mask[:, :30] = 0
    np.save(tmp_path / "mask.npy", mask)
    made = plan(mask=tmp_path / "mask.npy", exclude=[[[60, 60], [60, 99], [79, 99]]], vacuum_counts=400.0)
    raw = read_planned(made.image)
    assert not raw.usable[40, 10] and not raw.usable[65, 90] and raw.usable[40, 50]
    normalised = normalise(raw, made.image, 0.1)
    assert not normalised.valid[40, 10]
    assert any("ruled out by the plan" in note for note in normalised.notes)


def test_a_plan_with_masks_reads_back_equal(plan, tmp_path):
    made = plan(mask=tmp_path / "mask.npy", exclude=[[[1.0, 2.0], [3.0, 4.5], [5.0, 0.0]]])
    (tmp_path / "PLAN.toml").write_text(dump_plan(made), encoding="utf-8")
    assert load_plan(tmp_path / "PLAN.toml") == made


def test_impossible_masks_are_refused(plan, tmp_path):
    np.save(tmp_path / "small.npy", np.eye(5))
    with pytest.raises(InputError, match="must have the image's 80 × 100 pixels"):
        read_planned(plan(mask=tmp_path / "small.npy").image)
    with pytest.raises(InputError, match="holds no pixel"):
        read_planned(plan(exclude=[[[200, 200], [210, 200], [205, 220]]]).image)
    with pytest.raises(PlanError, match="exclude"):
        plan(exclude=[[[1.0, 2.0], [3.0, 4.0]]])
    mask = np.zeros(SHAPE)
    mask[0, 0] = 1
    np.save(tmp_path / "inverted.npy", mask)
    made = plan(mask=tmp_path / "inverted.npy", vacuum_counts=400.0)
    with pytest.raises(InputError, match="is the mask inverted"):
        normalise(read_planned(made.image), made.image, 0.1)
