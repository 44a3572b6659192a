"""What a surrogate has learned about scales; plain numbers that a journal can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Hyperparameters:
    """Kernel, noise and mean of the Gaussian process on standardised gains."""

    lengthscale: tuple[float, ...]  # (d,) unit cube
    outputscale: float  # prior variance
    noise: float  # variance
    mean: float

    @classmethod
    def prior(cls, dimension: int, extent: float) -> Hyperparameters:
        """Return the values to start from: √d length scales on data that span `extent` of the unit cube."""
        return cls((math.sqrt(dimension) * extent,) * dimension, 1.0, 1e-4, 0.0)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Hyperparameters:
        """Return what `to_dict` wrote."""
        return cls(tuple(state["lengthscale"]), state["outputscale"], state["noise"], state["mean"])

    def to_dict(self) -> dict[str, Any]:
        """Return the values in JSON types."""
        return {**asdict(self), "lengthscale": list(self.lengthscale)}

    def with_noise(self, noise: float) -> Hyperparameters:
        """Return the same values with another noise variance."""
        return replace(self, noise=noise)

    @property
    def usable(self) -> bool:
        """True when every value is finite and every scale positive."""
        positive = (*self.lengthscale, self.outputscale, self.noise)
        return bool(np.isfinite([*positive, self.mean]).all()) and min(positive) > 0
