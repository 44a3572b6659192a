"""The bookkeeping that every optimiser shares: trials, archive, rules, duplicates, resume.

A method derives from `Conversation` and says what to propose and what to learn. Everything random in the k-th
ask comes from a generator seeded by (seed, k).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import PlanError
from qhrtem.optimise.archive import SAME, Archive, frozen
from qhrtem.optimise.protocol import Observation, Origin, Status, Trial, Wants
from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]
ENUMERATE_MAX = 20_000  # finite spaces up to this size are listed when random draws find nothing new
CONSISTENT = 1e-3  # most that value and residual·residual may differ, relative: single precision and sums


class Proposal(NamedTuple):
    """A point to become a trial."""

    vector: Vector  # (d,) natural units, claimed
    origin: Origin
    wants: Wants = "value"


@dataclass(frozen=True)
class Told:
    """What came back with a trial besides the value."""

    quadratic: Quadratic | None = None  # from residual and Jacobian
    gradient: Vector | None = None  # (d,) of the value, natural units
    seconds: float | None = None
    swept: bool = False  # whether the values of all levels came back
    residuals: int = 0  # length of the residual, 0 without one


class Conversation:
    """Ask and tell over a space, without a method."""

    BATCH: ClassVar[int] = 8  # trials an ask returns unless told otherwise

    def __init__(
        self, space: SearchSpace, seed: int = 0, batch: int | None = None, *, rules: bool = True
    ) -> None:
        """Prepare; nothing is evaluated or drawn yet.

        rules: False ignores the space's rules when proposing and counts how often they were broken.
        Raises PlanError for a batch below 1.
        """
        size = self.BATCH if batch is None else batch
        if size < 1:
            raise PlanError(f"batch must be at least 1 trial, got {size}")
        self.space = space
        self.allowed = space if rules else replace(space, rules=())  # what proposals are tested against
        self.seed, self.batch, self.rules = int(seed), int(size), bool(rules)
        self.archive = Archive(space)
        self.rejected: Counter[str] = Counter()  # candidates each rule refused just before evaluation
        self.violations: Counter[str] = Counter()  # trials that a rule would have refused, with rules=False
        self.duplicates = 0  # candidates passed over because they had been proposed before
        self._pending: dict[int, Trial] = {}
        self._seen: set[bytes] = set()
        self._moved: list[Vector] = []  # vectors asked for that came back as other points
        self._asks, self._next_id = 0, 0

    @property
    def best(self) -> Observation | None:
        """The lowest value so far, None before the first finite one."""
        return self.archive.best()

    @property
    def pending(self) -> tuple[Trial, ...]:
        """Trials asked for and not yet told."""
        return tuple(self._pending.values())

    def ask(self, q: int | None = None) -> tuple[Trial, ...]:
        """Return up to q new trials (the batch size by default); see `protocol.Optimiser.ask`.

        Raises PlanError when the rules reject every vector.
        """
        wanted = self.batch if q is None else q
        generator = np.random.default_rng([self.seed, self._asks])
        self._asks += 1
        proposals = self._propose(wanted, generator) if wanted > 0 else []
        if not proposals and wanted > 0 and not self._pending:
            proposals = [Proposal(v, "design") for v in self._untried(wanted, generator)]
        trials = tuple(Trial(self._take_id(), frozen(p.vector), p.origin, p.wants) for p in proposals)
        self._pending.update((t.id, t) for t in trials)
        if not self.rules:
            broken = (self.space.refused_by(t.vector) for t in trials)
            self.violations.update(name for name in broken if name is not None)
        self._asked(trials)
        return trials

    def tell(
        self,
        trial_id: int,
        value: float,
        status: Status = "done",
        vector: ArrayLike | None = None,
        gradient: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        jacobian: ArrayLike | None = None,
        seconds: float | None = None,
        levels: ArrayLike | None = None,
    ) -> None:
        """Record the outcome of a pending trial; a value that is not finite counts as failed.

        For the arguments see `protocol.Optimiser.tell`. Derivatives that are not finite are left out of
        account. Raises KeyError for a trial that is not pending, PlanError for shapes that do not fit or a
        value that is not the residual's square.
        """
        if trial_id not in self._pending:
            raise KeyError(f"trial {trial_id} is not pending: it was never asked for or was told before")
        trial = self._pending[trial_id]
        where = trial.vector if vector is None else self._checked(vector)
        worth = float(value) if status == "done" and np.isfinite(value) else np.nan
        told = Told(seconds=seconds)
        if np.isfinite(worth):
            count = 0 if residual is None else np.size(residual)
            known = self._derivatives(where, worth, gradient, residual, jacobian)
            told = Told(*known, seconds, residuals=count)
        if levels is not None and status == "done":
            best, lowest = self._best_level(where, levels)
            told = replace(told, swept=True)
            if lowest < worth or np.isnan(worth):
                told = replace(told, quadratic=None, gradient=None)
                where, worth = best, lowest
        del self._pending[trial_id]
        if self._key(where) != self._key(trial.vector):
            self._moved.append(trial.vector)
        self._seen.add(self._key(where))
        self._heard(trial, Observation(trial_id, where, worth, trial.origin), told)

    def _best_level(self, where: Vector, levels: ArrayLike) -> tuple[Vector, float]:
        """Return the vector of the best level that the rules allow and its value, nan without any."""
        values = np.asarray(levels, dtype=np.float64).ravel()
        i = self.space.swept
        known = np.empty(0) if i is None else self.space.parameters[i].level_values
        if i is None or len(values) != len(known):
            raise PlanError(
                f"levels must hold a value for each of the {len(known)} levels of the swept parameter, got "
                f"{len(values)}; mark the parameter as swept or leave them out"
            )
        for k in np.argsort(np.where(np.isfinite(values), values, np.inf)):
            vector = np.array(where)
            vector[i] = known[k]
            if np.isfinite(values[k]) and self.allowed.refused_by(vector) is None:
                return frozen(vector), float(values[k])
        return where, float("nan")

    def add(self, vector: ArrayLike, value: float) -> Observation:
        """Record a point (d,) that was not asked for, such as a prior guess or a refined end point."""
        worth = float(value) if np.isfinite(value) else np.nan
        observation = Observation(self._take_id(), self._checked(vector), worth, "added")
        self._seen.add(self._key(observation.vector))
        self._heard(None, observation, Told())
        return observation

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        """Return up to q claimed points; none leads to untried points at random unless trials are pending."""
        raise NotImplementedError

    def _asked(self, trials: tuple[Trial, ...]) -> None:
        """Take note of the trials that an ask returned."""

    def _heard(self, trial: Trial | None, observation: Observation, told: Told) -> None:
        """Record an observation; trial is None for a point that was not asked for."""
        self.archive.add(observation, 0)

    def _derivatives(
        self,
        where: Vector,
        value: float,
        gradient: ArrayLike | None,
        residual: ArrayLike | None,
        jacobian: ArrayLike | None,
    ) -> tuple[Quadratic | None, Vector | None]:
        """Return told derivatives as a quadratic model and a gradient, None for what is missing."""
        d = self.space.dimension
        slope = None if gradient is None else np.asarray(gradient, dtype=np.float64)
        if slope is not None and slope.shape != (d,):
            raise PlanError(f"gradient must have shape ({d},), got {slope.shape}")
        if slope is not None and not np.isfinite(slope).all():
            slope = None
        if residual is None:
            return None, slope
        r = np.asarray(residual, dtype=np.float64).ravel()
        if not np.isfinite(r).all():
            return None, slope
        square = float(r @ r)
        if abs(square - value) > CONSISTENT * max(abs(value), 1e-12):
            raise PlanError(
                f"the value must be residual · residual, got {value:g} and {square:g}; tell χ² = r·r "
                "without a factor ½ or a division by the number of pixels, or scale the residual"
            )
        if jacobian is None:
            return None, slope
        j = np.asarray(jacobian, dtype=np.float64)
        if j.shape != (r.size, d):
            raise PlanError(f"jacobian must have shape {(r.size, d)}, a row a residual, got {j.shape}")
        model = Quadratic.of(where, r, j)
        finite = np.isfinite(model.curvature).all() and np.isfinite(model.slope).all()
        return (model if finite else None), slope

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _checked(self, vector: ArrayLike) -> Vector:
        """Return a told vector, snapped and frozen; raise PlanError for a wrong shape or a number missing."""
        x = np.asarray(vector, dtype=np.float64)
        if x.shape != (self.space.dimension,) or not np.isfinite(x).all():
            raise PlanError(f"a vector must hold {self.space.dimension} finite numbers, got {x.tolist()}")
        return frozen(self.space.snap(x))

    def _sobol(self, n: int, generator: np.random.Generator) -> list[Vector]:
        """Return up to n Sobol vectors; PlanError only when no allowed point is known either."""
        try:
            return list(self.allowed.sobol(n, generator, self.rejected))
        except PlanError:
            known = [o for o in self.archive if self.allowed.refused_by(o.vector) is None]
            if not known:
                raise
            return []  # the allowed part is too small to be hit by chance, but a region may find it

    def _untried(self, q: int, generator: np.random.Generator) -> list[Vector]:
        """Return up to q vectors from anywhere that the rules allow and that were never proposed."""
        drawn = self._sobol(4 * q + 16, generator)
        fresh = [v for v in drawn if self._key(v) not in self._seen]
        size = self.space.size
        if len(fresh) < q and size is not None and size <= ENUMERATE_MAX:
            everything = self.space.all_vectors()
            keys = (self._key(v) for v in everything)
            untried = [v for v, key in zip(everything, keys, strict=True) if key not in self._seen]
            fresh = [v for v in untried if not self.allowed.refused_by(v)]
            fresh = [fresh[i] for i in generator.permutation(len(fresh))]
        return [v for v in fresh[:q] if self._claim(v)]

    def _admissible(self, vector: Vector) -> bool:
        """Return whether a snapped vector is new and allowed, counting it where it is not."""
        if self._key(vector) in self._seen:
            self.duplicates += 1
            return False
        refusing = self.allowed.refused_by(vector)
        if refusing is not None:
            self.rejected[refusing] += 1
            return False
        return True

    def _accept(self, unit: Vector) -> bool:
        """Return whether a candidate of the unit cube may be evaluated, and claim it if so."""
        vector = self.space.from_unit(unit)
        return self._admissible(vector) and self._claim(vector)

    def _claim(self, vector: Vector) -> bool:
        """Mark a vector as proposed; return False when it was before."""
        key = self._key(vector)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _key(self, vector: Vector) -> bytes:
        """Return what makes two vectors the same point."""
        return np.round(self.space.to_unit(vector) / SAME).astype(np.int64).tobytes()

    def _options(self) -> dict[str, Any]:
        """Return the arguments that build the same optimiser over a space."""
        return {"seed": self.seed, "batch": self.batch, "rules": self.rules}

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space."""
        return {
            "version": 2,
            "names": list(self.space.names),
            "settings": self._options(),
            "archive": self.archive.to_list(),
            "rejected": dict(self.rejected),
            "violations": dict(self.violations),
            "duplicates": self.duplicates,
            "pending": [{**vars(t), "vector": t.vector.tolist()} for t in self.pending],
            "moved": [v.tolist() for v in self._moved],
            "claimed": self._claims(),
            "counters": [self._asks, self._next_id],
        }

    def _claims(self) -> list[list[float]]:
        """Return vectors claimed that are neither told nor pending."""
        return []

    @classmethod
    def from_state_dict(cls, space: SearchSpace, state: Mapping[str, Any]) -> Self:
        """Return the search that wrote a state, over the same space; raise PlanError for another one."""
        if tuple(state["names"]) != space.names:
            raise PlanError(
                f"saved search has parameters {', '.join(state['names'])}, but the space has "
                f"{', '.join(space.names)}; start a new run or restore the plan"
            )
        self = cls(space, **state["settings"])
        self._restore(state)
        return self

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` wrote."""
        self.archive.extend(state["archive"])
        self.rejected, self.violations = Counter(state["rejected"]), Counter(state["violations"])
        self.duplicates = state["duplicates"]
        self._pending = {t["id"]: Trial(**{**t, "vector": frozen(t["vector"])}) for t in state["pending"]}
        self._moved = [frozen(v) for v in state["moved"]]
        self._asks, self._next_id = state["counters"]
        claimed = [np.array(v) for v in state["claimed"]]
        known = [*(o.vector for o in self.archive), *(t.vector for t in self.pending), *self._moved, *claimed]
        self._seen = {self._key(v) for v in known}
