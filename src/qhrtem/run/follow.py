"""Following a run from outside: its journal as it grows, and whether a process is at work on it.

Nothing here writes, takes the lock or keeps a file open, so it cannot disturb the run.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qhrtem.errors import InputError, PlanError
from qhrtem.run.folder import RunFolder
from qhrtem.run.journal import parse_line
from qhrtem.run.lock import holder

Standing = Literal["running", "stopped", "broken off", "finished", "elsewhere", "empty"]


class Follower:
    """Reads the records that a journal has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0  # goes up when the journal was begun anew
        self.changed_ns = 0  # time of its last change
        self._begin()

    def _begin(self) -> None:
        self._offset, self._number, self._file = 0, 0, (0, 0)

    def read(self) -> list[dict[str, Any]]:
        """Return new records in order; all of them where another journal has taken the old one's place.

        A line that is still being written, or that a crash cut short, waits until it is whole. Raises
        InputError, naming the record, where a line before the last one is damaged.
        """
        try:
            with self.path.open("rb") as file:
                seen = os.fstat(file.fileno())
                if (seen.st_dev, seen.st_ino) != self._file or seen.st_size < self._offset:
                    self.generation += bool(self._number)
                    self._begin()
                    self._file = (seen.st_dev, seen.st_ino)
                self.changed_ns = seen.st_mtime_ns
                if seen.st_size == self._offset:
                    return []
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            self.generation += bool(self._number)
            self._begin()
            return []
        except OSError as error:
            raise InputError(
                f"{self.path}: the journal cannot be read ({error.strerror or error})"
            ) from error
        return self._taken(data)

    def _taken(self, data: bytes) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            record = parse_line(data[start:end], self._number)
            if record is None:
                if end + 1 < len(data):
                    raise InputError(f"{self.path}: record {self._number} of the journal is damaged")
                break
            out.append(record)
            self._number += 1
            start = end + 1
        self._offset += start
        return out


@dataclass(frozen=True)
class Owner:
    """Who is, or was last, at work on a run."""

    pid: int
    host: str
    since: str

    @classmethod
    def of(cls, record: dict[str, Any]) -> Owner | None:
        """Return the owner that a record of a start names."""
        who = record.get("owner")
        if not isinstance(who, dict):
            return None
        return cls(int(who.get("pid", 0)), str(who.get("host", "")), str(who.get("since", "")))


def standing(folder: RunFolder, last: dict[str, Any] | None, owner: Owner | None) -> Standing:
    """Return whether somebody is at work on a run.

    last: its last record. A run whose process was killed is "broken off"; one that another machine was last
    at work on is "elsewhere", since only that machine can tell.
    """
    if working(folder) is not None:
        return "running"
    if folder.finished and folder.plan.exists():
        return "finished"
    if last is None:
        return "empty"
    if last.get("event") == "stopped":
        return "stopped"
    if owner is not None and owner.host != socket.gethostname():
        return "elsewhere"
    if owner is not None and not _tells() and _alive(owner.pid):
        return "running"
    return "broken off"


def working(folder: RunFolder) -> int | None:
    """Return the process of this machine that holds the lock of a run, None where the kernel names none."""
    try:
        return holder(folder.journal)
    except OSError:
        return None


def ask_to_stop(folder: RunFolder, owner: Owner | None) -> int:
    """Ask the process at work on a run to put a checkpoint on the disk and end; return its number.

    It gets SIGTERM, as from `kill` or a queue at its time limit. Raises PlanError where the kernel names no
    process on this machine that holds the lock, or another one than the journal does.
    """
    if owner is None or owner.host != socket.gethostname():
        raise PlanError(f"{folder.path}: the run is not at work on this machine; stop it where it is")
    if not hasattr(signal, "pidfd_send_signal") or not _tells():
        raise PlanError(f"this system does not say who holds a lock; stop the run by `kill {owner.pid}`")
    if working(folder) != owner.pid:
        raise PlanError(f"{folder.path}: no process is at work on the run")
    try:
        process = os.pidfd_open(owner.pid)
    except OSError as error:
        raise PlanError(f"process {owner.pid} cannot be asked to stop ({error.strerror})") from error
    try:
        if working(folder) != owner.pid:  # else the number may be another process's by now
            raise PlanError(f"{folder.path}: no process is at work on the run any more")
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except PermissionError as error:
        raise PlanError(
            f"process {owner.pid} belongs to another user; only that user can stop the run"
        ) from error
    finally:
        os.close(process)
    return owner.pid


def _tells() -> bool:
    """Return whether the kernel says who holds a lock."""
    return os.path.exists("/proc/locks")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
