"""What the surrogate learns: the objective on a scale where it is smooth, less a prior mean, standardised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import PlanError

Vector = NDArray[np.float64]

PROMISE = 0.1  # a prior mean of positive values is believed down to this share of the best value known
OUTLIER = 3.0  # bad values are drawn in beyond this many interquartile ranges above the median


def _log(values: Vector) -> Vector:
    return np.log(np.maximum(values, np.finfo(float).tiny))


# identity: any objective. log: positive ones that span decades. chi2: the length of the residual, √χ², along
# which a distance from the optimum acts linearly where that of χ² is squared.
TRANSFORMS: dict[str, Callable[[Vector], Vector]] = {
    "identity": lambda values: values,
    "log": _log,
    "chi2": lambda values: np.sqrt(np.maximum(values, 0.0)),
}


def checked(transform: str) -> str:
    """Return the name of a transform; raise PlanError for an unknown one."""
    if transform not in TRANSFORMS:
        raise PlanError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
    return transform


@dataclass(frozen=True)
class Target:
    """Gains (n,) of training points, larger is better, and the way back."""

    gains: Vector  # (n,) standardised; of what the prior mean leaves over, where there is one
    offset: Vector  # (n,) gain that the prior mean accounts for; zeros without one
    transform: str  # as used: identity where a logarithm or a root does not exist
    centre: float  # transformed value at gain 0
    prior_centre: float  # transformed prior mean at offset 0
    scale: float  # transformed value per unit of gain, positive
    floor: float  # prior means below this are raised to it

    @classmethod
    def of(cls, values: Vector, transform: str = "identity", prior: Vector | None = None) -> Target:
        """Return the target for values (n,) and the finite prior mean (n,) at the same points.

        A logarithm or a root of values that are not all positive is left out. Zeros are returned for values
        that are all equal.
        """
        name = transform if values.min() > 0 or (transform == "chi2" and values.min() >= 0) else "identity"
        moved = TRANSFORMS[name](values)
        floor = -np.inf if name == "identity" else PROMISE * float(values.min())
        expected = np.zeros_like(moved) if prior is None else TRANSFORMS[name](np.maximum(prior, floor))
        gains, centre, scale = standardised(moved - expected)
        middle = float(expected.mean())
        return cls(gains, (middle - expected) / scale, name, centre, middle, scale, floor)

    def prior_offset(self, prior: Vector) -> Vector:
        """Return the gain (m,) that prior means (m,) elsewhere account for."""
        finite = np.nan_to_num(prior, nan=1e300, posinf=1e300, neginf=-1e300)
        return (self.prior_centre - TRANSFORMS[self.transform](np.maximum(finite, self.floor))) / self.scale

    def transformed(self, gain: Vector) -> Vector:
        """Return the transformed values that gains, offset included, stand for."""
        return self.centre + self.prior_centre - self.scale * gain


def standardised(values: Vector) -> tuple[Vector, float, float]:
    """Return values (n,) negated and standardised with the bad tail drawn in, their centre and their scale.

    A few points that are worse by orders of magnitude say nothing about the optimum, but they would set the
    scale, so values beyond OUTLIER interquartile ranges above the median are clipped.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return np.zeros_like(values), 0.0, 1.0
    shares = values / largest
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    if high > low:
        shares = np.minimum(shares, middle + OUTLIER * (high - low))
    deviation = float(shares.std())
    if deviation <= 1e-14:
        return np.zeros_like(values), float(shares.mean()) * largest, largest
    return (shares.mean() - shares) / deviation, float(shares.mean()) * largest, deviation * largest


def spread(values: Vector) -> float:
    """Return the standard deviation of values (n,) of any size, without overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    return float((values / largest).std() * largest) if largest > 0 else 0.0
