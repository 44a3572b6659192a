"""Execution on real workers: one result whatever does the work, whoever dies, whatever order it ends in."""

import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import qhrtem
import work
from qhrtem.errors import Interrupted, PlanError, ResourceError
from qhrtem.run.dispatch import Dispatch
from qhrtem.run.execution import Kept, executor_of
from qhrtem.run.handshake import Terms
from qhrtem.run.identity import result_hash
from qhrtem.run.processes import Processes
from qhrtem.run.spread import Spread
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import Quarantined, gather

TERMS = Terms.of_this_process()


@pytest.fixture(scope="module")
def tiles():
    return work.tile_tasks(3)


@pytest.fixture(scope="module")
def reference(tiles):
    return hash_of(Serial(round_trip=False), tiles)


def hash_of(executor, tasks):
    """Return the hash of all results in the order of the tasks, each of which must have one."""
    results = gather(executor, tasks)
    return result_hash([results[t.key] for t in tasks])


class Memory:
    """A shelf of results."""

    def __init__(self):
        self.held, self.kept = {}, []

    def result(self, key):
        return self.held.get(key)

    def keep_result(self, key, result):
        assert key not in self.held
        self.held[key] = result
        self.kept.append(key)


def test_the_result_is_that_of_the_tiles_themselves(tiles, reference):
    assert hash_of(Serial(), tiles) == reference
    results = gather(Serial(), tiles)
    again = [work.tile_image(t.given, None) for t in tiles]
    assert all(
        np.array_equal(a.arrays["image"], results[t.key].arrays["image"])
        for a, t in zip(again, tiles, strict=True)
    )
    assert len({(r.facts["row"], r.facts["col"]) for r in results.values()}) == 9


def test_the_order_of_the_tasks_does_not_matter(tiles, reference):
    order = np.random.default_rng(0).permutation(len(tiles))
    results = gather(Serial(), [tiles[n] for n in order])
    assert result_hash([results[t.key] for t in tiles]) == reference


def test_what_is_kept_is_not_done_again(tiles, reference):
    shelf, told = Memory(), []
    running = Kept(Serial(), shelf).run(tiles)
    for _ in range(4):
        next(running)
    running.close()
    assert 4 <= len(shelf.kept) <= 5
    before = len(shelf.kept)
    assert hash_of(Kept(Serial(tell=told.append), shelf), tiles) == reference
    assert sum(r["state"] == "begun" for r in told) == len(tiles) - before
    told.clear()
    assert hash_of(Kept(Serial(tell=told.append), shelf), tiles) == reference
    assert told == []


def test_what_was_given_up_is_not_kept():
    shelf, told = Memory(), []
    (result,) = dict(Kept(Serial(tell=told.append), shelf).run([work.misbehaving(work.fail, 1)])).values()
    assert isinstance(result, Quarantined) and not shelf.held
    assert len(result.errors) == 3 and "tile 1 is poisoned" in result.errors[0]


def test_a_signal_is_no_failure_of_a_task(monkeypatch):
    def stopped(task, place):
        raise Interrupted("stopped by the system (SIGTERM)")

    monkeypatch.setattr("qhrtem.stages.serial.perform", stopped)
    with pytest.raises(Interrupted):
        gather(Serial(), [work.misbehaving(work.nothing, 1)])


def test_options_are_checked():
    with pytest.raises(PlanError, match="--workers must be 1 or more, got 0"):
        Spread(workers=0)
    with pytest.raises(PlanError, match="give one of both"):
        Spread(workers=2, scheduler="tcp://10.0.0.1:8786")
    with executor_of(Spread()) as executor:
        assert isinstance(executor, Serial)
    with pytest.raises(PlanError, match="has none"), executor_of(Spread(device="cuda:7")):
        pass


@pytest.mark.slow
def test_two_processes_survive_poison_and_kills(tiles, reference, tmp_path):
    """One pair of workers for all of it: each costs seconds to start."""
    told = []
    with closing(Dispatch(Processes(2), TERMS, told.append)) as executor:
        assert hash_of(executor, tiles) == reference
        mixed = [*tiles[:4], work.misbehaving(work.fail, 1), *tiles[4:]]
        results = dict(executor.run(mixed))
        assert result_hash([results[t.key] for t in tiles]) == reference
        assert isinstance(results[mixed[4].key], Quarantined)
        # Both workers die at about one time, each by its own task, once.
        deadly = [work.misbehaving(work.kill, n, folder=str(tmp_path), times=1) for n in range(2)]
        results = dict(executor.run([*deadly, *tiles]))
        assert result_hash([results[t.key] for t in tiles]) == reference
        assert [results[t.key].facts for t in deadly] == [{"tile": 0}, {"tile": 1}]
        assert [r["why"] for r in told if r["state"] == "left"] == ["ended with signal 9"] * 2


@pytest.mark.slow
def test_one_process_that_is_killed_from_outside_is_replaced(tiles, reference):
    import os
    import signal

    crew = Processes(1)
    with closing(Dispatch(crew, TERMS, lambda record: None)) as executor:
        results = {}
        for n, (key, result) in enumerate(executor.run(tiles)):
            results[key] = result
            if n == 3:
                os.kill(next(iter(crew.pids.values())), signal.SIGKILL)
        assert result_hash([results[t.key] for t in tiles]) == reference
        (pid,) = crew.pids.values()
    with pytest.raises(ProcessLookupError):  # closing leaves no process behind
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_worker_with_other_source_is_refused_by_name(tmp_path, monkeypatch):
    copy = tmp_path / "qhrtem"
    shutil.copytree(Path(qhrtem.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    with (copy / "grid.py").open("a") as file:
        file.write("\n# edited\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = []
    with closing(Dispatch(Processes(1), TERMS, told.append)) as executor:
        with pytest.raises(ResourceError, match=r"none can be used; local-1: source \w{12} instead of"):
            gather(executor, [work.misbehaving(work.nothing, 1)])
    assert [r["state"] for r in told] == ["refused"]


def test_workers_that_cannot_start_are_no_endless_loop(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with closing(Dispatch(Processes(2), TERMS, lambda record: None)) as executor:
        with pytest.raises(
            ResourceError, match="workers cannot be started on this machine: ended with exit 1"
        ):
            gather(executor, [work.misbehaving(work.nothing, 1)])


@pytest.mark.slow
def test_a_worker_ends_with_the_process_that_started_it():
    program = """if True:
        import os
        from qhrtem.run.processes import Processes
        crew = Processes(1)
        crew.events(60)
        print(*crew.pids.values(), flush=True)
        os._exit(9)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid = int(done.stdout.split()[-1])
    until = time.monotonic() + 60
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_results_are_snapshots():
    (result,) = gather(Serial(), [work.misbehaving(work.nothing, 5)]).values()
    assert result == Snapshot({"tile": 5}, {})
