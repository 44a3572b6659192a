"""From the plan and the cell averages to a first model of the field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crystals import projection
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, nominal
from qhrtem.model.sampling import COARSEST
from qhrtem.mtf import read_mtf
from qhrtem.plan import Plan
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.imaging import Hypothesis
from qhrtem.stages.start import MID_PLANE_A, planned_microscope, start_field

BTO = projection("BaTiO3", (1, 1, 0))
PIXEL_A = 0.12


def plan(image: dict[str, object] | None = None, **microscope: object) -> Plan:
    return Plan.model_validate(
        {
            "image": {"path": "image.tif", **(image or {})},
            "microscope": {"high_tension_kV": 200.0, **microscope},
            "structure": {"path": "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        }
    )


def test_the_plan_becomes_angstrom_and_radian() -> None:
    m = planned_microscope(
        plan(
            c1_nm=6.0,
            a1_nm=(1.0, -2.0),
            b2_nm=(30.0, 20.0),
            a2_nm=(10.0, -40.0),
            c3_um=-13.0,
            focal_spread_nm=2.5,
            semi_convergence_mrad=0.2,
            vibration_pm=(20.0, 30.0),
            mistilt_mrad=(1.0, -1.5),
        ),
        0.004,
    )
    expected = {
        "c1": 60.0,
        "a1_x": 10.0,
        "a1_y": -20.0,
        "b2_x": 300.0,
        "b2_y": 200.0,
        "a2_x": 100.0,
        "a2_y": -400.0,
        "c3": -13e4,
        "focal_spread": 25.0,
        "semi_convergence": 2e-4,
        "vibration_xx": 0.04,
        "vibration_yy": 0.09,
        "tilt_x": 1e-3,
        "tilt_y": -1.5e-3,
    }
    for name, value in expected.items():
        assert m[name] == pytest.approx(value), name
        assert m.mean[INDEX[name]] == pytest.approx(value), name
        assert 0 < m.sigma[INDEX[name]] <= nominal(3e5).sigma[INDEX[name]], name
    assert m.energy == 200e3 and m.sigma[INDEX["scale"]] == 0.004


def test_what_is_left_out_keeps_the_wide_prior() -> None:
    m, base = planned_microscope(plan(), 0.002), nominal(200e3)
    assert m["c1"] == base["c1"] and m.sigma[INDEX["c1"]] == base.sigma[INDEX["c1"]]
    assert m.mtf == (1.0, 1.0)


def test_mtf_by_formula_and_by_file(tmp_path: Path) -> None:
    assert planned_microscope(plan({"mtf": {"a": 0.3, "b": 0.2}}), 0.002).mtf == (0.3, 0.2)
    (tmp_path / "camera.mtf").write_text("3\n1\n0.6\n0.3\n")  # as Dr. Probe has it
    q, value = read_mtf(tmp_path / "camera.mtf")
    table = {"path": tmp_path / "camera.mtf", "q": q, "value": value}
    q, value = planned_microscope(plan({"mtf": table}), 0.002).mtf
    assert np.allclose(q, [0, 0.25, 0.5]) and 0.3 * 0.63 < value[2] < 0.3 * 0.66


def test_columns_fill_to_the_thickness_of_their_surroundings() -> None:
    """A wedge of 12 to 24 slices, its origin where the hypothesis says, empty at the right."""
    shape = (120, 140)
    crystal = np.zeros(shape, bool)
    crystal[:, :100] = True
    lattice = Lattice(
        np.array([[0.0, 1.0], [1.0, 0.0]]) / PIXEL_A, BTO.vectors, PIXEL_A, 0.0, 0.0, 99.0, crystal
    )
    centre = np.array([[30.0, 20.0], [30.0, 80.0], [90.0, 20.0], [90.0, 80.0]])
    averages = CellAverages(
        centre, np.zeros((1, 2), np.int64), np.zeros((1, 2)), np.ones((4, 1), complex), np.ones(1), PIXEL_A
    )
    hypothesis = Hypothesis(
        np.array([[0.0, 1.0], [1.0, 0.0]]), nominal(3e5), (0.3, 0.8), np.array([12, 24, 12, 24]), 0.1
    )
    micrograph = Micrograph(np.ones(shape), np.ones(shape, bool), PIXEL_A, 400.0, 0.0, 0.002)
    start = start_field(micrograph, lattice, BTO, averages, hypothesis, COARSEST)
    columns, field = start.columns, start.field
    position = field.to_detector(columns.anchor)
    held = columns.last >= columns.first
    assert held[(position[:, 1] < 98) & (position[:, 1] > 1)].all() and not held[position[:, 1] > 101].any()
    # The first pixel lies at fractional (0.3, 0.8) of the projected cell.
    bao = [i for i in range(len(columns)) if columns.kind_of(i).name == "BaO"]
    fraction = field.to_detector(columns.anchor[bao]) @ np.linalg.inv(
        BTO.vectors @ hypothesis.frame / PIXEL_A
    )
    away = fraction + np.array(hypothesis.origin)
    assert np.allclose(away, np.round(away), atol=1e-6)
    thickness = columns.thickness()
    thin, thick = held & (position[:, 1] < 25), held & (position[:, 1] > 75)
    assert thickness[thick].mean() - thickness[thin].mean() > 4  # Å; neighbouring places are averaged
    assert thickness[held].mean() == pytest.approx(18 * BTO.plane, rel=0.15)
    top, bottom = columns.surfaces()
    assert (top + bottom)[held].mean() / 2 == pytest.approx(MID_PLANE_A, abs=1.0)
    # Columns outside the image are simulated but may not change.
    outside = (position < -10).any(1)
    assert outside.any() and not start.eligible[outside].any()
    inside = ((position > 2) & (position < np.array(shape) - 3)).all(1)
    assert start.eligible[inside].all()
