"""A disk that fails on command: it stands in for `os` inside `qhrtem.run.durable`.

A kill leaves all that the system calls have done, at most with the last write torn. A power cut also takes
what was not synchronised: bytes written since the last fsync of a file, and names made or changed in a folder
since its last fsync. (A real disk may have saved some of that; nothing may rely on it.)
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Literal

Mode = Literal["count", "kill", "torn", "power", "full"]
KILLED = 128 + signal.SIGKILL


class Disk:
    """Counts writes, fsyncs and renames and fails at number `at`, before it is done."""

    def __init__(self, mode: Mode = "count", at: int = -1) -> None:
        self.mode, self.at = mode, at
        self.operations: list[str] = []
        self._synced: dict[str, int] = {}  # bytes of a file that are safe, by path
        self._dirty: set[str] = set()
        self._names: list[tuple[str, Path, Path, bytes | None]] = []  # not yet safe: kind, old, new, replaced

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        fresh = flags & os.O_CREAT and not os.path.exists(path)
        handle = os.open(path, flags, mode)
        if fresh:
            self._names.append(("create", Path(path), Path(path), None))
        return handle

    def write(self, handle: int, data: Any) -> int:
        path = _path(handle)
        self._synced.setdefault(path, os.fstat(handle).st_size)
        if self._now("write"):
            if self.mode in ("torn", "power", "full"):
                os.write(handle, bytes(data)[: len(data) // 2])
                self._dirty.add(path)
            self._fail()
        self._dirty.add(path)
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        if self._now("fsync"):
            self._fail()
        path = _path(handle)
        os.fsync(handle)
        if os.path.isdir(path):
            self._names = [n for n in self._names if n[2].parent != Path(path)]
        else:
            self._synced[path] = os.fstat(handle).st_size
            self._dirty.discard(path)

    def replace(self, source: Any, target: Any) -> None:
        if self._now("rename"):
            self._fail()
        source, target = Path(source), Path(target)
        before = target.read_bytes() if target.is_file() else None
        os.replace(source, target)
        if target.is_file():
            # What others wrote and nobody synchronised is not safe either.
            unsafe = str(source) in self._dirty or str(source) not in self._synced
            self._dirty.discard(str(source))
            (self._dirty.add if unsafe else self._dirty.discard)(str(target))
            self._synced[str(target)] = self._synced.pop(str(source), 0)
        self._names.append(("rename", source, target, before))

    def _now(self, what: str) -> bool:
        self.operations.append(what)
        return len(self.operations) - 1 == self.at

    def _fail(self) -> None:
        if self.mode == "full":
            self.at = len(self.operations)  # the disk stays full
            raise OSError(28, os.strerror(28))
        if self.mode == "power":
            self._lose()
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        for path in self._dirty:
            if os.path.exists(path):
                os.truncate(path, self._synced.get(path, 0))
        for kind, old, new, replaced in reversed(self._names):
            if not new.exists():
                continue
            if kind == "create":
                new.unlink()
            else:
                os.replace(new, old)
                if replaced is not None:
                    new.write_bytes(replaced)


def _path(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")
