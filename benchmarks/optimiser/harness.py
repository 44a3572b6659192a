"""Run optimisers on problems, each run in a process of its own, and write one JSON line a run.

A run's seed draws the truth and the noise of the image, the point where all methods start, and the seed of
the method, so that all methods meet the same images. Seconds are CPU time of the run's single thread: other
work on the machine does not count. The problem is built and libraries are loaded before the clock starts.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import multiprocessing.connection
import resource
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from optimiser.problem import Evaluation, Floats, Problem, Wants
from optimiser.suite import PROBLEMS, Progress, Task
from qhrtem.optimise.methods import make
from qhrtem.optimise.protocol import Optimiser
from qhrtem.optimise.space import Parameter, SearchSpace

BATCH = 8
OPTIMISER_SEED = 1_000  # added to the seed, so that no stream is shared with the noise
# Wall clock after which a run is ended from outside, factor · seconds + more: its own CPU clock comes first
# unless it hangs inside a library.
WALL_FACTOR, WALL_MORE = 20.0, 120.0


def parse(method: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of `name:option=value,…`."""
    name, _, rest = method.partition(":")
    pairs = (p.split("=", 1) for p in rest.split(",") if p)
    return name, {key: ast.literal_eval(value) for key, value in pairs}


class Clock:
    """CPU seconds since the start, those spent in the simulator apart."""

    def __init__(self) -> None:
        self.start = time.process_time()
        self.simulator = 0.0

    @property
    def seconds(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self.start


class Spent(BaseException):
    """The CPU time of a run is up, whatever it was doing."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Spent in the main thread after so many CPU seconds of the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Spent

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@dataclass
class Tally:
    """What a run has spent and found so far."""

    clock: Clock
    best: float = np.inf
    best_vector: Floats | None = None
    simulations: int = 0
    ffts: float = 0.0
    passes: float = 0.0
    asked: int = 0
    violations: int = 0
    trajectory: list[tuple[int, float, float, float, float]] = field(default_factory=list)

    def evaluate(self, problem: Problem, vector: Floats, wants: Wants) -> tuple[Evaluation, float]:
        """Return what a problem says of a vector and the seconds to tell, and take note of both.

        The seconds are nominal, transforms times what one takes, so that a run repeats whatever else the
        machine does.
        """
        began = time.process_time()
        found = problem.evaluate(np.array(vector), wants)
        self.clock.simulator += time.process_time() - began
        self.simulations += found.simulations
        self.ffts += found.ffts
        self.passes += found.passes
        self.asked += 1
        self.violations += problem.space.refused_by(vector) is not None
        where, value = np.array(vector), found.value
        if found.levels is not None and found.levels.min() < value:
            swept = problem.space.swept
            assert swept is not None
            where[swept] = problem.space.parameters[swept].level_values[int(found.levels.argmin())]
            value = float(found.levels.min())
        if value < self.best:
            self.best, self.best_vector = value, where
            spent = self.simulations, round(self.clock.seconds, 4)
            self.trajectory.append((*spent, value, round(self.ffts, 1), round(self.passes, 3)))
        return found, problem.fft_seconds * (found.ffts or found.simulations)


def start_of(problem: Problem, seed: int) -> Floats:
    """Return where all methods start: a random allowed point, told to each before its first ask."""
    start: Floats = problem.space.sobol(1, np.random.default_rng([seed, 0x57A7]))[0]
    return start


def run(problem: Problem, task: Task, targets: tuple[float, float, float] | None = None) -> dict[str, Any]:
    """Return the record of one run; it ends with the budget, the last target, or the method's own end."""
    targets = targets or problem.targets()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally, ending, optimiser = Tally(Clock()), "budget", None
    try:
        with limited(task.seconds):
            name, options = parse(task.method)
            optimiser = make(name, problem.space, OPTIMISER_SEED + task.seed, BATCH, **options)
            ending = converse(problem, optimiser, task, targets[-1], tally)
    except Spent:
        pass
    if tally.best <= targets[-1]:
        ending = "solved"
    seconds = tally.clock.seconds
    quality = problem.quality(tally.best_vector) if tally.best_vector is not None else None
    return {
        "targets": list(targets),
        "pixels": problem.pixels,
        "ending": ending,
        "simulations": tally.simulations,
        "seconds": seconds,
        "ffts": tally.ffts,
        "passes": tally.passes,
        "simulator_seconds": tally.clock.simulator,
        "trials": tally.asked,
        "value": tally.best,
        "trajectory": tally.trajectory,
        "errors": quality.errors if quality else {},
        "exact": quality.exact if quality else None,
        "within_one": quality.within_one if quality else None,
        "rejected": dict(getattr(optimiser, "rejected", {})),
        "duplicates": int(getattr(optimiser, "duplicates", 0)),
        "violations": tally.violations,
        "peak_rss_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "start_rss_MB": before / 1024,
    }


def converse(problem: Problem, optimiser: Optimiser, task: Task, goal: float, tally: Tally) -> str:
    """Ask and tell until the goal is reached, the simulations are spent or nothing is left; return why."""
    start = start_of(problem, task.seed)
    found, _ = tally.evaluate(problem, start, "value")
    optimiser.add(start, found.value)
    while tally.best > goal and tally.simulations < task.simulations:
        trials = optimiser.ask()
        if not trials:
            return "nothing left to try"
        for trial in trials:
            found, seconds = tally.evaluate(problem, trial.vector, trial.wants)
            optimiser.tell(
                trial.id,
                found.value,
                residual=found.residual,
                jacobian=found.jacobian,
                seconds=seconds,
                levels=found.levels,
            )
            if tally.best <= goal or tally.simulations >= task.simulations:
                break
    return "budget"


def _child(
    problem: Problem,
    targets: tuple[float, float, float],
    task: Task,
    sender: multiprocessing.connection.Connection,
) -> None:
    """Run one task and send its record; an exception becomes part of the record."""
    import torch

    torch.set_num_threads(1)
    try:
        record = run(problem, task, targets)
    except Exception as error:
        record = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    sender.send(record)
    sender.close()


def _prepare() -> None:
    """Load libraries, so that forked runs start with them."""
    import botorch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for library in ("cmaes", "optuna", "scipy.optimize"):
        try:
            __import__(library)
        except ImportError:
            continue
    toy = make("trust_region", SearchSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), 0, 4)
    for _ in range(4):
        for trial in toy.ask():
            toy.tell(trial.id, float(((trial.vector - 0.3) ** 2).sum()))


@lru_cache(maxsize=2)
def posed(name: str, seed: int) -> tuple[Problem, tuple[float, float, float]]:
    """Return a problem and its targets, made once for all methods that meet it."""
    problem = PROBLEMS[name].make(seed)
    return problem, problem.targets()


def finished(path: Path) -> set[tuple[Any, ...]]:
    """Return the keys of the runs that a results file holds."""
    return {Task(**r["task"]).key for r in load(path) if "error" not in r}


def load(path: Path) -> list[dict[str, Any]]:
    """Return the records of a results file; the last one of each run counts, a torn line is left out."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        latest[Task(**record["task"]).key] = record
    return list(latest.values())


def progress(path: Path) -> Progress:
    """Return how often a task's method has come to a target of its problem, by the results so far."""
    counts: Counter[tuple[str, str, int]] = Counter()
    for r in load(path):
        for depth, target in enumerate(r.get("targets", ())):
            counts[r["task"]["problem"], r["task"]["method"], depth] += r["value"] <= target
    return lambda task, depth: counts[task.problem, task.method, depth]


def run_all(tasks: Iterable[Task], path: Path, jobs: int) -> None:
    """Run what a results file does not hold yet, `jobs` at a time, and append to it."""
    done = finished(path)  # also what an earlier stage has run
    waiting = [t for t in tasks if t.key not in done]
    if not waiting:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _prepare()
    context = multiprocessing.get_context("fork")
    total, count, began = len(waiting), 0, time.monotonic()
    active: dict[Any, tuple[Any, Task, float]] = {}
    with path.open("a", encoding="utf-8") as out:
        while waiting or active:
            while waiting and len(active) < jobs:
                task = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                problem, targets = posed(task.problem, task.seed)
                process = context.Process(target=_child, args=(problem, targets, task, sender))
                process.start()
                sender.close()
                active[receiver] = process, task, time.monotonic()
            ready = multiprocessing.connection.wait(list(active), timeout=1.0)
            late = [
                r
                for r, (_, task, start) in active.items()
                if r not in ready and time.monotonic() - start > WALL_FACTOR * task.seconds + WALL_MORE
            ]
            for receiver in (*ready, *late):
                process, task, start = active.pop(receiver)
                record = _collect(receiver, process, task, late=receiver in late)
                record = {"task": vars(task), "wall": round(time.monotonic() - start, 3), **record}
                out.write(json.dumps(record, default=float) + "\n")
                out.flush()
                count += 1
                print(_progress(record, count, total, time.monotonic() - began), flush=True)


def _collect(receiver: Any, process: Any, task: Task, late: bool) -> dict[str, Any]:
    """Return a run's record and end its process; one that hung has spent its budget for nothing."""
    record: dict[str, Any] = {"error": "the process of the run died"}
    if late:
        process.kill()
        record = hung(task)
    else:
        with suppress(EOFError):
            record = receiver.recv()
    process.join()
    receiver.close()
    return record


def hung(task: Task) -> dict[str, Any]:
    """Return the record of a run that had to be ended from outside."""
    problem, targets = posed(task.problem, task.seed)
    nothing = {"ffts": 0.0, "passes": 0.0, "simulator_seconds": 0.0, "trials": 0, "value": np.inf}
    return {
        "targets": list(targets),
        "pixels": problem.pixels,
        "ending": "hung",
        "simulations": task.simulations,
        "seconds": task.seconds,
        **nothing,
        "trajectory": [],
        "errors": {},
        "exact": None,
        "within_one": None,
        "rejected": {},
        "duplicates": 0,
        "violations": 0,
        "peak_rss_MB": None,
    }


def _progress(record: dict[str, Any], count: int, total: int, spent: float) -> str:
    task = record["task"]
    name = f"{task['problem']:18s} {task['method']:32s} seed {task['seed']:2d}"
    head = f"{count}/{total} {spent / 60:5.1f} min  {name}"
    if "error" in record:
        return f"{head}  FAILED: {record['error']}"
    depth = sum(record["value"] <= t for t in record["targets"])
    return (
        f"{head}  {record['ending']:8s} targets {depth}/3  {record['simulations']:5d} simulations"
        f" {record['seconds']:6.2f} s"
    )
