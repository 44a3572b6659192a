"""Candidate points inside a trust region, in the unit cube."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.space import SearchSpace
from qhrtem.optimise.trust_region import TrustRegion

PERTURBED = 20  # expected number of coordinates that move; Eriksson et al. 2019, supplement
PER_DIMENSION = 100  # candidates a dimension; same
CANDIDATES_MIN, CANDIDATES_MAX = 1000, 5000  # same upper limit
WEIGHT_RANGE = 8.0  # a side differs from the mean side by at most this factor


def box(
    region: TrustRegion, lengthscale: NDArray[np.float64] | None, space: SearchSpace
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lower and upper corner (d,) of the region in the unit cube.

    lengthscale: (D,) of the encoded space. Continuous sides follow the length scales λ at constant volume,
    L_i = L λ_i / (∏λ_j)^(1/d) (Eriksson et al. 2019, section 3); sides of ordered discrete parameters are
    ± radius whole steps, or the plain side where the region has no radius; a categorical spans its labels.
    """
    centre = np.asarray(region.centre)
    half = np.full(space.dimension, region.length / 2)
    smooth = ~space.is_discrete
    if lengthscale is not None and smooth.any():
        # Encoding keeps the ordered parameters in front.
        log_scale = np.log(np.asarray(lengthscale, dtype=np.float64))[smooth[~space.is_categorical].nonzero()]
        # A parameter without influence has an endless length scale; it must not starve the others.
        log_weight = np.clip(log_scale - np.median(log_scale), -np.log(WEIGHT_RANGE), np.log(WEIGHT_RANGE))
        half[smooth] *= np.exp(log_weight - log_weight.mean())
    if region.integer_radius > 0:
        # Just under half a cell more, so that a uniform draw makes the outermost level as likely as others.
        steps = (max(1.0, np.floor(region.integer_radius)) + 0.499) / np.maximum(space.levels, 1)
        half = np.where(space.is_discrete, steps, half)
    half = np.where(space.is_categorical, 1.0, half)
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def draw(
    region: TrustRegion,
    lengthscale: NDArray[np.float64] | None,
    space: SearchSpace,
    generator: np.random.Generator,
    count: int | None = None,
    single: bool = False,
    bernoulli: bool = False,
) -> NDArray[np.float64]:
    """Return candidates (count, d) in the unit cube, snapped: the centre with some coordinates redrawn.

    Each coordinate moves with probability min(1, 20/d), at least one always does, and moved ones are uniform
    in the box. Moving few coordinates at once keeps candidates near a good centre when d is large.
    With `single`, exactly one coordinate moves: such candidates pass rules too narrow for the others, but
    where they compete they are preferred for being near the centre and slow the search down. With
    `bernoulli`, a discrete coordinate goes up or down at random in proportion to nearness.
    """
    d = space.dimension
    n = count or int(np.clip(PER_DIMENSION * d, CANDIDATES_MIN, CANDIDATES_MAX))
    lower, upper = box(region, lengthscale, space)
    moved = generator.random((n, d)) < min(1.0, PERTURBED / d)
    moved &= not single
    moved[np.arange(n), generator.integers(d, size=n)] = True
    fresh = lower + (upper - lower) * generator.random((n, d))
    points = np.where(moved, fresh, np.asarray(region.centre))
    if bernoulli:
        levels = np.maximum(space.levels, 1)
        rounded = (np.floor(points * levels - 0.5 + generator.random((n, d))) + 0.5) / levels
        points = np.where(space.is_discrete & ~space.is_categorical, np.clip(rounded, 0.0, 1.0), points)
    return space.to_unit(space.from_unit(points))
