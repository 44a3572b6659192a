"""Bayesian optimisation and least squares in one search, competing on predicted gain per second.

Where residuals and Jacobians are told, descents (`descent.Descent`) go to the bottom of a basin in a few
evaluations, but say nothing about other basins; the trust-region search looks for those. Every point enters
one archive. `favoured` decides what the next evaluation is spent on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise import descent as descents
from qhrtem.optimise.conversation import Proposal, Told
from qhrtem.optimise.descent import Candidate, Descent
from qhrtem.optimise.protocol import Observation, Trial, Wants
from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.search import TrustRegionSearch
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]
Choice = Literal["descend", "start", "explore"]

STEPS_LEFT = 3  # evaluations that a descent is expected to need to the bottom of its model
SETTLED = 1e-6  # relative gain below which a descent has arrived
HOPE = 0.5  # relative gain granted in advance to starting elsewhere and to exploring,
HOPE_TRIALS = 24  # spread over the time of so many values: a descent's eight Jacobians
SILENT_MAX = 8  # Jacobians in a row that were wanted and not told, after which no more are asked for
MEMORY = 4  # evaluations a dimension that an experience lasts
JACOBIAN_COST = 3.0  # in evaluations of the value, until seconds are told: reverse mode's bound is near 4
NEAR = 0.1  # an added point nearer than this, in every unit coordinate, to an earlier end starts nothing
BASIN_LENGTH = 0.25  # side at which a region around a settled end point is given up
MODEL_SECONDS = 0.1  # what asking the surrogate costs, at 22 dimensions and 300 points
DEAR = 2.0  # values a Jacobian must cost for the last step of a descent to go without one
LAST_GAIN = 0.05  # expected relative gain below which a step may be the last
JITTER = 0.1  # standard deviation, unit cube, by which a start near the best end differs from it
ARMS = ("start", "explore")  # kinds of evaluation whose experience is kept


@dataclass
class Experience:
    """Relative gains and seconds of the latest evaluations of one kind."""

    length: int
    rows: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, gain: float, seconds: float) -> None:
        """Note one evaluation; the oldest is forgotten."""
        self.rows.append((gain, seconds))
        while len(self.rows) > self.length:
            self.rows.popleft()

    def rate(self, cost: float) -> float:
        """Return the gain per second to expect; cost: seconds of one evaluation of the value."""
        gain, seconds = HOPE + sum(g for g, _ in self.rows), HOPE_TRIALS * cost + sum(s for _, s in self.rows)
        return gain / seconds


def favoured(descend: float, start: float, explore: float, tolerance: float = 0.0) -> Choice:
    """Return what promises the most relative gain per second.

    descend: of the most promising descent under way, from its quadratic model. start: of descents so far,
    counted from their starts. explore: of trial points that the surrogate chose so far. Ties go to least
    squares, which needs fewer assumptions. tolerance: rates of descent below this count as nothing.
    """
    if descend > tolerance and descend >= max(start, explore):
        return "descend"
    return "start" if start >= explore else "explore"


class HybridSearch(TrustRegionSearch):
    """Minimise a sum of squares, or any other value if that is all that is told."""

    BATCH = 4
    KNOWN_LENGTH = BASIN_LENGTH

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        batch: int | None = None,
        *,
        gradients: bool = True,
        fill: bool = False,
        physics_prior: bool = True,
        design: int | None = None,
        transform: str = "log",
        **options: Any,
    ) -> None:
        """Prepare a search; see `TrustRegionSearch` for the other options.

        gradients: False asks for values only. fill: True uses every trial of an ask even while a step of a
        descent promises more than anything else. physics_prior: the surrogate models what the latest
        quadratic model leaves over, unless a `prior_mean` is given.
        """
        size = max(4, math.ceil(space.dimension / 2)) if design is None else design
        super().__init__(space, seed, batch, design=size, transform=transform, **options)
        self.gradients, self.fill, self.physics_prior = bool(gradients), bool(fill), bool(physics_prior)
        self._given = self.prior_mean
        self.descents: list[Descent] = []  # under way
        self.ends: list[Vector] = []  # unit points where descents began or ended
        self.courses: list[list[float]] = []  # values along descents that ended
        self.descended = 0  # trials spent on descents
        self._prior: Quadratic | None = None  # of the best point, natural units
        length = MEMORY * space.dimension
        self._experience = {arm: Experience(length) for arm in ARMS}
        self._cost: dict[str, tuple[float, int]] = {"value": (0.0, 0), "jacobian": (0.0, 0)}
        self._starts = 0  # descents begun
        self._bottoms: dict[int, Candidate] = {}  # by serial
        self._drawn: dict[int, tuple[int, list[Candidate]]] = {}  # by serial: age and candidates of a descent
        self._silent = 0  # trials in a row that came back without the Jacobian wanted

    # What to do next

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        chosen: list[Proposal] = []
        while len(chosen) < q:
            rated = self._rated()
            waiting = any(d.waiting is not None for d in self.descents)
            best_rate = max((rate for rate, *_ in rated), default=0.0)
            start, explore = (
                self._experience[k].rate(self._seconds("value") + self._choosing(k)) for k in ARMS
            )
            ready = self.gradients and self._silent < SILENT_MAX
            leading = [row for row in rated if self._leads(row[1])] or [
                row for row in rated if descents.promising(row[1].course, self._others(row[1]))
            ]
            choice = favoured(best_rate, start if ready else -math.inf, explore)
            if leading or choice == "descend":
                _, descent, candidate, wants = max(leading or rated, key=lambda row: row[0])
                chosen.append(Proposal(self.space.from_unit(candidate.unit), "refined", wants))
                self._claim(chosen[-1].vector)
                note = descent.asked if wants == "jacobian" else descent.trying
                note(self._next_id + len(chosen) - 1, candidate)
                continue
            if (waiting or chosen) and not self.fill:
                break  # what the step under evaluation finds is worth waiting for
            if choice == "start":
                found = self._begin(len(chosen), generator)
                if not found:
                    break
                self.descents.append(Descent(serial=self._starts))
                chosen += [Proposal(found[0].vector, "refined", "jacobian")]
                self.descents[-1].asked(self._next_id + len(chosen) - 1, None)
                continue
            return chosen + self._explore(q - len(chosen), len(chosen), generator)
        return chosen

    def _leads(self, descent: Descent) -> bool:
        """Return whether a descent stands at the best point: it is brought to its end before all else.

        Near a noise floor that nobody knows of, the gains it still promises look small beside any hope.
        """
        best = self.best
        return descent.point is not None and best is not None and descent.point.value <= best.value

    def _others(self, descent: Descent) -> list[list[float]]:
        """Return the courses of all other descents, ended or not."""
        return [*self.courses, *(d.course for d in self.descents if d is not descent)]

    def _explore(self, q: int, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return up to q points of the trust-region search, to follow `before` others in the same ask."""
        self._next_id += before  # the trust region counts its trials from the next one
        found = super()._propose(q, generator)
        self._next_id -= before
        return found

    def _rated(self) -> list[tuple[float, Descent, Candidate, Wants]]:
        """Return descents that can go on with the rate of gain they promise, their next point and its kind.

        Those that have arrived or stalled are closed, and their ends remembered as basins.
        """
        best = self.best
        rows: list[tuple[float, Descent, Candidate, Wants]] = []
        for descent in list(self.descents):
            if descent.waiting is not None:
                continue
            if descent.point is None or best is None:
                self.descents.remove(descent)
                continue
            ranked = self._ranked(descent)
            if descent.better is not None:
                ranked = [descents.at(descent, self.space, descent.better), *ranked]
            candidate = next((c for c in ranked if self._open(c.unit)), None)
            worth = 0.0 if candidate is None else candidate.gain_below(descent.point.value)
            floor = max(self.settings.tolerance, SETTLED * abs(descent.point.value))
            if candidate is None or worth <= floor or descent.stalled:
                last = self._last_move(descent, ranked, floor)
                if last is None:
                    self._close(descent)
                else:
                    gain = last.gain_below(descent.point.value)
                    rows.append((self._relative(gain) / self._seconds("value"), descent, last, "value"))
                continue
            hoped = self._bottom(descent).gain_below(best.value) / STEPS_LEFT
            gain = max(candidate.gain_below(best.value), hoped)
            wants: Wants = "value" if self._last_step(descent, candidate) else "jacobian"
            rows.append((self._relative(gain) / self._seconds("jacobian"), descent, candidate, wants))
        return rows

    def _ranked(self, descent: Descent) -> list[Candidate]:
        """Return the candidates of a descent and the bottom of its model, worked out once for each state."""
        age, ranked = self._drawn.get(descent.serial, (-1, []))
        if age != descent.age:
            generator = np.random.default_rng([self.seed, descent.serial, descent.age])
            ranked = descents.candidates(descent, self.space, generator)
            self._drawn[descent.serial] = (descent.age, ranked)
            self._bottoms[descent.serial] = descents.bottom(descent, self.space)
        return ranked

    def _bottom(self, descent: Descent) -> Candidate:
        """Return the bottom of a descent's model."""
        self._ranked(descent)
        return self._bottoms[descent.serial]

    def _last_step(self, descent: Descent, candidate: Candidate) -> bool:
        """Return whether a step may be the last, so that its value is enough and a Jacobian wasted."""
        assert descent.point is not None
        dear = self._seconds("jacobian") > DEAR * self._seconds("value")
        gain = descent.point.value - candidate.expected
        return dear and descent.better is None and gain < LAST_GAIN * abs(descent.point.value)

    def _last_move(self, descent: Descent, ranked: list[Candidate], floor: float) -> Candidate | None:
        """Return a discrete move to try before the best descent is closed, None where nothing is promised."""
        assert descent.point is not None
        if not self._leads(descent):
            return None
        for candidate in descents.polish(descent, ranked, self.space):
            if candidate.gain_below(descent.point.value) <= floor:
                return None
            if self._open(candidate.unit):
                return candidate
        return None

    def _open(self, unit: Vector) -> bool:
        """Return whether a point may be evaluated; not counted, since it may be looked at again."""
        vector = self.space.from_unit(unit)
        return self._key(vector) not in self._seen and self.allowed.refused_by(vector) is None

    def _close(self, descent: Descent) -> None:
        assert descent.point is not None
        self.descents.remove(descent)
        self._drawn.pop(descent.serial, None)
        self.courses.append(descent.course)
        self.ends.append(descent.point.vector)
        key = self._key(self.space.from_unit(descent.point.vector))
        end = next((o for o in self.archive if self._key(o.vector) == key), None)
        if end is not None:
            self.basins.append(end)

    def _begin(self, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return where a descent should start, as a list of one or none.

        A point added from outside that is the best so far; otherwise a new one that the trust region chooses,
        since a Jacobian at a point of known value would cost a second evaluation of it.
        """
        self._starts += 1
        best = self.best
        if best is not None and best.origin == "added" and self.allowed.refused_by(best.vector) is None:
            unit = self.space.to_unit(best.vector)
            if not any((np.abs(unit - e) < NEAR).all() for e in self.ends):
                self.ends.append(unit)
                return [Proposal(best.vector, "refined", "jacobian")]
        if self._choosing("explore") < self._seconds("jacobian"):
            return self._explore(1, before, generator)
        near = self._near_best(generator) if self._starts % 2 == 0 and self.ends else None
        fresh = [near] if near is not None else self._untried(1, generator)
        return [Proposal(v, "refined", "jacobian") for v in fresh]

    def _near_best(self, generator: np.random.Generator) -> Vector | None:
        """Return a new point around the best one, one discrete parameter redrawn from a quarter of its
        levels.

        Basins often lie beside each other, a whole period of something apart (Lourenço, Martin and Stützle
        2003, iterated local search).
        """
        assert self.best is not None
        unit = self.space.to_unit(self.best.vector)
        smooth = ~self.space.is_discrete & self.space.is_free
        whole = np.flatnonzero(self.space.is_discrete & self.space.is_free)
        for _ in range(32):
            moved = unit + np.where(smooth, JITTER * generator.standard_normal(len(unit)), 0.0)
            if whole.size:
                i = generator.choice(whole)
                moved[i] += generator.uniform(-0.25, 0.25)
            moved = np.clip(moved, 0.0, 1.0)
            if self._accept(moved):
                return self.space.from_unit(moved)
        return None

    def _choosing(self, arm: str) -> float:
        """Return the seconds that choosing a point costs; 0 while nothing is known of an evaluation's."""
        known = any(count for _, count in self._cost.values())
        return MODEL_SECONDS if known and arm == "explore" else 0.0

    # What was learned

    def _heard(self, trial: Trial | None, observation: Observation, told: Told) -> None:
        before = self.best
        super()._heard(trial, observation, told)
        if trial is None:
            return
        kind = "jacobian" if told.quadratic is not None else "value"
        if told.seconds is not None and math.isfinite(told.seconds) and told.seconds >= 0:
            total, count = self._cost[kind]
            self._cost[kind] = (total + told.seconds, count + 1)
        gain = 0.0
        if before is not None and not observation.failed and observation.value < before.value:
            gain = self._relative(before.value - observation.value, before.value)
        if trial.origin == "refined":
            self.descended += 1
            if trial.wants == "jacobian":
                self._silent = 0 if told.quadratic is not None or observation.failed else self._silent + 1
        # What the first descent gains says nothing about starting again: any start is better than none.
        if trial.origin != "design" and not any(
            d.serial <= 1 and d.waiting == trial.id for d in self.descents
        ):
            arm = "start" if trial.origin == "refined" else "explore"
            self._experience[arm].add(gain, self._seconds(kind) + self._choosing(arm))
        cube = told.quadratic.in_cube(self.space) if told.quadratic is not None else None
        for descent in self.descents:
            if descent.waiting == trial.id and descent.target is not None:
                descent.moved(observation.value if not observation.failed else math.inf)
            elif descent.waiting == trial.id:
                descent.told(observation.value if not observation.failed else math.inf, cube)
        if told.quadratic is not None and self.best is not None and observation.value <= self.best.value:
            self._set_prior(told.quadratic)

    def _set_prior(self, model: Quadratic) -> None:
        """Let the surrogate model what a quadratic model leaves over."""
        self._prior = model
        if self._given is None and self.physics_prior:
            cube = model.in_cube(self.space)
            self.prior_mean = lambda vectors: cube(self.space.to_unit(vectors))

    def _relative(self, gain: float, value: float | None = None) -> float:
        """Return a gain relative to the best value, or to the spread of values near 0; 1 at most."""
        best = self.best
        scale = abs(value if value is not None else best.value if best is not None else 1.0)
        return min(gain / scale, 1.0) if scale > 0 else float(gain > 0)

    def _seconds(self, kind: str) -> float:
        """Return what an evaluation costs: the mean of what was told, by the ratio where only one was."""
        total, count = self._cost[kind]
        if count:
            return max(total / count, 1e-9)
        other = "value" if kind == "jacobian" else "jacobian"
        total, count = self._cost[other]
        ratio = JACOBIAN_COST if kind == "jacobian" else 1 / JACOBIAN_COST
        return max(total / count, 1e-9) * ratio if count else (JACOBIAN_COST if kind == "jacobian" else 1.0)

    # State

    def _options(self) -> dict[str, Any]:
        own = {"gradients": self.gradients, "fill": self.fill, "physics_prior": self.physics_prior}
        return {**super()._options(), **own}

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space and without callables."""
        return {
            **super().state_dict(),
            "descents": [d.to_dict() for d in self.descents],
            "ends": [e.tolist() for e in self.ends],
            "courses": [list(c) for c in self.courses],
            "descended": self.descended,
            "experience": {k: [list(row) for row in e.rows] for k, e in self._experience.items()},
            "cost": {k: list(v) for k, v in self._cost.items()},
            "silent": self._silent,
            "starts": self._starts,
            "prior": self._prior.to_dict() if self._prior else None,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.descents = [Descent.from_dict(d) for d in state["descents"]]
        self.ends = [np.array(e) for e in state["ends"]]
        self.courses = [list(c) for c in state["courses"]]
        self.descended = state["descended"]
        for kind, rows in state["experience"].items():
            self._experience[kind].rows = deque((g, s) for g, s in rows)
        self._cost = {k: (v[0], v[1]) for k, v in state["cost"].items()}
        self._silent, self._starts = state["silent"], state["starts"]
        if state["prior"]:
            self._set_prior(Quadratic.from_dict(state["prior"]))
