"""Whole-atom moves as a quadratic model in which everything continuous is re-optimised for every candidate.

Imaging parameters and positions are projected out (Schur complement), so a lens error cannot buy atoms. An
imaging parameter may also be held at another value: the same model then says what the moves cost there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A
from qhrtem.stages.linearise import EndMove, Quadratic, prior_normal
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
    """The quadratic model of moves, all else re-optimised: Δcost = -2 hᵀs + sᵀGs, s in {0, 1}."""

    h: Floats  # (M,)
    g: Floats  # (M, M)
    options: list[Options]
    follow: Floats  # (P+T, M) how continuous unknowns answer to each move
    offset: Floats  # (P+T,) their step when nothing moves
    imaging: Floats  # (P, P) covariance of the imaging parameters while nothing moves, in squared steps

    def picked(self, chosen: Ints) -> Floats:
        """Return which moves (M,) an option a column makes up, 0 or 1."""
        out = np.zeros(len(self.h))
        for option, s in zip(self.options, chosen, strict=True):
            out[list(option.moves[s])] = 1
        return out

    def ends(self, columns: ColumnModel, chosen: Ints) -> tuple[Ints, Ints]:
        """Return first and last sites (C,) of all columns with an option for each column of the model."""
        first, last = columns.first.copy(), columns.last.copy()
        for o, s in zip(self.options, chosen, strict=True):
            first[o.column], last[o.column] = o.first[s], o.last[s]
        return first, last

    def held(self, index: list[int], value: Floats) -> MoveModel:
        """Return the model of moves with imaging parameters (numbers among P) held at steps from the state.

        Holding adds (value − u)ᵀV⁻¹(value − u) to the cost, where u = offset − follow·s is what the
        parameters would do and V their covariance.
        """
        follow, away = self.follow[index], value - self.offset[index]
        pull = np.linalg.solve(self.imaging[np.ix_(index, index)], np.column_stack([follow, away]))
        return replace(self, h=self.h - follow.T @ pull[:, -1], g=self.g + follow.T @ pull[:, :-1])


def profile(state: State, quadratic: Quadratic) -> MoveModel:
    """Return the move model with the continuous unknowns projected out (Schur complement)."""
    k = quadratic.continuous
    prior, pull = prior_normal(state, quadratic, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    a = quadratic.matrix[:k, :k] + prior
    a[np.diag_indices(k)] += 1e-9
    cross = quadratic.matrix[:k, k:]
    gradient = quadratic.gradient[:k] + pull
    factor = linalg.cho_factor(a)
    follow = linalg.cho_solve(factor, cross)
    offset = linalg.cho_solve(factor, gradient)
    g = quadratic.matrix[k:, k:] - cross.T @ follow
    h = quadratic.gradient[k:] - follow.T @ gradient
    p = len(quadratic.imaging)
    imaging = linalg.cho_solve(factor, np.eye(k, p))[:p]
    options = _options(state.columns, quadratic.moves)
    return MoveModel(h, (g + g.T) / 2, options, follow, offset, imaging)


def _options(columns: ColumnModel, moves: list[EndMove]) -> list[Options]:
    by_column: dict[int, list[int]] = {}
    for i, m in enumerate(moves):
        by_column.setdefault(m.column, []).append(i)
    out = []
    for c, mine in by_column.items():
        tops: list[int | None] = [None, *[i for i in mine if moves[i].end == 0]]
        bottoms: list[int | None] = [None, *[i for i in mine if moves[i].end == 1]]
        sets, first, last = [], [], []
        for t in tops:
            for b in bottoms:
                f = int(columns.first[c]) + (moves[t].sites if t is not None else 0)
                n = int(columns.last[c]) + (moves[b].sites if b is not None else 0)
                if n >= f:
                    sets.append(tuple(i for i in (t, b) if i is not None))
                    first.append(f)
                    last.append(n)
        out.append(Options(c, sets, np.array(first), np.array(last)))
    return out
