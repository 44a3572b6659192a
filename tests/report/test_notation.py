"""How numbers are written."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.report.notation import chi2_text, number, percent, plain, power_of_ten, value_and_sigma


@pytest.mark.parametrize(
    ("value", "sigma", "text"),
    [
        (5.5234, 0.081, "5.523 ± 0.081"),
        (-13.7, 0.4, "−13.70 ± 0.40"),
        (22.41, 3.1, "22.4 ± 3.1"),
        (12345.0, 678.0, "12340 ± 680"),
        (300.0, math.nan, "300"),
        (0.0, 0.0, "0"),
        (math.nan, 1.0, "not known"),
    ],
)
def test_value_and_sigma(value: float, sigma: float, text: str) -> None:
    assert value_and_sigma(value, sigma) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e4))
def test_written_value_and_sigma_are_those_given(value: float, sigma: float) -> None:
    shown, spread = value_and_sigma(value, sigma).replace("−", "-").split(" ± ")
    assert float(shown) == pytest.approx(value, abs=0.06 * sigma)
    assert float(spread) == pytest.approx(sigma, rel=0.06)


@given(st.text())
def test_plain_text_is_one_short_printable_line(text: str) -> None:
    shown = plain(text, 20)
    assert len(shown) <= 20
    assert re.fullmatch(r"[^\x00-\x1f\x7f-\x9f\n]*", shown)


def test_small_notations() -> None:
    assert [power_of_ten(v) for v in (1e-5, 1.0, 100.0, 3.0, 0.0)] == ["10⁻⁵", "10⁰", "10²", "", ""]
    assert [percent(v) for v in (0.873, 0.996, 0.002, 1.472, math.nan)] == [
        "87 %",
        "99.6 %",
        "0.2 %",
        "147 %",
        "not known",
    ]
    assert [chi2_text(v) for v in (1.0, 12.3456, math.nan)] == ["1.000", "12.35", "not known"]
    assert number(-0.00123456) == "−0.001235"
