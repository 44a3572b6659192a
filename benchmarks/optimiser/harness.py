"""Run optimisers on problems, each run in a process of its own, and write one JSON line a run.

A run's seed sets the noise of the image and the seed of the method, so that all methods meet the same images.
Seconds are CPU time of the run's single thread: other work on the machine does not count. The problem is
built and libraries are loaded before the clock starts.
"""

from __future__ import annotations

import ast
import json
import multiprocessing
import multiprocessing.connection
import resource
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from optimiser.problem import Problem
from optimiser.suite import PROBLEMS, Task
from qhrtem.optimise.methods import make
from qhrtem.optimise.space import Parameter, SearchSpace

BATCH = 8
OPTIMISER_SEED = 1_000  # added to the seed, so that no stream is shared with the noise
WALL_FACTOR, WALL_MORE = (
    4.0,
    60.0,
)  # wall clock after which a run is ended from outside: factor · seconds + more


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


def run(problem: Problem, task: Task) -> dict[str, Any]:
    """Return the record of one run; it ends with the budget, the last target, or the method's own end."""
    targets = problem.targets()
    name, options = parse(task.method)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock, simulations, violations, asked = Clock(), 0, 0, 0
    best, best_vector = np.inf, None
    trajectory: list[tuple[int, float, float]] = []
    ending = "budget"
    optimiser = make(name, problem.space, OPTIMISER_SEED + task.seed, BATCH, **options)
    while best > targets[-1] and simulations < task.simulations and clock.seconds < task.seconds:
        trials = optimiser.ask()
        if not trials:
            ending = "nothing left to try"
            break
        for trial in trials:
            began = time.process_time()
            found = problem.evaluate(np.array(trial.vector), trial.wants)
            took = time.process_time() - began
            clock.simulator += took
            simulations += found.simulations
            asked += 1
            violations += problem.space.refused_by(trial.vector) is not None
            if found.value < best:
                best, best_vector = found.value, np.array(trial.vector)
                trajectory.append((simulations, round(clock.seconds, 4), best))
            optimiser.tell(
                trial.id, found.value, residual=found.residual, jacobian=found.jacobian, seconds=took
            )
            if best <= targets[-1] or simulations >= task.simulations or clock.seconds >= task.seconds:
                break
    if best <= targets[-1]:
        ending = "solved"
    seconds = clock.seconds
    quality = problem.quality(best_vector) if best_vector is not None else None
    return {
        "targets": list(targets),
        "pixels": problem.pixels,
        "ending": ending,
        "simulations": simulations,
        "seconds": seconds,
        "simulator_seconds": clock.simulator,
        "trials": asked,
        "value": best,
        "trajectory": trajectory,
        "errors": quality.errors if quality else {},
        "exact": quality.exact if quality else None,
        "within_one": quality.within_one if quality else None,
        "rejected": dict(getattr(optimiser, "rejected", {})),
        "duplicates": int(getattr(optimiser, "duplicates", 0)),
        "violations": violations,
        "peak_rss_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "start_rss_MB": before / 1024,
    }


def _child(task: Task, sender: multiprocessing.connection.Connection) -> None:
    """Run one task and send its record; an exception becomes part of the record."""
    import torch

    torch.set_num_threads(1)
    try:
        record = run(PROBLEMS[task.problem].make(task.seed), task)
    except Exception as error:
        record = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    sender.send(record)
    sender.close()


def _prepare(problems: Iterable[str]) -> None:
    """Build what runs share and load libraries, so that forked runs start with both."""
    import botorch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for library in ("cmaes", "optuna", "scipy.optimize"):
        try:
            __import__(library)
        except ImportError:
            continue
    for name in problems:
        problem = PROBLEMS[name].make(0)
        problem.evaluate(problem.truth, "jacobian")
    toy = make("trust_region", SearchSpace((Parameter("x", 0, 1), Parameter("y", 0, 1))), 0, 4)
    for _ in range(4):
        for trial in toy.ask():
            toy.tell(trial.id, float(((trial.vector - 0.3) ** 2).sum()))


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


def run_all(tasks: Iterable[Task], path: Path, jobs: int) -> None:
    """Run what a results file does not hold yet, `jobs` at a time, and append to it."""
    done = finished(path)
    waiting = [t for t in tasks if t.key not in done]
    if not waiting:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _prepare(dict.fromkeys(t.problem for t in waiting))
    context = multiprocessing.get_context("fork")
    total, count, began = len(waiting), 0, time.monotonic()
    active: dict[Any, tuple[Any, Task, float]] = {}
    with path.open("a", encoding="utf-8") as out:
        while waiting or active:
            while waiting and len(active) < jobs:
                task = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(task, sender))
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
                record = _collect(receiver, process, late=receiver in late)
                record = {"task": vars(task), "wall": round(time.monotonic() - start, 3), **record}
                out.write(json.dumps(record, default=float) + "\n")
                out.flush()
                count += 1
                print(_progress(record, count, total, time.monotonic() - began), flush=True)


def _collect(receiver: Any, process: Any, late: bool) -> dict[str, Any]:
    """Return a run's record and end its process."""
    record = {"error": "the run took too long and was ended"}
    if late:
        process.kill()
    else:
        try:
            record = receiver.recv()
        except EOFError:
            record = {"error": "the process of the run died"}
    process.join()
    receiver.close()
    return record


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
