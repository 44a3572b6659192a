"""Every optimiser by name, so that a plan or a benchmark can ask for it; modules load when needed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qhrtem.errors import PlanError
from qhrtem.optimise.protocol import Optimiser
from qhrtem.optimise.space import SearchSpace


@dataclass(frozen=True)
class Method:
    """Where a method lives and which arguments make it."""

    module: str  # below qhrtem.optimise
    name: str  # of the class
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""  # package of the optional extra, if any


_METHODS: dict[str, Method] = {
    "hybrid": Method("hybrid", "HybridSearch"),
    "trust_region": Method("search", "TrustRegionSearch"),
    "trust_region_qlogei": Method("search", "TrustRegionSearch", {"acquisition": "qlogei"}),
    "trust_region_m": Method("search", "TrustRegionSearch", {"regions": 3}),
    "rounding": Method("search", "TrustRegionSearch", {"acquisition": "rounding"}),
    "reparameterisation": Method("search", "TrustRegionSearch", {"acquisition": "reparameterisation"}),
    "alternating": Method("search", "TrustRegionSearch", {"acquisition": "alternating"}),
    "sobol": Method("baselines.sobol", "Sobol"),
    "cma_es": Method("baselines.cma_es", "CmaEs", needs="cmaes"),
    "differential_evolution": Method("baselines.differential_evolution", "DifferentialEvolution"),
    "nelder_mead": Method("baselines.nelder_mead", "NelderMead"),
    "tpe": Method("baselines.tpe", "Tpe", needs="optuna"),
    "multistart_least_squares": Method("baselines.multistart_least_squares", "MultistartLeastSquares"),
    "logei": Method("baselines.logei", "LogEi"),
    "turbo1": Method("baselines.turbo1", "Turbo1"),
    "coordinate_descent": Method("baselines.coordinate_descent", "CoordinateDescent"),
    "published": Method("baselines.published", "Published"),
}
METHODS = tuple(_METHODS)


def make(name: str, space: SearchSpace, seed: int = 0, batch: int | None = None, **options: Any) -> Optimiser:
    """Return the optimiser called `name`, one of METHODS, over a space.

    batch: trials an ask returns by default; the method's own choice when None. options: what the method's
    class takes besides. Raises PlanError for an unknown name or option and for a missing package.
    """
    cls, preset = _find(name)
    try:
        optimiser: Optimiser = cls(space, seed, batch, **{**preset, **options})
    except TypeError as error:
        raise PlanError(f"optimiser {name}: {error}; options: {', '.join(options) or 'none'}") from error
    return optimiser


def restore(name: str, space: SearchSpace, state: Mapping[str, Any]) -> Optimiser:
    """Return the optimiser called `name` as its `state_dict` describes it."""
    optimiser: Optimiser = _find(name)[0].from_state_dict(space, state)
    return optimiser


def _find(name: str) -> tuple[Any, Mapping[str, Any]]:
    """Return the class and the preset options of a method."""
    if name not in _METHODS:
        raise PlanError(f"optimiser must be one of {', '.join(METHODS)}, got {name!r}")
    method = _METHODS[name]
    if method.needs and importlib.util.find_spec(method.needs) is None:
        raise PlanError(f"optimiser {name} needs the package {method.needs}; pip install 'qhrtem[bench]'")
    return getattr(importlib.import_module(f"qhrtem.optimise.{method.module}"), method.name), method.options
