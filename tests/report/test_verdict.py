"""The verdict in words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qhrtem.model.twin import Twin
from qhrtem.report.verdict import key_numbers, verdict
from twins import make_twin


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(3, 4)


def changed_columns(twin: Twin, **changes: object) -> Twin:
    return dataclasses.replace(twin, columns=dataclasses.replace(twin.columns, **changes))


def test_numbers_are_those_of_the_twin(twin: Twin) -> None:
    shown = {n.meaning: n.value for n in key_numbers(twin)}
    inner = twin.columns.inside
    assert shown["columns in the fitted region"] == str(inner.sum())
    sigma = 100 * twin.pixel_size_A * np.median(twin.columns.sigma_px[inner])
    text = shown["median standard deviation of a position, per axis"]
    assert float(text.removesuffix(" pm")) == pytest.approx(sigma, rel=0.05)


def test_certain_columns_inside_raise_no_doubt_but_fixed_parameters(twin: Twin) -> None:
    n = len(twin.columns.kind)
    sure = changed_columns(twin, p_exact=np.full(n, 0.999), inside=np.ones(n, dtype=bool))
    assert verdict(sure).distrust == ("Held fixed at assumed values: U, semi-convergence.",)


def test_model_error_beyond_noise_is_said_in_numbers(twin: Twin) -> None:
    worse = dataclasses.replace(twin, chi2_crystal=1.25, chi2_vacuum=1.0)
    assert any("χ² 1.250 against 1.000" in s and "50 % of the noise" in s for s in verdict(worse).distrust)


def test_refused_verdict_has_no_finding(twin: Twin) -> None:
    refused = make_twin(3, 4, passed=False)
    said = verdict(refused)
    assert not said.passed
    assert said.found == ()
    assert all("χ²" in n.meaning for n in key_numbers(refused))


def test_a_twin_whose_columns_all_lie_outside_claims_no_confidence(twin: Twin) -> None:
    n = len(twin.columns.kind)
    outside = changed_columns(twin, inside=np.zeros(n, dtype=bool))
    assert not any("exact" in k.meaning for k in key_numbers(outside))
    assert any(s.startswith(f"{n} columns lie at the border") for s in verdict(outside).distrust)
