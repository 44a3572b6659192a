"""Whole-atom moves as a quadratic model in which everything continuous is re-optimised for every candidate.

Imaging parameters and positions are projected out (Schur complement), so a lens error cannot buy atoms. What
a move does to positions is worked out among the columns that its window reaches; what it does to the imaging
parameters joins all moves by a matrix of low rank. An imaging parameter may also be held at another value:
the same model then says what the moves cost there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.bordered import RIDGE, Factor, within
from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A
from qhrtem.stages.linearise import EndMove, Quadratic, prior_normal
from qhrtem.stages.normal_matrix import dense_part, gathered
from qhrtem.stages.objective import State

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Options:
    """The end states a column may take in one round: option 0 is to stay."""

    column: int
    moves: list[tuple[int, ...]]  # (S,) indices of the end moves that make up each option
    first: Ints  # (S,) first site of each option
    last: Ints  # (S,)


@dataclass(frozen=True)
class MoveModel:
    """The quadratic model of moves, all else re-optimised: Δcost = -2 hᵀs + sᵀGs, s in {0, 1}.

    G = near - reachᵀ·answer·reach. The imaging parameters go to answer·(pull - reach·s), the positions to
    rest - follow·s - through·(imaging parameters).
    """

    h: Floats  # (M,)
    near: sparse.csr_array  # (M, M) while the imaging parameters are held
    reach: Floats  # (P, M) pull of each move on the imaging parameters
    answer: Floats  # (P, P) covariance of the imaging parameters, in squared steps
    pull: Floats  # (P,) pull of the residual
    follow: sparse.csc_array  # (T, M) how positions answer to each move
    rest: Floats  # (T,) where positions go when nothing else moves
    through: Floats  # (T, P) how positions answer to the imaging parameters
    options: list[Options]

    def step(self, moved: Floats, room: Floats | None = None) -> Floats:
        """Return the step (P+T,) of the continuous unknowns for a set of moves (M,).

        room: (P, 2) lowest and highest step of each imaging parameter; one that would go beyond stays at the
        limit, and all else answers to that.
        """
        imaging = self.answer @ (self.pull - self.reach @ moved)
        if room is not None:
            imaging = within(room, imaging, self.answer)
        return np.concatenate([imaging, self.rest - self.follow @ moved - self.through @ imaging])

    def dense(self) -> Floats:
        """Return G (M, M); for few moves."""
        return self.near.toarray() - self.reach.T @ self.answer @ self.reach

    def picked(self, chosen: Ints) -> Floats:
        """Return which moves (M,) an option a column makes up, 0 or 1."""
        out = np.zeros(len(self.h))
        for option, s in zip(self.options, chosen, strict=True):
            out[list(option.moves[s])] = 1
        return out

    def cost(self, moved: Floats) -> float:
        """Return Δcost of a set of moves (M,)."""
        along = self.reach @ moved
        return float(-2 * self.h @ moved + moved @ (self.near @ moved) - along @ self.answer @ along)

    def ends(self, columns: ColumnModel, chosen: Ints) -> tuple[Ints, Ints]:
        """Return first and last sites (C,) of all columns with an option for each column of the model."""
        first, last = columns.first.copy(), columns.last.copy()
        for o, s in zip(self.options, chosen, strict=True):
            first[o.column], last[o.column] = o.first[s], o.last[s]
        return first, last

    def held(self, index: list[int], value: Floats) -> MoveModel:
        """Return the model of moves with imaging parameters (numbers among P) held at steps from the state.

        Holding adds (value − u)ᵀV⁻¹(value − u) to the cost, where u is what the parameters would do by
        themselves and V their covariance. For the costs of moves only: `step` is that of the free model.
        """
        stiff = np.linalg.inv(self.answer[np.ix_(index, index)])
        away = value - self.answer[index] @ self.pull
        follow = self.answer[index] @ self.reach
        answer = self.answer - self.answer[:, index] @ stiff @ self.answer[index]
        return replace(self, h=self.h - follow.T @ stiff @ away, answer=answer)


def profile(state: State, quadratic: Quadratic) -> MoveModel:
    """Return the move model with the continuous unknowns projected out (Schur complement)."""
    k, p = quadratic.continuous, len(quadratic.imaging)
    prior, slope = prior_normal(state, quadratic, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    continuous = quadratic.matrix.leading(k).plus(prior)
    factor = Factor(continuous)
    gradient = quadratic.gradient[:k] + slope
    rest = factor.solve_local(gradient[p:])
    border, t = quadratic.matrix.border, k - p
    cross = sparse.csc_array(quadratic.matrix.local[:t, t:])
    follow, near = _among_neighbours(sparse.csc_array(continuous.local), cross, quadratic)
    reach = border[:, t:] - factor.through.T @ cross
    pull = gradient[:p] - factor.through.T @ gradient[p:]
    h = quadratic.gradient[k:] - cross.T @ rest - reach.T @ (factor.corner @ pull)
    options = _options(state.columns, quadratic.moves)
    return MoveModel(h, near, reach, factor.corner, pull, follow, rest, factor.through, options)


def _among_neighbours(
    positions: sparse.csc_array, cross: sparse.csc_array, quadratic: Quadratic
) -> tuple[sparse.csc_array, sparse.csr_array]:
    """Return how positions follow each move (T, M), and the move matrix (M, M) with them projected out.

    Each column's moves are answered by the positions that its window reaches, all others held.
    """
    t, m = cross.shape
    moves = sparse.csc_array(quadratic.matrix.local[t:, t:])
    column = np.array([move.column for move in quadratic.moves], dtype=np.int64)
    every: list[Ints] = []
    follow: list[list[tuple[Ints, Floats]]] = []
    near: list[list[tuple[Ints, Floats]]] = []
    for c in np.unique(column):
        own = np.flatnonzero(column == c)
        every.append(own)
        follow.append([])
        beside, around = (np.unique(matrix[:, own].indices).astype(np.int64) for matrix in (moves, cross))
        block = dense_part(moves, beside, own)
        if len(around):
            among = dense_part(positions, around, around)
            among[np.diag_indices(len(around))] += RIDGE
            answer = linalg.solve(among, dense_part(cross, around, own), assume_a="pos")
            block = block - dense_part(cross, around, beside).T @ answer
            follow[-1].append((around, answer.T))
        near.append([(beside, block.T)])
    answers = gathered(every, near, (m, m))
    both = sparse.csc_array(answers + answers.T)
    both.data /= 2
    return gathered(every, follow, (t, m)), both.T  # symmetric: its own columns are its rows


def _options(columns: ColumnModel, moves: list[EndMove]) -> list[Options]:
    by_column: dict[int, list[int]] = {}
    for i, m in enumerate(moves):
        by_column.setdefault(m.column, []).append(i)
    out = []
    for c, mine in by_column.items():
        alone = [i for i in mine if not moves[i].other]
        tops: list[int | None] = [None, *[i for i in alone if moves[i].end == 0]]
        bottoms: list[int | None] = [None, *[i for i in alone if moves[i].end == 1]]
        together = {moves[i].by: (i,) for i in mine if moves[i].other}
        sets, first, last = [], [], []
        for t in tops:
            for b in bottoms:
                up = moves[t].sites if t is not None else 0
                down = moves[b].sites if b is not None else 0
                f, n = int(columns.first[c]) + up, int(columns.last[c]) + down
                if n >= f:
                    apart = tuple(i for i in (t, b) if i is not None)
                    sets.append(together.get((up, down), apart))
                    first.append(f)
                    last.append(n)
        out.append(Options(c, sets, np.array(first), np.array(last)))
    return out
