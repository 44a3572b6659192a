"""The thermal diffuse correction of a state, renewed as the structure changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qhrtem.model.diffuse import Diffuse, diffuse_around, diffuse_image
from qhrtem.stages.objective import Bench, State

PHONON_PAIRS = (3, 6, 16)  # frozen-phonon pairs of the first, middle and last thermal correction
STALE = 0.15  # change of the Debye–Waller scale over which the slope of a correction is not to be trusted


def stale(state: State) -> bool:
    """Return whether the Debye–Waller scale has left the one that the correction was computed for."""
    return abs(state.microscope["b_scale"] - state.diffuse.b_scale) > STALE


def corrected(bench: Bench, state: State, pairs: int, generator: np.random.Generator) -> State:
    """Return the state with its thermal diffuse correction, of every image, computed anew."""
    drawn = pairs, generator, bench.workers
    every = [diffuse_around(bench.model, v.columns, v.microscope, *drawn) for v in state.views()]
    return _with_corrections(state, every)


def corrected_with_scatter(bench: Bench, state: State, pairs: int, seed: int) -> tuple[State, float]:
    """Return the state corrected by the mean of two draws of `pairs` pairs each, and what its scatter costs.

    The cost, units of χ², is what an average over few configurations adds to a state's on the mean. It grows
    with thermal motion, so states of other Debye–Waller factors compare only with it taken off.
    """
    state = corrected(bench, state, pairs, np.random.default_rng([seed, 5]))
    generator = np.random.default_rng([seed, 6])
    means, cost = [], 0.0
    for view, misfit, image in zip(state.views(), bench.misfits, bench.images(state), strict=True):
        drawn = view.microscope, pairs, generator, bench.workers
        apart = diffuse_image(bench.model, view.columns, *drawn) - view.diffuse.image
        means.append(replace(view.diffuse, image=view.diffuse.image + apart / 2))
        cost += float((misfit.weight(image) * apart.square()).double().sum()) / 4
    return _with_corrections(state, means), cost


def _with_corrections(state: State, every: list[Diffuse]) -> State:
    """Return the state with the corrections of all its images, the first first."""
    first, *rest = every
    others = tuple(replace(e, diffuse=d) for e, d in zip(state.others, rest, strict=True))
    return replace(state, diffuse=first, others=others)
