"""One place where a trust-region search is at work: its design, its region and what its model has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.hyperparameters import Hyperparameters
from qhrtem.optimise.trust_region import TrustRegion

Vector = NDArray[np.float64]


@dataclass
class Place:
    """A region from the first point of its design to its collapse."""

    index: int  # unique in one search, counts up from 0
    region: TrustRegion | None = None  # None while the design is under way
    design: list[Vector] = field(default_factory=list)  # vectors not yet asked for
    designed: bool = False
    hyper: Hyperparameters | None = None
    spread: float = 0.0  # standard deviation of the values the last model learned from

    def to_dict(self) -> dict[str, Any]:
        """Return the place in JSON types."""
        return {
            "index": self.index,
            "region": asdict(self.region) if self.region else None,
            "design": [v.tolist() for v in self.design],
            "designed": self.designed,
            "hyperparameters": self.hyper.to_dict() if self.hyper else None,
            "spread": self.spread,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Place:
        """Return what `to_dict` wrote."""
        region, hyper = state["region"], state["hyperparameters"]
        return cls(
            index=state["index"],
            region=TrustRegion(**{**region, "centre": tuple(region["centre"])}) if region else None,
            design=[np.array(v) for v in state["design"]],
            designed=state["designed"],
            hyper=Hyperparameters.from_dict(hyper) if hyper else None,
            spread=state["spread"],
        )


@dataclass
class Batch:
    """What is known of one ask at one place until all its trials are back."""

    place: int  # index
    waiting: set[int]  # trials not yet told
    chosen: int  # how many of its trials the model chose
    improved: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the batch in JSON types."""
        return {**asdict(self), "waiting": sorted(self.waiting)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Batch:
        """Return what `to_dict` wrote."""
        return cls(**{**state, "waiting": set(state["waiting"])})
