"""Terraces: whole planes of a surface, or patches of one, that come and go together.

Atoms of a plane support each other: every one alone costs a step against all its neighbours, and lens and
focus lean against it. So single columns and pairs never leave a terrace that is a plane too high.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.stages.descent import Descent

Ints = NDArray[np.int64]
PATCH_A = 6.0  # radius of a patch


def settle(descent: Descent, rounds: int = 3) -> None:
    """Let columns, pairs and terraces change until nothing does any more, or for some rounds."""
    descent.run()
    for _ in range(rounds):
        if terrace_sweep(descent) < 1e-3:
            break
        descent.run()


def terrace_sweep(descent: Descent, radius: float = PATCH_A) -> float:
    """Add and remove planes on either surface, everywhere and in patches, where it pays; return the gain."""
    gain = 0.0
    place = descent.columns.anchor[[o.column for o in descent.model.options]]
    patches = cKDTree(place).query_ball_point(place, radius)
    for side in (0, 1):
        for sign in (1, -1):
            depth = _next_plane(descent, side, sign)
            for plane in _distinct(depth, descent.columns.projection.plane / 2):
                gain += _together(descent, _members(descent, plane, side, sign), side, sign)
            for n, near in enumerate(patches):
                plane = float(_next_plane(descent, side, sign, np.array([n]))[0])
                members = _members(descent, plane, side, sign, np.sort(near))
                gain += _together(descent, members, side, sign)
    return gain


def _next_plane(descent: Descent, side: int, sign: int, which: Ints | None = None) -> NDArray[np.float64]:
    """Return the depth (Å) of the site that each column would gain (sign 1) or lose (-1) at one side."""
    which = np.arange(len(descent.chosen)) if which is None else which
    columns, site = np.zeros(len(which), np.int64), np.zeros(len(which), np.int64)
    for i, n in enumerate(which):
        o, s = descent.model.options[n], descent.chosen[n]
        columns[i] = o.column
        site[i] = (o.first[s] - (sign > 0)) if side == 0 else (o.last[s] + (sign > 0))
    return descent.columns.site_depth(columns, site)


def _distinct(depth: NDArray[np.float64], apart: float) -> list[float]:
    out: list[float] = []
    for z in np.sort(depth):
        if not out or z - out[-1] > apart:
            out.append(float(z))
    return out


def _members(descent: Descent, plane: float, side: int, sign: int, among: Ints | None = None) -> list[int]:
    """Return those columns whose next site lies in a plane."""
    among = np.arange(len(descent.chosen)) if among is None else among
    depth = _next_plane(descent, side, sign, among)
    return among[np.abs(depth - plane) < descent.columns.projection.plane / 2].tolist()


def _together(descent: Descent, members: list[int], side: int, sign: int) -> float:
    """Let columns gain or lose their next site together if that pays; return the gain."""
    if len(members) < 3:
        return 0.0
    before, change = [], 0.0
    for n in members:
        o, s = descent.model.options[n], int(descent.chosen[n])
        first = o.first[s] - sign * (side == 0)
        last = o.last[s] + sign * (side == 1)
        found = np.flatnonzero((o.first == first) & (o.last == last))
        if not len(found):
            continue
        cost = descent.local_cost(n)
        if math.isinf(cost[found[0]]):
            continue
        change += float(cost[found[0]] - cost[s])
        before.append((n, s))
        descent.choose(n, int(found[0]))
    if change < -1e-6:
        return -change
    for n, s in reversed(before):
        descent.choose(n, s)
    return 0.0
