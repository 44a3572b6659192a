"""Symmetric matrices that are dense in a few rows and sparse in the rest, and their solution.

Imaging parameters act on the whole image, columns only on their surroundings. The normal matrix of a fit is
therefore a small dense corner, a dense border and a sparse remainder, whose size grows with the area of the
image and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

Floats = NDArray[np.float64]
RIDGE = 1e-9  # added to the diagonal, so that unknowns the image does not show keep still


@dataclass(frozen=True)
class Bordered:
    """A symmetric matrix (P+N, P+N): [[corner, border], [borderᵀ, local]]."""

    corner: Floats  # (P, P)
    border: Floats  # (P, N)
    local: sparse.csc_array  # (N, N)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole matrix."""
        n = len(self.corner) + self.local.shape[0]
        return n, n

    def dense(self) -> Floats:
        """Return all of it (P+N, P+N); for small problems."""
        return np.block([[self.corner, self.border], [self.border.T, self.local.toarray()]])

    def diagonal(self) -> Floats:
        """Return the diagonal (P+N,)."""
        return np.concatenate([np.diag(self.corner), self.local.diagonal()])

    def leading(self, n: int) -> Bordered:
        """Return the first n rows and columns, the corner included."""
        m = n - len(self.corner)
        return Bordered(self.corner, self.border[:, :m], sparse.csc_array(self.local[:m, :m]))

    def plus(self, other: Bordered) -> Bordered:
        """Return the sum with a matrix of the same layout."""
        total = sparse.csc_array(self.local + other.local)
        return Bordered(self.corner + other.corner, self.border + other.border, total)

    def among(self, places: list[int], size: int) -> Bordered:
        """Return the matrix with its corner's unknowns at some places of a corner of another size."""
        corner, border = np.zeros((size, size)), np.zeros((size, self.border.shape[1]))
        corner[np.ix_(places, places)], border[places] = self.corner, self.border
        return Bordered(corner, border, self.local)

    def plus_diagonal(self, values: Floats) -> Bordered:
        """Return the sum with a diagonal matrix (P+N,)."""
        p = len(self.corner)
        diagonal = sparse.diags_array(values[p:], format="csc")
        total = sparse.csc_array(self.local + diagonal)
        return Bordered(self.corner + np.diag(values[:p]), self.border, total)


class Factor:
    """Solves with a positive definite bordered matrix: the sparse part is eliminated, the corner is left."""

    def __init__(self, matrix: Bordered) -> None:
        """Factorise. Raises `numpy.linalg.LinAlgError` when the matrix is not positive definite."""
        self.border = matrix.border
        n = matrix.local.shape[0]
        ridged = sparse.csc_array(matrix.local + RIDGE * sparse.eye_array(n, format="csc"))
        try:
            self._local = (
                sparse_linalg.splu(
                    ridged,
                    permc_spec="MMD_AT_PLUS_A",
                    diag_pivot_thresh=0.0,
                    options={"SymmetricMode": True},
                )
                if n
                else None
            )
        except RuntimeError as error:
            raise np.linalg.LinAlgError(str(error)) from error
        self.through = self.solve_local(matrix.border.T)  # (N, P) how local unknowns answer to the corner's
        reduced = matrix.corner - self.border @ self.through
        reduced = (reduced + reduced.T) / 2 + RIDGE * np.eye(len(reduced))
        root = linalg.cho_factor(reduced) if len(reduced) else None
        # Inverse of the Schur complement: covariance of the corner's unknowns, the local ones free.
        self.corner = linalg.cho_solve(root, np.eye(len(reduced))) if root else np.zeros((0, 0))

    def solve(self, right: Floats, room: Floats | None = None) -> Floats:
        """Return x (P+N,) or (P+N, R) with matrix·x = right.

        room: (P, 2) limits of the corner's unknowns, for a single right side: one that would go beyond stays
        at its limit, and all else answers to that.
        """
        p = len(self.corner)
        local = self.solve_local(right[p:])
        corner = self.corner @ (right[:p] - self.border @ local)
        if room is not None:
            corner = within(room, corner, self.corner)
        return np.concatenate([corner, local - self.through @ corner])

    def solve_local(self, right: Floats) -> Floats:
        """Return x (N,) or (N, R) with local·x = right: the corner's unknowns held."""
        if self._local is None or not right.size:
            return np.zeros_like(right)
        return np.asarray(self._local.solve(np.ascontiguousarray(right)))


def within(room: Floats, best: Floats, covariance: Floats) -> Floats:
    """Return unknowns (P,) with those held that their minimum would carry beyond their room (P, 2).

    best: (P,) the minimum of a quadratic cost; covariance: (P, P) inverse of its matrix. The others go to
    where they are best with those at their limits.
    """
    out, limit = best, np.clip(best, room[:, 0], room[:, 1])
    held = np.zeros(len(best), dtype=bool)
    while (beyond := ~held & (np.clip(out, room[:, 0], room[:, 1]) != out)).any():
        held |= beyond
        limit[beyond] = np.clip(out, room[:, 0], room[:, 1])[beyond]
        pulled = np.linalg.solve(covariance[np.ix_(held, held)], (limit - best)[held])
        out = np.where(held, limit, best + covariance[:, held] @ pulled)
    return out
