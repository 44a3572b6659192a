"""The trust-region rule, step by step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.optimise import trust_region as tr

CONTINUOUS = (0, 0, 0, 0, 0, 0)


def fresh(levels: tuple[int, ...] = CONTINUOUS) -> tr.TrustRegion:
    return tr.start((0.5,) * len(levels), levels)


def test_doubles_after_three_successes_in_a_row_and_not_before() -> None:
    region = fresh()
    for _ in range(2):
        region = tr.update(region, True, 8)
    assert region.length == 0.8
    interrupted = tr.update(region, False, 1)
    assert tr.update(interrupted, True, 8).length == 0.8
    assert tr.update(region, True, 8).length == 1.6


@pytest.mark.parametrize("q", [1, 4, 8])
def test_halves_after_the_published_number_of_failed_batches(q: int) -> None:
    d = 20
    region, batches = fresh((0,) * d), 0
    while region.length == 0.8:
        region, batches = tr.update(region, False, q), batches + 1
    assert batches == math.ceil(max(4 / q, d / q))  # Eriksson et al. 2019, section 3
    assert region.length == 0.4


def test_collapses_below_the_smallest_length() -> None:
    region, halvings = fresh(), 0
    while not region.collapsed:
        region = tr.update(region, False, 100)
        halvings += 1
    assert halvings == 7  # 0.8 / 2⁷ is the first below 2⁻⁷
    assert region.length == tr.LENGTH_MIN


def test_integer_radius_never_falls_below_one_step() -> None:
    region = fresh((51, 0))
    assert region.integer_radius == 20
    radii = []
    while not region.collapsed:
        region = tr.update(region, False, 100)
        radii.append(region.integer_radius)
    assert radii[:5] == [10, 5, 2.5, 1.25, 1]
    assert min(radii) == 1


def test_integers_alone_collapse_by_their_radius() -> None:
    region, halvings = fresh((9, 9)), 0
    while not region.collapsed:
        region, halvings = tr.update(region, False, 100), halvings + 1
    assert halvings == 2  # 3.2 → 1.6 → below one step


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=80))
def test_sizes_stay_within_their_limits(history: list[tuple[bool, int]]) -> None:
    region = fresh((0, 0, 31))
    for improved, evaluations in history:
        region = tr.update(region, improved, evaluations)
        assert tr.LENGTH_MIN <= region.length <= tr.LENGTH_MAX
        assert 1 <= region.integer_radius <= 30
        assert region.failures < region.failure_limit
        assert region.successes < tr.SUCCESSES


def test_update_is_pure() -> None:
    region = fresh()
    before = replace(region)
    tr.update(region, False, 100)
    assert region == before


def test_gain_is_measured_against_spread_and_tolerance() -> None:
    assert tr.gain_counts(0.99, 1.0, spread=1.0, tolerance=0.0)
    assert not tr.gain_counts(0.9995, 1.0, spread=1.0, tolerance=0.0)
    assert not tr.gain_counts(0.99, 1.0, spread=1.0, tolerance=0.05)
    assert not tr.gain_counts(1.0, 1.0, spread=0.0, tolerance=0.0)
    # Adding a constant or changing the unit of the objective does not change the verdict.
    assert tr.gain_counts(-999.01, -999.0, spread=1.0, tolerance=0.0)
    assert tr.gain_counts(0.99e-6, 1e-6, spread=1e-6, tolerance=0.0)


def test_published_rule_needs_ten_successes_and_ends_below_1e_5() -> None:
    rule = tr.RULES["published"]
    region = tr.start((0.5,) * 22, (0,) * 22, rule=rule)
    assert region.length == 1.6
    batches = halvings = 0
    while not region.collapsed:
        before = region.length
        region, batches = tr.update(region, False, 8, rule), batches + 1
        halvings += region.length < before or region.collapsed
    assert halvings == 18  # 1.6 / 2¹⁸ is the first below 1e-5
    assert batches == 18 * 3  # ceil(22 / 8) batches each: with the design of 88, at least 520 evaluations
    assert 88 + 8 * batches == 520
    assert tr.gain_counts(0.98, 1.0, spread=99.0, tolerance=0.0, rule=rule)
    assert not tr.gain_counts(0.995, 1.0, spread=0.0, tolerance=0.0, rule=rule)


def test_a_region_that_is_switched_off_never_shrinks_or_ends() -> None:
    rule = tr.RULES["none"]
    region = tr.start((0.5,) * 3, (0, 0, 9), rule=rule)
    for _ in range(100):
        region = tr.update(region, False, 8, rule)
    assert not region.collapsed
    assert region.length == rule.start
