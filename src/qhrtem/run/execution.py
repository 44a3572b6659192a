"""Execution: how the tasks of a run are done, chosen in one place.

    with executor_of(Spread(workers=4)) as executor:
        results = gather(Kept(executor, session.store), tasks)

Serial, local processes and a Dask cluster give the same results, bit by bit on machines with processors of
one kind, in whatever order and on however many workers the tasks are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Protocol

import torch

from qhrtem.errors import PlanError
from qhrtem.machine import cores
from qhrtem.run.dispatch import Dispatch, warn
from qhrtem.run.handshake import Terms
from qhrtem.run.spread import LOCAL, Spread
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import Executor, Place, Quarantined, Results, Task, Tell, distinct


class Shelf(Protocol):
    """Keeps results of tasks by key."""

    def result(self, key: str) -> Snapshot | None:
        """Return a result, None where it is not known."""
        ...

    def keep_result(self, key: str, result: Snapshot) -> None:
        """Put a result where it will be found by a later process."""
        ...


class Kept:
    """An executor whose results outlive it: what the shelf holds is not done again."""

    def __init__(self, executor: Executor, shelf: Shelf) -> None:
        self._executor, self._shelf = executor, shelf

    @property
    def width(self) -> int:
        """How many tasks are done at a time."""
        return self._executor.width

    def run(self, tasks: Iterable[Task]) -> Results:
        """Yield key and result of each task, those that are known on the way; see `stages.tasks.Executor`.

        A result is on the disk before it is yielded. What was given up is tried again by the next process.
        """
        known: list[tuple[str, Snapshot]] = []

        def unknown() -> Iterator[Task]:
            for task in distinct(tasks):
                found = self._shelf.result(task.key)
                if found is None:
                    yield task
                else:
                    known.append((task.key, found))

        with closing(self._executor.run(unknown())) as running:
            for key, result in running:
                if not isinstance(result, Quarantined):
                    self._shelf.keep_result(key, result)
                yield from known
                known.clear()
                yield key, result
        yield from known

    def close(self) -> None:
        """Let the workers go."""
        self._executor.close()


def check_spread(spread: Spread | None) -> None:
    """Raise ResourceError, before any work, where a scheduler does not answer or Dask is not installed."""
    if spread is not None and spread.scheduler is not None:
        from qhrtem.run.dask import check_answers

        check_answers(spread.scheduler)


@contextmanager
def executor_of(spread: Spread, tell: Tell = warn) -> Iterator[Executor]:
    """Give the executor that options ask for and let its workers go at the end.

    Raises ResourceError where a scheduler cannot be reached or what it takes is not installed.
    """
    executor = _executor(spread, tell)
    try:
        yield executor
    finally:
        executor.close()


def _executor(spread: Spread, tell: Tell) -> Executor:
    if spread.device.startswith("cuda") and not torch.cuda.is_available() and spread.scheduler is None:
        if not spread.cpu_allowed:
            raise PlanError('a GPU was asked for and this machine has none; choose device = "cpu"')
        spread = replace(spread, device="cpu")
    kind = spread.device.partition(":")[0]
    terms = Terms.of_this_process(spread.algebra, kind, spread.cpu_allowed)
    if spread.scheduler is not None:
        from qhrtem.run.dask import cluster_crew

        local = spread.workers if spread.scheduler == LOCAL else 0
        return Dispatch(cluster_crew(spread.scheduler, local, spread.algebra), terms, tell)
    if spread.workers == 1:
        return Serial(Place(spread.device, cores(), cpu_allowed=spread.cpu_allowed), tell=tell)

    from qhrtem.run.processes import Processes

    threads = max(1, cores() // spread.workers)
    return Dispatch(Processes(spread.workers, threads, spread.algebra), terms, tell)
