"""What the end states of columns cost: of one column by itself, of all at once, of two that change together.

The costs of a column's options depend on what the others have chosen only through a slope for each of its
moves and through the surface energy. What two columns cost each other does not depend on the rest at all and
is worked out once, so that every pair of options of every pair of neighbours can be looked at in one go.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.specimen.rules import SurfaceEnergy
from qhrtem.stages.move_model import MoveModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ColumnOptions:
    """The options of one column: S of them, made up of m moves; k occupied neighbours."""

    own: Ints  # (m,) its moves
    pick: Floats  # (S, m) which moves make up each option
    direct: Floats  # (m, m) coupling of its own moves while the imaging parameters are held
    coupling: Floats  # (m, m) the same with the imaging parameters re-optimised
    beside: Ints  # (b,) moves that its own are coupled to directly
    pulls: Floats  # (m, b) how
    square: Floats  # (S,) cost of each option's moves among themselves
    surface: Floats  # (S, 2) Å, entrance and exit surface
    near: Ints  # (k,)
    allowed: Floats  # (k,) Å, step that the site spacing makes unavoidable

    def under(self, model: MoveModel) -> ColumnOptions:
        """Return the column with its moves coupled through the imaging parameters of a model."""
        reach = model.reach[:, self.own]
        coupling = self.direct - reach.T @ model.answer @ reach
        return replace(self, coupling=coupling, square=((self.pick @ coupling) * self.pick).sum(1))

    def cost(self, slope: Floats, chosen: Ints | int, depth: Floats, energy: SurfaceEnergy) -> Floats:
        """Return the cost (..., S) of every option, the others as chosen, without what never changes.

        slope: (..., m) derivative of the cost by each of its moves, without its own square, where `chosen`
        (...) is its option; depth: (..., k, 2) Å, surfaces of its neighbours.
        """
        cost = (slope - 2 * self.pick[chosen] @ self.coupling) @ self.pick.T + self.square
        if len(self.near):
            step = self.surface[:, None, :] - depth[..., None, :, :]
            cost = cost + energy.pair_cost(step, self.allowed[:, None]).sum((-2, -1))
        return np.asarray(cost)


@dataclass(frozen=True)
class OptionCosts:
    """Options of N columns, padded to S options, m moves and K neighbours."""

    own: Ints  # (N, m) moves of each column; the number of moves M stands for none
    pick: Floats  # (N, S, m)
    coupling: Floats  # (N, m, m)
    square: Floats  # (N, S)
    surface: Floats  # (N, S, 2) Å
    near: Ints  # (N, K) columns of the specimen
    allowed: Floats  # (N, K) Å
    counts: NDArray[np.bool_]  # (N, K) which of them are neighbours
    fixed: Floats  # (N, S) cost that depends on nothing else; infinite where there is no such option
    energy: SurfaceEnergy

    @staticmethod
    def of(
        columns: list[ColumnOptions], fixed: list[Floats], number: Ints, moves: int, energy: SurfaceEnergy
    ) -> OptionCosts:
        """Return the costs of the options of some columns.

        number: (N,) which columns of the specimen they are; moves: M of all of them.
        """
        n = len(columns)
        m = max((len(c.own) for c in columns), default=0)
        s = max((len(c.pick) for c in columns), default=1)
        k = max((len(c.near) for c in columns), default=0)
        own = np.full((n, m), moves)
        pick, coupling, square = np.zeros((n, s, m)), np.zeros((n, m, m)), np.zeros((n, s))
        surface, cost = np.zeros((n, s, 2)), np.full((n, s), np.inf)
        near, allowed = np.repeat(number[:, None], k, axis=1), np.zeros((n, k))
        counts = np.zeros((n, k), dtype=bool)
        for i, c in enumerate(columns):
            a, b, d = len(c.own), len(c.pick), len(c.near)
            own[i, :a], pick[i, :b, :a], coupling[i, :a, :a] = c.own, c.pick, c.coupling
            square[i, :b], surface[i], cost[i, :b] = c.square, c.surface[0], fixed[i]
            surface[i, :b] = c.surface
            near[i, :d], allowed[i, :d], counts[i, :d] = c.near, c.allowed, True
        return OptionCosts(own, pick, coupling, square, surface, near, allowed, counts, cost, energy)

    def under(self, columns: list[ColumnOptions]) -> OptionCosts:
        """Return the costs of the same options where the columns stand under another model."""
        coupling, square = self.coupling.copy(), self.square.copy()
        for i, c in enumerate(columns):
            coupling[i, : len(c.own), : len(c.own)], square[i, : len(c.pick)] = c.coupling, c.square
        return replace(self, coupling=coupling, square=square)

    def all(self, slope: Floats, chosen: Ints, depth: Floats) -> Floats:
        """Return the cost (N, S) of every option of every column, the others as chosen (N,).

        slope: (M,) derivative of the cost by each move, without its own square; depth: (C, 2) Å, surfaces of
        all columns as chosen.
        """
        n = np.arange(len(chosen))
        own = padded(slope)[self.own]
        own -= 2 * (self.coupling @ self.pick[n, chosen][:, :, None])[:, :, 0]
        cost = (self.pick @ own[:, :, None])[:, :, 0] + self.square + self.fixed
        step = self.surface[:, :, None, :] - depth[self.near][:, None]
        steps = self.energy.pair_cost(step, self.allowed[:, None, :, None])
        return np.asarray(cost + (steps * self.counts[:, None, :, None]).sum((2, 3)))


@dataclass(frozen=True)
class PairCosts:
    """What the options of two columns cost each other, for E pairs of columns that may change together."""

    pairs: Ints  # (E, 2) numbers among the columns that have options
    direct: Floats  # (E, S, S) while the imaging parameters are held
    reach: Floats  # (N, P, S) pull of each option on the imaging parameters
    between: Floats  # (E, S, S) the imaging parameters following

    @staticmethod
    def of(
        pairs: Ints, columns: list[ColumnOptions], number: Ints, options: OptionCosts, model: MoveModel
    ) -> PairCosts:
        """Return the costs of pairs (E, 2) of the columns; number: (N,) of the specimen they are."""
        reach = padded(model.reach)[:, options.own].transpose(1, 0, 2) @ options.pick.transpose(0, 2, 1)
        direct = 2 * _coupled(pairs, columns, options, len(model.h)) + _steps(pairs, number, options)
        return PairCosts(pairs, direct, reach, direct).under(model)

    def under(self, model: MoveModel) -> PairCosts:
        """Return the costs of the same moves in another model."""
        i, j = self.pairs.T
        answered = self.reach.transpose(0, 2, 1) @ model.answer  # (N, S, P)
        return replace(self, between=self.direct - 2 * answered[i] @ self.reach[j])

    def together(self, which: Ints, first: Floats, second: Floats, chosen: Ints) -> Floats:
        """Return the change of cost (E', S, S) when both columns of some pairs (E',) take other options.

        first, second: (E', S) what each option of either would change by itself, the other as chosen (N,).
        """
        cost, e = self.between[which], np.arange(len(which))
        s, t = chosen[self.pairs[which]].T
        own = first + cost[e, s, t][:, None] - cost[e, :, t]
        other = second - cost[e, s]
        return np.asarray(cost + own[:, :, None] + other[:, None, :])


def padded(moves: Floats) -> Floats:
    """Return values (..., M) of moves with a zero for no move behind."""
    return np.concatenate([moves, np.zeros((*moves.shape[:-1], 1))], axis=-1)


def _coupled(pairs: Ints, columns: list[ColumnOptions], options: OptionCosts, moves: int) -> Floats:
    """Return half of what options of pairs (E, S, S) cost each other directly, without the surfaces."""
    s = options.square.shape[1]
    out = np.zeros((len(pairs), s, s))
    row, before = np.zeros((options.own.shape[1], moves + 1)), -1
    for e in np.argsort(pairs[:, 0], kind="stable"):
        i, j = pairs[e]
        if i != before:
            row[:] = 0.0
            row[: len(columns[i].own), columns[i].beside] = columns[i].pulls
            before = i
        out[e] = options.pick[i] @ row[:, options.own[j]] @ options.pick[j].T
    return out


def _steps(pairs: Ints, number: Ints, options: OptionCosts) -> Floats:
    """Return the surface energy (E, S, S) between the columns of each pair, by their options."""
    i, j = pairs.T
    place = (options.near[i] == number[j][:, None]) & options.counts[i]
    step = options.surface[i][:, :, None, :] - options.surface[j][:, None, :, :]
    allowed = (options.allowed[i] * place).sum(1)[:, None, None, None]
    cost = options.energy.pair_cost(step, allowed).sum(3)
    return np.asarray(cost * place.any(1)[:, None, None])
