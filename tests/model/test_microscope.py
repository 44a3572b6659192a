"""Imaging parameters as a vector with names, units, bounds and priors."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.model.microscope import INDEX, NAMES, PARAMETERS, nominal


def test_parameters_are_consistent() -> None:
    assert len(set(NAMES)) == len(PARAMETERS)
    for p in PARAMETERS:
        assert p.low <= p.mean <= p.high and p.sigma > 0 and p.step > 0
        assert PARAMETERS[INDEX[p.name]] is p


def test_user_units() -> None:
    """Å and rad inside; nm, µm, mm, mrad and pm² outside."""
    inside = {
        "c1": 10.0,
        "c3": 1e4,
        "c5": 1e7,
        "semi_convergence": 1e-3,
        "vibration_xx": 1e-4,
        "shift_x": 0.01,
    }
    for name, value in inside.items():
        p = PARAMETERS[INDEX[name]]
        assert value * p.factor == pytest.approx(1), (name, p.unit)


def test_changes_leave_the_original_alone() -> None:
    m = nominal(300e3)
    changed = m.with_values(c1=71.0, b2_y=-30.0)
    assert changed["c1"] == 71 and changed["b2_y"] == -30 and changed["c3"] == m["c3"]
    assert m["c1"] == PARAMETERS[INDEX["c1"]].mean
    vector = m.with_vector([INDEX["a1_x"], INDEX["scale"]], np.array([5.0, 1.01]))
    assert (vector["a1_x"], vector["scale"], m["a1_x"]) == (5.0, 1.01, 0.0)


def test_coefficients_carry_both_parts_and_extra_focus() -> None:
    m = nominal(300e3).with_values(
        c1=50, a1_x=1, a1_y=2, b2_x=3, b2_y=4, a2_x=5, a2_y=6, s3_x=7, s3_y=8, a3_x=9, a3_y=10
    )
    c = m.coefficients(12.5)
    assert c["C1"] == 62.5 and c["C3"] == m["c3"] and c["C5"] == m["c5"]
    assert (c["A1"], c["B2"], c["A2"], c["S3"], c["A3"]) == (1 + 2j, 3 + 4j, 5 + 6j, 7 + 8j, 9 + 10j)


def test_a_prior_without_width_fixes_a_parameter() -> None:
    m = nominal(300e3)
    assert m.free() == list(range(len(PARAMETERS)))
    m.sigma[INDEX["absorption"]] = 0
    assert INDEX["absorption"] not in m.free() and len(m.free()) == len(PARAMETERS) - 1
