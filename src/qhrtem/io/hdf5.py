"""Arrays and texts in HDF5: every array with its unit, every text as valid UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

COMPRESSED_FROM = 1024  # values; below, a chunk costs more than it saves


def put(group: h5py.Group, name: str, value: Any, unit: str) -> None:
    """Store an array or a number under `name`, with its unit as attribute `units`."""
    array = np.asarray(value)
    packed = {"compression": "gzip", "shuffle": True} if array.size > COMPRESSED_FROM else {}
    group.create_dataset(name, data=array, **packed).attrs["units"] = unit


def put_strings(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Store texts as a one-dimensional dataset."""
    data = np.array([storable(v) for v in values], dtype=object)
    group.create_dataset(name, shape=(len(values),), dtype=h5py.string_dtype("utf-8"), data=data)


def strings(group: h5py.Group, name: str) -> tuple[str, ...]:
    """Return the texts of a one-dimensional dataset."""
    return tuple(group[name].asstr()[()].tolist())


def storable(text: str) -> str:
    """HDF5 strings end at a NUL and must be UTF-8; a file name may hold neither promise."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
