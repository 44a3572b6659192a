"""Least squares as a conversation: one bounded Levenberg–Marquardt descent, whole numbers included.

Each step minimises the damped quadratic model of the last Jacobian. Discrete parameters are relaxed for it,
then rounded: the nearest levels, random roundings, and moves of ±1 and ±2 from where the descent stands,
each with the continuous parameters solved anew for it, ranked by the improvement that the model expects. The
best that is new and allowed is evaluated exactly. Categoricals stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from qhrtem.optimise.least_squares import DAMPING_SHRINK, DAMPING_START, Box, Point, damped_step
from qhrtem.optimise.quadratic import Quadratic, bent
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]

ROUNDINGS = 64  # random roundings of one relaxed solution
PAIRS_MAX = 256  # exchanges of one step between two discrete parameters, at most
ERROR_START = 0.3  # model error as a share of the curvature energy ½δᵀCδ of a step, before anything is known
ERROR_MIN, ERROR_MAX = 0.02, 2.0  # limits of what is learned of it
DAMPING_MIN = 1e-9  # below this the step is Gauss–Newton's
AGE_MIN = 4  # evaluations before a descent can be given up
FAITH = 6.0  # times its last drop, what a descent may still gain
TRUSTED = (
    0.9  # share of the expected drop that a move by value alone must reach for its model to be carried on
)
MISSED = 1e-3  # and share of the value that it may miss what it promised by
LONGEST = 2.0  # of a move that turns out too short
POLISH_ERROR = 0.3  # model error of a discrete move at the end of a descent, share of its curvature energy
POLISH_MOVES = 2  # moves in a row without success, for each discrete parameter, before a descent ends
CRAWL = 5  # evaluations of a descent that must gain `MISSED` together
REFUSALS_MAX = 7  # refused steps in a row after which a descent has stalled


@dataclass(frozen=True)
class Candidate:
    """A point that the quadratic model recommends."""

    unit: Vector  # (d,) unit cube
    expected: float  # value by the model
    error: float  # one standard deviation of it
    travel: float  # curvature energy ½δᵀCδ of the way there, value units

    def gain_below(self, best: float) -> float:
        """Return the expected improvement on a value (Močkus 1975) for a normal error."""
        return expected_improvement(best - self.expected, self.error)


@dataclass(eq=False)
class Descent:
    """Where a descent stands and how far its model can be trusted."""

    point: Quadratic | None = None  # unit cube; None until the Jacobian at the start is told
    damping: float = DAMPING_START
    factor: float = 2.0  # by which the next refusal multiplies the damping
    error: float = ERROR_START
    refusals: int = 0  # in a row
    serial: int = 0  # how many descents its search began before
    age: int = 0  # evaluations told to it
    course: list[float] = field(default_factory=list)  # its value after each of them
    waiting: int | None = None  # trial under evaluation
    expected: float = math.nan  # its value by the model
    travel: float = 0.0  # and the curvature energy of the way to it
    target: Vector | None = None  # where a move tried by its value alone leads, unit cube
    better: Vector | None = None  # where on the way the next Jacobian is worth it, unit cube
    tried: int = 0  # such moves in a row that did not help
    stale: bool = False  # whether it has moved by value alone since its last Jacobian
    promised: float = math.inf  # the last step's drop, or what its model expected if that was more

    def asked(self, trial_id: int, candidate: Candidate | None) -> None:
        """Note which trial the descent waits for; no candidate for its start."""
        self.waiting = trial_id
        if candidate is not None:
            self.expected, self.travel = candidate.expected, candidate.travel

    def told(self, value: float, model: Quadratic | None, jump: Vector | None = None) -> None:
        """Go to a better point, or damp the next step more (Nielsen 1999, equation 2.21).

        model: at the point told, unit cube; a point without one cannot be gone on from and counts as refused.
        jump: (d,) the whole steps on the way there, unit cube. Where they were refused, damping would not
        make them any shorter: the model learns what they cost.
        """
        self.waiting, self.stale = None, False
        self.age += 1
        self.course.append(min([value, *self.course[-1:]]))
        if self.point is None:
            self.point = model
            return
        self.promised = self.point.value - min(value, self.expected)
        drop, predicted = self.point.value - value, self.point.value - self.expected
        if math.isfinite(value) and self.travel > 0:
            miss = min(abs(value - self.expected) / self.travel, ERROR_MAX)
            self.error = max(0.5 * (self.error + miss), ERROR_MIN)
        if model is not None and drop > 0:
            ratio = drop / predicted if predicted > 0 else 1.0
            self.damping *= max(DAMPING_SHRINK, 1 - (2 * min(ratio, 1.5) - 1) ** 3)
            self.damping, self.factor, self.refusals = max(self.damping, DAMPING_MIN), 2.0, 0
            self.point = model
        else:
            self.refusals += 1
            if not self._warned(value - self.expected, jump):
                self.damping, self.factor = self.damping * self.factor, 2 * self.factor
            if model is not None and not math.isfinite(model.least):
                # A gradient that was refused still bends the model.
                self.point = replace(self.point, curvature=bent(self.point, model.vector, model.slope))

    def trying(self, trial_id: int, candidate: Candidate) -> None:
        """Note that a discrete move is under evaluation, without a Jacobian."""
        self.waiting, self.target = trial_id, candidate.unit

    def _warned(self, miss: float, jump: Vector | None) -> bool:
        """Bend the model along whole steps that came out worse than it had said; return whether it was."""
        length = 0.0 if jump is None else float(jump @ jump)
        if length == 0 or not 0 < miss < math.inf or self.point is None:
            return False
        assert jump is not None
        bend = 2 * miss * np.outer(jump, jump) / length**2
        self.point = replace(self.point, curvature=self.point.curvature + bend)
        return True

    def moved(self, value: float, jump: Vector | None = None) -> None:
        """Go where the move leads if it helps; the model is carried along, its slope by its own curvature.

        Where the value falls short of the model's, the parabola through both ends of the move says how much
        of it to take, and the next Jacobian is asked for there.
        """
        assert self.point is not None and self.target is not None
        here, there = self.point, self.target
        step = there - here.vector
        self.waiting, self.target, self.better = None, None, None
        self.age += 1
        self.course.append(min([value, *self.course[-1:]]))
        along, drop = float(here.slope @ step), here.value - value
        bend = value - here.value - along
        expected = float(here(there))
        short = drop < TRUSTED * (here.value - expected) or value - expected > MISSED * abs(value)
        if bend > 0 and along < 0 and short:
            self.better = here.vector + min(-0.5 * along / bend, LONGEST) * step
        if not drop > 0:
            self.tried += 1
            self._warned(value - expected, jump)
            return
        slope = here.slope + here.curvature @ step
        self.point = replace(here, vector=there, value=value, slope=slope)
        self.tried, self.refusals, self.stale = 0, 0, True

    def hopeless(self, goal: float) -> bool:
        """Return whether a descent would have to fall far faster than it just did to come below a goal."""
        if self.point is None or self.age < AGE_MIN:
            return False
        return self.point.value - FAITH * max(self.promised, 0.0) > goal

    @property
    def stalled(self) -> bool:
        """True when no step has been of use for long, or the latest that were together of little."""
        if self.refusals > REFUSALS_MAX:
            return True
        if self.refusals or len(self.course) <= CRAWL:
            return False
        return self.course[-1 - CRAWL] - self.course[-1] < MISSED * abs(self.course[-1])

    def _vectors(self) -> dict[str, Vector | None]:
        return {"target": self.target, "better": self.better}

    def to_dict(self) -> dict[str, Any]:
        """Return the descent in JSON types."""
        expected = None if math.isnan(self.expected) else self.expected
        vectors = {k: None if v is None else v.tolist() for k, v in self._vectors().items()}
        promised = None if math.isinf(self.promised) else self.promised
        plain = {**asdict(self), "expected": expected, "promised": promised, **vectors}
        return {**plain, "point": self.point.to_dict() if self.point else None}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Descent:
        """Return what `to_dict` wrote."""
        point = Quadratic.from_dict(state["point"]) if state["point"] else None
        expected = math.nan if state["expected"] is None else state["expected"]
        vectors = {k: None if state[k] is None else np.array(state[k]) for k in ("target", "better")}
        promised = math.inf if state["promised"] is None else state["promised"]
        return cls(**{**state, "point": point, "expected": expected, "promised": promised, **vectors})


def expected_improvement(lead: float, error: float) -> float:
    """Return E[max(0, lead + error · z)] for a standard normal z."""
    if error <= 0:
        return max(lead, 0.0)
    z = lead / error
    return float(lead * ndtr(z) + error * math.exp(-0.5 * min(z * z, 1400.0)) / math.sqrt(2 * math.pi))


def candidates(descent: Descent, space: SearchSpace, generator: np.random.Generator) -> list[Candidate]:
    """Return where a descent could go next, the largest expected improvement on its own value first."""
    point = descent.point
    assert point is not None
    box, model = _problem(point, space)
    relaxed = point.vector + damped_step(model, box, descent.damping)[0]
    whole = space.is_discrete & space.is_free & ~space.is_categorical
    if not whole.any():
        found = [_candidate(descent, relaxed)]
    else:
        steps = _whole_steps(point.vector, relaxed, whole, space, generator)
        found = [_candidate(descent, u) for u in _completed(point, box, steps, whole, space, descent.damping)]
    return sorted(found, key=lambda c: -c.gain_below(point.value))


def at(descent: Descent, space: SearchSpace, unit: Vector) -> Candidate:
    """Return what the model says of a point of the unit cube, discrete parameters rounded."""
    return _candidate(descent, space.to_unit(space.from_unit(np.clip(unit, 0.0, 1.0))))


def jump(descent: Descent, space: SearchSpace, unit: Vector) -> Vector | None:
    """Return the whole steps (d,) from where a descent stands to a point; None before it stands anywhere."""
    if descent.point is None:
        return None
    ordered = space.is_discrete & ~space.is_categorical
    step: Vector = np.where(ordered, unit - descent.point.vector, 0.0)
    return step


def polish(descent: Descent, ranked: list[Candidate], space: SearchSpace) -> list[Candidate]:
    """Return discrete moves worth an evaluation at the end of a descent, the most promising first.

    A derivative says little about a whole step, so the model is believed less than inside a descent; none
    come back once every discrete parameter has been tried in vain twice over.
    """
    point = descent.point
    assert point is not None
    whole = space.is_discrete & space.is_free & ~space.is_categorical
    if descent.tried >= POLISH_MOVES * whole.sum():
        return []
    doubtful = [replace(c, error=max(descent.error, POLISH_ERROR) * c.travel) for c in ranked]
    far = [c for c in doubtful if np.abs(c.unit - point.vector)[whole].max(initial=0.0) > 1e-9]
    return sorted(far, key=lambda c: -c.gain_below(point.value))


def bottom(descent: Descent, space: SearchSpace) -> Candidate:
    """Return the relaxed minimum of the undamped model inside the cube: what the descent hopes for."""
    assert descent.point is not None
    box, model = _problem(descent.point, space)
    return _candidate(descent, descent.point.vector + damped_step(model, box, DAMPING_MIN)[0])


def _problem(point: Quadratic, space: SearchSpace) -> tuple[Box, Point]:
    """Return the box of level centres and the model as `least_squares` wants them."""
    half = np.where(space.is_discrete, 0.5 / np.maximum(space.levels, 1), 0.0)
    held = ~space.is_free | space.is_categorical
    lower, upper = np.where(held, point.vector, half), np.where(held, point.vector, 1.0 - half)
    box = Box.of(len(half), lower, upper)
    return box, Point(
        np.clip(point.vector, lower, upper), point.value, point.value, point.slope, point.curvature
    )


def _candidate(descent: Descent, unit: Vector) -> Candidate:
    assert descent.point is not None
    step = unit - descent.point.vector
    travel = 0.5 * float(step @ descent.point.curvature @ step)
    expected = max(float(descent.point(unit)), descent.point.least)
    return Candidate(unit, expected, descent.error * travel, travel)


def _whole_steps(
    here: Vector,
    relaxed: Vector,
    whole: NDArray[np.bool_],
    space: SearchSpace,
    generator: np.random.Generator,
) -> Vector:
    """Return distinct steps (k, discrete), in levels: roundings of the relaxed solution and small moves."""
    n = space.levels[whole]
    at = np.floor(here[whole] * n)
    target = relaxed[whole] * n - 0.5
    eye = np.eye(len(n))
    rows, columns = np.nonzero(~np.eye(len(n), dtype=bool))
    if len(rows) > PAIRS_MAX:
        some = generator.choice(len(rows), PAIRS_MAX, replace=False)
        rows, columns = rows[some], columns[some]
    draws = np.floor(target + generator.random((ROUNDINGS, len(n))))
    moves = np.concatenate([0 * eye[:1], eye, -eye, 2 * eye, -2 * eye, eye[rows] - eye[columns]])
    levels = np.concatenate([np.floor(target + 0.5)[None], draws, at + moves])
    steps: Vector = np.unique(np.clip(levels, 0, n - 1) - at, axis=0)
    return steps


def _completed(
    point: Quadratic,
    box: Box,
    steps: Vector,
    whole: NDArray[np.bool_],
    space: SearchSpace,
    damping: float,
) -> Vector:
    """Return points (k, d): discrete steps (k, n) with the continuous ones that go with them."""
    moved = np.tile(point.vector, (len(steps), 1))
    moved[:, whole] += steps / space.levels[whole]
    smooth = np.flatnonzero(~whole & (box.lower < box.upper))
    if smooth.size:
        block = point.curvature[np.ix_(smooth, smooth)]
        diagonal = np.where(np.diag(block) > 0, np.diag(block), 1.0)
        pull = point.slope[smooth] + (moved - point.vector)[:, whole] @ point.curvature[np.ix_(whole, smooth)]
        step = np.linalg.lstsq(block + damping * np.diag(diagonal), -pull.T, rcond=None)[0].T
        moved[:, smooth] = np.clip(point.vector[smooth] + step, box.lower[smooth], box.upper[smooth])
    return moved
