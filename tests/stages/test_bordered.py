"""Bordered matrices against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qhrtem.stages.bordered import Bordered, Factor


def random_matrix(seed: int, corner: int, local: int) -> Bordered:
    """A positive definite matrix whose local part has few entries off the diagonal."""
    rng = np.random.default_rng(seed)
    off = sparse.random_array((local, local), density=0.1, rng=rng)
    sparse_part = sparse.csc_array(off + off.T + 8.0 * sparse.eye_array(local))
    border = 0.3 * rng.normal(size=(corner, local))
    return Bordered(border @ border.T + 2 * np.eye(corner), border, sparse_part)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), corner=st.integers(0, 5), local=st.integers(0, 30))
def test_solutions_are_those_of_the_dense_matrix(seed: int, corner: int, local: int) -> None:
    matrix = random_matrix(seed, corner, local)
    if sum(matrix.shape) == 0:
        return
    dense = matrix.dense()
    right = np.random.default_rng(seed + 1).normal(size=(len(dense), 3))
    factor = Factor(matrix)
    assert np.allclose(dense @ factor.solve(right), right, atol=1e-6)
    assert np.allclose(factor.solve(right)[:, 0], factor.solve(right[:, 0]))
    assert np.allclose(factor.corner, np.linalg.inv(dense)[:corner, :corner], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), corner=st.integers(1, 5), local=st.integers(0, 30))
def test_what_would_leave_its_room_stays_at_the_limit_and_the_rest_is_best_there(
    seed: int, corner: int, local: int
) -> None:
    matrix = random_matrix(seed, corner, local)
    dense, rng = matrix.dense(), np.random.default_rng(seed + 1)
    right = rng.normal(size=len(dense))
    factor = Factor(matrix)
    best = factor.solve(right)
    room = np.stack([-rng.random(corner), rng.random(corner)], 1) * 2 * np.abs(best[:corner]).max()
    x = factor.solve(right, room)
    assert (x[:corner] >= room[:, 0]).all() and (x[:corner] <= room[:, 1]).all()
    at_limit = np.zeros(len(x), dtype=bool)
    at_limit[:corner] = (x[:corner] == room[:, 0]) | (x[:corner] == room[:, 1])
    if (np.clip(best[:corner], *room.T) == best[:corner]).all():
        assert np.array_equal(x, best) and not at_limit.any()
    slope = dense @ x - right
    assert np.allclose(slope[~at_limit], 0, atol=1e-6)
    held = factor.solve(right, np.zeros((corner, 2)))
    assert not held[:corner].any()
    assert np.allclose(held[corner:], factor.solve_local(right[corner:]))


def test_sums_parts_and_diagonals() -> None:
    a, b = random_matrix(1, 3, 12), random_matrix(2, 3, 12)
    assert np.allclose(a.plus(b).dense(), a.dense() + b.dense())
    assert np.allclose(a.leading(9).dense(), a.dense()[:9, :9])
    assert np.allclose(a.diagonal(), np.diag(a.dense()))
    values = np.arange(15.0)
    assert np.allclose(a.plus_diagonal(values).dense(), a.dense() + np.diag(values))


def test_a_matrix_that_is_not_positive_is_refused() -> None:
    a = random_matrix(1, 2, 6)
    with pytest.raises(np.linalg.LinAlgError):
        Factor(Bordered(-np.eye(2), a.border, a.local))


def test_a_corner_among_others_keeps_its_places() -> None:
    a, places = random_matrix(3, 2, 7), [4, 1]
    dense = a.among(places, 5).dense()
    index = [*places, *range(5, 12)]
    assert np.array_equal(dense[np.ix_(index, index)], a.dense())
    assert not np.delete(dense, index, 0).any()
