"""A file on which the library dies is refused by a sentence, and the process that asked lives on."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from qhrtem.errors import InputError
from qhrtem.io import rehearsal

FORMATS = Path(__file__).parents[1] / "data" / "formats"


def test_sound_files_and_files_that_are_no_hdf5_pass(tmp_path: Path) -> None:
    rehearsal.rehearse(FORMATS / "example_image.emd")
    junk = tmp_path / "junk.emd"
    junk.write_bytes(b"nothing of the kind")
    rehearsal.rehearse(junk)  # the reader words what is wrong with it
    rehearsal.rehearse(tmp_path / "absent.tif")  # other formats are not looked at


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_file_that_kills_its_reader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rehearsal, "READ_ALL", f"import os, signal; os.kill(os.getpid(), signal.{name})")
    path = tmp_path / "bad.emd"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"bad.emd: the HDF5 library breaks down on this file .{name}."):
        rehearsal.rehearse(path)


def test_a_reading_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "READ_ALL", "import time; time.sleep(60)")
    monkeypatch.setattr(rehearsal, "PATIENCE_S", 0.3)
    path = tmp_path / "slow.hspy"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="does not come to an end"):
        rehearsal.rehearse(path)


@pytest.mark.parametrize("layout", [{}, {"chunks": (2, 3)}, {"chunks": (5, 3), "compression": "gzip"}])
@pytest.mark.parametrize("rows", [2, 300])
def test_a_damaged_dimension_is_noticed(tmp_path: Path, rows: int, layout: dict[str, object]) -> None:
    """HDF5 reads on beyond the array, or stops before its end, without a word."""
    path = tmp_path / "image.hspy"
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=np.arange(15, dtype="<f4").reshape(5, 3), **layout)
        file.create_dataset("unwritten", (4, 4), "<i2")
        file["text"] = "a word"
    data = path.read_bytes()
    shape = struct.pack("<QQ", 5, 3)
    assert data.count(shape) >= 1
    rehearsal.rehearse(path)
    # The array's own shape and its largest; what is said of chunks stands behind them.
    path.write_bytes(data.replace(shape, struct.pack("<QQ", rows, 3), 2))
    if rows == 2 and layout.get("chunks") == (5, 3):
        return  # a part of the one chunk there is; nothing in the file contradicts it
    with pytest.raises(InputError, match="shape of its array 'image' does not agree with the bytes"):
        rehearsal.rehearse(path)
