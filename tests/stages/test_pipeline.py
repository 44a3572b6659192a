"""What the pipeline decides before any fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from crystals import projection
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import Plan
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.start import stated_pixel
from qhrtem.stages.structure import neighbour_radius


def plan(**image: float) -> Plan:
    return Plan.model_validate(
        {
            "image": {"path": "image.tif", **image},
            "microscope": {"high_tension_kV": 300.0},
            "structure": {"path": "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        }
    )


@pytest.mark.parametrize(
    ("name", "zone"), [("BaTiO3", (1, 1, 0)), ("SrTiO3", (1, 1, 1)), ("MgO", (0, 0, 1)), ("CeO2", (1, 1, 0))]
)
def test_every_column_has_a_shell_of_neighbours(name: str, zone: tuple[int, int, int]) -> None:
    p = projection(name, zone)
    columns = lattice_columns(p, np.zeros(2), np.array([[0.0, 1], [1, 0]]), (-12, -12, 12, 12))
    pairs = Neighbours.within(columns, neighbour_radius(p)).pairs
    inner = np.flatnonzero(np.abs(columns.anchor).max(1) < 6)
    degree = np.bincount(pairs.ravel(), minlength=len(columns))[inner]
    assert degree.min() >= 4 and degree.max() <= 12


def test_the_plan_states_the_pixel_size_before_the_file() -> None:
    raw = RawImage(np.ones((8, 8)), "image.tif", (0.1, 0.101))
    assert stated_pixel(plan(pixel_size_A=0.12), raw) == (0.12, 0.12)
    assert stated_pixel(plan(), raw) == (0.1, 0.101)
    assert stated_pixel(plan(), RawImage(np.ones((8, 8)), "image.tif")) is None


def test_radii_grow_with_the_cell() -> None:
    radii = [neighbour_radius(projection("MgO", z)) for z in ((0, 0, 1), (1, 1, 0))]
    assert all(1 < r < 5 for r in radii) and any(a != b for a, b in pairwise(radii))
