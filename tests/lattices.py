"""A perfect lattice over a whole image, upright."""

from __future__ import annotations

import numpy as np

from crystals import projection
from qhrtem.calibrate.lattice import Lattice

PIXEL_A = 0.12
FRAME_PX = np.array([[0.0, 1.0], [1.0, 0.0]]) / PIXEL_A
BTO = projection("BaTiO3", (1, 1, 0))


def lattice() -> Lattice:
    """Return the lattice of BaTiO3 along [110] in an image of 160 × 160 pixels."""
    inside = np.ones((160, 160), bool)
    return Lattice(FRAME_PX, BTO.vectors, PIXEL_A, 0.0, 0.0, 99.0, inside)
