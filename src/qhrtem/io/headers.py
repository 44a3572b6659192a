"""What the header of an image file promises, read without reading the image.

A few bytes can promise terabytes. Readers allocate what a header says before they look for the data, so the
promise is compared with the memory of the machine first.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

from qhrtem.errors import ResourceError
from qhrtem.machine import free_memory, in_words

DOUBLE = 8  # bytes of a count as the program holds it


def check_promise(path: Path) -> None:
    """Raise ResourceError where a file promises more pixels than fit into the memory of this machine.

    Files whose header cannot be read this way pass: the reader will say what is wrong with them.
    """
    look = PROBES.get(path.suffix.lower())
    if look is None:
        return
    try:
        shape, size = look(path)
    except Exception:  # whatever a damaged header leads to
        return
    free = free_memory()
    needed = math.prod(shape) * (size + DOUBLE)
    if needed > free:
        raise ResourceError(
            f"{path}: promises {' × '.join(str(n) for n in shape)} pixels, which take {in_words(needed)} of "
            f"memory, and {in_words(free)} are free; cut out the part to be fitted, or is the file damaged?"
        )


Promise = tuple[tuple[int, ...], int]  # shape and bytes a pixel of the largest array


def _npy_header(file: IO[bytes]) -> Promise:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype.itemsize


def _npy(path: Path) -> Promise:
    with path.open("rb") as file:
        return _npy_header(file)


def _npz(path: Path) -> Promise:
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as file:
                found.append(_npy_header(file))
    return _largest(found)


def _tiff(path: Path) -> Promise:
    import tifffile

    with tifffile.TiffFile(path) as file:
        return _largest([(tuple(s.shape), s.dtype.itemsize if s.dtype else 1) for s in file.series])


def _mrc(path: Path) -> Promise:
    with path.open("rb") as file:
        nx, ny, nz, mode = struct.unpack("<4i", file.read(16))
    if nx * ny * nz > 2 * path.stat().st_size:
        raise ValueError("the file does not hold what it promises; its reader says so")
    return (nz, ny, nx), {0: 1, 1: 2, 2: 4, 6: 2}.get(mode, 4)


def _hdf5(path: Path) -> Promise:
    import h5py

    found: list[Promise] = []

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2:
            found.append((item.shape, item.dtype.itemsize))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return _largest(found)


def _largest(found: list[Promise]) -> Promise:
    return max(found, key=lambda f: math.prod(f[0]) * f[1])


PROBES: dict[str, Callable[[Path], Promise]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".tif": _tiff,
    ".tiff": _tiff,
    ".mrc": _mrc,
    ".emd": _hdf5,
    ".hspy": _hdf5,
}
