"""Repeated cells against averages: misfit, orientations, other origins and thicknesses."""

from __future__ import annotations

import numpy as np
import pytest

from crystals import projection
from lattices import BTO, THICKNESS, averages_of, match_for, truth
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.cell_match import BASIN_A, orientations


@pytest.fixture(scope="module")
def averages() -> CellAverages:
    return averages_of(THICKNESS)


def test_a_rectangular_lattice_has_four_orientations_and_a_hexagonal_one_twelve() -> None:
    for view, number in (((("BaTiO3"), (1, 1, 0)), 4), (("SrTiO3", (1, 1, 1)), 12), (("MgO", (0, 0, 1)), 8)):
        p = projection(*view)
        found = orientations(p)
        assert len(found) == number
        assert np.allclose(found[0], np.eye(2))
        for s in found:
            # Each maps the lattice onto itself and keeps lengths.
            n = p.vectors @ s @ np.linalg.inv(p.vectors)
            assert np.allclose(n, np.round(n), atol=1e-9)
            assert np.allclose(s @ s.T, np.eye(2), atol=0.05)
        signs = [round(float(np.linalg.det(s))) for s in found]
        assert signs == sorted(signs, reverse=True) and sum(signs) == 0


def test_truth_explains_its_own_averages(averages: CellAverages) -> None:
    misfit, origin, thickness = match_for(averages, 1).best(truth())
    assert misfit < 0.01
    assert origin == pytest.approx((0.3, 0.8), abs=0.01)
    assert thickness.tolist() == THICKNESS.tolist()
    assert match_for(averages, 1).best(truth().with_values(c1=50.0))[0] > 2 * misfit
    match = match_for(averages, 1)
    residual = match.residual(truth(), np.array([0.3, 0.8]), THICKNESS)
    assert (residual**2).sum() == pytest.approx(misfit, rel=0.1)


def test_a_thick_crystal_is_also_sought_where_it_nearly_repeats(averages: CellAverages) -> None:
    """From a thickness 60 Å off, the true basin is named, and nothing within its own reach is another one."""
    match = match_for(averages_of(np.array([54, 58])), 1)
    others = match.other_basins(truth(), np.array([90, 90]))
    assert min(abs(n - 56) for n in others) <= BASIN_A / BTO.plane
    confined = match.about(56.0)
    assert confined.best(truth())[2].tolist() == [54, 58]
    assert np.abs(confined.thickness - 56).max() * BTO.plane <= 1.5 * BASIN_A
    assert len(confined.thickness) < len(match.thickness)
    thin = match_for(averages, 1).other_basins(truth(), THICKNESS)
    assert all(abs(n - THICKNESS.mean()) * BTO.plane > 2 * BASIN_A for n in thin)
