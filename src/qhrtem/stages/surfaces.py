"""The outline of the crystal: which lattice sites at its rim hold a column at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.joint import apply_step, room, total_cost
from qhrtem.stages.linearise import EndMove, linearise
from qhrtem.stages.move_model import profile
from qhrtem.stages.objective import AROUND_A, Bench, State

Floats = NDArray[np.float64]
# A whole column must pay at least this much χ² to appear or vanish: odds of e⁸ against chance.
COLUMN_PRICE = 16.0


def rim(columns: ColumnModel, neighbours: Neighbours) -> tuple[list[int], list[int]]:
    """Return occupied columns with an empty neighbour, and empty sites with at least two occupied ones."""
    occupied = columns.occupied
    a, b = neighbours.pairs.T
    filled = np.bincount(a, occupied[b], len(columns)) + np.bincount(b, occupied[a], len(columns))
    total = np.bincount(a, minlength=len(columns)) + np.bincount(b, minlength=len(columns))
    edge = np.flatnonzero(occupied & (filled < total))
    vacant = np.flatnonzero(~occupied & (filled >= 2))
    return [int(c) for c in edge], [int(c) for c in vacant]


def primed(
    columns: ColumnModel, vacant: list[int], neighbours: Neighbours
) -> tuple[ColumnModel, dict[int, int]]:
    """Return the model with empty sites starting where their neighbours do, and the sites that fill each."""
    occupied = columns.occupied
    near: dict[int, list[int]] = {c: [] for c in vacant}
    for a, b in neighbours.pairs:
        for c, m in ((int(a), int(b)), (int(b), int(a))):
            if c in near and occupied[m]:
                near[c].append(m)
    top, bottom = columns.surfaces()
    full_top, full_bottom = top.copy(), bottom.copy()
    shift = columns.shift.copy()
    for c, mine in near.items():
        full_top[c], full_bottom[c] = np.median(top[mine]), np.median(bottom[mine])
        shift[c] = np.median(shift[mine, 0], axis=0)
    filled = columns.filled(full_top, full_bottom)
    first, last = columns.first.copy(), columns.last.copy()
    first[vacant], last[vacant] = filled.first[vacant], filled.first[vacant] - 1
    number = {c: int(filled.last[c] - filled.first[c] + 1) for c in vacant}
    return replace(columns.with_ends(first, last), shift=shift), {c: n for c, n in number.items() if n > 0}


def outline_round(
    bench: Bench,
    state: State,
    imaging: list[int],
    positions: list[int],
    eligible: set[int],
    neighbours: Neighbours,
) -> tuple[State, int]:
    """Return the state with rim columns removed or added as the image asks, and how many changed.

    positions: columns whose positions follow, of which those far from all that may change are left as they
    are. eligible: columns that may change (those the image can see). The additions and removals compete in
    the same quadratic model as everything else; the exact image decides.
    """
    edge, vacant = rim(state.columns, neighbours)
    columns, fill = primed(state.columns, [c for c in vacant if c in eligible], neighbours)
    state = replace(state, columns=columns)
    moves = {c: [EndMove(c, 1, int(columns.first[c] - columns.last[c] - 1))] for c in edge if c in eligible}
    moves.update({c: [EndMove(c, 1, n)] for c, n in fill.items()})
    if not moves:
        return state, 0
    distance, _ = cKDTree(columns.anchor[list(moves)]).query(columns.anchor)
    beside = [c for c in positions if distance[c] < AROUND_A]
    quadratic = linearise(bench, state, imaging, beside, moves)
    model = profile(state, quadratic)
    chosen = _greedy(model.h, model.dense())
    before = total_cost(bench, state, imaging)
    while chosen:
        picked = np.zeros(len(model.h))
        picked[chosen] = 1
        trial = apply_step(state, quadratic, model.step(picked, room(state, quadratic.imaging)))
        last = trial.columns.last.copy()
        for m in chosen:
            last[quadratic.moves[m].column] += quadratic.moves[m].sites
        trial = replace(trial, columns=trial.columns.with_ends(trial.columns.first, last))
        if total_cost(bench, trial, imaging) < before - COLUMN_PRICE * len(chosen) / 2:
            return trial, len(chosen)
        chosen = chosen[: len(chosen) // 2]
    return state, 0


def _greedy(h: Floats, g: Floats) -> list[int]:
    """Indices of moves worth their price, the most valuable first, each given those before it."""
    gain = 2 * h - np.diag(g)
    chosen: list[int] = []
    while True:
        best = int(np.argmax(np.where(np.isin(np.arange(len(h)), chosen), -np.inf, gain)))
        if gain[best] < COLUMN_PRICE or len(chosen) == len(h):
            return chosen
        chosen.append(best)
        gain = gain - 2 * g[best]
