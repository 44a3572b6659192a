"""Processes: a crew of worker processes on this machine.

Each is a Python of its own that is told by messages what to do, so it needs nothing of the calling program:
no guard around its main part, no shared memory. One that dies is replaced.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, BinaryIO, cast

from qhrtem.errors import ResourceError
from qhrtem.run.crew import Done, Event, Failed, Greeted, Left
from qhrtem.run.handshake import Credentials
from qhrtem.run.worker import as_fields, receive, send
from qhrtem.stages.tasks import Place

STILLBORN = 3  # workers in a row that die before they greet: then none will live
LAST_WORDS = 5  # lines of a worker's standard error that are kept
CLOSE_SECONDS = 2.0  # for workers to end on their own


class Processes:
    """So many worker processes; see `crew.Crew`."""

    def __init__(self, workers: int, threads: int = 1, algebra: int = 1) -> None:
        """threads: that a task may start for work on columns; algebra: threads of matrix algebra."""
        self._threads, self._algebra = threads, algebra
        self._processes: dict[str, _Process] = {}
        self._events: queue.Queue[Event] = queue.Queue()
        self._number = self._stillborn = 0
        self._to_start = workers  # when they are first asked for, so that who needs none starts none

    @property
    def pids(self) -> dict[str, int]:
        """Process numbers of the workers, by name."""
        return {name: p.popen.pid for name, p in self._processes.items()}

    @property
    def expecting(self) -> bool:
        """Whether there is a process that has not been refused."""
        return self._to_start > 0 or any(not p.refused for p in self._processes.values())

    def events(self, seconds: float) -> list[Event]:
        """Return what has happened, waiting so long for it at most; replaces workers that died.

        Raises ResourceError where workers die before they can do anything.
        """
        while self._to_start:
            self._to_start -= 1
            self._start()
        out: list[Event] = []
        with suppress(queue.Empty):
            out.append(self._events.get(timeout=seconds))
            while True:
                out.append(self._events.get_nowait())
        for event in out:
            if isinstance(event, Greeted):
                self._stillborn = 0
            elif isinstance(event, Left):
                self._replace(self._processes.pop(event.worker), event.why)
        return out

    def give(self, ticket: int, worker: str, work: bytes, place: Place) -> None:
        """Send a worker a task; one that is gone is found out by its end, not here."""
        if worker in self._processes:
            self._processes[worker].outbox.put(({"ticket": ticket, "place": as_fields(place)}, work))

    def refuse(self, worker: str) -> None:
        """End a worker; it is not replaced, another would be the same."""
        if worker in self._processes:
            self._processes[worker].refused = True
            self._processes[worker].outbox.put(None)

    def close(self) -> None:
        """End all workers, those at work too."""
        self._to_start = 0
        for process in self._processes.values():
            process.popen.terminate()
        until = time.monotonic() + CLOSE_SECONDS
        for process in self._processes.values():
            process.end(max(0.0, until - time.monotonic()))
        self._processes.clear()

    def _replace(self, process: _Process, why: str) -> None:
        if process.refused:
            return
        if not process.greeted:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                raise ResourceError(f"workers cannot be started on this machine: {why}")
        self._start()

    def _start(self) -> None:
        self._number += 1
        name = f"local-{self._number}"
        self._processes[name] = _Process(name, (self._threads, self._algebra), self._events)


class _Process:
    """A worker process and the threads that speak with it, so that one that hangs holds up nobody."""

    def __init__(self, name: str, numbers: tuple[int, int], events: queue.Queue[Event]) -> None:
        """numbers: threads for columns and of matrix algebra; events: where all it says goes."""
        self.name, self.greeted, self.refused = name, False, False
        self.outbox: queue.SimpleQueue[tuple[dict[str, Any], bytes] | None] = queue.SimpleQueue()
        self._events = events
        self._errors: deque[str] = deque(maxlen=LAST_WORDS)
        # The same modules as here, also where a script or a test has added places to look for them.
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        command = [sys.executable, "-m", "qhrtem.run.worker", *map(str, numbers)]
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(numbers[1])}
        pipe = subprocess.PIPE
        try:
            self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        except OSError as error:
            raise ResourceError(f"workers cannot be started on this machine: {error}") from error
        jobs = (self._write, self._read, self._overhear)
        self._writer, self._reader, self._overhearer = (
            threading.Thread(target=job, name=f"{name}{job.__name__}", daemon=True) for job in jobs
        )
        for thread in (self._writer, self._overhearer, self._reader):
            thread.start()

    def end(self, seconds: float) -> None:
        """Wait so long for the process, which was told to go, then kill it."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self._reader.join(CLOSE_SECONDS)

    def _write(self) -> None:
        """Send what is put into the outbox, until None is."""
        with suppress(OSError):  # it is gone, which `_read` finds out
            with cast(BinaryIO, self.popen.stdin) as stream:
                while (message := self.outbox.get()) is not None:
                    send(stream, *message)

    def _overhear(self) -> None:
        with cast(BinaryIO, self.popen.stderr) as stream:
            for line in stream:
                self._errors.append(line.decode(errors="replace").strip())

    def _read(self) -> None:
        """Turn what the process says into events, until it is gone."""
        with cast(BinaryIO, self.popen.stdout) as stream:
            while (message := receive(stream)) is not None:
                head, body = message
                if "greets" in head:
                    self.greeted = True
                    self._events.put(Greeted(self.name, Credentials.from_record(head["greets"])))
                elif "failed" in head:
                    self._events.put(Failed(head["ticket"], head["failed"]))
                else:
                    self._events.put(Done(head["ticket"], body))
        code = self.popen.wait()
        self.outbox.put(None)
        self._writer.join()
        self._overhearer.join()
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        self._events.put(Left(self.name, "; ".join([f"ended with {how}", *list(self._errors)[-1:]])))
