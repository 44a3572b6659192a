"""Persistence: the prior that an earlier image gives column ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.specimen.persistence import OTHERS, RATE, Persistence, certain
from slabs import slab


def known(probability: float = 0.7) -> Persistence:
    return Persistence(
        np.array([2, 2, 5]), np.array([0, 1, 0]), np.array([4, 4, 3]), np.array([probability, 0.2, 1.0])
    )


def test_prior_follows_the_chain():
    prior = known().prior(2, np.array([0, 1, 7]), np.array([4, 4, 9]))
    assert prior is not None
    held = np.array([0.7, 0.2, 0.1 / OTHERS])
    assert prior == pytest.approx((1 - RATE) * held + RATE / OTHERS)


def test_a_column_nothing_is_known_of_costs_nothing():
    assert known().prior(3, np.array([0]), np.array([4])) is None
    assert known().cost_of(3, np.array([0, 1]), np.array([4, 4])).tolist() == [0, 0]


@given(st.floats(0.21, 0.8))
def test_the_likeliest_ends_cost_nothing_and_others_more(probability):
    cost = known(probability).cost_of(2, np.array([0, 1, 7]), np.array([4, 4, 9]))
    assert cost[0] == pytest.approx(0, abs=1e-12)
    assert 0 < cost[1] < cost[2]


def test_cost_of_a_model_is_the_sum_over_its_columns():
    columns = slab().columns
    first, last = columns.first.copy(), columns.last.copy()
    past = certain(columns, np.arange(len(columns)), np.full(len(columns), 0.9))
    assert past.cost(columns) == pytest.approx(0, abs=1e-9)
    last[[1, 4]] += 1
    changed = columns.with_ends(first, last)
    one = past.cost_of(1, first[[1]], last[[1]])[0]
    assert past.cost(changed) == pytest.approx(2 * one)


def test_a_vanished_column_is_not_judged():
    columns = slab().columns
    past = certain(columns, np.arange(len(columns)), np.full(len(columns), 0.9))
    last = columns.last.copy()
    last[3] = columns.first[3] - 1
    assert past.cost(columns.with_ends(columns.first, last)) == pytest.approx(0, abs=1e-9)


def test_renumbered_columns_keep_their_probabilities():
    number = np.full(6, -1)
    number[2], number[5] = 9, 0
    other = known().renumbered(number)
    assert other.column.tolist() == [0, 9, 9]
    assert other.prior(9, np.array([1]), np.array([4])) == pytest.approx(
        known().prior(2, np.array([1]), np.array([4]))
    )
