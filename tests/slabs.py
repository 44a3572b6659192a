"""Small simulated fields for tests: an island of a crystal in vacuum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystals import projection
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.specimen.columns import ColumnModel, lattice_columns

ENERGY = 300e3
BTO = ("BaTiO3", (1, 1, 0))


@dataclass(frozen=True)
class Slab:
    """A field, the columns in it and the lens."""

    model: ForwardModel
    columns: ColumnModel
    microscope: Microscope

    def nearest(self, name: str, to: tuple[float, float] | None = None) -> int:
        """Return the column of a kind nearest to a point (y, x) in Å, default the middle of the field."""
        field = self.model.field
        point = field.to_field(np.array(field.image_shape) / 2) if to is None else np.array(to)
        c = self.columns
        mine = [i for i in range(len(c)) if c.kind_of(i).name == name]
        return min(mine, key=lambda i: float(np.linalg.norm(c.anchor[i] - point)))


def slab(
    view: tuple[str, tuple[int, int, int]] = BTO,
    shape: tuple[int, int] = (64, 64),
    pixel: float = 0.18,
    radius: float = 4.5,
    ends: tuple[float, float] = (20.0, 34.0),
    angle: float = 0.0,
    margin: float = 4.0,
) -> Slab:
    """Return a square island of half width `radius` (Å) filled between two depths (Å)."""
    field = make_field(shape, pixel, 40.0, margin=margin, pivot_z=sum(ends) / 2)
    middle = field.to_field(np.array(shape) / 2)
    s, c = np.sin(angle), np.cos(angle)
    frame = np.array([[s, c], [c, -s]])
    low, high = middle - radius, middle + radius
    columns = lattice_columns(projection(*view), middle + 0.07, frame, (low[0], low[1], high[0], high[1]))
    n = len(columns)
    columns = columns.filled(np.full(n, ends[0]), np.full(n, ends[1]))
    return Slab(ForwardModel(field, ENERGY), columns, nominal(ENERGY))


def place(window: NDArray[np.float32], row: int, col: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return a window put on the (periodic) image grid."""
    out = np.zeros(shape)
    n = window.shape[-1]
    out[np.ix_(np.arange(row, row + n) % shape[0], np.arange(col, col + n) % shape[1])] = window
    return out
