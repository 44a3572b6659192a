"""The trust region: a box around the best point that grows on success, shrinks on failure and gives up.

Three rules make it (Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019, "TuRBO", section 3):
- after SUCCESSES improving batches in a row the box doubles, up to LENGTH_MAX;
- after as many failed evaluations in a row as there are dimensions (at least FAILURES_MIN) it halves;
- when it would fall below LENGTH_MIN it has collapsed: its basin is settled, and the search starts elsewhere.

Integers cannot follow a length that tends to zero, so they have a radius of their own in whole steps, which
doubles and halves with the length but never drops below one step: a region that can still move an integer to
its neighbour has not settled (Wan et al., ICML 2021, keep separate radii for the same reason).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LENGTH_START = 0.8  # side of the box, unit cube; Eriksson et al. 2019, section 3
LENGTH_MIN = 0.5**7  # same
LENGTH_MAX = 1.6  # same
SUCCESSES = 3  # improving batches in a row before growth; same
FAILURES_MIN = 4  # same: failure tolerance ceil(max(4, d) / q) batches of q
INTEGER_SHARE = 0.4  # starting radius as a share of the widest integer range: half of LENGTH_START
RELATIVE_GAIN = 1e-3  # gain that counts, relative to the spread of values (the paper: to the best value)
FACTOR = 2.0  # growth and shrinkage; same


@dataclass(frozen=True)
class Rule:
    """The constants of the rule; the defaults are the product's."""

    start: float = LENGTH_START  # side, unit cube
    smallest: float = LENGTH_MIN  # side below which the region collapses
    largest: float = LENGTH_MAX
    successes: int = SUCCESSES  # improving batches in a row before growth
    failures_min: int = FAILURES_MIN  # failed evaluations in a row before shrinkage, at least
    relative_gain: float = RELATIVE_GAIN  # gain that counts
    gain_of_best: bool = False  # relative to the best value instead of the spread of values
    integer_radius: bool = True  # integers have a radius in whole steps; False lets them follow the side
    remembers: bool = True  # models learn from points of earlier regions, and settled basins are not searched


RULES = {
    "own": Rule(),
    # Eriksson et al. 2019, section 3, to the letter.
    "turbo": Rule(gain_of_best=True, integer_radius=False, remembers=False),
    # Tang et al., arXiv 2603.19943 (2026), from the released program.
    "published": Rule(
        start=1.6,
        smallest=1e-5,
        successes=10,
        failures_min=1,
        relative_gain=0.01,
        gain_of_best=True,
        integer_radius=False,
        remembers=False,
    ),
    # No region at all: the whole cube, for ever.
    "none": Rule(start=4.0, smallest=0.0, largest=4.0, integer_radius=False),
}


@dataclass(frozen=True)
class TrustRegion:
    """Where the search looks, and how it has fared there."""

    centre: tuple[float, ...]  # (d,) unit cube
    length: float = LENGTH_START  # side for continuous parameters, unit cube, before length-scale weighting
    integer_radius: float = 0.0  # steps either way for integers (its floor is used); 0: they follow the side
    integer_radius_max: float = 0.0  # widest integer range, steps
    has_continuous: bool = True
    failure_limit: int = FAILURES_MIN  # failed evaluations in a row before shrinkage
    successes: int = 0  # improving batches in a row
    failures: int = 0  # failed evaluations in a row
    collapsed: bool = False

    @property
    def dimension(self) -> int:
        """Number of parameters d."""
        return len(self.centre)


def start(
    centre: tuple[float, ...], levels: tuple[int, ...], length: float | None = None, rule: Rule = RULES["own"]
) -> TrustRegion:
    """Return a fresh region.

    centre: (d,) unit cube. levels: (d,) values an ordered discrete parameter can take, 0 for the others.
    length: starting side, unit cube; the rule's own when None.
    """
    side = rule.start if length is None else length
    widest = float(max((n - 1 for n in levels if n), default=0)) if rule.integer_radius else 0.0
    radius = max(1.0, INTEGER_SHARE * widest * (side / LENGTH_START)) if widest else 0.0
    return TrustRegion(
        centre=centre,
        length=side,
        integer_radius=radius,
        integer_radius_max=widest,
        has_continuous=any(n == 0 for n in levels) or not widest,
        failure_limit=max(rule.failures_min, len(centre)),
    )


def gain_counts(
    value: float, best: float, spread: float, tolerance: float, rule: Rule = RULES["own"]
) -> bool:
    """Return whether a value is lower than the best by more than numerical noise.

    spread: standard deviation of the values the model learns from, so that the verdict does not depend on
    the objective's scale or zero. tolerance: smallest difference that means anything, objective units.
    """
    scale = abs(best) if rule.gain_of_best else spread
    return best - value > max(tolerance, rule.relative_gain * scale)


def update(
    region: TrustRegion, improved: bool, evaluations: int = 1, rule: Rule = RULES["own"]
) -> TrustRegion:
    """Return the region after one batch: whether any of it improved, and how many evaluations it spent."""
    if improved:
        region = replace(region, successes=region.successes + 1, failures=0)
        return _grow(region, rule) if region.successes >= rule.successes else region
    region = replace(region, successes=0, failures=region.failures + evaluations)
    return _shrink(region, rule) if region.failures >= region.failure_limit else region


def _grow(region: TrustRegion, rule: Rule) -> TrustRegion:
    """Return the region twice as wide, within its largest size."""
    return replace(
        region,
        length=min(FACTOR * region.length, rule.largest),
        integer_radius=min(FACTOR * region.integer_radius, region.integer_radius_max),
        successes=0,
        failures=0,
    )


def _shrink(region: TrustRegion, rule: Rule) -> TrustRegion:
    """Return the region half as wide, collapsed once neither kind of parameter can shrink further."""
    if rule.smallest == 0.0:
        return replace(region, failures=0)
    length, radius = region.length / FACTOR, region.integer_radius / FACTOR
    settled_lengths = not region.has_continuous or length < rule.smallest
    settled_radius = region.integer_radius == 0.0 or radius < 1.0
    return replace(
        region,
        length=max(length, rule.smallest),
        integer_radius=max(radius, 1.0) if region.integer_radius else 0.0,
        successes=0,
        failures=0,
        collapsed=settled_lengths and settled_radius,
    )
