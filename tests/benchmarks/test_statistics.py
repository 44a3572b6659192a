"""Success intervals, expected running times and distributions against hand-worked cases."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optimiser.statistics import advantage, cost_to, distribution, expected, running_time, summary, wilson


def record(seed, steps, budget=(100, 10.0), targets=(10.0, 5.0, 1.0), **more):
    """A run whose trajectory is [(simulations, value)], 0.1 s a simulation."""
    return {
        "task": {"seed": seed, "simulations": budget[0], "seconds": budget[1]},
        "targets": list(targets),
        "pixels": 10,
        "simulations": budget[0],
        "seconds": budget[1],
        "simulator_seconds": 4.0,
        "trajectory": [(n, n / 10, v, 70.0 * n, 0.5 * n) for n, v in steps],
        "ffts": 7000.0,
        "passes": 50.0,
        "value": steps[-1][1] if steps else math.inf,
        "errors": {"distance": 1.0},
        "exact": 0.5,
        "within_one": 1.0,
        "rejected": {"rule": 3},
        "duplicates": 2,
        "violations": 0,
        "peak_rss_MB": 100.0,
        **more,
    }


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (5, 10, 0.236593, 0.763407),
        (0, 10, 0.0, 0.277533),
        (20, 20, 0.838874, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_gives_published_values(k, n, low, high):
    # 81 of 263: Newcombe, Statistics in Medicine 17, 857 (1998), table I, method 3: 0.2553 to 0.3662.
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_and_mirrors(case):
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_failures_lengthen_the_expected_running_time():
    assert running_time([4, 6], [50, 50]) == 5
    assert running_time([4, math.inf], [50, 50]) == 54
    assert running_time([math.inf], [50]) == math.inf


def test_cost_is_that_of_the_first_value_low_enough():
    r = record(0, [(3, 12.0), (8, 4.0), (20, 0.5)])
    assert [cost_to(r, t, "simulations") for t in (12.0, 10.0, 1.0, 0.1)] == [3, 8, 20, math.inf]
    assert cost_to(r, 10.0, "seconds") == 0.8


def test_runs_are_judged_by_their_own_targets():
    runs = [record(0, [(10, 1.0)]), record(1, [(20, 1.0)], targets=(10.0, 5.0, 0.5))]
    assert expected(runs, 0, "simulations") == 15
    assert expected(runs, 2, "simulations") == 110  # 10 and a whole failed budget


def test_a_crashed_run_costs_its_budget():
    crashed = {"task": {"seed": 1, "simulations": 100, "seconds": 10.0}, "error": "no"}
    runs = [record(0, [(10, 1.0)]), crashed]
    assert expected(runs, 2, "seconds") == 11.0
    s = summary(runs)
    assert (s.runs, s.crashed, s.solved) == (2, 1, 1)
    assert s.simulator_share == pytest.approx(0.4)


def test_distribution_counts_all_pairs():
    cost, share = distribution([record(0, [(10, 5.0)]), record(1, [(30, 1.0)])], "simulations")
    assert cost.tolist() == [10, 10, 30, 30, 30]
    assert share == pytest.approx(np.arange(1, 6) / 6)


def test_advantage_is_measured_at_the_others_final_value():
    other = [record(s, [(10, 50.0), (80, 20.0)]) for s in range(3)]
    fast = [record(s, [(2, 30.0), (8, 19.0)]) for s in range(3)]
    a = advantage(fast, other)
    assert (a.pairs, a.reached, a.simulations, a.seconds) == (3, 3, 10.0, pytest.approx(10.0))
    assert (a.ffts, a.passes) == (10.0, 10.0)


def test_not_reaching_the_others_value_is_no_advantage():
    a = advantage([record(0, [(1, 21.0)])], [record(0, [(80, 20.0)])])
    assert (a.reached, a.simulations) == (0, 0.0)
