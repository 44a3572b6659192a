"""Counts: the two whole numbers of every column, by exact single-column moves and a joint quadratic model.

Every ±1 and ±2 move of both ends of every column is simulated exactly in its window. The moves then compete
in one quadratic model in which imaging parameters and positions are re-optimised for every candidate (they
are projected out), so a lens error cannot buy atoms. The best set of moves under that model and the surface
rules is found by descent over columns and neighbour pairs, and accepted only if the exact image agrees;
where it does not, the half with the smaller single gains is dropped and the rest tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import NeighbourStep, SurfaceEnergy, unavoidable_step
from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A, apply_step, total_cost
from qhrtem.stages.linearise import EndMove, Quadratic, linearise, possible_moves, prior_normal
from qhrtem.stages.objective import Bench, State

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEAST_CHI2_GAIN = 6.0  # a round of count moves that gains less has converged


@dataclass(frozen=True)
class Options:
    """The end states a column may take in one round: option 0 is to stay."""

    column: int
    moves: list[tuple[int, ...]]  # (S,) indices of the end moves that make up each option
    first: Ints  # (S,) first site of each option
    last: Ints  # (S,)


@dataclass(frozen=True)
class Profile:
    """The quadratic model of moves, all else re-optimised: Δcost = -2 hᵀs + sᵀGs, s in {0, 1}."""

    h: Floats  # (M,)
    g: Floats  # (M, M)
    options: list[Options]
    follow: Floats  # (P+T, M) how continuous unknowns answer to each move
    offset: Floats  # (P+T,) their step when nothing moves


def profile(state: State, quadratic: Quadratic) -> Profile:
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
    return Profile(h, (g + g.T) / 2, _options(state.columns, quadratic.moves), follow, offset)


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


@dataclass(frozen=True)
class _Local:
    """What the descent needs of one column: S options, m moves, k occupied neighbours."""

    own: Ints  # (m,) its moves
    pick: Floats  # (S, m) which moves make up each option
    coupling: Floats  # (m, m) of its own moves
    square: Floats  # (S,) cost of each option's moves among themselves
    surface: Floats  # (S, 2) Å, entrance and exit surface
    near: Ints  # (k,)
    allowed: Floats  # (k,) Å, step that the site spacing makes unavoidable


class Descent:
    """Minimises the move model plus surface energy over one option a column."""

    def __init__(
        self, columns: ColumnModel, model: Profile, surface: SurfaceEnergy, support: NeighbourStep
    ) -> None:
        self.model, self.surface = model, surface
        self.chosen = np.zeros(len(model.options), dtype=np.int64)
        self.field = -2 * model.h  # derivative of the cost with respect to each move, without its own square
        self.place = np.full(len(columns), -1)
        self.place[[o.column for o in model.options]] = np.arange(len(model.options))
        self.depth = np.stack(columns.surfaces(), axis=1)  # (C, 2) Å, both surfaces as chosen
        self.local = [self._prepare(columns, o) for o in model.options]
        self.barred = [self._barred(p, support) for p in self.local]
        self.rejected = int(sum(np.isinf(b).sum() for b in self.barred))

    def _prepare(self, columns: ColumnModel, o: Options) -> _Local:
        own = np.array(sorted({m for moves in o.moves for m in moves}), dtype=np.int64)
        pick = np.array([[m in moves for m in own] for moves in o.moves], dtype=float)
        coupling = self.model.g[np.ix_(own, own)]
        c = np.full(len(o.first), o.column)
        at = columns.site_depth
        top = (at(c, o.first) + at(c, o.first - 1)) / 2
        bottom = (at(c, o.last) + at(c, o.last + 1)) / 2
        near = self.surface.neighbours.of(o.column)
        near = near[columns.last[near] >= columns.first[near]]
        allowed = unavoidable_step(columns, np.full(len(near), o.column), near)
        square = np.einsum("sm,mn,sn->s", pick, coupling, pick)
        return _Local(own, pick, coupling, square, np.stack([top, bottom], axis=1), near, allowed)

    def _barred(self, p: _Local, support: NeighbourStep) -> Floats:
        """Infinite cost where an option breaks the support rule; staying is always allowed."""
        out = np.zeros(len(p.pick))
        if len(p.near):
            for k in (0, 1):
                step = p.surface[:, k, None] - self.depth[p.near, k]
                out[support.unsupported(step, p.allowed[None, :])] = np.inf
        out[0] = 0.0
        return out

    def local_cost(self, n: int) -> Floats:
        """Return the cost of every option of column number n of the options, others as chosen."""
        p = self.local[n]
        cost = p.pick @ (self.field[p.own] - 2 * p.coupling @ p.pick[self.chosen[n]]) + p.square
        if len(p.near):
            step = p.surface[:, None, :] - self.depth[p.near][None]
            cost = cost + self.surface.pair_cost(step, p.allowed[None, :, None]).sum((1, 2))
        return np.asarray(cost + self.barred[n])

    def choose(self, n: int, option: int) -> None:
        """Set the option of column number n and update what others see."""
        p = self.local[n]
        change = p.pick[option] - p.pick[self.chosen[n]]
        if change.any():
            self.field += 2 * change @ self.model.g[p.own]
        self.chosen[n] = option
        self.depth[self.model.options[n].column] = p.surface[option]

    def sweep(self) -> float:
        """Let every column take its best option in turn; return the total gain."""
        gain = 0.0
        for n in range(len(self.model.options)):
            cost = self.local_cost(n)
            best = int(cost.argmin())
            if cost[best] < cost[self.chosen[n]] - 1e-9:
                gain += cost[self.chosen[n]] - cost[best]
                self.choose(n, best)
        return gain

    def pair_sweep(self) -> float:
        """Let neighbouring columns change together; return the total gain."""
        gain = 0.0
        for a, b in self.surface.neighbours.pairs:
            i, j = int(self.place[a]), int(self.place[b])
            if i < 0 or j < 0:
                continue
            before_i, before_j = int(self.chosen[i]), int(self.chosen[j])
            cost_i = self.local_cost(i)
            base = cost_i[before_i]
            candidates = np.argsort(cost_i)[:4]
            best: tuple[float, int, int] = (1e-9, before_i, before_j)
            for s in candidates:
                if s == before_i:
                    continue
                self.choose(i, int(s))
                cost_j = self.local_cost(j)
                t = int(cost_j.argmin())
                total = (base - cost_i[s]) + (cost_j[before_j] - cost_j[t])
                if total > best[0] + 1e-9:
                    best = (float(total), int(s), t)
                self.choose(i, before_i)
            if best[0] > 1e-6:
                self.choose(i, best[1])
                self.choose(j, best[2])
                gain += best[0]
        return gain

    def run(self, sweeps: int = 12) -> None:
        """Sweep until nothing changes."""
        for _ in range(sweeps):
            if self.sweep() + self.pair_sweep() < 1e-3:
                break


@dataclass(frozen=True)
class CountRound:
    """What one round of count moves did."""

    state: State
    changed: int  # columns
    gain: float  # fall of the exact cost, surface energy included
    model: Profile  # around the state before the round


def count_round(
    bench: Bench,
    state: State,
    imaging: list[int],
    positions: list[int],
    moving: list[int],
    surface: SurfaceEnergy,
    support: NeighbourStep,
    rejected: dict[str, int],
    tick: Callable[[float], None] = lambda fraction: None,
) -> CountRound:
    """Return the state after one round of joint count moves with everything continuous following along."""
    candidates = {c: possible_moves(state.columns, c) for c in moving}
    quadratic = linearise(bench, state, imaging, positions, candidates, tick)
    model = profile(state, quadratic)
    descent = Descent(state.columns, model, surface, support)
    rejected[support.name] = rejected.get(support.name, 0) + descent.rejected
    descent.run()
    before = total_cost(bench, state, imaging) + surface.cost(state.columns)
    ranked = _ranked(descent)
    limit = len(ranked)
    while True:
        take = ranked[:limit]
        trial = _applied(state, model, quadratic, descent, take)
        after = total_cost(bench, trial, imaging) + surface.cost(trial.columns)
        if after < before:
            return CountRound(trial, len(take), before - after, model)
        if limit == 0:
            return CountRound(state, 0, 0.0, model)
        limit //= 2


def _ranked(descent: Descent) -> list[int]:
    """Changed columns, the largest single gain first."""
    changed = [n for n in range(len(descent.chosen)) if descent.chosen[n]]
    gain = []
    for n in changed:
        cost = descent.local_cost(n)
        gain.append(cost[0] - cost[descent.chosen[n]])
    return [changed[i] for i in np.argsort(gain)[::-1]]


def _applied(state: State, model: Profile, quadratic: Quadratic, descent: Descent, take: list[int]) -> State:
    first, last = state.columns.first.copy(), state.columns.last.copy()
    moved = np.zeros(len(model.h))
    for n in take:
        o, s = model.options[n], int(descent.chosen[n])
        first[o.column], last[o.column] = o.first[s], o.last[s]
        moved[list(o.moves[s])] = 1
    step = model.offset - model.follow @ moved
    stepped = apply_step(state, quadratic, step)
    return replace(stepped, columns=stepped.columns.with_ends(first, last))
