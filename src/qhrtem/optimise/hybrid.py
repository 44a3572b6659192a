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
from qhrtem.optimise.protocol import Observation, Trial
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
        self.descended = 0  # trials spent on descents
        self._prior: Quadratic | None = None  # of the best point, natural units
        length = MEMORY * space.dimension
        self._experience = {arm: Experience(length) for arm in ARMS}
        self._cost: dict[str, tuple[float, int]] = {"value": (0.0, 0), "jacobian": (0.0, 0)}
        self._silent = 0  # trials in a row that came back without the Jacobian wanted

    # What to do next

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        chosen: list[Proposal] = []
        while len(chosen) < q:
            rated = self._rated(generator)
            waiting = any(d.waiting is not None for d in self.descents)
            best_rate = max((rate for rate, _, _ in rated), default=0.0)
            start, explore = (self._experience[k].rate(self._seconds("value")) for k in ARMS)
            ready = self.gradients and self._silent < SILENT_MAX
            choice = favoured(best_rate, start if ready else -math.inf, explore)
            if choice == "descend":
                _, descent, candidate = max(rated, key=lambda row: row[0])
                chosen.append(Proposal(self.space.from_unit(candidate.unit), "refined", "jacobian"))
                self._claim(chosen[-1].vector)
                descent.asked(self._next_id + len(chosen) - 1, candidate)
                continue
            if (waiting or chosen) and not self.fill:
                break  # what the step under evaluation finds is worth waiting for
            if choice == "start":
                found = self._begin(len(chosen), generator)
                if not found:
                    break
                self.descents.append(Descent(first=not self.descended))
                chosen += [Proposal(found[0].vector, "refined", "jacobian")]
                self.descents[-1].asked(self._next_id + len(chosen) - 1, None)
                continue
            return chosen + self._explore(q - len(chosen), len(chosen), generator)
        return chosen

    def _explore(self, q: int, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return up to q points of the trust-region search, to follow `before` others in the same ask."""
        self._next_id += before  # the trust region counts its trials from the next one
        found = super()._propose(q, generator)
        self._next_id -= before
        return found

    def _rated(self, generator: np.random.Generator) -> list[tuple[float, Descent, Candidate]]:
        """Return descents that can go on with the rate of gain they promise and their next point.

        Those that have arrived or stalled are closed, and their ends remembered as basins.
        """
        best = self.best
        rows = []
        for descent in list(self.descents):
            if descent.waiting is not None:
                continue
            if descent.point is None or best is None:
                self.descents.remove(descent)
                continue
            ranked = descents.candidates(descent, self.space, generator)
            candidate = next((c for c in ranked if self._open(c.unit)), None)
            worth = 0.0 if candidate is None else candidate.gain_below(descent.point.value)
            floor = max(self.settings.tolerance, SETTLED * abs(descent.point.value))
            if candidate is None or worth <= floor or descent.stalled:
                self._close(descent)
                continue
            hoped = descents.bottom(descent, self.space).gain_below(best.value) / STEPS_LEFT
            gain = max(candidate.gain_below(best.value), hoped)
            rows.append((self._relative(gain) / self._seconds("jacobian"), descent, candidate))
        return rows

    def _open(self, unit: Vector) -> bool:
        """Return whether a point may be evaluated; not counted, since it may be looked at again."""
        vector = self.space.from_unit(unit)
        return self._key(vector) not in self._seen and self.allowed.refused_by(vector) is None

    def _close(self, descent: Descent) -> None:
        assert descent.point is not None
        self.descents.remove(descent)
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
        best = self.best
        if best is not None and best.origin == "added" and self.allowed.refused_by(best.vector) is None:
            unit = self.space.to_unit(best.vector)
            if not any((np.abs(unit - e) < NEAR).all() for e in self.ends):
                self.ends.append(unit)
                return [Proposal(best.vector, "refined", "jacobian")]
        return self._explore(1, before, generator)

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
            self._silent = 0 if told.quadratic is not None or observation.failed else self._silent + 1
        # What the first descent gains says nothing about starting again: any start is better than none.
        if trial.origin != "design" and not any(d.first and d.waiting == trial.id for d in self.descents):
            arm = "start" if trial.origin == "refined" else "explore"
            self._experience[arm].add(gain, self._seconds(kind))
        cube = told.quadratic.in_cube(self.space) if told.quadratic is not None else None
        for descent in self.descents:
            if descent.waiting == trial.id:
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
            "descended": self.descended,
            "experience": {k: [list(row) for row in e.rows] for k, e in self._experience.items()},
            "cost": {k: list(v) for k, v in self._cost.items()},
            "silent": self._silent,
            "prior": self._prior.to_dict() if self._prior else None,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.descents = [Descent.from_dict(d) for d in state["descents"]]
        self.ends = [np.array(e) for e in state["ends"]]
        self.descended = state["descended"]
        for kind, rows in state["experience"].items():
            self._experience[kind].rows = deque((g, s) for g, s in rows)
        self._cost = {k: (v[0], v[1]) for k, v in state["cost"].items()}
        self._silent = state["silent"]
        if state["prior"]:
            self._set_prior(Quadratic.from_dict(state["prior"]))
