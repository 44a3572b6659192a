"""The published recipe: Tang, Zhang, Barthel, Jia, Dunin-Borkowski, Zhang, Jin, arXiv 2603.19943 (2026).

Facts from the authors' released program: four Sobol points a parameter, batches of 8 by the upper confidence
bound, a Matérn-5/2 process with fixed noise on standardised values, a region of its own constants
(`trust_region.RULES["published"]`), integers filled by floor and a Bernoulli draw of the remainder. Where
they say nothing (weight of the bound, length-scale prior) the defaults of this package serve.
"""

from __future__ import annotations

from typing import Any

from qhrtem.optimise.search import TrustRegionSearch
from qhrtem.optimise.space import SearchSpace

DESIGN_PER_DIMENSION = 4  # 88 Sobol points for 22 parameters
NOISE = 0.05  # variance, standardised values


class Published(TrustRegionSearch):
    """The recipe as it was released."""

    def __init__(self, space: SearchSpace, seed: int = 0, batch: int | None = None, **options: Any) -> None:
        """See `TrustRegionSearch` for options that replace parts of the recipe."""
        recipe: dict[str, Any] = {
            "acquisition": "ucb",
            "design": DESIGN_PER_DIMENSION * space.dimension,
            "rule": "published",
            "noise": NOISE,
            "scaled_priors": False,
            "bernoulli": True,
        }
        super().__init__(space, seed, batch, **{**recipe, **options})
