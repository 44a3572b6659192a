"""Tasks: work that can be done anywhere, in any order and more than once, with the same result.

A task is the name of a registered function and what it is given: JSON values and arrays, nothing else. Two
tasks with equal content have one key and one result, so a result can be kept by its key, a task whose worker
died can go to another, and a slow one can be begun a second time. All randomness must therefore come from
numbers that stand in the task.

    @task
    def fit_tile(given: Snapshot, place: Place) -> Snapshot: ...

    tasks = [Task.of(fit_tile, {"seed": 3, "row": 0, "col": 512}, {"counts": counts}) for ...]
    results = gather(executor, tasks)  # by key
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from numpy.typing import NDArray

from qhrtem.errors import ResourceError
from qhrtem.program import program_digest
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.parcel import from_bytes, to_bytes


@dataclass(frozen=True)
class Place:
    """Where a task runs: what it may use there. The result must not depend on it."""

    device: str = "cpu"  # as torch names it; where it is a GPU, no other task uses it
    threads: int = 1  # that the task may start for work on columns
    batch: int | None = None  # items it should take at once at most, where its function works in batches
    cpu_allowed: bool = False  # whether the task may fall back to the CPU where its GPU is too small


TRIES = 3  # after so many failures a task is given up
Tell = Callable[[dict[str, Any]], None]  # is told what happens to workers and tasks, in JSON values
Function = Callable[[Snapshot, Place], Snapshot]
_REGISTERED: dict[str, tuple[Function, int | None]] = {}  # by name: the function and its batch


def task(function: Function | None = None, *, batch: int | None = None) -> Any:
    """Register a function of a module, so that tasks may name it.

    batch: items that it takes at once where memory allows; halved each time it does not.
    """

    def register(it: Function) -> Function:
        _REGISTERED[name_of(it)] = (it, batch)
        return it

    return register if function is None else register(function)


def name_of(function: Function) -> str:
    """Return the name under which a function is registered: "module:function"."""
    return f"{function.__module__}:{function.__qualname__}"


def registered(name: str) -> tuple[Function, int | None]:
    """Return the function of a name and its batch, its module imported if need be.

    Raises LookupError where the module does not register it: nothing else can be called by a task.
    """
    if name not in _REGISTERED:
        importlib.import_module(name.partition(":")[0])
    if name not in _REGISTERED:
        raise LookupError(f"'{name}' is not registered; decorate the function with qhrtem.stages.tasks.task")
    return _REGISTERED[name]


@dataclass(frozen=True, eq=False)
class Task:
    """One piece of work."""

    function: str  # name of a registered function
    given: Snapshot  # what it works on

    @classmethod
    def of(cls, function: Function, facts: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the task of a registered function, JSON values and arrays by name."""
        registered(name_of(function))
        return cls(name_of(function), Snapshot(facts, dict(arrays)))

    @cached_property
    def key(self) -> str:
        """SHA-256 of what the result depends on: program, libraries, function, values, arrays."""
        return hashlib.sha256(program_digest().encode() + self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the task as a parcel."""
        return to_bytes(Snapshot({"function": self.function, "given": self.given.facts}, self.given.arrays))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the task of a parcel; raises InputError where it is damaged."""
        parcel = from_bytes(data)
        return cls(parcel.facts["function"], Snapshot(parcel.facts["given"], parcel.arrays))


@dataclass(frozen=True)
class Quarantined:
    """A task that was given up: it failed, or ended its worker, too often."""

    function: str
    errors: tuple[str, ...]  # of each try, in order


Result = Snapshot | Quarantined
Results = Generator[tuple[str, Result], None, None]  # keys and results


class Executor(Protocol):
    """Does tasks, one after another or many at a time."""

    @property
    def width(self) -> int:
        """How many tasks it does at a time, as far as is known now, at least 1."""
        ...

    def run(self, tasks: Iterable[Task]) -> Results:
        """Yield key and result of each task as it ends, in any order; equal tasks are done once.

        Tasks are taken from the iterable only when there is room for them, so it may make them on the way.
        Raises Interrupted where the workers are gone for good and the run can be resumed.
        """
        ...

    def close(self) -> None:
        """Let the workers go; a second call does nothing."""
        ...


def gather(executor: Executor, tasks: Iterable[Task]) -> dict[str, Snapshot]:
    """Return all results by key.

    Raises ResourceError, when all else is done, where tasks were given up.
    """
    results: dict[str, Snapshot] = {}
    given_up: list[Quarantined] = []
    with closing(executor.run(tasks)) as running:
        for key, result in running:
            if isinstance(result, Quarantined):
                given_up.append(result)
            else:
                results[key] = result
    if given_up:
        name = given_up[0].function.partition(":")[2]
        raise ResourceError(
            f"{len(given_up)} of {len(given_up) + len(results)} tasks ('{name}') failed "
            f"{len(given_up[0].errors)} times, the first with: {given_up[0].errors[-1]}"
        )
    return results


def distinct(tasks: Iterable[Task]) -> Iterator[Task]:
    """Yield tasks without those that are equal to an earlier one."""
    seen = set()
    for it in tasks:
        if it.key not in seen:
            seen.add(it.key)
            yield it


def perform(task: Task, place: Place) -> Snapshot:
    """Do a task here.

    Where memory does not suffice it is done again with half the batch, at last on the CPU if allowed. Raises
    ResourceError where nothing is left to try, and what the function raises.
    """
    function, batch = registered(task.function)
    place = replace(place, batch=batch)
    while True:
        try:
            return function(task.given, place)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            words = (
                f"{place.device} has too little memory: {str(error).partition(chr(10))[0] or 'no more said'}"
            )
        smaller = _smaller(place)
        if smaller is None:
            raise ResourceError(words)
        place = smaller


def describe(error: BaseException) -> str:
    """Return an error as one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:500]


def _smaller(place: Place) -> Place | None:
    if place.batch is not None and place.batch > 1:
        return replace(place, batch=place.batch // 2)
    if place.device != "cpu" and place.cpu_allowed:
        return replace(place, device="cpu")
    return None


def _is_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)  # how the allocator of torch says it on a CPU
