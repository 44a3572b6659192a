"""The thermal diffuse correction of a state, renewed as the structure changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qhrtem.model.diffuse import diffuse_around
from qhrtem.stages.objective import Bench, State

PHONON_PAIRS = (3, 8, 16)  # frozen-phonon pairs of the first, middle and last thermal correction

STALE = 0.15  # change of the Debye–Waller scale over which the slope of a correction is not to be trusted


def stale(state: State) -> bool:
    """Return whether the Debye–Waller scale has left the one that the correction was computed for."""
    return abs(state.microscope["b_scale"] - state.diffuse.b_scale) > STALE


def corrected(bench: Bench, state: State, pairs: int, generator: np.random.Generator) -> State:
    """Return the state with its thermal diffuse correction, of every image, computed anew."""
    first, *rest = (
        diffuse_around(bench.model, v.columns, v.microscope, pairs, generator, bench.workers)
        for v in state.views()
    )
    others = tuple(replace(e, diffuse=d) for e, d in zip(state.others, rest, strict=True))
    return replace(state, diffuse=first, others=others)
