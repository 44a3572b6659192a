"""Execution on Dask: the same results as without it, on any number of workers, whoever dies."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import work
from qhrtem.errors import Interrupted, ResourceError
from qhrtem.run.dispatch import Dispatch
from qhrtem.run.execution import Kept, executor_of
from qhrtem.run.handshake import Terms
from qhrtem.run.identity import result_hash
from qhrtem.run.spread import Spread
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import Quarantined, gather

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
dask = pytest.importorskip("qhrtem.run.dask", reason="the extra 'cluster' is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Dask warns of its own
TERMS = Terms.of_this_process()
TILES = 3


@pytest.fixture(scope="module")
def tiles():
    return work.tile_tasks(TILES)


@pytest.fixture(scope="module")
def reference(tiles):
    return in_order(gather(Serial(), tiles), tiles)


def in_order(results, tasks):
    return result_hash([results[t.key] for t in tasks])


@contextmanager
def cluster(workers):
    """Give a cluster of threads of this process, which costs little."""
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        memory_limit=None,
    ) as it:
        yield it


@contextmanager
def executor_on(cluster, told=None, **more):
    crew = dask.cluster_crew(cluster.scheduler_address)
    tell = (lambda record: None) if told is None else told.append
    with closing(Dispatch(crew, TERMS, tell, **more)) as executor:
        yield executor


def idle_until(executor, condition):
    """Do tasks of no weight until something has come about, such as a worker's greeting."""
    until = time.monotonic() + 60
    for n in itertools.count():
        if condition():
            return
        assert time.monotonic() < until
        gather(executor, [work.misbehaving(work.nothing, n)])


@contextmanager
def scheduler_process():
    """Give a scheduler that is a process of its own, with one worker, and its address."""
    dask_command = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        scheduler = subprocess.Popen([*dask_command, "scheduler", *options], env=env, **quiet)
        where = ["--scheduler-file", str(file), "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        where += ["--local-directory", folder]
        worker = subprocess.Popen([*dask_command, "worker", *where], env=env, **quiet)
        try:
            until = time.monotonic() + 60
            while not (file.is_file() and file.read_text().endswith("}")):
                assert time.monotonic() < until
                time.sleep(0.05)
            yield scheduler, json.loads(file.read_text())["address"]
        finally:
            for process in (worker, scheduler):
                process.kill()
                process.wait()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_result_of_none(workers, tiles, reference):
    told = []
    with cluster(workers) as it, executor_on(it, told) as executor:
        idle_until(executor, lambda: executor.width == workers)
        mixed = [*tiles, work.misbehaving(work.fail, 4)]
        results = dict(executor.run(mixed))
        assert in_order(results, tiles) == reference
        poisoned = results[mixed[-1].key]
        assert isinstance(poisoned, Quarantined) and len(poisoned.errors) == 3
        assert all("ValueError: tile 4 is poisoned" in e for e in poisoned.errors)
    assert len({r["worker"] for r in told if r["state"] == "joined"}) == workers


def test_one_half_and_all_workers_of_a_local_cluster_are_killed(tiles, reference):
    """Two processes: one, half of them, is killed during the work, then both."""
    told = []
    with executor_of(Spread(workers=2, scheduler="local"), told.append) as executor:
        assert in_order(gather(executor, tiles), tiles) == reference
        nannies = executor._crew._cluster.workers
        for count in (1, 2):
            told.clear()
            others = work.tile_tasks(TILES, seed=count)
            results = {}
            for n, (key, result) in enumerate(executor.run(others)):
                results[key] = result
                if n == 2:
                    for nanny in list(nannies.values())[:count]:
                        with suppress(AttributeError, ProcessLookupError):  # it is being replaced
                            os.kill(nanny.process.process.pid, signal.SIGKILL)
            assert in_order(results, others) == in_order(gather(Serial(), others), others)
        assert {r["state"] for r in told} >= {"left", "joined"}


def test_a_lost_scheduler_interrupts_and_what_was_done_is_kept(tiles, reference):
    held, told = {}, []

    class Shelf:
        def result(self, key):
            return held.get(key)

        def keep_result(self, key, result):
            held[key] = result

    with scheduler_process() as (scheduler, address):
        running = Kept(Dispatch(dask.cluster_crew(address), TERMS, told.append), Shelf())
        with (
            closing(running),
            pytest.raises(Interrupted, match="scheduler does not answer any more") as error,
        ):
            for n, _ in enumerate(running.run(tiles)):
                if n == 2:
                    scheduler.kill()
        assert error.value.exit_code == 75
    told.clear()
    before = len(held)
    assert 3 <= before < len(tiles)
    assert in_order(gather(Kept(Serial(tell=told.append), Shelf()), tiles), tiles) == reference
    assert sum(r["state"] == "done" for r in told) == len(tiles) - before


def test_a_worker_that_computes_otherwise_is_refused_by_name(tiles, monkeypatch):
    told = []
    monkeypatch.setattr(dask, "greet_there", other_greeting)
    with cluster(2) as it, executor_on(it, told) as executor:
        idle_until(executor, lambda: {"joined", "refused"} <= {r["state"] for r in told})
        gather(executor, tiles[:4])
    joined, refused = ([r for r in told if r["state"] == s] for s in ("joined", "refused"))
    assert len(joined) == len(refused) == 1
    assert refused[0]["why"] == f"numpy 1.0 instead of {np.__version__}"
    assert {r["worker"] for r in told if r["state"] == "done"} == {joined[0]["worker"]}


def other_greeting(algebra):
    """Greet as a worker would, one of the two with another numpy."""
    said = GREET(algebra)
    if distributed.get_worker().name == 1:
        said["versions"]["numpy"] = "1.0"
    return said


GREET = dask.greet_there


def test_a_worker_that_comes_later_is_used(tiles, reference):
    told = []
    with cluster(0) as it, executor_on(it, told) as executor:
        it.scale(1)
        assert in_order(gather(executor, tiles), tiles) == reference


def test_without_a_scheduler_nothing_begins(monkeypatch):
    monkeypatch.setattr(dask, "CONNECT_SECONDS", 0.2)
    with pytest.raises(ResourceError, match="no Dask scheduler answers there"):
        with executor_of(Spread(scheduler="tcp://127.0.0.1:9")):
            pass
    with pytest.raises(ResourceError, match="no Dask scheduler answers there"):
        with executor_of(Spread(scheduler="nonsense://")):
            pass
