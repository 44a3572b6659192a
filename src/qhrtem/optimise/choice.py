"""From fitted models to the points to evaluate next, by the acquisition a search was made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise import acquisition, candidates
from qhrtem.optimise.place import Place
from qhrtem.optimise.surrogate import Surrogate
from qhrtem.optimise.targets import Target

if TYPE_CHECKING:
    from qhrtem.optimise.search import TrustRegionSearch

Vector = NDArray[np.float64]
Model = tuple[Place, tuple[Surrogate, Target]]


def choose(
    search: TrustRegionSearch, models: list[Model], q: int, busy: Vector, generator: np.random.Generator
) -> list[tuple[Vector, int]]:
    """Return up to q accepted points of the unit cube, each with the index of its place.

    models: places with their surrogates; several compete by Thompson sampling. busy: (p, d) points under
    evaluation. Where no candidate with several redrawn coordinates is accepted, those with one are tried.
    """
    name = search.settings.acquisition
    picked: list[tuple[Vector, int]] = []
    if name in ("rounding", "reparameterisation", "alternating"):
        from qhrtem.optimise import mixed

        place, (model, _) = models[0]
        points = mixed.propose(name, model, place, search.space, q, busy, generator, search._accept)
        picked = [(u, place.index) for u in points]
        name = "qlogei"
    for single in (False, True):
        more = q - len(picked)
        if more <= 0:
            break
        pools = [_pool(search, place, generator, single) for place, _ in models]
        pending = np.concatenate([busy, *(u[None] for u, _ in picked)])
        if len(models) == 1:
            place, (model, _) = models[0]
            encode, decode = search.space.encode, search.space.decode
            accept = _decoded(search, decode)
            rows = acquisition.choose(name, model, encode(pools[0]), more, encode(pending), generator, accept)
            picked += [(pools[0][i], place.index) for i in rows]
        else:
            picked += _compete(search, models, pools, more, generator)
    return picked


def _decoded(search: TrustRegionSearch, decode: Callable[[Vector], Vector]) -> Callable[[Vector], bool]:
    return lambda encoded: search._accept(decode(encoded))


def _compete(
    search: TrustRegionSearch,
    models: list[Model],
    pools: list[Vector],
    q: int,
    generator: np.random.Generator,
) -> list[tuple[Vector, int]]:
    """Return the best candidates of joint sample paths over several regions (Eriksson et al. 2019).

    Each region standardises its own values, so the paths are compared on the common, transformed scale.
    """
    paths = [
        -target.transformed(model.sample(search.space.encode(pool), q, generator))
        for (_, (model, target)), pool in zip(models, pools, strict=True)
    ]
    owner = np.repeat([place.index for place, _ in models], [len(pool) for pool in pools])
    everything = np.concatenate(pools)
    rows = acquisition.follow(np.concatenate(paths, axis=1), everything, search._accept)
    return [(everything[i], int(owner[i])) for i in rows]


def _pool(search: TrustRegionSearch, place: Place, generator: np.random.Generator, single: bool) -> Vector:
    """Return candidates of one region."""
    assert place.region is not None and place.hyper is not None
    scales = np.asarray(place.hyper.lengthscale)
    bernoulli = search.settings.bernoulli
    return candidates.draw(place.region, scales, search.space, generator, single=single, bernoulli=bernoulli)
