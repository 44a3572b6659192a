"""Faults of workers: real processes and a real Dask cluster lose workers, or the scheduler, in mid-work."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import work
from faults.campaign import Outcome
from qhrtem.errors import Interrupted
from qhrtem.run.dispatch import Dispatch
from qhrtem.run.execution import Kept
from qhrtem.run.handshake import Terms
from qhrtem.run.identity import result_hash
from qhrtem.run.journal import Journal
from qhrtem.run.processes import Processes
from qhrtem.run.store import Store
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import Quarantined, Task, gather

COUNTS = (1, 2, 4)
SIDE = 5  # tiles along an edge of the field
AFTER = 4  # results, when the faults come
PATIENCE_SECONDS = 300.0  # for workers to start on a busy machine


def any_number() -> Outcome:
    """Do the same tiles on 1, 2 and 4 workers of both kinds and compare with none."""
    tasks, wrong = work.tile_tasks(SIDE), []
    reference = _hash(gather(Serial(), tasks), tasks)
    for kind in ("Dask", "processes"):
        for count in COUNTS:
            with closing(_Workers(kind, count)) as workers:
                if _hash(gather(workers.executor, tasks), tasks) != reference:
                    wrong.append(f"{count} {kind}: another result")
    return Outcome("Dask and local processes, 1, 2 and 4 workers: as without", 2 * len(COUNTS), tuple(wrong))


def killed_workers() -> Outcome:
    """Kill one, half and all of four workers in mid-work, of both kinds."""
    wrong = []
    for kind in ("Dask", "processes"):
        with closing(_Workers(kind, COUNTS[-1])) as workers:
            for count in COUNTS:
                tasks = work.tile_tasks(SIDE, seed=count)
                workers.wait()
                results = _disturbed(workers.executor.run(tasks), lambda n=count: workers.kill(n))
                if _hash(results, tasks) != _hash(gather(Serial(), tasks), tasks):
                    wrong.append(f"{kind}, {count} killed: another result")
    return Outcome("kill −9 of one, half and all of four workers", 2 * len(COUNTS), tuple(wrong))


def poison() -> Outcome:
    """Put tasks among the tiles that fail, or end their worker, whenever they are tried."""
    wrong = []
    for kind in ("Dask", "processes"):
        with tempfile.TemporaryDirectory() as folder, closing(_Workers(kind, 2)) as workers:
            tasks = work.tile_tasks(SIDE)
            bad = [
                work.misbehaving(work.fail, 1),
                work.misbehaving(work.kill, 2, folder=folder, times=99),
            ]
            results = dict(workers.executor.run([*tasks[:3], *bad, *tasks[3:]]))
            for task in bad:
                result = results[task.key]
                if not isinstance(result, Quarantined) or len(result.errors) != 3:
                    wrong.append(f"{kind}: {task.function} was not given up after three tries")
            if any(isinstance(results[t.key], Quarantined) for t in tasks):
                wrong.append(f"{kind}: a good task was given up")
    return Outcome("poison tasks, failing and deadly: given up after three tries", 4, tuple(wrong))


def lost_scheduler() -> Outcome:
    """Close the scheduler in mid-work; go on without it from what the run has kept."""
    wrong, told = [], []
    tasks = work.tile_tasks(SIDE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Journal(folder / "journal.jsonl") as journal, closing(_Workers("Dask", 2)) as workers:
            running = Kept(workers.executor, Store(folder, journal)).run(tasks)
            try:
                _disturbed(running, lambda: workers.cluster.sync(workers.cluster.scheduler.close))
                wrong.append("the run went on")
            except Interrupted as error:
                if error.exit_code != 75:
                    wrong.append(f"exit {error.exit_code}")
        with Journal(folder / "journal.jsonl") as journal:
            kept = sum(r["event"] == "result" for r in journal.records)
            results = gather(Kept(Serial(tell=told.append), Store(folder, journal)), tasks)
        if _hash(results, tasks) != _hash(gather(Serial(), tasks), tasks):
            wrong.append("another result")
        if sum(r["state"] == "begun" for r in told) != len(tasks) - kept or kept < AFTER:
            wrong.append(f"{kept} results were kept, {len(told) // 2} computed anew")
    return Outcome("scheduler lost (75): goes on, no finished task done again", 1, tuple(wrong))


class _Workers:
    """Workers of one kind, with a way to kill them."""

    def __init__(self, kind: str, count: int) -> None:
        self._count = count
        self.cluster: Any = None
        if kind == "Dask":
            from qhrtem.run.dask import cluster_crew

            crew = cluster_crew("local", count)
            self.cluster, self._pids = crew._cluster, self._nannies
        else:
            local = Processes(count)
            crew, self._pids = local, lambda: list(local.pids.values())  # type: ignore[assignment]
        self.executor = Dispatch(crew, Terms.of_this_process(), lambda record: None, PATIENCE_SECONDS)

    def wait(self) -> None:
        """Wait until all workers are there."""
        until, n = time.monotonic() + PATIENCE_SECONDS, 0
        while self.executor.width < self._count and time.monotonic() < until:
            gather(self.executor, [work.misbehaving(work.nothing, n := n + 1)])
            time.sleep(0.05)

    def kill(self, count: int) -> None:
        """Kill so many workers."""
        for pid in self._pids()[:count]:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.executor.close()

    def _nannies(self) -> list[int]:
        running = (n.process and n.process.process for n in self.cluster.workers.values())
        return [p.pid for p in running if p is not None]


def _disturbed(running: Iterable[tuple[str, Any]], disturb: Callable[[], object]) -> dict[str, Any]:
    """Return all results, after something was done in the middle."""
    results = {}
    for n, (key, result) in enumerate(running):
        results[key] = result
        if n + 1 == AFTER:
            disturb()
    return results


def _hash(results: dict[str, Any], tasks: list[Task]) -> str:
    return result_hash([results[t.key] for t in tasks])
