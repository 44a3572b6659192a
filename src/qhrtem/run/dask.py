"""Dask: a crew of the workers of a Dask cluster.

Dask carries the work and knows who is there; which worker does what is decided by `dispatch`, so that a try
on a worker is one Dask task, bound to it. What travels is bytes and the name of a function of this package.
Dask itself pickles that name: whoever can speak to a Dask scheduler can run programs on its workers, so keep
it in a network that you trust.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections import Counter
from contextlib import suppress
from typing import Any

try:
    from distributed import Client, Future, LocalCluster, get_worker
except ImportError as error:
    from qhrtem.errors import ResourceError

    raise ResourceError("--scheduler needs Dask; install it with the extra 'cluster' of qhrtem") from error

from qhrtem.errors import Interrupted, ResourceError
from qhrtem.machine import cores
from qhrtem.run.crew import Done, Event, Failed, Greeted, Left
from qhrtem.run.handshake import Credentials
from qhrtem.run.spread import LOCAL
from qhrtem.run.worker import as_fields, greet, work
from qhrtem.stages.tasks import Place, describe

CONNECT_SECONDS = 10.0  # for a scheduler to answer
FETCH_SECONDS = 10.0  # for a result to arrive that is said to be ready
CLOSE_SECONDS = 2.0
LIST_SECONDS = 5.0  # after the start, for workers that came before the scheduler began to tell


def cluster_crew(address: str, workers: int = 1, algebra: int = 1) -> DaskCrew:
    """Return the crew of the scheduler at an address; for "local", of a new cluster of so many workers.

    algebra: threads of matrix algebra. Raises ResourceError where no scheduler answers.
    """
    cluster = None
    if address == LOCAL:
        cluster = _local_cluster(workers)
    return DaskCrew(_client(cluster or address), cluster, algebra)


def _local_cluster(workers: int) -> LocalCluster:
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=max(1, cores() // workers),
            memory_limit=None,  # a worker that Dask pauses or ends for its memory would be no help
            dashboard_address="127.0.0.1:0",
        )
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"a Dask cluster cannot be started here ({describe(error)}); without Dask, give --workers alone"
        ) from error


def check_answers(address: str) -> None:
    """Raise ResourceError where no scheduler answers at an address; "local" always does."""
    if address != LOCAL:
        with suppress(TimeoutError):
            _client(address).close(CLOSE_SECONDS)


def _client(where: Any) -> Client:
    try:
        return Client(where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"{where}: no Dask scheduler answers there ({describe(error)}); start one with "
            "`dask scheduler` and give the address it prints"
        ) from error


class DaskCrew:
    """The workers of a scheduler; see `crew.Crew`."""

    def __init__(self, client: Client, cluster: Any = None, algebra: int = 1) -> None:
        """cluster: to be closed with the crew, if given; algebra: threads of matrix algebra."""
        self._client, self._cluster, self._algebra = client, cluster, algebra
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()  # from the threads of Dask
        self._names: dict[str, str] = {}  # of the workers that are there, by address
        self._seen: Counter[str] = Counter()  # how often an address has come
        self._greetings: dict[str, Future] = {}  # by worker
        self._tickets: dict[int, tuple[str, Future]] = {}  # worker and future, by ticket
        self._run = uuid.uuid4().hex[:12]  # makes keys unlike those of other runs on the same cluster
        self._begin = time.monotonic()
        client.subscribe_topic("all", self._hear)

    @property
    def expecting(self) -> bool:
        """Always: a cluster may grow."""
        return True

    def events(self, seconds: float) -> list[Event]:
        """Return what has happened, waiting so long for it at most.

        Raises Interrupted where the scheduler is gone.
        """
        self._check()
        if not self._names or time.monotonic() < self._begin + LIST_SECONDS:
            for address in self._client.scheduler_info(n_workers=-1)["workers"]:
                self._come(address)
        heard = []
        with suppress(queue.Empty):
            heard.append(self._heard.get(timeout=seconds))
            while True:
                heard.append(self._heard.get_nowait())
        # Of a worker that is gone nothing can be fetched, so that is learnt first.
        gone = [what for kind, what in heard if kind == "remove-worker"]
        out: list[Event] = []
        for kind, what in heard:
            if kind == "add-worker":
                self._come(what)
            elif kind == "greeting":
                out += self._greeted(what)
            elif kind == "ticket" and self._address_of(what) not in gone:
                out += self._ended(what)
        for address in gone:
            out += self._go(address)
        self._check()
        return out

    def give(self, ticket: int, worker: str, work_: bytes, place: Place) -> None:
        """Submit a task that is bound to one worker."""
        future = self._submit(worker, f"task-{ticket}", work, work_, as_fields(place), self._algebra)
        self._tickets[ticket] = (worker, future)
        future.add_done_callback(lambda _: self._heard.put(("ticket", ticket)))

    def refuse(self, worker: str) -> None:
        """Leave a worker alone: it may serve others."""

    def close(self) -> None:
        """Take back what has not begun and leave the cluster; what is under way there is not waited for."""
        futures = [f for _, f in self._tickets.values()] + list(self._greetings.values())
        with suppress(Exception):  # the scheduler may be gone
            if futures and self._client.status == "running":
                self._client.cancel(futures, force=True)
        self._tickets.clear()
        self._greetings.clear()
        with suppress(TimeoutError):  # what does not go now goes with this process
            self._client.close(CLOSE_SECONDS)
        with suppress(TimeoutError):
            if self._cluster is not None:
                self._cluster.close(CLOSE_SECONDS)

    def _hear(self, event: tuple[float, Any]) -> None:
        """Take in an event of the scheduler, in a thread of Dask."""
        message = event[1]
        if isinstance(message, dict) and message.get("action") in ("add-worker", "remove-worker"):
            self._heard.put((message["action"], message["worker"]))

    def _come(self, address: str) -> None:
        if address in self._names:
            return  # told twice: by the scheduler's list and by its event
        self._seen[address] += 1
        again = f" ({self._seen[address]})" if self._seen[address] > 1 else ""
        name = self._names[address] = address + again
        future = self._submit(name, f"greeting-{name}", greet_there, self._algebra)
        self._greetings[name] = future
        future.add_done_callback(lambda _: self._heard.put(("greeting", name)))

    def _go(self, address: str) -> list[Event]:
        name = self._names.pop(address, None)
        if name is None:
            return []
        self._greetings.pop(name, None)
        lost = {t: f for t, (w, f) in self._tickets.items() if w == name}
        for ticket in lost:
            del self._tickets[ticket]
        if lost:
            self._client.cancel(list(lost.values()), force=True)
        return [Left(name, "the scheduler has lost it")]

    def _greeted(self, name: str) -> list[Event]:
        future = self._greetings.pop(name, None)
        if future is None:
            return []
        try:
            said = future.result(timeout=FETCH_SECONDS)
        except Exception as error:  # of any kind: it cannot even import this package
            return [Greeted(name, f"it could not greet ({describe(error)})")]
        return [Greeted(name, Credentials.from_record(said))]

    def _ended(self, ticket: int) -> list[Event]:
        if ticket not in self._tickets:
            return []
        _, future = self._tickets.pop(ticket)
        try:
            return [Done(ticket, future.result(timeout=FETCH_SECONDS))]
        except Exception as error:  # what the task raised, or what the way here did
            return [Failed(ticket, describe(error))]

    def _address_of(self, ticket: int) -> str:
        worker = self._tickets[ticket][0] if ticket in self._tickets else ""
        return next((a for a, n in self._names.items() if n == worker), "")

    def _submit(self, name: str, what: str, function: Any, *given: Any) -> Future:
        address = name.partition(" ")[0]
        try:
            return self._client.submit(
                function,
                *given,
                key=f"qhrtem-{self._run}-{what}",
                workers=[address],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
        except Exception:
            self._check()
            raise

    def _check(self) -> None:
        if self._client.status != "running":
            raise Interrupted("the Dask scheduler does not answer any more; start it again")


def greet_there(algebra: int) -> dict[str, Any]:
    """Return the credentials of the Dask worker that this runs on as JSON values."""
    return greet(int(get_worker().state.nthreads), algebra)
