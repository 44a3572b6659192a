"""Plain TuRBO-1 from the paper: Eriksson, Pearce, Gardner, Turner, Poloczek, NeurIPS 2019, sections 3 and 4.

Sobol design of two points a dimension, one region by `trust_region.RULES["turbo"]`, Thompson sampling over
candidates that move twenty coordinates, integers rounded, nothing kept from one restart to the next.
"""

from __future__ import annotations

from typing import Any

from qhrtem.optimise.search import TrustRegionSearch
from qhrtem.optimise.space import SearchSpace


class Turbo1(TrustRegionSearch):
    """One trust region without what this package adds to it."""

    def __init__(self, space: SearchSpace, seed: int = 0, batch: int | None = None, **options: Any) -> None:
        """See `TrustRegionSearch` for options that replace parts of the method."""
        plain = {"design": 2 * space.dimension, "rule": "turbo", "scaled_priors": False}
        super().__init__(space, seed, batch, **{**plain, **options})
