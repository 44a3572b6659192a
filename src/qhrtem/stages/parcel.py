"""Parcel: a snapshot as bytes, the same on the way to a worker, on the way back and on the disk.

A line of JSON tells the values and, for each array, its name and length; the arrays follow as .npy files,
in the order of their names. Equal content gives equal bytes. There is no pickle in it, so reading one runs
nothing.
"""

from __future__ import annotations

import io
import json

import numpy as np

from qhrtem.errors import InputError
from qhrtem.stages.checkpoint import Snapshot

MAGIC = b"qhrtem parcel 1\n"


def to_bytes(snapshot: Snapshot) -> bytes:
    """Return the bytes of a snapshot.

    Raises ValueError for NaN and infinity among the values and for arrays of objects, TypeError for values
    that JSON does not know.
    """
    blobs = []
    for name in sorted(snapshot.arrays):
        buffer = io.BytesIO()
        np.save(buffer, np.array(snapshot.arrays[name], order="C"), allow_pickle=False)
        blobs.append((name, buffer.getvalue()))
    head = {"facts": snapshot.facts, "arrays": [[name, len(blob)] for name, blob in blobs]}
    line = json.dumps(head, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([MAGIC, line, b"\n", *(blob for _, blob in blobs)])


def from_bytes(data: bytes) -> Snapshot:
    """Return the snapshot of some bytes; raises InputError where they are no whole parcel."""
    end = data.find(b"\n", len(MAGIC))
    if not data.startswith(MAGIC) or end < 0:
        raise InputError(f"a parcel must begin with {MAGIC.strip().decode()!r}, got {data[:16]!r}")
    try:
        head = json.loads(data[len(MAGIC) : end])
        arrays, start = {}, end + 1
        for name, size in head["arrays"]:
            arrays[name] = np.load(io.BytesIO(data[start : start + size]), allow_pickle=False)
            start += size
        facts = head["facts"]
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"a parcel of {len(data)} bytes is damaged ({error})") from error
    if start != len(data):
        raise InputError(f"a parcel must have {start} bytes by its own account, got {len(data)}")
    return Snapshot(facts, arrays)
