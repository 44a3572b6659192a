"""Dispatch: which worker does which task, and what happens when one fails, dies or is slow.

- A worker greets first. One that would compute anything else is refused by name.
- A task that fails, or whose worker dies, is tried again, elsewhere if there is an elsewhere. After three
  tries it is given up with the error of each, and the others go on.
- A task that takes far longer than its fellows is begun a second time on a worker that has nothing to do. The
  first result counts; where the second is not the same, that is told.
- Without any worker for a while, the run is interrupted, which it survives.

Nothing here knows how workers are made: see `crew.Crew`, and `processes` and `dask` for two of them.
"""

from __future__ import annotations

import hashlib
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qhrtem.errors import InputError, Interrupted, ResourceError
from qhrtem.run.crew import Crew, Done, Event, Failed, Greeted, Left
from qhrtem.run.handshake import Credentials, Terms
from qhrtem.stages.parcel import from_bytes
from qhrtem.stages.tasks import TRIES, Place, Quarantined, Result, Results, Task, Tell, distinct

SLOW = 4.0  # times the median of its fellows: then a task is begun a second time
FELLOWS = 3  # so many of them must have ended before one is called slow
SLOW_SECONDS = 2.0  # and it must have taken so long
PATIENCE_SECONDS = 60.0  # without any worker, before the run is interrupted
GLANCE_SECONDS = 0.5  # between two looks at the clock


class ExecutionWarning(UserWarning):
    """A worker was refused or lost, or a task failed; the work goes on."""


def warn(record: dict[str, Any]) -> None:
    """Issue what a user should know as an ExecutionWarning."""
    words = in_words(record)
    if words:
        warnings.warn(words, ExecutionWarning, stacklevel=4)


def in_words(record: dict[str, Any]) -> str:
    """Return one line for a record of `Dispatch` that a user should read, "" for any other."""
    who, what, why = record["worker"], record.get("task", "")[:12], record.get("why", "")
    function = record.get("function", "").partition(":")[2]
    return {
        "refused": f"worker {who} is not used: {why}",
        "left": f"worker {who} is gone: {why}",
        "failed": f"task {what} ({function}) failed on worker {who}: {why}",
        "given up": f"task {what} ({function}) is given up after {TRIES} tries, the last: {why}",
        "differs": f"task {what} ({function}) gave another result on worker {who} than elsewhere; "
        "compare the processors of the workers",
    }.get(record["state"], "")


@dataclass
class _Worker:
    """A worker that may be given work."""

    name: str
    place: Place
    card: str  # identity of its GPU, "" for none
    ticket: int | None = None  # of what it is doing


@dataclass
class _Ticket:
    """One try of a task on one worker."""

    key: str
    worker: str
    since: float


@dataclass
class _Open:
    """A task that has neither a result nor been given up."""

    function: str
    work: bytes
    errors: list[str] = field(default_factory=list)
    failed_on: set[str] = field(default_factory=set)
    tickets: set[int] = field(default_factory=set)  # tries under way


class Dispatch:
    """An executor over a crew; see `stages.tasks.Executor`."""

    def __init__(
        self,
        crew: Crew,
        terms: Terms,
        tell: Tell = warn,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """tell: is told all that happens to workers and tasks; patience: seconds without any worker."""
        self._crew, self._terms, self._tell = crew, terms, tell
        self._patience, self._clock = patience, clock
        self._workers: dict[str, _Worker] = {}
        self._refused: dict[str, str] = {}  # why, by worker
        self._tickets: dict[int, _Ticket] = {}
        self._number = 0
        self._open: dict[str, _Open] = {}
        self._waiting: deque[str] = deque()  # open tasks that must be tried again
        self._seconds: dict[str, list[float]] = {}  # of tasks done, by function
        self._doubled: dict[str, str] = {}  # digest of the first result of tasks begun twice, "" before it
        self._alone_since: float | None = None

    @property
    def width(self) -> int:
        """How many workers are there now, at least 1."""
        return max(1, len(self._workers))

    def run(self, tasks: Iterable[Task]) -> Results:
        """Yield key and result of each task as it ends; see `stages.tasks.Executor`."""
        source = distinct(tasks)
        self._open, self._waiting, self._alone_since = {}, deque(), None
        coming = next(source, None)
        while True:
            coming = self._give(coming, source)
            if coming is None and not self._open:
                return
            self._begin_again()
            # All that happened is taken in before the first yield: the caller may not come back.
            ended = [self._take(event) for event in self._crew.events(GLANCE_SECONDS)]
            yield from (e for e in ended if e is not None)
            self._check_alone()

    def close(self) -> None:
        """Let the workers go."""
        self._crew.close()
        self._workers.clear()

    # Giving

    def _give(self, coming: Task | None, source: Iterator[Task]) -> Task | None:
        """Give every free worker a task, the one that comes next and more of the source; return the next."""
        for worker in [w for w in self._workers.values() if w.ticket is None]:
            key = self._next_for(worker)
            if key is None:
                if coming is None:
                    continue
                key = coming.key
                self._open[key] = _Open(coming.function, coming.to_bytes())
                coming = next(source, None)
            self._start(key, worker)
        return coming

    def _next_for(self, worker: _Worker) -> str | None:
        """Return a task that waits to be tried again and may be so on this worker."""
        for key in self._waiting:
            bad = self._open[key].failed_on
            if worker.name not in bad or bad >= self._workers.keys():
                self._waiting.remove(key)
                return key
        return None

    def _start(self, key: str, worker: _Worker) -> None:
        self._number += 1
        task = self._open[key]
        task.tickets.add(self._number)
        self._tickets[self._number] = _Ticket(key, worker.name, self._clock())
        worker.ticket = self._number
        state = "again" if len(task.tickets) > 1 else "begun"
        self._say_task(state, key, task.function, worker.name)
        self._crew.give(self._number, worker.name, task.work, worker.place)

    def _begin_again(self) -> None:
        """Begin tasks that take too long a second time, where a worker has nothing else to do."""
        free = [w for w in self._workers.values() if w.ticket is None]
        if not free:
            return
        now = self._clock()
        usual = {f: statistics.median(s) for f, s in self._seconds.items() if len(s) >= FELLOWS}
        for key, task in self._open.items():
            if not free:
                return
            if len(task.tickets) != 1 or task.function not in usual:
                continue
            (ticket,) = task.tickets
            if now - self._tickets[ticket].since > max(SLOW_SECONDS, SLOW * usual[task.function]):
                self._doubled.setdefault(key, "")
                self._start(key, free.pop())

    # Taking

    def _take(self, event: Event) -> tuple[str, Result] | None:
        """Take in what happened; return key and result where a task came to its end by it."""
        if isinstance(event, Greeted):
            self._greet(event)
            return None
        if isinstance(event, Left):
            return self._leave(event)
        ticket = self._tickets.pop(event.ticket, None)
        if ticket is None:
            return None  # of a worker that was given up in the meantime
        worker = self._workers.get(ticket.worker)
        if worker is not None and worker.ticket == event.ticket:
            worker.ticket = None
        if isinstance(event, Failed):
            return self._fail(event.ticket, ticket, event.why)
        return self._finish(event, ticket)

    def _greet(self, event: Greeted) -> None:
        said = event.credentials
        if isinstance(said, str):
            self._refuse(event.worker, said)
            return
        differences = self._terms.differences(said)
        if differences:
            self._refuse(event.worker, "; ".join(differences), said)
            return
        found = self._terms.place(said, {w.card for w in self._workers.values()})
        if found is None:
            self._refuse(event.worker, "it has no GPU of its own, and the CPU is not allowed", said)
            return
        place, card = found
        self._workers[event.worker] = _Worker(event.worker, place, card)
        self._alone_since = None
        more = {"device": place.device, "threads": place.threads}
        self._say_worker("joined", event.worker, said, **more)

    def _refuse(self, worker: str, why: str, said: Credentials | None = None) -> None:
        self._refused[worker] = why
        self._say_worker("refused", worker, said, why=why)
        self._crew.refuse(worker)

    def _leave(self, event: Left) -> tuple[str, Result] | None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return None
        self._say_worker("left", event.worker, why=event.why)
        number = worker.ticket
        if number is None:
            return None
        return self._fail(number, self._tickets.pop(number), f"the worker is gone ({event.why})")

    def _fail(self, number: int, ticket: _Ticket, why: str) -> tuple[str, Result] | None:
        task = self._open.get(ticket.key)
        if task is None:
            return None  # its other try was quicker
        task.tickets.discard(number)
        task.failed_on.add(ticket.worker)
        task.errors.append(f"worker {ticket.worker}: {why}")
        if len(task.errors) < TRIES or task.tickets:
            self._say_task("failed", ticket.key, task.function, ticket.worker, why=why)
            if not task.tickets:
                self._waiting.append(ticket.key)
            return None
        self._say_task("given up", ticket.key, task.function, ticket.worker, why=why)
        del self._open[ticket.key]
        return ticket.key, Quarantined(task.function, tuple(task.errors))

    def _finish(self, event: Done, ticket: _Ticket) -> tuple[str, Result] | None:
        digest = hashlib.sha256(event.result).hexdigest() if ticket.key in self._doubled else ""
        task = self._open.get(ticket.key)
        if task is None:
            if self._doubled.get(ticket.key) not in (None, "", digest):
                self._say_task("differs", ticket.key, "", ticket.worker)
            return None
        try:
            result = from_bytes(event.result)
        except InputError as error:
            return self._fail(event.ticket, ticket, str(error))
        if ticket.key in self._doubled:
            self._doubled[ticket.key] = digest
        seconds = self._clock() - ticket.since
        self._seconds.setdefault(task.function, []).append(seconds)
        self._say_task("done", ticket.key, task.function, ticket.worker, seconds=round(seconds, 4))
        if ticket.key in self._waiting:  # a try of an earlier `run` came in
            self._waiting.remove(ticket.key)
        del self._open[ticket.key]
        return ticket.key, result

    # Telling

    def _say_worker(self, state: str, worker: str, said: Credentials | None = None, **more: Any) -> None:
        host = {"host": said.host, "processor": said.processor} if said is not None else {}
        self._tell({"event": "worker", "worker": worker, "state": state, **host, **more})

    def _say_task(self, state: str, key: str, function: str, worker: str, **more: Any) -> None:
        record = {"event": "task", "task": key, "function": function, "worker": worker, "state": state}
        self._tell(record | more)

    def _check_alone(self) -> None:
        """Raise Interrupted, or ResourceError if none was fit for use, where no worker is there for long."""
        if self._workers:
            self._alone_since = None
            return
        now = self._clock()
        self._alone_since = now if self._alone_since is None else self._alone_since
        if self._crew.expecting and now - self._alone_since < self._patience:
            return
        for name, why in self._refused.items():
            raise ResourceError(f"{len(self._refused)} workers are there and none can be used; {name}: {why}")
        raise Interrupted(f"no worker has been there for {self._patience:.0f} s; start some")
