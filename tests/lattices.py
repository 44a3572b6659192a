"""A perfect lattice over a whole image, upright, and averages of its cells as the simulation gives them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystals import projection
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, Microscope, nominal
from qhrtem.stages.averages import CellAverages, cell_averages
from qhrtem.stages.cell_match import CellMatch, orientations

PIXEL_A = 0.12
FRAME_PX = np.array([[0.0, 1.0], [1.0, 0.0]]) / PIXEL_A
BTO = projection("BaTiO3", (1, 1, 0))
THICKNESS = np.array([14, 20])  # slices at two places


def lattice() -> Lattice:
    """Return the lattice of BaTiO3 along [110] in an image of 160 × 160 pixels."""
    inside = np.ones((160, 160), bool)
    return Lattice(FRAME_PX, BTO.vectors, PIXEL_A, 0.0, 0.0, 99.0, inside)


def prior() -> Microscope:
    """A lens that is known to a few nm of focus."""
    m = nominal(300e3)
    sigma = m.sigma.copy()
    sigma[INDEX["c1"]] = 8.0
    return Microscope(m.energy, m.values, m.mean, sigma)


def truth() -> Microscope:
    return prior().with_values(c1=62.0, a1_x=10.0, a1_y=-6.0, vibration_xx=0.04, vibration_yy=0.04)


def averages_of(thickness: NDArray[np.int64]) -> CellAverages:
    """Averages of two places as the simulation itself gives them, seen in the second orientation, moved."""
    empty = cell_averages(
        Micrograph(np.ones((160, 160)), np.ones((160, 160), bool), PIXEL_A, 500.0, 0.0, 0.002),
        lattice(),
        PIXEL_A,
    )
    match = match_for(empty, 1)
    value = match.coefficients(truth(), thickness) * np.exp(2j * np.pi * (match.index @ np.array([0.3, 0.8])))
    rng = np.random.default_rng(0)
    value = value + 0.002 * (rng.standard_normal(value.shape) + 1j * rng.standard_normal(value.shape))
    return CellAverages(
        np.array([[40.0, 40.0], [110.0, 110.0]]), empty.index, empty.frequency, value, empty.weight, PIXEL_A
    )


def match_for(averages: CellAverages, orientation: int) -> CellMatch:
    return CellMatch(averages, BTO, FRAME_PX * PIXEL_A, orientations(BTO)[orientation], 300e3)
