"""The normal matrix of an image, from the windows in which columns change it.

Columns whose windows do not overlap have nothing in common, so it is assembled from pairs of windows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.window import Response
from qhrtem.stages.bordered import Bordered

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def assemble(
    jacobian: NDArray[np.float32],
    blocks: list[tuple[Ints, Response]],
    weight: NDArray[np.float32],
    pulls: NDArray[np.float32],
    tangents: int,
    moves: int,
    workers: int,
) -> tuple[Bordered, Floats]:
    """Return the normal matrix and the gradients (K, unknowns) of weighted residuals.

    jacobian: (P, rows, cols) image changes by the imaging parameters; blocks: of each column, its unknowns
    (tangents as themselves, moves as -1 - number) and what they do to the image; weight: (rows, cols)
    inverse variance; pulls: (K, rows, cols) residuals times the weight; tangents, moves: numbers of each;
    workers: threads.
    """
    p = len(jacobian)
    border = np.zeros((p, tangents + moves))
    gradient = np.zeros((len(pulls), p + tangents + moves))
    flat = jacobian.reshape(p, weight.size)
    corner = ((flat * weight.ravel()) @ flat.T).astype(np.float64)
    for k, pull in enumerate(pulls):
        gradient[k, :p] = flat @ pull.ravel()
    rows, cols = weight.shape
    placed = []
    for code, response in blocks:
        index = np.where(code >= 0, code, tangents - 1 - code)
        n = response.change.shape[-1]
        r, c = np.arange(response.row, response.row + n), np.arange(response.col, response.col + n)
        r_in, c_in = np.flatnonzero((r >= 0) & (r < rows)), np.flatnonzero((c >= 0) & (c < cols))
        if not len(r_in) or not len(c_in):
            continue
        change = response.change[:, r_in[0] : r_in[-1] + 1, c_in[0] : c_in[-1] + 1]
        r0, c0 = response.row + r_in[0], response.col + c_in[0]
        area = (slice(r0, r0 + len(r_in)), slice(c0, c0 + len(c_in)))
        weighted = change * weight[area]
        for k, pull in enumerate(pulls):
            gradient[k, p + index] = change.reshape(len(index), -1) @ pull[area].ravel()
        if p:
            border[:, index] = (
                weighted.reshape(len(index), -1) @ jacobian[(slice(None), *area)].reshape(p, -1).T
            ).T
        placed.append(_Placed(index, r0, c0, change, weighted))
    return Bordered(corner, border, _overlaps(placed, tangents + moves, workers)), gradient


@dataclass(frozen=True)
class _Placed:
    """The image changes by one column where the image has them."""

    index: NDArray[np.int64]  # (K,) unknowns, counted without the imaging parameters
    row: int
    col: int
    change: NDArray[np.float32]  # (K, rows, cols)
    weighted: NDArray[np.float32]  # the same over the variance


def _overlaps(placed: list[_Placed], size: int, workers: int) -> sparse.csc_array:
    """Return the normal matrix (size, size) of columns whose windows overlap; workers: threads."""
    placed = sorted(placed, key=lambda b: b.row)
    # Of each column: unknowns of another, and the products (own unknowns, those of the other) with them.
    beside: list[list[tuple[NDArray[np.int64], Floats]]] = [[] for _ in placed]
    with ThreadPoolExecutor(workers) as pool:
        every = pool.map(partial(_products, placed), range(len(placed)))
        for n, products in enumerate(every):
            for m, product in products:
                beside[n].append((placed[m].index, product))
                if m != n:
                    beside[m].append((placed[n].index, product.T))
    return gathered([a.index for a in placed], beside, (size, size))


def _products(placed: list[_Placed], n: int) -> list[tuple[int, Floats]]:
    """Return the columns from n on whose windows overlap that of n, with (own, other) products."""
    a, out = placed[n], []
    rows, cols = a.change.shape[1:]
    for m, b in enumerate(placed[n:], n):
        if b.row >= a.row + rows:
            break
        r0, c0 = max(a.row, b.row), max(a.col, b.col)
        r1 = min(a.row + rows, b.row + b.change.shape[1])
        c1 = min(a.col + cols, b.col + b.change.shape[2])
        if r1 <= r0 or c1 <= c0:
            continue
        left = a.weighted[:, r0 - a.row : r1 - a.row, c0 - a.col : c1 - a.col].reshape(len(a.index), -1)
        right = b.change[:, r0 - b.row : r1 - b.row, c0 - b.col : c1 - b.col].reshape(len(b.index), -1)
        product = (left @ right.T).astype(np.float64)
        out.append((m, (product + product.T) / 2 if a is b else product))
    return out


def gathered(
    own: list[Ints],
    beside: list[list[tuple[Ints, Floats]]],
    shape: tuple[int, int],
) -> sparse.csc_array:
    """Return a sparse matrix whose columns `own[n]` hold `beside[n]`: row numbers, and (own, rows) values.

    Written column by column as the sparse format wants it: collecting and sorting elements takes far longer.
    """
    lengths = np.zeros(shape[1], dtype=np.int64)
    for index, parts in zip(own, beside, strict=True):
        lengths[index] = sum(len(other) for other, _ in parts)
    start = np.concatenate([[0], np.cumsum(lengths)])
    start = start.astype(np.int32 if start[-1] <= np.iinfo(np.int32).max else np.int64)
    where, value = np.empty(start[-1], dtype=start.dtype), np.empty(start[-1])
    for index, parts in zip(own, beside, strict=True):
        if not parts:
            continue
        rows = np.concatenate([other for other, _ in parts])
        order = np.argsort(rows)
        rows, block = rows[order], np.concatenate([part for _, part in parts], axis=1)[:, order]
        for j, line in zip(index, block, strict=True):
            where[start[j] : start[j + 1]], value[start[j] : start[j + 1]] = rows, line
    return sparse.csc_array((value, where, start), shape=shape)


def dense_part(matrix: sparse.csc_array, rows: Ints, columns: Ints) -> Floats:
    """Return some rows and columns of a sparse matrix, at the cost of what those columns hold.

    rows: ascending. Slicing rows out of it, or writing out its columns whole, costs as much as all of it has
    rows.
    """
    begin, length = matrix.indptr[columns], np.diff(matrix.indptr)[columns]
    before = np.cumsum(length) - length
    at = np.arange(length.sum()) + np.repeat(begin - before, length)
    place = np.minimum(np.searchsorted(rows, matrix.indices[at]), len(rows) - 1)
    wanted = rows[place] == matrix.indices[at]
    out = np.zeros((len(rows), len(columns)))
    out[place[wanted], np.repeat(np.arange(len(columns)), length)[wanted]] = matrix.data[at[wanted]]
    return out
