"""Imaging parameters from cell averages: orientation, focus, thickness and origin of a simulated crystal."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crystals import projection
from lattices import BTO, FRAME_PX, PIXEL_A, lattice
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope, nominal
from qhrtem.stages.averages import CellAverages, cell_averages
from qhrtem.stages.imaging import (
    BASIN_A,
    SEARCHED,
    CellMatch,
    Hypothesis,
    orientations,
    rank_orientations,
    scan_focus,
    search,
    search_space,
    thickness_at,
    with_searched,
)

THICKNESS = np.array([14, 20])


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


@pytest.fixture(scope="module")
def averages() -> CellAverages:
    return averages_of(THICKNESS)


def match_for(averages: CellAverages, orientation: int) -> CellMatch:
    return CellMatch(averages, BTO, FRAME_PX * PIXEL_A, orientations(BTO)[orientation], 300e3)


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


def test_the_polar_sense_is_told_from_the_image(averages: CellAverages) -> None:
    """[001] up and down are different images; mirrors that leave the projection alone are merged."""
    ranked = rank_orientations(averages, BTO, lattice(), prior())
    assert len(ranked) == 2
    frame = orientations(BTO)[1] @ (FRAME_PX * PIXEL_A)
    polar = np.array([0.0, 1.0])  # crystal y, along [001]
    assert np.allclose(polar @ ranked[0][1].frame, polar @ frame)
    assert ranked[1][0] > 1.2 * ranked[0][0]


def test_scanning_focus_comes_close(averages: CellAverages) -> None:
    scan = scan_focus(match_for(averages, 1), prior())
    assert scan == sorted(scan)
    assert abs(scan[0][1] - 62.0) < 12.0


def test_search_space_is_centred_on_the_scan() -> None:
    space = search_space(prior(), 80.0)
    by_name = dict(zip(SEARCHED, zip(space.low, space.high, strict=True), strict=True))
    assert by_name["c1"] == (40.0, 120.0)
    assert by_name["a1_x"][0] == -by_name["a1_x"][1] < 0
    assert by_name["vibration_xx"][0] > 0
    vector = (space.low + space.high) / 2
    m = with_searched(prior(), vector)
    assert m["vibration_yy"] == m["vibration_xx"] and m["c1"] == pytest.approx(80.0)


def test_search_recovers_the_lens(averages: CellAverages) -> None:
    reports: list[tuple[int, float]] = []
    seen: list[tuple[int, dict[str, Any]]] = []
    found = search(
        match_for(averages, 1),
        prior(),
        0,
        8,
        lambda n, best: reports.append((n, best)),
        watch=lambda n, facts: seen.append((n, json.loads(json.dumps(facts, allow_nan=False)))),
    )
    assert len({n for n, _ in seen}) == len(seen) > 0
    last = seen[-1][1]
    assert [row[0] for row in last["lens"]] == [PARAMETERS[INDEX[n]].key for n in SEARCHED]
    assert 0 < last["step"] <= 1 and last["chi2"] > 0 and last["origin"] == "refined"
    assert all(0 < row[4] < 10 * PARAMETERS[INDEX[n]].sigma * PARAMETERS[INDEX[n]].factor
               for n, row in zip(SEARCHED, last["lens"], strict=True))  # fmt: skip
    assert reports and found.misfit <= reports[-1][1] * 1.001
    assert found.misfit < 0.01
    assert found.microscope["c1"] == pytest.approx(62.0, abs=4.0)
    assert found.microscope["a1_x"] == pytest.approx(10.0, abs=4.0)
    assert found.microscope["a1_y"] == pytest.approx(-6.0, abs=4.0)
    assert np.abs(found.thickness - THICKNESS).max() <= 1
    assert found.origin == pytest.approx((0.3, 0.8), abs=0.03)


def test_thickness_between_places_is_a_smooth_mean(averages: CellAverages) -> None:
    hypothesis = Hypothesis(FRAME_PX, prior(), (0, 0), THICKNESS, 0.1)
    plane = BTO.plane
    value = thickness_at(
        np.array([[40.0, 40.0], [75.0, 75.0], [110.0, 110.0], [999.0, 999.0]]), averages, hypothesis, plane
    )
    assert value[1] == pytest.approx(17 * plane)
    assert 14 * plane <= value[0] < value[1] < value[2] <= 20 * plane
    assert 14 * plane <= value[3] <= 20 * plane
