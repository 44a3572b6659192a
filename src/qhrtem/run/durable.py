"""Writing that a crash cannot spoil: after a call has returned, its work is on the disk.

Every byte and every rename that a run depends on goes through this module, so that a test can stop the
program at each of them.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qhrtem.errors import ResourceError

TEMPORARY = ".tmp"  # suffix of files that are not finished; their names start with a dot
REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "a part of the path is a file; choose another --out",
    errno.EEXIST: "a part of the path is a file; choose another --out",
    errno.EIO: "the disk reports a fault",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system into a ResourceError with its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise ResourceError(f"{path}: cannot be written, {REMEDIES[error.errno]}") from error


def write(handle: int, data: bytes) -> None:
    """Write all of some bytes to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def open_append(path: Path) -> int:
    """Return a handle to read and append to a file, made, and its name made durable, where it is missing."""
    fresh = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    if fresh:
        sync_folder(path.parent)
    return handle


def sync(handle: int) -> None:
    """Wait until an open file is on the disk."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # fsync alone leaves it in the drive's cache there
    else:
        os.fsync(handle)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable where the system lets a folder be synchronised."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until every file in a folder and below is on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                sync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(parent))


def move(source: Path, target: Path) -> None:
    """Give a file or an empty target's folder another name; durable after `sync_folder`."""
    os.replace(source, target)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that at any moment, also after a power cut, it is wholly the old or the new one."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with explained(path):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write(handle, data)
                sync(handle)
            finally:
                os.close(handle)
            move(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """Return whether a crash left this file half written."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY)
