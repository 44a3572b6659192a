"""Result files: what is written comes back equal, whole, and only when it may be claimed."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.twin import CLAIMS, FORMAT, VERSION, read_twin, replace_file, write_results
from qhrtem.model.twin import FurtherImage, Twin
from twins import make_twin, with_text

HOSTILE = "</script><img src=x onerror=alert(1)>,\"'\n=1+1 \0 \udcff µ—"


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(3, 4)


def assert_same(got: Any, expected: Any, where: str = "twin") -> None:
    """Compare two values field by field; arrays bit for bit with their types, nan equal to nan."""
    assert type(got) is type(expected), where
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            assert_same(getattr(got, field.name), getattr(expected, field.name), f"{where}.{field.name}")
    elif isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), where
        np.testing.assert_array_equal(got, expected, err_msg=where)
    elif isinstance(expected, tuple):
        assert len(got) == len(expected), where
        for k, pair in enumerate(zip(got, expected, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    else:
        np.testing.assert_equal(got, expected, err_msg=where)


def test_result_file_returns_an_equal_twin(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    assert_same(read_twin(tmp_path), twin)


def test_further_images_are_written_and_return(twin: Twin, tmp_path: Path) -> None:
    images = tuple(
        FurtherImage(f"{name} \0µ", (3.25, -7.5), twin.microscope[: n + 1], 1.01, 0.83)
        for n, name in enumerate(("b.tif", "c.tif"))
    )
    several = dataclasses.replace(twin, further=images)
    write_results(several, tmp_path)
    found = read_twin(tmp_path).further
    assert found[0].path == "b.tif \\x00µ"
    assert_same(found, tuple(dataclasses.replace(f, path=found[n].path) for n, f in enumerate(images)))
    said = json.loads((tmp_path / "microscope.json").read_text())
    assert [f["drift_px"] for f in said["further_images"]] == [[3.25, -7.5]] * 2
    assert list(said["further_images"][1]["parameters"]) == [e.name for e in twin.microscope[:2]]


def test_twin_without_history_columns_or_notes_returns_equal(twin: Twin, tmp_path: Path) -> None:
    bare = dataclasses.replace(
        make_twin(2, 2, passed=False), history=(), notes=(), rules={}, provenance={}, microscope=(),
        chi2_vacuum=float("nan"),
    )  # fmt: skip
    write_results(bare, tmp_path)
    assert_same(read_twin(tmp_path), bare)


def test_every_stored_array_names_its_unit(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    with h5py.File(tmp_path / "result.h5") as file:
        assert (file.attrs["format"], file.attrs["version"]) == (FORMAT, VERSION)
        assert file["columns/position_px"].attrs["units"] == "px"
        assert file["atoms/b_iso_A2"].attrs["units"] == "angstrom^2"
        assert file["match/measured"].attrs["units"] == "vacuum"
        assert file["history/seconds"].attrs["units"] == "s"


def test_columns_table_holds_what_the_contract_names(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    with open(tmp_path / "columns.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = "id kind row col sigma_row sigma_col n_Ba n_Ti n_O p_exact top_A bottom_A"
    names += " row_Ba col_Ba row_Ti col_Ti row_O col_O dx_A dy_A inside"
    assert list(rows[0]) == names.split()
    table = twin.columns
    assert [r["kind"] for r in rows] == list(table.kind)

    def column(*keys: str) -> np.ndarray:
        return np.array([[float(r[k]) for k in keys] for r in rows])

    np.testing.assert_array_equal(column("n_Ba", "n_Ti", "n_O"), table.counts)
    np.testing.assert_allclose(column("row", "col"), table.position_px, atol=1e-5)
    np.testing.assert_allclose(column("sigma_row", "sigma_col"), table.sigma_px, atol=1e-6)
    np.testing.assert_allclose(column("row_Ti", "col_Ti"), table.element_position_px[:, 1], atol=1e-5)
    np.testing.assert_allclose(column("dx_A", "dy_A"), table.displacement_A, atol=1e-5)
    np.testing.assert_allclose(column("top_A", "bottom_A")[:, 1], table.bottom_A, atol=1e-4)
    np.testing.assert_allclose(column("p_exact")[:, 0], table.p_exact, atol=1e-6)
    np.testing.assert_array_equal(column("inside")[:, 0], table.inside)


def test_microscope_file_says_what_was_refined(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    content = json.loads((tmp_path / "microscope.json").read_text())
    assert content["passed"] is True
    assert content["parameters"]["c1_nm"] == {
        "label": "C1", "value": 5.52, "sigma": 0.08, "unit": "nm", "refined": True, "note": "overfocus"
    }  # fmt: skip
    assert content["parameters"]["high_tension_kV"]["sigma"] is None  # nan is not JSON


def test_refused_result_claims_nothing_and_removes_old_claims(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    assert all((tmp_path / name).is_file() for name in CLAIMS)
    write_results(make_twin(3, 4, passed=False), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["microscope.json", "result.h5"]
    assert json.loads((tmp_path / "microscope.json").read_text())["passed"] is False
    assert not read_twin(tmp_path).passed


def test_any_text_survives(twin: Twin, tmp_path: Path) -> None:
    strange = with_text(twin, HOSTILE)
    write_results(strange, tmp_path)
    stored = HOSTILE.replace("\0", "\\x00").replace("\udcff", "\\udcff")
    assert_same(read_twin(tmp_path), with_text(twin, stored))
    with open(tmp_path / "columns.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(twin.columns.kind)


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]


def test_unwritable_folder_is_explained(twin: Twin, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_results(twin, blocked)


def test_unreadable_results_are_explained(twin: Twin, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result here"):
        read_twin(tmp_path)
    path = tmp_path / "result.h5"
    path.write_bytes(b"not a container")
    with pytest.raises(InputError, match="damaged"):
        read_twin(tmp_path)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "other"
    with pytest.raises(InputError, match="not a qhrtem-result"):
        read_twin(tmp_path)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION + 1
    with pytest.raises(InputError, match="update qhrtem"):
        read_twin(tmp_path)
    write_results(twin, tmp_path)
    with h5py.File(path, "a") as file:
        del file["atoms/position_A"]
    with pytest.raises(InputError, match="damaged"):
        read_twin(tmp_path)


def test_result_that_no_file_can_hold_leaves_the_folder_alone(twin: Twin, tmp_path: Path) -> None:
    write_results(twin, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    lost = dataclasses.replace(twin.atoms, position_A=np.full_like(twin.atoms.position_A, np.nan))
    with pytest.raises(InputError, match="finite"):
        write_results(dataclasses.replace(twin, atoms=lost), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_images_are_nexus_data_for_other_programs(twin: Twin, tmp_path: Path) -> None:
    """RosettaSciIO, the reader behind HyperSpy, finds the images with their axes and units."""
    from rsciio.nexus import file_reader

    write_results(twin, tmp_path)
    read = {
        d["metadata"]["General"]["title"]: d
        for d in file_reader(str(tmp_path / "result.h5"), nxdata_only=True)
    }
    assert {"measured", "simulated", "sigma", "residual"} <= set(read)
    assert np.array_equal(read["measured"]["data"], twin.match.measured)
    for axis, name in zip(read["measured"]["axes"], "yx", strict=True):
        assert (axis["name"], axis["units"]) == (name, "angstrom")
        assert axis["scale"] == pytest.approx(twin.pixel_size_A)
