"""Trust-region Bayesian optimisation with ask and tell.

A search runs through *regions* one after another. Each begins with a Sobol design, puts a trust region
around the best point found since it began, and proposes batches from a local Gaussian process until the
region collapses; the basin is then remembered and the next region begins elsewhere.

Everything random in the k-th ask comes from a generator seeded by (seed, k), and everything learned is plain
numbers, so a search restored from its state goes on exactly as the uninterrupted one would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import PlanError
from qhrtem.optimise import candidates, trust_region
from qhrtem.optimise.archive import SAME, Archive, frozen, gains, spread
from qhrtem.optimise.hyperparameters import Hyperparameters
from qhrtem.optimise.protocol import Observation, Status, Trial
from qhrtem.optimise.space import SearchSpace
from qhrtem.optimise.trust_region import TrustRegion

MODEL_POINTS = 300  # most points a model learns from
MODEL_POINTS_MIN = 3  # fewer teach it nothing
COLD_STEPS, WARM_STEPS = 50, 8  # hyperparameter iterations for the first model of a region, and after
ACQUISITIONS = ("thompson", "qlogei", "ucb")  # the names that acquisition.py implements
KNOWN_BASIN_LENGTH = 0.5**4  # a region this small that sits in a settled basin is given up
ENUMERATE_MAX = 20_000  # integer spaces up to this size are listed when random draws find nothing new


@dataclass(frozen=True)
class Settings:
    """How a search behaves; kept with its state."""

    seed: int
    batch: int = 8  # trials an ask returns unless told otherwise
    acquisition: str = "thompson"  # thompson, qlogei or ucb
    design: int = 0  # Sobol points at the start of each region; 0 for twice the dimension, at least 8
    tolerance: float = 0.0  # smallest difference of the objective that means anything
    length: float = trust_region.LENGTH_START  # starting side of a region, unit cube


@dataclass
class _Batch:
    """What is known of one ask until all its trials are back."""

    region: int  # restart count when it was asked for
    waiting: set[int]  # trials not yet told
    chosen: int  # how many of its trials the model chose
    improved: bool = False


class TrustRegionSearch:
    """Minimise over a space by asking for trials and telling their values."""

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        batch: int = 8,
        *,
        acquisition: str = "thompson",
        design: int | None = None,
        tolerance: float = 0.0,
        length: float = trust_region.LENGTH_START,
    ) -> None:
        """Prepare a search; nothing is evaluated or drawn yet.

        tolerance: smallest meaningful difference of the objective, its units. length: starting side of a
        region as a share of each parameter's range; small values trust the points given by `add`.
        Raises PlanError for a batch below 1 or an unknown acquisition.
        """
        if batch < 1:
            raise PlanError(f"batch must be at least 1 trial, got {batch}")
        if acquisition not in ACQUISITIONS:
            raise PlanError(f"acquisition must be one of {', '.join(ACQUISITIONS)}, got {acquisition!r}")
        size = max(8, 2 * space.dimension) if design is None else design
        self.space = space
        self.settings = Settings(int(seed), batch, acquisition, size, float(tolerance), float(length))
        self.archive = Archive(space)
        self.region: TrustRegion | None = None  # None while a design is under way
        self.basins: list[Observation] = []  # best points of the regions that collapsed
        self.rejected: Counter[str] = Counter()  # candidates each rule refused just before evaluation
        self.duplicates = 0  # candidates passed over because they had been proposed before
        self._pending: dict[int, Trial] = {}
        self._batches: list[_Batch] = []
        self._design: list[NDArray[np.float64]] = []  # vectors of the current design not yet asked for
        self._designed = -1  # region whose design was drawn last
        self._seen: set[bytes] = set()
        self._moved: list[NDArray[np.float64]] = []  # vectors asked for that came back as other points
        self._hyper: Hyperparameters | None = None
        self._spread = 0.0  # standard deviation of the values the last model learned from
        self._asks, self._next_id, self._region_index = 0, 0, 0

    @property
    def best(self) -> Observation | None:
        """The lowest value so far, None before the first finite one."""
        return self.archive.best()

    @property
    def pending(self) -> tuple[Trial, ...]:
        """Trials asked for and not yet told."""
        return tuple(self._pending.values())

    @property
    def restarts(self) -> int:
        """How many regions have collapsed or been abandoned."""
        return self._region_index

    def ask(self, q: int | None = None) -> tuple[Trial, ...]:
        """Return up to q new trials (the batch size by default), none proposed before.

        Fewer come back only where a finite space runs out of untried points. Raises PlanError when the rules
        reject every vector.
        """
        wanted = self.settings.batch if q is None else q
        generator = np.random.default_rng([self.settings.seed, self._asks])
        self._asks += 1
        self._prepare(generator)
        vectors = [(v, "design") for v in self._from_design(wanted)]
        if len(vectors) < wanted:
            vectors += [(v, "model") for v in self._from_model(wanted - len(vectors), generator)]
        if len(vectors) < wanted:
            vectors += [(v, "design") for v in self._untried(wanted - len(vectors), generator)]
        trials = tuple(Trial(self._take_id(), frozen(v), origin) for v, origin in vectors)  # type: ignore[arg-type]
        self._pending.update((t.id, t) for t in trials)
        if trials:
            chosen = sum(t.origin == "model" for t in trials)
            self._batches.append(_Batch(self._region_index, {t.id for t in trials}, chosen))
        return trials

    def tell(
        self, trial_id: int, value: float, status: Status = "done", vector: ArrayLike | None = None
    ) -> None:
        """Record the value of a pending trial; a value that is not finite counts as failed.

        vector: (d,) where the evaluation moved the point (a local refinement, say); the one asked otherwise.
        Raises KeyError for a trial that is not pending.
        """
        if trial_id not in self._pending:
            raise KeyError(f"trial {trial_id} is not pending: it was never asked for or was told before")
        trial = self._pending.pop(trial_id)
        batch = next(b for b in self._batches if trial_id in b.waiting)
        worth = float(value) if status == "done" and np.isfinite(value) else np.nan
        where = trial.vector if vector is None else self._checked(vector)
        if vector is not None:
            self._moved.append(trial.vector)
        better = self._record(Observation(trial_id, where, worth, trial.origin), batch.region)
        batch.improved |= better
        batch.waiting.discard(trial_id)
        if not batch.waiting:
            self._batches.remove(batch)
            self._finish(batch)

    def add(self, vector: ArrayLike, value: float) -> Observation:
        """Record a point (d,) that was not asked for, such as a prior guess or a refined end point."""
        worth = float(value) if np.isfinite(value) else np.nan
        observation = Observation(self._take_id(), self._checked(vector), worth, "added")
        self._record(observation, self._region_index)
        return observation

    def restart(self) -> None:
        """Remember the basin of the current region and begin the next one elsewhere."""
        settled = self.archive.best(self._region_index)
        if settled is not None:
            self.basins.append(settled)
        self._region_index += 1
        self.region, self._hyper, self._design = None, None, []

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _checked(self, vector: ArrayLike) -> NDArray[np.float64]:
        """Return a told vector, snapped and frozen; raise PlanError for a wrong shape or a number missing."""
        x = np.asarray(vector, dtype=np.float64)
        if x.shape != (self.space.dimension,) or not np.isfinite(x).all():
            raise PlanError(f"a vector must hold {self.space.dimension} finite numbers, got {x.tolist()}")
        return frozen(self.space.snap(x))

    def _record(self, observation: Observation, region: int) -> bool:
        """Store an observation, the new centre if it is the region's best; return whether the gain counts."""
        before = self.archive.best(region)
        self.archive.add(observation, region)
        self._seen.add(self._key(observation.vector))
        if observation.failed or (before is not None and observation.value >= before.value):
            return False
        if self.region is not None and region == self._region_index:
            self.region = replace(self.region, centre=self._unit_tuple(observation))
        return before is None or trust_region.gain_counts(
            observation.value, before.value, self._spread, self.settings.tolerance
        )

    def _finish(self, batch: _Batch) -> None:
        """Let the region grow, shrink or collapse after a whole batch."""
        if self.region is None or batch.region != self._region_index or not batch.chosen:
            return
        self.region = trust_region.update(self.region, batch.improved, batch.chosen)
        if self.region.collapsed or self._in_known_basin(self.region):
            self.restart()

    def _in_known_basin(self, region: TrustRegion) -> bool:
        """Return whether a small region has been drawn into a basin that an earlier one settled."""
        if region.length > KNOWN_BASIN_LENGTH:
            return False
        here = np.asarray(region.centre)
        apart = [np.abs(self.space.to_unit(b.vector) - here) for b in self.basins]
        smooth = ~self.space.is_integer
        return any((a[smooth] <= region.length / 2).all() and (a[~smooth] <= SAME).all() for a in apart)

    def _unit_tuple(self, observation: Observation) -> tuple[float, ...]:
        return tuple(self.space.to_unit(observation.vector).tolist())

    def _prepare(self, generator: np.random.Generator) -> None:
        """Draw a region's design when it begins, and place its box when the design is spent."""
        if self._designed < self._region_index:
            self._designed = self._region_index
            self._design = self._sobol(self.settings.design, generator)
        if self.region is None and not self._design:
            best = self.archive.best(self._region_index)
            if best is not None:
                levels = tuple(int(n) for n in self.space.levels)
                self.region = trust_region.start(self._unit_tuple(best), levels, self.settings.length)

    def _from_design(self, q: int) -> list[NDArray[np.float64]]:
        """Return up to q untried vectors of the current design."""
        taken: list[NDArray[np.float64]] = []
        while self._design and len(taken) < q:
            vector = self._design.pop(0)
            if self._claim(vector):
                taken.append(vector)
        return taken

    def _from_model(self, q: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
        """Return up to q untried vectors that the acquisition prefers in the region, if there is one."""
        if self.region is None:
            return []
        scale = np.asarray(self._hyper.lengthscale) if self._hyper else np.ones(self.space.dimension)
        points, values = self.archive.near(np.asarray(self.region.centre), MODEL_POINTS, scale)
        if len(points) < MODEL_POINTS_MIN:
            return self._blind(q, generator)
        from qhrtem.optimise import acquisition, surrogate  # here because they import BoTorch

        self._spread = spread(values)
        steps = WARM_STEPS if self._hyper else COLD_STEPS
        try:
            model = surrogate.fit(points, gains(values), self._hyper, steps)
        except ArithmeticError:
            return self._blind(q, generator)
        self._hyper = model.hyperparameters
        weights = np.asarray(self._hyper.lengthscale)
        asked = np.array([t.vector for t in self.pending]).reshape(-1, self.space.dimension)
        busy = self.space.to_unit(asked)
        picked: list[NDArray[np.float64]] = []
        for single in (False, True):
            if len(picked) < q:
                pool = candidates.draw(self.region, weights, self.space, generator, single=single)
                name, more = self.settings.acquisition, q - len(picked)
                rows = acquisition.choose(name, model, pool, more, busy, generator, self._accept)
                picked += [self.space.from_unit(pool[i]) for i in rows]
        return picked

    def _blind(self, q: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
        """Return up to q untried vectors drawn at random from the region, for want of a model."""
        if self.region is None:
            return []
        pools = (candidates.draw(self.region, None, self.space, generator, single=s) for s in (False, True))
        return [self.space.from_unit(u) for u in islice(filter(self._accept, chain.from_iterable(pools)), q)]

    def _sobol(self, n: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
        """Return up to n Sobol vectors; PlanError only when no allowed point is known either."""
        try:
            return list(self.space.sobol(n, generator, self.rejected))
        except PlanError:
            known = [o for o in self.archive if self.space.refused_by(o.vector) is None]
            if not known:
                raise
            return []  # the allowed part is too small to be hit by chance, but the region may find it

    def _untried(self, q: int, generator: np.random.Generator) -> list[NDArray[np.float64]]:
        """Return up to q vectors from anywhere that the rules allow and that were never proposed."""
        drawn = self._sobol(4 * q + 16, generator)
        fresh = [v for v in drawn if self._key(v) not in self._seen]
        size = self.space.size
        if len(fresh) < q and size is not None and size <= ENUMERATE_MAX:
            everything = self.space.all_vectors()
            fresh = [v for v in everything if self._key(v) not in self._seen and not self.space.refused_by(v)]
            fresh = [fresh[i] for i in generator.permutation(len(fresh))]
        return [v for v in fresh[:q] if self._claim(v)]

    def _accept(self, unit: NDArray[np.float64]) -> bool:
        """Return whether a candidate of the unit cube may be evaluated, and claim it if so."""
        vector = self.space.from_unit(unit)
        if self._key(vector) in self._seen:
            self.duplicates += 1
            return False
        refusing = self.space.refused_by(vector)
        if refusing is not None:
            self.rejected[refusing] += 1
            return False
        return self._claim(vector)

    def _claim(self, vector: NDArray[np.float64]) -> bool:
        """Mark a vector as proposed; return False when it was before."""
        key = self._key(vector)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def _key(self, vector: NDArray[np.float64]) -> bytes:
        """Return what makes two vectors the same point."""
        return np.round(self.space.to_unit(vector) / SAME).astype(np.int64).tobytes()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space."""
        return {
            "version": 1,
            "names": list(self.space.names),
            "settings": asdict(self.settings),
            "archive": self.archive.to_list(),
            "region": asdict(self.region) if self.region else None,
            "basins": [b.id for b in self.basins],
            "rejected": dict(self.rejected),
            "duplicates": self.duplicates,
            "pending": [{"id": t.id, "vector": t.vector.tolist(), "origin": t.origin} for t in self.pending],
            "batches": [{**asdict(b), "waiting": sorted(b.waiting)} for b in self._batches],
            "design": [v.tolist() for v in self._design],
            "designed": self._designed,
            "moved": [v.tolist() for v in self._moved],
            "hyperparameters": self._hyper.to_dict() if self._hyper else None,
            "spread": self._spread,
            "counters": [self._asks, self._next_id, self._region_index],
        }

    @classmethod
    def from_state_dict(cls, space: SearchSpace, state: Mapping[str, Any]) -> TrustRegionSearch:
        """Return the search that wrote a state, over the same space; raise PlanError for another one."""
        if tuple(state["names"]) != space.names:
            raise PlanError(
                f"saved search has parameters {', '.join(state['names'])}, but the space has "
                f"{', '.join(space.names)}; start a new run or restore the plan"
            )
        self = cls(space, **state["settings"])
        self.archive.extend(state["archive"])
        region = state["region"]
        self.region = TrustRegion(**{**region, "centre": tuple(region["centre"])}) if region else None
        by_id = {o.id: o for o in self.archive}
        self.basins = [by_id[i] for i in state["basins"]]
        self.rejected = Counter(state["rejected"])
        self.duplicates = state["duplicates"]
        self._pending = {t["id"]: Trial(t["id"], frozen(t["vector"]), t["origin"]) for t in state["pending"]}
        self._batches = [_Batch(**{**b, "waiting": set(b["waiting"])}) for b in state["batches"]]
        self._design = [np.array(v) for v in state["design"]]
        self._designed = state["designed"]
        hyper = state["hyperparameters"]
        self._hyper = Hyperparameters.from_dict(hyper) if hyper else None
        self._spread = state["spread"]
        self._asks, self._next_id, self._region_index = state["counters"]
        self._moved = [frozen(v) for v in state["moved"]]
        known = [o.vector for o in self.archive] + [t.vector for t in self.pending] + self._moved
        self._seen = {self._key(v) for v in known}
        return self
