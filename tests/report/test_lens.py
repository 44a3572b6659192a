"""The lens figure's phase against the aberration polynomial written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qhrtem.model.twin import Estimate
from qhrtem.physics.electron import wavelength
from qhrtem.report.lens import coefficients, high_tension_eV, lens_figure, sum_round
from twins import make_twin


def estimate(name: str, value: float, unit: str) -> Estimate:
    return Estimate(name, name, value, float("nan"), unit, True)


def test_coefficients_are_read_with_their_units() -> None:
    found = coefficients(
        (
            estimate("c1_nm", 5.5, "nm"),
            estimate("a1_x", 0.8, "nm"),
            estimate("a1_y", -1.3, "nm"),
            estimate("c3_um", -15.0, "µm"),
            estimate("c5", 2.0, "mm"),
            estimate("b2_x_nm", 20.0, "nm"),
        )
    )
    assert found == {"C1": 55, "A1": 8 - 13j, "C3": -1.5e5, "C5": 2e7, "B2": 200}


@pytest.mark.parametrize(
    "foreign",
    [
        estimate("b_scale", 1.0, ""),
        estimate("absorption", 0.03, ""),
        estimate("c9_nm", 1.0, "nm"),
        estimate("a1_nm", 1.0, "nm"),  # an amplitude without its direction
        estimate("c1_nm", float("nan"), "nm"),
        estimate("c1_nm", 1.0, "mrad"),
        estimate("<script>", 1.0, "nm"),
    ],
)
def test_what_is_no_coefficient_is_left_out(foreign: Estimate) -> None:
    assert coefficients((foreign,)) == {}


def test_phase_plate_shows_the_aberration_polynomial() -> None:
    figure = lens_figure(make_twin(2, 2))
    plate = next(ax for ax in figure.axes if ax.images)
    shown = np.ma.filled(plate.images[0].get_array(), np.nan)
    left, right, bottom, top = plate.images[0].get_extent()
    n = shown.shape[0]
    step = (right - left) / n
    angle = 1e-3 * (left + step * np.arange(n))
    assert bottom > top  # y downward
    wx, wy = np.meshgrid(angle, angle)
    w = wx + 1j * wy
    c1, a1, b2, a2, c3 = 55.2, 8.1 - 13.2j, 224 - 80j, 120 + 305j, -13.7e4
    wave = c1 * abs(w) ** 2 / 2 + a1 * w.conj() ** 2 / 2 + b2 * w**2 * w.conj() + a2 * w.conj() ** 3 / 3
    chi = 2 * np.pi / wavelength(3e5) * (wave + c3 * abs(w) ** 4 / 4).real
    known = np.isfinite(shown)
    assert known.mean() == pytest.approx(np.pi / 4, abs=0.02)
    np.testing.assert_allclose(np.exp(1j * shown[known]), np.exp(1j * chi[known]), atol=1e-6)


def test_round_part_of_a_pure_defocus() -> None:
    got = sum_round({"C1": 55.0 + 0j, "A1": 99j}, 3e5, np.array([0.0, 10.0]))
    np.testing.assert_allclose(got, [0.0, np.pi / wavelength(3e5) * 55.0 * 1e-4])


def test_without_high_tension_only_the_table_is_drawn() -> None:
    twin = make_twin(2, 2)
    lens = tuple(e for e in twin.microscope if e.name != "high_tension_kV")
    unknown = dataclasses.replace(twin, microscope=lens)
    assert high_tension_eV(unknown) is None
    assert not any(ax.images for ax in lens_figure(unknown).axes)
    stated = dataclasses.replace(unknown, provenance={"high_tension_kV": "200"})
    assert high_tension_eV(stated) == pytest.approx(2e5)


def test_table_names_values_uncertainties_and_what_was_held() -> None:
    words = {t.get_text() for ax in lens_figure(make_twin(2, 2)).axes for t in ax.texts}
    assert {"C1", "5.520 ± 0.080", "nm", "overfocus", "held fixed", "300"} <= words
