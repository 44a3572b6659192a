"""Imaging parameters from cell averages: orientation, focus, thickness and origin of a simulated crystal."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lattices import BTO, FRAME_PX, PIXEL_A, THICKNESS, averages_of, lattice, match_for, prior
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.cell_match import orientations
from qhrtem.stages.imaging import (
    SEARCHED,
    Hypothesis,
    rank_orientations,
    scan_focus,
    search,
    search_space,
    thickness_at,
    with_searched,
)


@pytest.fixture(scope="module")
def averages() -> CellAverages:
    return averages_of(THICKNESS)


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
