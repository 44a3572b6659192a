"""The lock of a run: a kernel lock on its journal, so that it ends with the process and never goes stale."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import Any

from qhrtem.errors import PlanError
from qhrtem.run import durable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = Path("/proc/locks")  # Linux: every lock that is held, and by whom
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def owner() -> dict[str, Any]:
    """Return who holds a lock that this process holds: the record that names it to others."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def claim(path: Path) -> int:
    """Return a handle to append to the journal at `path`, made where missing, with its lock held.

    Raises PlanError, naming the owner, where another process holds it. The lock goes when the handle is
    closed.
    """
    while True:
        handle = durable.open_append(path)
        try:
            _lock(handle, path)
            # Another process may have removed the file between both calls.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def check_unclaimed(path: Path) -> None:
    """Raise PlanError where another process holds the lock of the journal at `path`."""
    if not path.is_file():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, path)
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise PlanError(
                f"{path.parent}: the run is in use by {_named(path)}; wait for it or stop it"
            ) from error
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(
            f"{path.parent}: this file system cannot lock files; let only one process write here",
            stacklevel=4,
        )


def holder(path: Path, locks: Path = LOCKS) -> int | None:
    """Return the process on this machine that holds the lock of the journal at `path`, None where none does.

    The kernel's own list says so, and the lock is never touched. Raises OSError where the system has no such
    list, as outside Linux; there nothing but trying tells.
    """
    where = path.stat()
    wanted = (os.major(where.st_dev), os.minor(where.st_dev), where.st_ino)
    for line in locks.read_text("ascii", "replace").splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE pid major:minor:inode start end
        if len(words) < 6 or words[1] != "FLOCK":
            continue
        major, minor, inode = words[5].split(":")
        if (int(major, 16), int(minor, 16), int(inode)) == wanted and int(words[4]) > 0:
            return int(words[4])
    return None


def _named(path: Path) -> str:
    """Return the owner that the last record of a start in a journal names."""
    for line in reversed(path.read_bytes().splitlines()):
        try:
            who = json.loads(line)["record"]["owner"]
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        except (ValueError, KeyError, TypeError):
            continue
    return "another process"
