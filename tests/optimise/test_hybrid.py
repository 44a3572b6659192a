"""Bayesian optimisation and least squares side by side."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.optimise.competition import Experience, favoured
from qhrtem.optimise.hybrid import HybridSearch
from qhrtem.optimise.protocol import Trial
from qhrtem.optimise.space import LinearRule, Parameter, SearchSpace

MIXED = SearchSpace(
    (
        *(Parameter(f"x{i}", -3, 3) for i in range(6)),
        *(Parameter(f"n{i}", 0, 12, "", "integer") for i in range(4)),
    )
)
MIX = np.random.default_rng(0).normal(size=(60, 10)) @ np.diag(np.geomspace(1, 0.2, 10))
TRUTH = np.array([1.0, -2.0, 0.3, 2.5, -0.7, 0.0, 3, 11, 0, 6])


def residual(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r = MIX @ (x - TRUTH + 0.2 * (np.sin(x) - np.sin(TRUTH)))
    return r, MIX * (1 + 0.2 * np.cos(x))


def answer(search: HybridSearch, trial: Trial, seconds: float | None = None) -> None:
    r, j = residual(trial.vector)
    told = j if trial.wants == "jacobian" else None
    search.tell(trial.id, float(r @ r), residual=r, jacobian=told, seconds=seconds)


def drive(search: HybridSearch, budget: int) -> HybridSearch:
    while len(search.archive) < budget:
        for trial in search.ask():
            answer(search, trial)
    return search


@given(*(st.floats(0, 10) for _ in range(3)))
def test_the_highest_rate_is_favoured(descend: float, start: float, explore: float) -> None:
    rates = {"descend": descend, "start": start, "explore": explore}
    assert rates[favoured(descend, start, explore)] == max(rates.values())


def test_experience_without_gain_loses_to_an_untried_arm() -> None:
    tried, untried = Experience(40), Experience(40)
    for _ in range(10):
        tried.add(0.0, 1.0)
    assert tried.rate(1.0) < untried.rate(1.0)
    for _ in range(100):
        tried.add(0.5, 1.0)
    assert len(tried.rows) == 40
    assert tried.rate(1.0) > untried.rate(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_few_jacobians_find_exact_counts(seed: int) -> None:
    search = drive(HybridSearch(MIXED, seed), 40)
    assert search.best is not None
    np.testing.assert_array_equal(search.best.vector[6:], TRUTH[6:])
    np.testing.assert_allclose(search.best.vector, TRUTH, atol=1e-3)


def test_without_gradients_only_values_are_asked_for() -> None:
    search = HybridSearch(MIXED, 0, gradients=False)
    for _ in range(8):
        for trial in search.ask():
            assert trial.wants == "value"
            answer(search, trial)
    assert not search.descended


def test_jacobians_are_no_longer_asked_for_where_none_is_told() -> None:
    search, wants = HybridSearch(MIXED, 0), []
    for _ in range(30):
        for trial in search.ask():
            wants.append(trial.wants)
            r, _ = residual(trial.vector)
            search.tell(trial.id, float(r @ r))
    assert wants.count("jacobian") < 12
    assert "jacobian" not in wants[-40:]


def test_dear_jacobians_are_asked_for_less_than_cheap_ones() -> None:
    spent = {}
    for cost in (1.0, 300.0):
        search = HybridSearch(MIXED, 1)
        while len(search.archive) < 80:
            for trial in search.ask():
                answer(search, trial, cost if trial.wants == "jacobian" else 1.0)
        spent[cost] = search.descended
    assert spent[300.0] < spent[1.0]


def test_an_added_start_is_descended_from() -> None:
    search = HybridSearch(MIXED, 0)
    guess = MIXED.snap(TRUTH + 0.2)
    r, _ = residual(guess)
    search.add(guess, float(r @ r))
    (first,) = search.ask()
    assert first.wants == "jacobian"
    np.testing.assert_array_equal(first.vector, guess)
    answer(search, first)
    assert drive(search, 12).best.value < 1e-2  # type: ignore[union-attr]


def test_rules_hold_for_roundings() -> None:
    rule = LinearRule("at most 15", (0.0,) * 6 + (1.0,) * 4, 15.0)  # the truth has 20
    search = drive(HybridSearch(SearchSpace(MIXED.parameters, (rule,)), 0), 60)
    assert max(o.vector[6:].sum() for o in search.archive) <= 15
    assert search.best is not None
    assert search.best.vector[6:].sum() == 15


def test_every_slot_is_filled_on_request() -> None:
    search = HybridSearch(MIXED, 0, batch=6, fill=True)
    for _ in range(6):
        trials = search.ask()
        assert len(trials) == 6
        for trial in trials:
            answer(search, trial)


def test_descents_end_and_leave_basins() -> None:
    search = drive(HybridSearch(MIXED, 0), 80)
    assert search.basins
    assert math.isclose(min(b.value for b in search.basins), search.best.value, abs_tol=1e-6)  # type: ignore[union-attr]
