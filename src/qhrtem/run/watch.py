"""Watch: files as they appear in a folder, each once it is whole, in the order of their names.

A file counts as whole when its size and time have not changed between two looks. Which files were taken, and
which were left out by the stated policy, goes into the journal before their frame is begun, so that a resumed
run takes the same ones.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qhrtem.errors import InputError

POLL_S = 0.5  # between two looks


@dataclass
class FolderWatch:
    """Yields new files of a folder until none has come for some time."""

    folder: Path
    pattern: str  # of their names, by wildcards
    suffixes: tuple[str, ...]  # that images have
    idle_s: float
    behind: Literal["keep", "drop"]
    tell: Callable[[dict[str, Any]], None]  # records for the journal
    past: tuple[str, ...] = ()  # taken by earlier sessions, in order
    dropped: list[str] = field(default_factory=list)
    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What was left out."""
        return tuple(self.dropped)

    def __iter__(self) -> Iterator[Path]:
        """Yield the files taken before, then new ones; raises InputError where one of the former is gone."""
        for name in self.past:
            path = self.folder / name
            if not path.is_file():
                raise InputError(f"{path}: a frame that the run has used is gone; put the file back")
            yield path
        done, last = {*self.past, *self.dropped}, self.now()
        while True:
            ready = [p for p in self._whole() if p.name not in done]
            if ready:
                chosen, late = self._chosen(ready)
                for path in late:
                    self.tell({"event": "dropped", "file": path.name})
                    self.dropped.append(path.name)
                done |= {chosen.name, *(p.name for p in late)}
                waiting = len(ready) - 1 - len(late)
                self.tell({"event": "frame", "file": chosen.name, "waiting": waiting})
                yield chosen
                last = self.now()
            elif self.now() - last >= self.idle_s:
                return
            else:
                self.wait(POLL_S)

    def _chosen(self, ready: list[Path]) -> tuple[Path, list[Path]]:
        """Return the file to take and those to leave out."""
        if self.behind == "drop":
            return ready[-1], ready[:-1]
        return ready[0], []

    def _whole(self) -> list[Path]:
        """Return the files that did not change since the last look, in the order of their names."""
        found: dict[Path, tuple[int, int]] = {}
        for path in self.folder.glob(self.pattern):
            if path.suffix.lower() in self.suffixes and not path.name.startswith("."):
                try:
                    stat = path.stat()
                except OSError:  # it went between the two calls
                    continue
                if stat.st_size:
                    found[path] = (stat.st_size, stat.st_mtime_ns)
        whole = [p for p, mark in found.items() if self._seen.get(p) == mark]
        self._seen = found
        return sorted(whole, key=natural)


def natural(path: Path) -> tuple[Any, ...]:
    """Return a key by which frame 9 comes before frame 10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts)
