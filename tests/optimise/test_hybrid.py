"""Bayesian optimisation and least squares side by side."""

import json
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
    for _ in range(60):
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


WAVY = SearchSpace(
    (*(Parameter(f"x{i}", -3, 3) for i in range(4)), Parameter("n", 1, 40, "", "integer", swept=True))
)
WAVES = np.random.default_rng(3).normal(size=(30, 5)) @ np.diag([1, 0.8, 0.5, 0.2, 0.15])
BOTTOM = np.array([0.7, -1.2, 2.1, -0.4, 27.0])


def wavy(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residual and Jacobian with many local minima: thickness enters periodically as well."""
    bend = np.sin(1.7 * x) - np.sin(1.7 * BOTTOM)
    r = WAVES @ (x - BOTTOM + 0.9 * bend)
    return r, WAVES * (1 + 0.9 * 1.7 * np.cos(1.7 * x))


def swept_answer(search: HybridSearch, trial: Trial) -> int:
    """Tell what a trial wants; return how many vectors that was about."""
    r, j = wavy(trial.vector)
    if trial.wants != "levels":
        told = j if trial.wants == "jacobian" else None
        search.tell(trial.id, float(r @ r), residual=r, jacobian=told)
        return 1
    every = np.tile(trial.vector, (40, 1))
    every[:, 4] = np.arange(1, 41)
    levels = [float(v @ v) for v, _ in map(wavy, every)]
    search.tell(trial.id, float(r @ r), residual=r, levels=levels)
    return 40


@pytest.mark.parametrize("seed", range(3))
def test_sweeps_and_hops_find_the_lowest_of_many_basins(seed: int) -> None:
    search = HybridSearch(WAVY, seed)
    asked = 0
    while asked < 400 and (search.best is None or search.best.value > 1e-6):
        for trial in search.ask():
            swept_answer(search, trial)
            asked += 1
    assert search.best is not None
    assert search.best.value < 1e-6
    assert search.best.vector[4] == 27


def test_sweeps_resume_exactly_and_stop_where_none_is_told() -> None:
    straight = HybridSearch(WAVY, 1)
    for _ in range(40):
        trials = straight.ask()
        saved = json.loads(json.dumps(straight.state_dict(), allow_nan=False))
        resumed = HybridSearch.from_state_dict(WAVY, saved)
        for t in trials:
            swept_answer(straight, t)
            swept_answer(resumed, t)
        again = straight.state_dict()
        assert resumed.state_dict() == again
    deaf, wanted = HybridSearch(WAVY, 1), 0
    for _ in range(60):
        for t in deaf.ask():
            wanted += t.wants == "levels"
            r, j = wavy(t.vector)
            deaf.tell(t.id, float(r @ r), residual=r, jacobian=j)
    assert 0 < wanted <= 10


def test_a_gradient_without_a_residual_is_descended() -> None:
    """Rosenbrock in six dimensions less 7, so that the value is no sum of squares."""
    space = SearchSpace(tuple(Parameter(f"x{i}", -2, 2) for i in range(6)))

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = x[:-1], x[1:]
        gradient = np.zeros(6)
        gradient[:-1] += -400 * a * (b - a**2) - 2 * (1 - a)
        gradient[1:] += 200 * (b - a**2)
        return float((100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()) - 7, gradient

    search = HybridSearch(space, 0, transform="identity")
    search.add(np.zeros(6), value(np.zeros(6))[0])
    for _ in range(150):
        for t in search.ask():
            worth, slope = value(t.vector)
            search.tell(t.id, worth, gradient=slope if t.wants == "jacobian" else None)
    assert search.best is not None
    assert search.best.value < -7 + 1e-3
    state = json.loads(json.dumps(search.state_dict(), allow_nan=False))
    assert HybridSearch.from_state_dict(space, state).state_dict() == search.state_dict()
