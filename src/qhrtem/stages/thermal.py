"""The thermal diffuse correction of a state, renewed as the structure changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qhrtem.model.diffuse import Diffuse, diffuse_around, diffuse_image
from qhrtem.stages.objective import Bench, State

PHONON_PAIRS = (3, 6, 12)  # frozen-phonon pairs of the first, middle and last thermal correction
STALE = 0.15  # change of the Debye–Waller scale over which the slope of a correction is not to be trusted


def stale(state: State) -> bool:
    """Return whether the Debye–Waller scale has left the one that the correction was computed for."""
    return abs(state.microscope["b_scale"] - state.diffuse.b_scale) > STALE


def corrected(
    bench: Bench, state: State, pairs: int, generator: np.random.Generator, keep_slope: bool = False
) -> State:
    """Return the state with its thermal diffuse correction, of every image, computed anew.

    keep_slope: take the slope by the Debye–Waller scale from the present one, where that has any.
    """
    every = []
    for v in state.views():
        known = v.diffuse.slope if keep_slope and isinstance(v.diffuse.slope, Tensor) else None
        drawn = v.microscope, pairs, generator, bench.workers
        every.append(diffuse_around(bench.model, v.columns, *drawn, slope=known))
    return _with_corrections(state, every)


def corrected_with_scatter(bench: Bench, state: State, pairs: int, seed: int) -> tuple[State, float]:
    """Return the state corrected by the mean of two draws of `pairs` pairs each, and what its scatter costs.

    The cost, units of χ², is what an average over few configurations adds to a state's on the mean. It grows
    with thermal motion, so states of other Debye–Waller factors compare only with it taken off.
    """
    state = corrected(bench, state, pairs, np.random.default_rng([seed, 5]), keep_slope=not stale(state))
    generator = np.random.default_rng([seed, 6])
    means, cost = [], 0.0
    for view, misfit, image in zip(state.views(), bench.misfits, bench.images(state), strict=True):
        drawn = view.microscope, pairs, generator, bench.workers
        other = replace(view.diffuse, image=diffuse_image(bench.model, view.columns, *drawn))
        means.append(view.diffuse.pooled(other, view.microscope))
        apart = torch.as_tensor(other.image - view.diffuse.image)
        cost += float((misfit.weight(image) * apart.square()).double().sum()) / 4
    return _with_corrections(state, means), cost


def pooled(bench: Bench, state: State, pairs: int, generator: np.random.Generator) -> State:
    """Return the state with a new draw of its thermal correction added to those that it averages.

    For a structure that has settled: what the last moves changed in the correction is far below its scatter.
    """
    if stale(state):
        return corrected(bench, state, pairs, generator)
    new = corrected(bench, state, pairs, generator, keep_slope=True)
    both = zip(state.views(), new.views(), strict=True)
    return _with_corrections(state, [b.diffuse.pooled(a.diffuse, b.microscope) for a, b in both])


def _with_corrections(state: State, every: list[Diffuse]) -> State:
    """Return the state with the corrections of all its images, the first first."""
    first, *rest = every
    others = tuple(replace(e, diffuse=d) for e, d in zip(state.others, rest, strict=True))
    return replace(state, diffuse=first, others=others)
