"""Reading an HDF5 file once in a process of its own, because the library ends the process on some damage.

A flipped byte in an internal table can make HDF5 follow a wild pointer (signal 11), which no exception
handler sees. The child reads every dataset and throws it away; what kills it is said, and the real reading
never starts. It also compares the shape of each array with the bytes stored for it: a damaged dimension would
otherwise come back as an image of another shape, filled with whatever lies behind it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from qhrtem.errors import InputError

RISKY = (".emd", ".hspy")
PATIENCE_S = 120.0
UNEQUAL = 3  # exit status of the child, below, where shape and stored bytes disagree
# Errors of the library are left to the real reading, which words them; only the child's death matters here.
READ_ALL = """
import math, sys, h5py
unequal = []
def read(name, item):
    list(item.attrs.items())
    if isinstance(item, h5py.Dataset):
        own = not item.is_virtual and not item.external and item.dtype.kind in "iuf" and item.size
        if own and item.chunks is None:
            # Nothing is stored for an array that was never written.
            if 0 < item.id.get_storage_size() != item.size * item.dtype.itemsize:
                unequal.append(name)
                return
        elif own and item.ndim > 1:
            there = item.id.get_num_chunks()
            if 0 < there != math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks)):
                unequal.append(name)
                return
        item[()]
try:
    with h5py.File(sys.argv[1], "r") as file:
        file.visititems(read)
except Exception:
    pass
if unequal:
    print(unequal[0])
    sys.exit(3)
"""


def rehearse(path: Path) -> None:
    """Raise InputError where reading an HDF5 file would end this process or take forever; else do nothing."""
    if path.suffix.lower() not in RISKY:
        return
    command = [sys.executable, "-c", READ_ALL, str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{path}: reading does not come to an end ({PATIENCE_S:g} s); the file may be damaged: copy it "
            "again"
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(
            f"{path}: the HDF5 library breaks down on this file ({name}); it is damaged: copy it again or "
            "export the image anew, e.g. as TIFF"
        )
    if done.returncode == UNEQUAL:
        name = done.stdout.decode(errors="replace").strip()[:80]
        raise InputError(
            f"{path}: the shape of its array {name!r} does not agree with the bytes stored for it; the file "
            "is damaged: copy it again"
        )
