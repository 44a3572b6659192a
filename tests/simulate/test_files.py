"""What a simulation leaves on disk: a TIFF that our own reader understands, and nothing half-written."""

import csv
import json

import numpy as np
import pytest

from phantoms import small_phantom
from qhrtem.errors import PlanError, ResourceError
from qhrtem.io.micrograph import read_image
from qhrtem.simulate import files
from qhrtem.simulate.files import check_out, paths_of, write_simulation


@pytest.fixture(scope="module")
def made():
    return small_phantom()


def test_image_comes_back_with_counts_and_pixel_size(made, tmp_path):
    out = tmp_path / "a.b.tif"
    write_simulation(out, made.counts, made.pixel_size_A, made.facts, made.columns)
    raw = read_image(out)
    assert np.array_equal(raw.counts, made.counts.astype(float))
    assert raw.pixel_size_A == pytest.approx((0.15, 0.15), rel=1e-6)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a.b.columns.csv", "a.b.json", "a.b.tif"]
    facts = json.loads((tmp_path / "a.b.json").read_text("utf-8"))
    assert facts["image"] == "a.b.tif"
    with (tmp_path / "a.b.columns.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(made.columns.kind)
    assert (
        sum(int(r["n_Ba"]) for r in rows) == made.columns.counts[:, made.columns.elements.index("Ba")].sum()
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.png", "must be a TIFF"),
        ("a", "must be a TIFF"),
        ("none/a.tif", "does not exist"),
        ("folder.tif", "is a folder"),
        ("taken.tif", "--force"),
        ("half.tif", r"half\.json would be overwritten"),
    ],
)
def test_impossible_outputs_are_refused_before_any_work(tmp_path, name, words):
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "taken.tif").touch()
    (tmp_path / "half.json").touch()
    with pytest.raises(PlanError, match=words):
        check_out(tmp_path / name, force=False)


def test_force_replaces(tmp_path):
    (tmp_path / "taken.tif").touch()
    check_out(tmp_path / "taken.tif", force=True)


def test_a_full_disk_leaves_nothing(made, tmp_path, monkeypatch):
    def full(path, counts, pixel_size):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_tiff", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_simulation(tmp_path / "a.tif", made.counts, 0.15, made.facts, made.columns)
    assert list(tmp_path.iterdir()) == []


def test_names_beside_the_image(tmp_path):
    image, parameters, table = paths_of(tmp_path / "x.tiff")
    assert (image.name, parameters.name, table.name) == ("x.tiff", "x.json", "x.columns.csv")
