"""Bayesian optimisation and least squares in one search, competing on predicted gain per second.

Where residuals and Jacobians are told, or gradients alone, descents (`descent.Descent`) go to the bottom of a
basin in a few evaluations; hops (`hops`) lead from there to other basins, and the trust-region search looks
for better ones still. Where one evaluation yields the value at every level of a parameter, starts are
screened and ends are checked by it. Every point enters one archive. `favoured` decides what the next
evaluation is spent on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise import descent as descents
from qhrtem.optimise.archive import frozen
from qhrtem.optimise.competition import Experience, favoured
from qhrtem.optimise.conversation import Proposal, Told
from qhrtem.optimise.descent import Candidate, Descent
from qhrtem.optimise.hops import Chain, hop
from qhrtem.optimise.protocol import Observation, Trial, Wants
from qhrtem.optimise.quadratic import Quadratic, secant
from qhrtem.optimise.search import TrustRegionSearch
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]

STEPS_LEFT = 3  # evaluations that a descent is expected to need to the bottom of its model
SETTLED = 1e-6  # relative gain below which a descent has arrived,
SETTLED_SIGMA = 0.1  # or one that moves the best value by this part of what one standard deviation does,
COARSE = 3e-3  # and below which one has arrived that is not the best
BEHIND = 0.1  # or this share of what it lies behind
SILENT_MAX = 8  # derivatives in a row that were wanted and not told, after which no more are asked for
MEMORY = 4  # evaluations a dimension that an experience lasts
JACOBIAN_COST = 3.0  # in evaluations of the value, until seconds are told: reverse mode's bound is near 4
NEAR = 0.1  # an added point nearer than this, in every unit coordinate, to an earlier end starts nothing
BASIN_LENGTH = 0.25  # side at which a region around a settled end point is given up
MODEL_SECONDS = 0.1  # what asking the surrogate costs, at 22 dimensions and 300 points
DEAR = 2.0  # values a Jacobian must cost for the last step of a descent to go without one
LAST_GAIN = 0.05  # expected relative gain below which a step may be the last
SCREENED = 10  # sweeps among which a fresh chain chooses its start
NUDGE = 1e-4  # unit cube, by which a descent begins beside a point whose value is known already
HOPS_MAX = 32  # moves drawn for one that the rules allow
KINDS = ("value", "jacobian", "levels")  # of evaluation, whose seconds are kept
ARMS = ("start", "explore")  # kinds of evaluation whose experience is kept


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
        sweeps: bool = True,
        hops: bool = True,
        fill: bool = False,
        physics_prior: bool = True,
        design: int | None = None,
        transform: str = "log",
        **options: Any,
    ) -> None:
        """Prepare a search; see `TrustRegionSearch` for the other options.

        gradients: False asks for values only. sweeps: False never asks for the levels of a swept parameter.
        hops: False starts every descent at a fresh point. fill: True uses every trial of an ask even while a
        step of a descent promises more than anything else. physics_prior: the surrogate models what the
        latest quadratic model leaves over, unless a `prior_mean` is given.
        """
        size = max(4, math.ceil(space.dimension / 2)) if design is None else design
        super().__init__(space, seed, batch, design=size, transform=transform, **options)
        self.gradients, self.fill, self.physics_prior = bool(gradients), bool(fill), bool(physics_prior)
        self.sweeps, self.hops = bool(sweeps) and space.swept is not None, bool(hops)
        self._given = self.prior_mean
        self.descents: list[Descent] = []  # under way
        self.ends: list[Vector] = []  # unit points where descents began or ended
        self.chain = Chain()
        self.descended = 0  # trials spent on descents
        self._prior: Quadratic | None = None  # of the best point, natural units
        length = MEMORY * space.dimension
        self._experience = {arm: Experience(length) for arm in ARMS}
        self._cost: dict[str, tuple[float, int]] = dict.fromkeys(KINDS, (0.0, 0))
        self._starts = 0  # descents begun
        self._bottoms: dict[int, Candidate] = {}  # by serial
        self._drawn: dict[int, tuple[int, list[Candidate]]] = {}  # by serial: age and candidates of a descent
        self._screening = 0  # sweeps still to be asked for before the next chain begins
        self._screens: dict[int, tuple[float, Vector] | None] = {}  # by trial: value and vector once told
        self._checks: dict[int, tuple[float, Vector]] = {}  # by trial: the end of a descent under a sweep
        self._found: list[Vector] = []  # where sweeps say that a descent should begin
        self._vain = 0  # trials of the surrogate in a row that found nothing better
        self._nudged = -1  # trial beside which a descent has begun
        self._residuals = 0  # length of the residual, 0 while none was told
        self._silent = 0  # trials in a row that came back without the Jacobian wanted

    # What to do next

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        chosen: list[Proposal] = []
        while len(chosen) < q:
            rated = self._rated(chosen)
            best_rate = max((rate for rate, *_ in rated), default=0.0)
            start, explore = (
                self._experience[k].rate(self._seconds("value") + self._choosing(k)) for k in ARMS
            )
            ready = self.gradients and self._silent < SILENT_MAX
            start = math.inf if self._overdue() else start
            leading = [row for row in rated if self._leads(row[1])] or rated
            choice = favoured(best_rate, start if ready else -math.inf, explore)
            if len(chosen) >= q:
                break
            if leading:
                _, descent, candidate, wants = max(leading, key=lambda row: row[0])
                chosen.append(Proposal(self.space.from_unit(candidate.unit), "refined", wants))
                self._claim(chosen[-1].vector)
                note = descent.asked if wants == "jacobian" else descent.trying
                note(self._next_id + len(chosen) - 1, candidate)
                continue
            waiting = any(d.waiting is not None for d in self.descents) or self._checks
            if self._screening and ready:
                chosen += self._screen(q - len(chosen), len(chosen), generator)
                continue
            if (waiting or self._screens or chosen) and not self.fill:
                break  # what is under evaluation is worth waiting for
            if choice == "start":
                found = self._begin(len(chosen), generator)
                if self._screening:
                    continue
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
        if descent.point is None or best is None:
            return False
        return descent.point.value <= best.value + SETTLED * abs(best.value)

    def _explore(self, q: int, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return up to q points of the trust-region search, to follow `before` others in the same ask."""
        self._next_id += before  # the trust region counts its trials from the next one
        found = super()._propose(q, generator)
        self._next_id -= before
        return found

    def _rated(self, chosen: list[Proposal]) -> list[tuple[float, Descent, Candidate, Wants]]:
        """Return descents that can go on with the rate of gain they promise, their next point and its kind.

        Those that have arrived, stalled or lost hope are closed and their ends remembered as basins; a sweep
        at the end of one is added to what was chosen.
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
            floor = self._floor(descent)
            lost = not self._leads(descent) and descent.hopeless(min(self.chain.value, descent.point.value))
            # A model that was carried along is renewed before its descent is judged by it.
            renewed = descent.stale and candidate is not None and (descent.better is not None or worth > 0)
            if candidate is None or not renewed and (worth <= floor or descent.stalled or lost):
                last = None if lost else self._last_move(descent, ranked, floor)
                if last is None:
                    self._close(descent, chosen, lost)
                else:
                    gain = last.gain_below(descent.point.value)
                    rows.append((self._relative(gain) / self._seconds("value"), descent, last, "value"))
                continue
            hoped = self._bottom(descent).gain_below(best.value) / STEPS_LEFT
            gain = max(candidate.gain_below(best.value), hoped)
            wants: Wants = "value" if self._last_step(descent, candidate) else "jacobian"
            rows.append((self._relative(gain) / self._seconds("jacobian"), descent, candidate, wants))
        return rows

    def _floor(self, descent: Descent) -> float:
        """Return the gain below which a descent has arrived.

        Where residuals are told, their own scatter says what one standard deviation is worth: the value over
        their number.
        """
        assert descent.point is not None
        value = abs(descent.point.value)
        noise = SETTLED_SIGMA * value / self._residuals if self._residuals else 0.0
        behind = max(descent.point.value - self.chain.value, 0.0)
        coarse = 0.0 if self._leads(descent) or not self.hops else min(COARSE * value, BEHIND * behind)
        return max(self.settings.tolerance, SETTLED * value, noise, coarse)

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
        small = descent.point.value - candidate.expected < LAST_GAIN * abs(descent.point.value)
        return dear and small and not descent.stale and descent.better is None

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

    def _close(self, descent: Descent, chosen: list[Proposal], lost: bool) -> None:
        """End a descent; where the space allows it, ask what the other levels are worth at its end."""
        assert descent.point is not None
        self.descents.remove(descent)
        self._drawn.pop(descent.serial, None)
        self.ends.append(descent.point.vector)
        self.chain.ended(descent.point)
        vector = self.space.from_unit(descent.point.vector)
        end = next((o for o in self.archive if self._key(o.vector) == self._key(vector)), None)
        if end is not None:
            self.basins.append(end)
        sweep = None if lost or not self.sweeps else self._beside(vector)
        if sweep is not None:
            chosen.append(Proposal(sweep, "refined", "levels"))
            self._checks[self._next_id + len(chosen) - 1] = descent.point.value, vector

    def _undescended(self) -> bool:
        """Return whether the best point is one of values alone that no descent has begun beside."""
        best = self.best
        return best is not None and best.origin in ("model", "design") and best.id != self._nudged

    def _overdue(self) -> bool:
        """Return whether exploring around such a point has since cost a Jacobian's time in vain."""
        spent = self._vain * (self._seconds("value") + self._choosing("explore"))
        return self._undescended() and spent >= self._seconds("jacobian")

    def _beside(self, vector: Vector) -> Vector | None:
        """Return a new vector that differs in the level of the swept parameter alone."""
        i = self.space.swept
        assert i is not None
        values = self.space.parameters[i].level_values
        at = int(np.abs(values - vector[i]).argmin())
        for k in sorted(range(len(values)), key=lambda k: (k == at, abs(k - at))):
            moved = np.array(vector)
            moved[i] = values[k]
            if self.allowed.refused_by(moved) is None and self._claim(moved):
                return moved
        return None

    def _screen(self, q: int, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return up to q sweeps at fresh points, among which the next chain chooses its start."""
        fresh = self._untried(min(q, self._screening), generator)
        self._screening = self._screening - len(fresh) if fresh else 0
        self._screens |= {self._next_id + before + k: None for k in range(len(fresh))}
        return [Proposal(v, "refined", "levels") for v in fresh]

    def _begin(self, before: int, generator: np.random.Generator) -> list[Proposal]:
        """Return where a descent should start, as a list of one or none.

        In this order: where a sweep found a better level; at a point added from outside that is the best so
        far, or beside one of the surrogate's that is; a hop from the end of the chain. A chain of its own
        begins where the best of several sweeps lies, where the surrogate proposes if its time is worth less
        than a Jacobian's, or anywhere.
        """
        self._starts += 1
        if self._found:
            return [Proposal(self._found.pop(0), "refined", "jacobian")]
        best = self.best
        if best is not None and best.origin == "added" and self.allowed.refused_by(best.vector) is None:
            unit = self.space.to_unit(best.vector)
            if not any((np.abs(unit - e) < NEAR).all() for e in self.ends):
                self.ends.append(unit)
                return [Proposal(best.vector, "refined", "jacobian")]
        if best is not None and self._undescended():
            self._nudged = best.id  # where the surrogate was luckier than descents, one begins beside it
            smooth = ~self.space.is_discrete & self.space.is_free
            beside = self.space.to_unit(best.vector)
            beside = np.clip(
                beside + np.where(smooth, NUDGE * generator.standard_normal(len(beside)), 0), 0, 1
            )
            if smooth.any() and self._accept(beside):
                return [Proposal(self.space.from_unit(beside), "refined", "jacobian")]
        if self.hops and not self.chain.spent:
            assert self.chain.end is not None
            for _ in range(HOPS_MAX):
                moved = hop(self.chain.end, self.space, generator)
                if self._accept(moved):
                    return [Proposal(self.space.from_unit(moved), "refined", "jacobian")]
        self.chain = Chain()
        if self.sweeps:
            self._screening = SCREENED
            return []
        if self._choosing("explore") < self._seconds("jacobian"):
            return self._explore(1, before, generator)
        return [Proposal(v, "refined", "jacobian") for v in self._untried(1, generator)]

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
        derived = told.quadratic is not None or told.gradient is not None
        kind = "levels" if trial.wants == "levels" else "jacobian" if derived else "value"
        if told.seconds is not None and math.isfinite(told.seconds) and told.seconds >= 0:
            total, count = self._cost[kind]
            self._cost[kind] = (total + told.seconds, count + 1)
        self._residuals = told.residuals or self._residuals
        gain = 0.0
        if before is not None and not observation.failed and observation.value < before.value:
            gain = self._relative(before.value - observation.value, before.value)
        if trial.origin == "refined":
            self.descended += 1
            if trial.wants == "jacobian":
                self._silent = 0 if derived or observation.failed else self._silent + 1
        # What the first descent gains says nothing about starting again: any start is better than none.
        if trial.origin != "design" and not any(
            d.serial <= 1 and d.waiting == trial.id for d in self.descents
        ):
            arm = "start" if trial.origin == "refined" else "explore"
            self._experience[arm].add(gain, self._seconds(kind) + self._choosing(arm))
            self._experience[ARMS[arm == ARMS[0]]].fade()
            self._vain = 0 if gain > 0 or arm == "start" else self._vain + 1
        if trial.wants == "levels":
            self._swept(trial.id, observation, told)
        value = observation.value if not observation.failed else math.inf
        for descent in self.descents:
            if descent.waiting != trial.id:
                continue
            jump = descents.jump(descent, self.space, self.space.to_unit(observation.vector))
            if descent.target is not None:
                descent.moved(value, jump)
            else:
                descent.told(value, self._in_cube(observation, told, descent.point), jump)
        if told.quadratic is not None and self.best is not None and observation.value <= self.best.value:
            self._set_prior(told.quadratic)

    def _in_cube(self, observation: Observation, told: Told, before: Quadratic | None) -> Quadratic | None:
        """Return what was told as a quadratic model in the unit cube, None without derivatives."""
        if told.quadratic is not None:
            return told.quadratic.in_cube(self.space)
        if told.gradient is None or observation.failed:
            return None
        unit = self.space.to_unit(observation.vector)
        slope = told.gradient * self.space.slopes(observation.vector)
        return secant(unit, observation.value, slope, before)

    def _swept(self, trial_id: int, observation: Observation, told: Told) -> None:
        """Take note of a sweep: a better level at the end of a descent, or one more candidate for a start."""
        self.sweeps = self.sweeps and (told.swept or observation.failed)
        known = None if observation.failed else (observation.value, observation.vector)
        if trial_id in self._checks:
            value, vector = self._checks.pop(trial_id)
            if known is not None and known[0] < value and self._key(known[1]) != self._key(vector):
                self._found.append(known[1])
            return
        self._screens[trial_id] = known
        if self._screening or any(v is None for k, v in self._screens.items() if k in self._pending):
            return
        told_of = [v for v in self._screens.values() if v is not None]
        if told_of:
            self._found.append(min(told_of, key=lambda row: row[0])[1])
        self._screens = {}

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
        if kind == "levels":
            return self._seconds("jacobian")
        other = "value" if kind == "jacobian" else "jacobian"
        total, count = self._cost[other]
        ratio = JACOBIAN_COST if kind == "jacobian" else 1 / JACOBIAN_COST
        return max(total / count, 1e-9) * ratio if count else (JACOBIAN_COST if kind == "jacobian" else 1.0)

    # State

    def _options(self) -> dict[str, Any]:
        own = {n: getattr(self, n) for n in ("gradients", "sweeps", "hops", "fill", "physics_prior")}
        return {**super()._options(), **own}

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space and without callables."""
        return {
            **super().state_dict(),
            "descents": [d.to_dict() for d in self.descents],
            "ends": [e.tolist() for e in self.ends],
            "chain": self.chain.to_dict(),
            "screening": self._screening,
            "screens": [[k, v and [v[0], v[1].tolist()]] for k, v in self._screens.items()],
            "checks": [[k, value, v.tolist()] for k, (value, v) in self._checks.items()],
            "found": [v.tolist() for v in self._found],
            "residuals": self._residuals,
            "nudged": [self._nudged, self._vain],
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
        self.chain = Chain.from_dict(state["chain"])
        self._screening, self._residuals = state["screening"], state["residuals"]
        self._nudged, self._vain = state["nudged"]
        self._screens = {k: (v[0], frozen(v[1])) if v else None for k, v in state["screens"]}
        self._checks = {k: (value, frozen(v)) for k, value, v in state["checks"]}
        self._found = [frozen(v) for v in state["found"]]
        self.descended = state["descended"]
        for kind, rows in state["experience"].items():
            self._experience[kind].rows = deque((g, s) for g, s in rows)
        self._cost = {k: (v[0], v[1]) for k, v in state["cost"].items()}
        self._silent, self._starts = state["silent"], state["starts"]
        if state["prior"]:
            self._set_prior(Quadratic.from_dict(state["prior"]))
