"""Trust-region Bayesian optimisation with ask and tell.

A search runs through *regions*. Each begins with a Sobol design, puts a trust region around the best point
found since it began, and proposes batches from a local Gaussian process until the region collapses; the basin
is then remembered and the next region begins elsewhere. Several regions may be at work at once, sharing the
archive; the sample paths of their models then compete for each trial (Eriksson et al. 2019, section 3).

Everything random in the k-th ask comes from a generator seeded by (seed, k), and everything learned is plain
numbers, so a search restored from its state goes on exactly as the uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import PlanError
from qhrtem.optimise import candidates, targets, trust_region
from qhrtem.optimise.archive import SAME
from qhrtem.optimise.conversation import Conversation, Proposal, Told
from qhrtem.optimise.place import Batch, Place
from qhrtem.optimise.protocol import Observation, Trial
from qhrtem.optimise.space import SearchSpace
from qhrtem.optimise.trust_region import TrustRegion

if TYPE_CHECKING:
    from qhrtem.optimise.surrogate import Surrogate

Vector = NDArray[np.float64]
PriorMean = Callable[[Vector], Vector]  # natural vectors (n, d) → expected values (n,)

RULES = trust_region.RULES
MODEL_POINTS = 300  # most points a model learns from
MODEL_POINTS_MIN = 3  # fewer teach it nothing
COLD_STEPS, WARM_STEPS = 50, 8  # hyperparameter iterations for the first model of a region, and after
FROM_CANDIDATES = ("thompson", "qlogei", "ucb")  # the names that acquisition.py implements
OPTIMISED = ("rounding", "reparameterisation", "alternating")  # and mixed.py
ACQUISITIONS = FROM_CANDIDATES + OPTIMISED
KNOWN_BASIN_LENGTH = 0.5**4  # a region this small that sits in a settled basin is given up
CROWDED = 1e-3  # share of the region's side within which steps of local methods teach a model nothing


@dataclass(frozen=True)
class Settings:
    """How a search behaves; kept with its state."""

    seed: int
    batch: int = 8  # trials an ask returns unless told otherwise
    rules: bool = True  # False: proposals ignore the space's rules
    acquisition: str = "thompson"  # one of ACQUISITIONS
    design: int = 0  # Sobol points at the start of each region; 0 for twice the dimension, at least 8
    tolerance: float = 0.0  # smallest difference of the objective that means anything
    length: float = trust_region.LENGTH_START  # starting side of a region, unit cube
    regions: int = 1  # how many are at work at once
    rule: str = "own"  # one of trust_region.RULES
    transform: str = "identity"  # one of targets.TRANSFORMS
    scaled_priors: bool = True  # length-scale priors follow dimension and region
    noise: float | None = None  # variance of the standardised gain; None to learn it
    bernoulli: bool = False  # integer candidates go up or down at random instead of to the nearest


class TrustRegionSearch(Conversation):
    """Minimise over a space by asking for trials and telling their values."""

    KNOWN_LENGTH: ClassVar[float] = KNOWN_BASIN_LENGTH

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        batch: int | None = None,
        *,
        acquisition: str = "thompson",
        design: int | None = None,
        tolerance: float = 0.0,
        length: float | None = None,
        regions: int = 1,
        rule: str = "own",
        transform: str = "identity",
        scaled_priors: bool = True,
        noise: float | None = None,
        bernoulli: bool = False,
        rules: bool = True,
        trust_region: bool = True,
        prior_mean: PriorMean | None = None,
    ) -> None:
        """Prepare a search; nothing is evaluated or drawn yet.

        tolerance: smallest meaningful difference of the objective, its units. length: starting side of a
        region as a share of each parameter's range; small values trust the points given by `add`.
        trust_region: False searches the whole cube all the time. prior_mean: what physics expects, natural
        vectors (n, d) to values (n,); no part of the saved state. For the rest see `Settings`.
        Raises PlanError for a batch or regions below 1, or an unknown acquisition, rule or transform.
        """
        super().__init__(space, seed, batch, rules=rules)
        if acquisition not in ACQUISITIONS:
            raise PlanError(f"acquisition must be one of {', '.join(ACQUISITIONS)}, got {acquisition!r}")
        if rule not in RULES:
            raise PlanError(f"trust-region rule must be one of {', '.join(RULES)}, got {rule!r}")
        if regions < 1 or (regions > 1 and acquisition != "thompson"):
            raise PlanError(
                f"regions must be at least 1, and 1 unless acquisition is thompson, got {regions} with "
                f"{acquisition}"
            )
        name = rule if trust_region else "none"
        self.settings = Settings(
            seed=self.seed,
            batch=self.batch,
            rules=self.rules,
            acquisition=acquisition,
            design=max(8, 2 * space.dimension) if design is None else design,
            tolerance=float(tolerance),
            length=RULES[name].start if length is None else float(length),
            regions=int(regions),
            rule=name,
            transform=targets.checked(transform),
            scaled_priors=scaled_priors,
            noise=noise,
            bernoulli=bernoulli,
        )
        self.prior_mean = prior_mean
        self.basins: list[Observation] = []  # best points of the regions that collapsed
        self.places = [Place(i) for i in range(regions)]
        self._batches: list[Batch] = []
        self._belongs: dict[int, int] = {}  # pending trial → index of its place

    @property
    def region(self) -> TrustRegion | None:
        """The first region at work, None while its design is under way."""
        return self.places[0].region

    @property
    def restarts(self) -> int:
        """How many regions have collapsed or been abandoned."""
        return max(p.index for p in self.places) + 1 - len(self.places)

    @property
    def rule(self) -> trust_region.Rule:
        """The constants by which regions grow and shrink."""
        return RULES[self.settings.rule]

    def restart(self, place: Place | None = None) -> None:
        """Remember the basin of a region, the first by default, and begin the next one elsewhere."""
        old = self.places[0] if place is None else place
        settled = self.archive.best(old.index)
        if settled is not None:
            self.basins.append(settled)
        fresh = Place(max(p.index for p in self.places) + 1)
        self.places[self.places.index(old)] = fresh

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        chosen: list[tuple[Vector, str, int]] = []
        for place in self.places:
            self._prepare(place, generator)
            chosen += [(v, "design", place.index) for v in self._from_design(place, q - len(chosen))]
        if len(chosen) < q:
            taken = np.array([v for v, _, _ in chosen]).reshape(-1, self.space.dimension)
            found = self._from_models(q - len(chosen), generator, taken)
            chosen += [(v, "model", index) for v, index in found]
        if len(chosen) < q:
            home = self.places[0].index
            chosen += [(v, "design", home) for v in self._untried(q - len(chosen), generator)]
        for k, (_, _, index) in enumerate(chosen):
            self._belongs[self._next_id + k] = index
        return [Proposal(v, origin) for v, origin, _ in chosen]  # type: ignore[arg-type]

    def _asked(self, trials: tuple[Trial, ...]) -> None:
        for index in dict.fromkeys(self._belongs.get(t.id, -1) for t in trials):
            members = [t for t in trials if self._belongs.get(t.id, -1) == index and t.origin != "refined"]
            if members and index >= 0:
                chosen = sum(t.origin == "model" for t in members)
                self._batches.append(Batch(index, {t.id for t in members}, chosen))

    def _heard(self, trial: Trial | None, observation: Observation, told: Told) -> None:
        if trial is None:
            self._record(observation, self.places[0].index)
            return
        index = self._belongs.pop(trial.id, self.places[0].index)
        better = self._record(observation, index)
        batch = next((b for b in self._batches if trial.id in b.waiting), None)
        if batch is not None:
            batch.improved |= better
            batch.waiting.discard(trial.id)
            if not batch.waiting:
                self._batches.remove(batch)
                self._finish(batch)

    def _record(self, observation: Observation, index: int) -> bool:
        """Store an observation, the new centre if it is its place's best; return whether the gain counts."""
        before = self.archive.best(index)
        self.archive.add(observation, index)
        if observation.failed or (before is not None and observation.value >= before.value):
            return False
        place = next((p for p in self.places if p.index == index), None)
        if place is None:
            return False
        if place.region is not None:
            place.region = replace(place.region, centre=self._unit_tuple(observation))
        return before is None or trust_region.gain_counts(
            observation.value, before.value, place.spread, self.settings.tolerance, self.rule
        )

    def _finish(self, batch: Batch) -> None:
        """Let a region grow, shrink or collapse after a whole batch."""
        place = next((p for p in self.places if p.index == batch.place), None)
        if place is None or place.region is None or not batch.chosen:
            return
        place.region = trust_region.update(place.region, batch.improved, batch.chosen, self.rule)
        if place.region.collapsed or self._in_known_basin(place.region):
            self.restart(place)

    def _in_known_basin(self, region: TrustRegion) -> bool:
        """Return whether a small region has been drawn into a basin that an earlier one settled."""
        if region.length > self.KNOWN_LENGTH or not self.rule.remembers:
            return False
        here = np.asarray(region.centre)
        apart = [np.abs(self.space.to_unit(b.vector) - here) for b in self.basins]
        smooth = ~self.space.is_discrete
        return any((a[smooth] <= region.length / 2).all() and (a[~smooth] <= SAME).all() for a in apart)

    def _unit_tuple(self, observation: Observation) -> tuple[float, ...]:
        return tuple(self.space.to_unit(observation.vector).tolist())

    def _prepare(self, place: Place, generator: np.random.Generator) -> None:
        """Draw a region's design when it begins, and place its box when the design is spent."""
        if not place.designed:
            place.designed = True
            place.design = self._sobol(self.settings.design, generator)
        if place.region is None and not place.design:
            best = self.archive.best(place.index)
            if best is not None:
                ordered = np.where(self.space.is_categorical, 1, self.space.levels)
                levels = tuple(int(n) for n in ordered)
                centre = self._unit_tuple(best)
                place.region = trust_region.start(centre, levels, self.settings.length, self.rule)

    def _from_design(self, place: Place, q: int) -> list[Vector]:
        """Return up to q untried vectors of a place's design."""
        taken: list[Vector] = []
        while place.design and len(taken) < q:
            vector = place.design.pop(0)
            if self._claim(vector):
                taken.append(vector)
        return taken

    def _from_models(self, q: int, generator: np.random.Generator, taken: Vector) -> list[tuple[Vector, int]]:
        """Return up to q untried vectors that the acquisition prefers, each with the index of its place."""
        active = [p for p in self.places if p.region is not None]
        models = [(p, m) for p in active if (m := self._model(p)) is not None]
        if not models:
            return [(v, p.index) for p in active[:1] for v in self._blind(p, q, generator)]
        from qhrtem.optimise import choice  # here because it imports BoTorch

        asked = np.array([t.vector for t in self.pending]).reshape(-1, self.space.dimension)
        busy = self.space.to_unit(np.concatenate([asked, taken]))
        return [(self.space.from_unit(u), i) for u, i in choice.choose(self, models, q, busy, generator)]

    def _model(self, place: Place) -> tuple[Surrogate, targets.Target] | None:
        """Return a place's surrogate, fitted to the points near its region; None where it can have none."""
        assert place.region is not None
        extents = np.asarray(place.hyper.lengthscale) if place.hyper else np.ones(self.space.dimension)
        scale = np.ones(self.space.dimension)
        scale[~self.space.is_categorical] = extents[: int((~self.space.is_categorical).sum())]
        region = None if self.rule.remembers else place.index
        centre = np.asarray(place.region.centre)
        apart = CROWDED * place.region.length / float(np.median(scale))
        points, values = self.archive.near(centre, MODEL_POINTS, scale, region, apart)
        if len(points) < MODEL_POINTS_MIN:
            return None
        from qhrtem.optimise import surrogate  # here because it imports BoTorch

        place.spread = targets.spread(values)
        prior = self.prior_mean
        expected = None if prior is None else np.asarray(prior(self.space.from_unit(points)), dtype=float)
        if expected is None or not np.isfinite(expected).all():
            prior = expected = None
        target = targets.Target.of(values, self.settings.transform, expected)

        def offset(encoded: Vector) -> Vector:
            assert prior is not None
            return target.prior_offset(np.asarray(prior(self.space.from_unit(self.space.decode(encoded)))))

        try:
            model = surrogate.fit(
                self.space.encode(points),
                target.gains + target.offset,
                place.hyper,
                WARM_STEPS if place.hyper else COLD_STEPS,
                prior=None if prior is None else offset,
                scaled=self.settings.scaled_priors,
                noise=self.settings.noise,
            )
        except ArithmeticError:
            return None
        place.hyper = model.hyperparameters
        return model, target

    def _blind(self, place: Place, q: int, generator: np.random.Generator) -> list[Vector]:
        """Return up to q untried vectors drawn at random from a region, for want of a model."""
        assert place.region is not None
        pools = (candidates.draw(place.region, None, self.space, generator, single=s) for s in (False, True))
        return [self.space.from_unit(u) for u in islice(filter(self._accept, chain.from_iterable(pools)), q)]

    def _options(self) -> dict[str, Any]:
        return asdict(self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space and without callables."""
        return {
            **super().state_dict(),
            "places": [p.to_dict() for p in self.places],
            "basins": [b.id for b in self.basins],
            "batches": [b.to_dict() for b in self._batches],
            "belongs": sorted(self._belongs.items()),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        by_id = {o.id: o for o in self.archive}
        self.places = [Place.from_dict(p) for p in state["places"]]
        self.basins = [by_id[i] for i in state["basins"]]
        self._batches = [Batch.from_dict(b) for b in state["batches"]]
        self._belongs = {int(i): index for i, index in state["belongs"]}
