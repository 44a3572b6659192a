"""Headers that promise terabytes are refused before anything is allocated; honest files pass."""

import struct
import tracemalloc

import h5py
import numpy as np
import pytest
import tifffile

from qhrtem.errors import ResourceError
from qhrtem.io.headers import PROBES, check_promise
from qhrtem.io.micrograph import read_image

EDGE = 1_000_000


def npy(path):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<u2", "fortran_order": False, "shape": (EDGE, EDGE)}
        )
        file.write(b"\0" * 64)


def npz(path):
    import zipfile

    inner = path.with_name("inner.npy")
    npy(inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "image.npy")


def tiff(path):
    tifffile.imwrite(path, np.ones((16, 16), np.uint16))
    data = path.read_bytes()
    for tag in (256, 257, 278):  # width, length, rows per strip: made LONG and large
        place = data.index(struct.pack("<HHI", tag, 3, 1)) if struct.pack("<HHI", tag, 3, 1) in data else None
        if place is None:
            place = data.index(struct.pack("<HHI", tag, 4, 1))
        data = data[:place] + struct.pack("<HHII", tag, 4, 1, EDGE) + data[place + 12 :]
    path.write_bytes(data)


def hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", shape=(EDGE, EDGE), dtype="u2", chunks=(64, 64), compression="gzip")


BOMBS = {".npy": npy, ".npz": npz, ".tif": tiff, ".emd": hdf5, ".hspy": hdf5}


@pytest.mark.parametrize("suffix", BOMBS)
def test_a_bomb_is_refused_before_it_is_allocated(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    BOMBS[suffix](path)
    assert path.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(ResourceError, match="1000000 × 1000000.* TB of memory") as caught:
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("suffix", sorted(PROBES))
def test_what_is_no_such_file_is_left_to_the_reader(tmp_path, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(b"junk" * 10)
    check_promise(path)


def test_a_series_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("qhrtem.io.headers.free_memory", lambda: 1000)
    (tmp_path / "series.mrc").write_bytes(struct.pack("<4i", 8, 8, 10, 2) + b"\0" * (1008 + 4 * 640))
    with pytest.raises(ResourceError, match="10 × 8 × 8 pixels"):
        check_promise(tmp_path / "series.mrc")


def test_an_honest_file_passes(tmp_path):
    counts = np.arange(64.0).reshape(8, 8)
    np.save(tmp_path / "a.npy", counts)
    tifffile.imwrite(tmp_path / "a.tif", counts.astype(np.float32))
    assert read_image(tmp_path / "a.npy").counts.shape == (8, 8)
    assert read_image(tmp_path / "a.tif").counts.shape == (8, 8)
