"""LiveRun: one run as all pages see it, read once however many there are."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qhrtem.errors import InputError
from qhrtem.run.folder import RunFolder
from qhrtem.run.follow import Follower, ask_to_stop, standing
from qhrtem.web.pictures import Images, Layer, picture, result_images, stored_images
from qhrtem.web.records import FINAL, Account

LOOK_SECONDS = 1.0  # between looks at the journal
SILENCE_SECONDS = 15.0  # after which a stream says that it is still there
PICTURES_KEPT = 12


class LiveRun:
    """Follows a run and streams what happens; never writes to it."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._follower = Follower(folder.journal)
        self._changed = asyncio.Event()
        self._closed = False
        self._drawing = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.account = Account()
        self.messages: list[bytes] = []
        self.status: dict[str, Any] = {}
        self._drawn: OrderedDict[tuple[str, Layer], bytes] = OrderedDict()

    def look(self) -> bool:
        """Read what the run has written since the last look; return whether there is anything to tell."""
        before, generation, status = len(self.messages), self._follower.generation, self.status
        problem = ""
        try:
            records = self._follower.read()
        except InputError as error:
            records, problem = [], str(error)
        if self._follower.generation != generation:
            self._begin()
        for record in records:
            for message in self.account.messages(record):
                if message["kind"] == "finished":
                    message["lens"] = claimed_lens(self.folder.path / "microscope.json")
                self.messages.append(json.dumps(message, allow_nan=False).encode())
        self.status = self._status(problem)
        return (len(self.messages), self._follower.generation, self.status) != (before, generation, status)

    def _status(self, problem: str) -> dict[str, Any]:
        account = self.account
        owner = account.owner
        return {
            "standing": standing(self.folder, account.last, owner),
            "owner": None if owner is None else [owner.pid, owner.host, owner.since],
            "changed": self._follower.changed_ns // 1_000_000,  # ms since 1970
            "report": self.folder.finished and (self.folder.path / "report.html").is_file(),
            "problem": problem,
        }

    async def follow(self) -> None:
        """Look at the run again and again, and wake the streams when there is something to tell."""
        while not self._closed:
            if await asyncio.to_thread(self.look):
                self._wake()
            await asyncio.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()

    async def stream(self, seen: str) -> AsyncIterator[bytes]:
        """Yield server-sent events: every message from the one after `seen`, the id of the last one read.

        An event `reset` precedes the first message of another journal; `status` says how the run stands and
        what time it is, so that a page need not trust its own clock.
        """
        yield b"retry: 2000\n\n"
        name, _, number = seen.rpartition("/")
        index = int(number) + 1 if number.isdigit() and name == self._name() else 0
        told: dict[str, Any] | None = None
        if index == 0:
            yield b"event: reset\ndata: {}\n\n"
        name = self._name()
        while not self._closed:
            if name != self._name() or index > len(self.messages):
                name, index = self._name(), 0
                yield b"event: reset\ndata: {}\n\n"
            batch = self.messages[index:]
            if batch:
                numbered = enumerate(batch, index)
                yield b"".join(b"id: %s/%d\ndata: %s\n\n" % (name.encode(), n, m) for n, m in numbered)
                index += len(batch)
            if self.status != told:
                told = self.status
                now = {**told, "now": int(time.time() * 1000)}
                yield b"event: status\ndata: %s\n\n" % json.dumps(now).encode()
            waiting = self._changed
            if index < len(self.messages):
                continue
            try:
                await asyncio.wait_for(waiting.wait(), SILENCE_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"

    def _name(self) -> str:
        """Return what tells this journal from another in the same place."""
        digest = hash_of(self.account.begun)
        return f"{digest}-{self._follower.generation}"

    def drawn(self, name: str, layer: Layer) -> bytes:
        """Return a picture as PNG, drawn once however many pages ask; InputError where it is not there."""
        with self._drawing:
            drawn = self._drawn
            if (name, layer) not in drawn:
                drawn[name, layer] = picture(self._images(name), layer)
                while len(drawn) > PICTURES_KEPT:
                    drawn.popitem(last=False)
            return drawn[name, layer]

    def _images(self, name: str) -> Images:
        if name == FINAL:
            return result_images(self.folder.path / "result.h5")
        if name not in self.account.pictures:
            raise InputError("no such picture")
        return stored_images(self.folder.checkpoints, self.account.pictures[name])

    def stop(self) -> int:
        """Ask the run to stop; see `run.follow.ask_to_stop`."""
        return ask_to_stop(self.folder, self.account.owner)


def claimed_lens(path: Path) -> list[list[Any]]:
    """Return [key, label, unit, value, standard deviation] of the refined parameters of a result.

    Empty where there is no result to read.
    """
    try:
        every = json.loads(path.read_text("utf-8"))["parameters"]
        refined = {name: p for name, p in every.items() if p["refined"]}
        return [[name, p["label"], p["unit"], p["value"], p["sigma"]] for name, p in refined.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def hash_of(text: str) -> str:
    """Return a short name for a text."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]
