"""Identity: what may change a result is named; the hash of a result follows each of its numbers."""

import dataclasses

import numpy as np
import pytest

from qhrtem.cli import DEMO_PLAN
from qhrtem.plan import load_plan
from qhrtem.run.identity import Identity, result_hash
from twins import make_twin


@pytest.fixture
def plan():
    return load_plan(DEMO_PLAN)


def test_the_same_question_shows_no_difference(plan):
    identity = Identity.of(plan)
    assert Identity.from_record(identity.record()).differences(Identity.of(plan)) == []


def test_files_may_move_but_not_change(plan, tmp_path):
    moved = tmp_path / "other name.tif"
    moved.write_bytes(plan.image.path.read_bytes())
    other = plan.model_copy(update={"image": plan.image.model_copy(update={"path": moved})})
    assert Identity.of(plan).differences(Identity.of(other)) == []
    moved.write_bytes(moved.read_bytes() + b" ")
    (difference,) = Identity.of(plan).differences(Identity.of(other))
    assert difference.startswith("image file (SHA-256): ")


def test_further_images_count_by_what_they_hold(plan, tmp_path):
    files = [tmp_path / "b.tif", tmp_path / "c.tif"]
    for file in files:
        file.write_bytes(plan.image.path.read_bytes())

    def asked(path, **keys):
        return load_plan(DEMO_PLAN, {"image": {"also": [{"path": str(path), **keys}]}})

    before = Identity.of(asked(files[0]))
    assert before.differences(Identity.of(asked(files[1]))) == []
    assert before.differences(Identity.of(asked(files[0], c1_nm=9.0))) == [
        "plan [image] also 1 c1_nm: not given → 9.0"
    ]
    (difference,) = Identity.of(plan).differences(before)
    assert difference.startswith("also 1 file (SHA-256): not given → ")
    files[1].write_bytes(b"another image")
    (difference,) = before.differences(Identity.of(asked(files[1])))
    assert difference.startswith("also 1 file (SHA-256): ")


def test_a_mask_counts_by_what_it_holds(plan, tmp_path):
    mask = tmp_path / "mask.npy"
    mask.write_bytes(b"one")
    asked = plan.model_copy(update={"image": plan.image.model_copy(update={"mask": mask})})
    before = Identity.of(asked)
    mask.write_bytes(b"other")
    (difference,) = before.differences(Identity.of(asked))
    assert difference.startswith("mask file (SHA-256): ")


def test_changed_and_added_keys_and_versions_are_named(plan):
    now = load_plan(DEMO_PLAN, {"microscope": {"c1_nm": 5.5}, "run": {"seed": 7}})
    before = Identity.of(plan)
    after = dataclasses.replace(Identity.of(now), versions={**before.versions, "torch": "9.9"})
    assert sorted(before.differences(after)) == [
        "plan [microscope] c1_nm: not given → 5.5",
        "plan [run] seed: 0 → 7",
        f"torch: {before.versions['torch']} → 9.9",
    ]
    assert not before.same_question(after)
    assert before.same_question(dataclasses.replace(before, versions={}))


def test_the_hash_of_a_result_knows_numbers_from_clocks_and_words():
    twin = make_twin(2, 3)
    same = make_twin(2, 3)
    assert result_hash(twin) == result_hash(same)
    later = tuple(dataclasses.replace(s, seconds=s.seconds + 100) for s in twin.history)
    assert result_hash(dataclasses.replace(twin, history=later, notes=("x",))) == result_hash(twin)
    sigma = twin.columns.sigma_px.copy()
    sigma[0, 0] = np.nextafter(sigma[0, 0], 1)
    columns = dataclasses.replace(twin.columns, sigma_px=sigma)
    assert result_hash(dataclasses.replace(twin, columns=columns)) != result_hash(twin)
    for change in ({"rules": {"support": 144}}, {"gates": twin.gates[:2]}, {"chi2_vacuum": 1.0 + 1e-15}):
        assert result_hash(dataclasses.replace(twin, **change)) != result_hash(twin)
