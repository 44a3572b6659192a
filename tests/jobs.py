"""Jobs for simulation engines: one cell of BaTiO3 [110] and small islands of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import drprobe
from qhrtem.engines.protocol import Job
from qhrtem.physics.lens import Lens
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import Slicing, Supercell

RIGID = Thermal(rigid=True)
NCSI = Lens(drprobe.ENERGY, {"C1": 60.0, "C3": -1.5e5}, 30.0, 3e-4)
# Every aberration to fifth order, large enough to show.
EVERY = {
    **{"C1": 60.0, "A1": 12 - 16j, "B2": 180 + 240j, "A2": -240 + 180j, "C3": -1.5e5, "S3": 6e3 + 8e3j},
    **{"A3": 1e4 - 2e4j, "B4": 2e5 + 1e5j, "D4": -1e5 + 2e5j, "A4": 3e5 + 4e5j, "C5": 2e7},
    **{"S5": 3e6 - 4e6j, "R5": 2e6 + 1e6j, "A5": -8e6 + 6e6j},
}


def cell_job(**changes: Any) -> Job:
    """Return the job of one cell, 60 x 80 pixels, four slices, eight repeats (4.5 nm), with changes."""
    names = [s.element for s in drprobe.SPECIES]
    edges = np.array([drprobe.C_A, drprobe.A_A])
    place = np.array([[y, x] for _, x, y, _ in drprobe.ATOMS]) * edges
    index = np.array([j for *_, j in drprobe.ATOMS])
    depth = (index + 0.5) * drprobe.PLANE_A
    cell = Supercell(
        drprobe.SPECIES,
        np.array([names.index(e) for e, *_ in drprobe.ATOMS]),
        np.column_stack([place, depth]),
        np.array([*edges, 4 * drprobe.PLANE_A]),
    )
    slicing = Slicing(index, np.full(4, drprobe.PLANE_A))
    return replace(Job(cell, slicing, drprobe.GRID, NCSI, thermal=RIGID, repeats=8), **changes)
