"""The normal matrix from windows against the same from whole images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from qhrtem.model.window import Response
from qhrtem.stages.normal_matrix import assemble, dense_part
from slabs import place

SHAPE = (40, 56)


@pytest.mark.parametrize("workers", [1, 3])
def test_windows_give_the_matrix_of_whole_images(workers: int) -> None:
    """Of windows that overlap, lie apart, reach beyond the image or miss it, with unknowns in any order."""
    rng = np.random.default_rng(4)
    corners = [(0, 0), (5, 7), (-6, 20), (30, 48), (5, 8), (21, -9), (18, 30), (80, 3)]
    tangents, moves = 2 * len(corners), 3 * len(corners)
    number = rng.permutation(len(corners))  # of the columns among the unknowns
    blocks, whole = [], np.zeros((tangents + moves, *SHAPE), dtype=np.float64)
    for n, (row, col) in zip(number.tolist(), corners, strict=True):
        change = rng.standard_normal((5, 12, 12)).astype(np.float32)
        code = np.array([2 * n, 2 * n + 1, *(-1 - (3 * n + k) for k in range(3))])
        blocks.append((code, Response(row, col, change)))
        for index, part in zip(
            [2 * n, 2 * n + 1, *(tangents + 3 * n + k for k in range(3))], change, strict=True
        ):
            big = place(part, row + 100, col + 100, (240, 256))
            whole[index] = big[100 : 100 + SHAPE[0], 100 : 100 + SHAPE[1]]
    jacobian = rng.standard_normal((3, *SHAPE)).astype(np.float32)
    weight = rng.uniform(0, 2, SHAPE).astype(np.float32)
    pulls = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    matrix, gradient = assemble(jacobian, blocks, weight, pulls, tangents, moves, workers)
    every = np.concatenate([jacobian, whole]).reshape(3 + len(whole), -1)
    expected = (every * weight.ravel()) @ every.T
    np.testing.assert_allclose(matrix.dense(), expected, atol=2e-3)
    np.testing.assert_allclose(gradient, pulls.reshape(2, -1) @ every.T, atol=1e-3)
    assert matrix.local.has_sorted_indices and (matrix.local != matrix.local.T).nnz == 0
    apart = np.zeros((tangents + moves,) * 2, dtype=bool)
    apart[matrix.local.indices, np.repeat(np.arange(tangents + moves), np.diff(matrix.local.indptr))] = True
    assert 0.1 < apart.mean() < 0.5  # nothing is kept of windows that do not overlap


def test_no_columns_leave_the_corner_alone() -> None:
    rng = np.random.default_rng(5)
    jacobian = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    matrix, gradient = assemble(jacobian, [], np.ones(SHAPE, dtype=np.float32), jacobian[:1], 0, 0, workers=1)
    assert matrix.shape == (2, 2) and gradient.shape == (1, 2)


def test_a_dense_part_is_what_slicing_gives() -> None:
    rng = np.random.default_rng(6)
    matrix = sparse.random_array((30, 50), density=0.2, format="csc", rng=rng)
    rows = np.sort(rng.choice(30, 7, replace=False))
    for columns in (rng.choice(50, 9, replace=False), np.array([3]), np.zeros(0, dtype=np.int64)):
        assert np.array_equal(dense_part(matrix, rows, columns), matrix.toarray()[np.ix_(rows, columns)])
    nothing = sparse.csc_array((30, 50))
    assert not dense_part(nothing, rows, np.arange(50)).any()
    assert dense_part(nothing, rows[:0], np.arange(4)).shape == (0, 4)
