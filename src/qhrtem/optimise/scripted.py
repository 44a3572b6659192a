"""Optimisers written as a script: a generator that yields points and receives what they were worth.

The script sees only the unit cube of the parameters that are free to move. Its driver turns points into
trials, answers repeated points from memory and forbidden ones with a penalty, and begins the script again
when it ends. A search resumes by replaying the conversation, so scripts may hide state in any library.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.conversation import Conversation, Proposal, Told
from qhrtem.optimise.protocol import Observation, Origin, Trial, Wants
from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]
REPEATS_MAX = 200  # rounds in a row without a new trial before a script is begun again
RESTARTS_MAX = 4  # fruitless beginnings in a row before random points take over


@dataclass(frozen=True)
class Answer:
    """What a script learns about one point."""

    value: float  # finite: a point that failed or is forbidden gets the worst value known
    ok: bool  # False for a point that failed or is forbidden
    quadratic: Quadratic | None = None  # in the unit cube of the free parameters


Script = Generator[list[Vector], list[Answer], None]


class Scripted(Conversation):
    """An optimiser whose method is the generator that `script` returns."""

    ORIGIN: ClassVar[Origin] = "model"
    WANTS: ClassVar[Wants] = "value"

    def __init__(
        self, space: SearchSpace, seed: int = 0, batch: int | None = None, *, rules: bool = True
    ) -> None:
        """See `Conversation`."""
        super().__init__(space, seed, batch, rules=rules)
        self.free = np.flatnonzero(space.is_free)  # positions of the parameters that the script sees
        self.restarts = -1  # how often the script was begun again
        self._script: Script | None = None
        self._wish: list[Vector] = []  # natural vectors that the script waits for
        self._unasked: list[Vector] = []  # those among them that are not trials yet
        self._known: dict[bytes, Answer] = {}
        self._events: list[list[Any]] = []

    def script(self, generator: np.random.Generator) -> Script:
        """Return a run of the method; it yields points (k, free d) and is sent their answers."""
        raise NotImplementedError

    def start_points(self, n: int, generator: np.random.Generator) -> Vector:
        """Return up to n points (n, free d) of the cube to start from; PlanError where the rules allow none.

        The first beginning starts from points added before it, the best first; all else are Sobol points.
        """
        given = sorted((o for o in self.archive if o.origin == "added"), key=lambda o: o.value)
        known = [o.vector for o in given if self.restarts == 0 and not o.failed][:n]
        if len(known) < n:
            known += list(self.allowed.sobol(n - len(known), generator, self.rejected))
        return self.space.to_unit(np.array(known))[:, self.free]

    @property
    def free_levels(self) -> NDArray[np.int64]:
        """(free d,) number of levels of the discrete parameters that the script sees, 0 for the others."""
        return self.space.levels[self.free]

    def ask(self, q: int | None = None) -> tuple[Trial, ...]:
        """Return up to q new trials; none while the script waits for pending ones."""
        self._events.append(["ask", q])
        return super().ask(q)

    def _heard(self, trial: Trial | None, observation: Observation, told: Told) -> None:
        super()._heard(trial, observation, told)
        row = [None if observation.failed else observation.value, observation.vector.tolist()]
        kept = told.quadratic.to_dict() if told.quadratic and self.WANTS == "jacobian" else None
        self._events.append(["tell", None if trial is None else trial.id, *row, kept])
        self._learn(observation, told.quadratic)
        if trial is not None and self._key(trial.vector) != self._key(observation.vector):
            self._known[self._key(trial.vector)] = self._answer(
                observation, None
            )  # it moved; the script need not

    def _learn(self, observation: Observation, quadratic: Quadratic | None) -> None:
        self._known[self._key(observation.vector)] = self._answer(observation, quadratic)

    def _answer(self, observation: Observation, quadratic: Quadratic | None) -> Answer:
        """Return an observation as the script sees it."""
        if observation.failed:
            return self._penalty()
        model = None
        if quadratic is not None:
            cube = quadratic.in_cube(self.space)
            f = self.free
            model = Quadratic(cube.vector[f], cube.value, cube.slope[f], cube.curvature[np.ix_(f, f)])
        return Answer(observation.value, True, model)

    def _penalty(self) -> Answer:
        """Return the answer for a point without a value: as bad as the worst so far."""
        values = [o.value for o in self.archive if not o.failed]
        return Answer(max(values, default=0.0), False)

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        fruitless = repeats = 0
        if self.space.size is not None and len(self._seen) >= self.space.size:
            return []
        while not self._unasked:
            if self._wish and not all(self._key(v) in self._known for v in self._wish):
                return []  # the script waits for trials that are pending
            if fruitless > RESTARTS_MAX:
                return []
            repeats += 1
            if not self._advance() or repeats > REPEATS_MAX:
                self._end()
                fruitless, repeats = fruitless + 1, 0
        batch, self._unasked = self._unasked[:q], self._unasked[q:]
        return [Proposal(v, self.ORIGIN, self.WANTS) for v in batch]

    def _advance(self) -> bool:
        """Answer the script's wish and take its next one; return False when the script has ended."""
        try:
            if self._script is None:
                self.restarts += 1
                # A stream of its own, apart from those of the asks.
                self._script = self.script(np.random.default_rng([self.seed, 1 << 32, self.restarts]))
                wish = next(self._script)
            else:
                wish = self._script.send([self._known[self._key(v)] for v in self._wish])
        except StopIteration:
            return False
        self._wish = [self._natural(u) for u in wish]
        self._unasked = []
        for vector in self._wish:
            if self._key(vector) in self._known:
                self.duplicates += 1
            elif self._admissible(vector):
                self._claim(vector)
                self._unasked.append(vector)
            elif self._key(vector) not in self._seen:
                self._known[self._key(vector)] = self._penalty()
        return True

    def _natural(self, unit: Vector) -> Vector:
        """Return a point (free d,) of the script as a snapped natural vector (d,)."""
        full = np.full(self.space.dimension, 0.5)
        full[self.free] = unit
        return self.space.from_unit(full)

    def _end(self) -> None:
        if self._script is not None:
            self._script.close()
        self._script, self._wish, self._unasked = None, [], []

    def state_dict(self) -> dict[str, Any]:
        """Return the conversation so far, from which the state follows, in JSON types."""
        return {**super().state_dict(), "events": self._events}

    def _restore(self, state: Mapping[str, Any]) -> None:
        for kind, *row in state["events"]:
            if kind == "ask":
                self.ask(row[0])
                continue
            trial_id, value, vector, kept = row
            quadratic = Quadratic.from_dict(kept) if kept else None
            worth = np.nan if value is None else value
            if trial_id is None:
                self.add(vector, worth)
                continue
            trial = self._pending.pop(trial_id)
            where = self._checked(vector)
            if self._key(where) != self._key(trial.vector):
                self._moved.append(trial.vector)
            self._seen.add(self._key(where))
            self._heard(trial, Observation(trial_id, where, worth, trial.origin), Told(quadratic))


def idle() -> Script:
    """Return the script that has nothing to ask."""
    yield from ()


class _Closed(BaseException):
    """Unwinds a worker thread whose script is no longer wanted."""


def inverted(minimise: Callable[[Callable[[Vector], list[Answer]]], None]) -> Script:
    """Return the script of a library routine that insists on calling its objective.

    minimise: called once, in a thread of its own, with a function that takes points (k, free d) and returns
    their answers. The two threads never run at the same time, so the order of events is fixed.
    """
    wishes: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def evaluate(points: Vector) -> list[Answer]:
        wishes.put([np.array(p) for p in np.atleast_2d(points)])
        got = answers.get()
        if got is None:
            raise _Closed
        return list(got)

    def work() -> None:
        outcome: BaseException | None = None
        try:
            if answers.get() is not None:
                minimise(evaluate)
        except _Closed:
            pass
        except BaseException as error:  # handed to the thread that asked
            outcome = error
        wishes.put(outcome)

    thread = threading.Thread(target=work, name="qhrtem-inverted", daemon=True)
    thread.start()
    answers.put([])
    try:
        while isinstance(wish := wishes.get(), list):
            answers.put((yield wish))
        if wish is not None:
            raise wish
    finally:
        answers.put(None)
        thread.join()
