"""Atlas: every lattice site that a series has come across, whatever part of the specimen a frame shows.

A site is named by its kind and the numbers of its lattice cell. They stay the same while the specimen drifts,
so a column keeps its identity, and one that returns into the image is known again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.model.forward import MARGIN_A, Field
from qhrtem.specimen.columns import ColumnModel, lattice_columns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
AROUND = 3  # known neighbours that say what a site is like which no image has shown yet


@dataclass(frozen=True)
class Atlas:
    """Columns of a series in the frame of its first image."""

    columns: ColumnModel

    def at(self, field: Field, drift: Floats) -> ColumnModel:
        """Return the columns of a field whose specimen has moved by (2,) y, x in Å since the first image.

        Sites that are not in the atlas are taken to be like those nearest to them.
        """
        own = self.columns
        vectors = own.projection.vectors @ own.frame
        fractional = np.array([k.fractional for k in own.projection.kinds])[own.kind[0]]
        origin = own.anchor[0] - (own.cell[0] + fractional) @ vectors + drift
        low = field.to_field(np.zeros(2)) - MARGIN_A
        high = field.to_field(np.array(field.image_shape) - 1.0) + MARGIN_A
        fresh = lattice_columns(own.projection, origin, own.frame, (low[0], low[1], high[0], high[1]))
        number = numbers(sites(own), sites(fresh))
        known = np.flatnonzero(number >= 0)
        fresh = _taken(fresh, known, own, number[known])
        return _continued(fresh, known, np.flatnonzero(number < 0))

    def updated(self, columns: ColumnModel, drift: Floats) -> Atlas:
        """Return the atlas with columns as they are in an image after some drift."""
        own = self.columns
        number = numbers(sites(own), sites(columns))
        known, new = np.flatnonzero(number >= 0), np.flatnonzero(number < 0)
        merged = _taken(own, number[known], columns, known)
        if not len(new):
            return Atlas(merged)
        extra = columns.part(new, drift)
        names = ("kind", "cell", "anchor", "rise", "shift", "first", "last")
        both: dict[str, Any] = {n: np.concatenate([getattr(merged, n), getattr(extra, n)]) for n in names}
        return Atlas(replace(merged, **both))


def sites(columns: ColumnModel) -> Ints:
    """Return kind and cell numbers (C, 3) of columns: the names that they keep."""
    return np.column_stack([columns.kind, columns.cell]).astype(np.int64)


def numbers(known: Ints, asked: Ints) -> Ints:
    """Return where sites asked for (N, 3) stand among those known (C, 3), -1 for one that is not there."""
    place = {tuple(site): n for n, site in enumerate(known.tolist())}
    return np.array([place.get(tuple(site), -1) for site in asked.tolist()], dtype=np.int64)


def _taken(columns: ColumnModel, where: Ints, other: ColumnModel, which: Ints) -> ColumnModel:
    """Return the columns with shift and ends of some of them as some of another model have them."""
    shift, first, last = columns.shift.copy(), columns.first.copy(), columns.last.copy()
    shift[where], first[where], last[where] = other.shift[which], other.first[which], other.last[which]
    return replace(columns.with_ends(first, last), shift=shift)


def _continued(columns: ColumnModel, known: Ints, new: Ints) -> ColumnModel:
    """Return the columns with new ones filled, or left empty, as those nearest to them are."""
    if not len(new) or not len(known):
        return columns
    occupied = columns.occupied
    top, bottom = columns.surfaces()
    near = cKDTree(columns.anchor[known]).query(columns.anchor[new], min(AROUND, len(known)))[1]
    near = known[near.reshape(len(new), -1)]
    full_top, full_bottom = top.copy(), bottom.copy()
    there = np.zeros(len(columns), dtype=bool)
    shift = columns.shift.copy()
    for c, beside in zip(new, near, strict=True):
        held = beside[occupied[beside]]
        there[c] = 2 * len(held) > len(beside)
        if there[c]:
            full_top[c], full_bottom[c] = np.median(top[held]), np.median(bottom[held])
            shift[c] = np.median(shift[held, 0], axis=0)
    filled = columns.filled(full_top, full_bottom)
    first, last = columns.first.copy(), columns.last.copy()
    first[new] = filled.first[new]
    last[new] = np.where(there[new], filled.last[new], filled.first[new] - 1)
    return replace(columns.with_ends(first, last), shift=shift)
