"""Descent and sampling over whole-atom moves: one end state a column, under the move model and the rules."""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray

from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.persistence import Persistence
from qhrtem.specimen.rules import NeighbourStep, SurfaceEnergy, unavoidable_step
from qhrtem.stages.move_model import MoveModel, Options
from qhrtem.stages.option_costs import ColumnOptions, OptionCosts, PairCosts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Descent:
    """Minimises the move model plus surface energy over one option a column."""

    def __init__(
        self,
        columns: ColumnModel,
        model: MoveModel,
        surface: SurfaceEnergy,
        support: NeighbourStep,
        past: Persistence | None = None,
    ) -> None:
        """past: what an earlier image says of the ends."""
        self.columns, self.model, self.surface = columns, model, surface
        self.neighbours = support.neighbours  # columns that may change together
        self.chosen = np.zeros(len(model.options), dtype=np.int64)
        # Derivative of the cost with respect to each move, without its own square: what neighbours do, and
        # what all chosen moves do through the imaging parameters.
        self.field = -2 * model.h
        self.along = np.zeros(len(model.reach))
        self.place = np.full(len(columns), -1)
        self.place[[o.column for o in model.options]] = np.arange(len(model.options))
        self.start = np.stack(columns.surfaces(), axis=1)  # (C, 2) Å, both surfaces
        self.depth = self.start.copy()  # as chosen
        self.local = [self._prepare(columns, o) for o in model.options]
        self.barred = [self._barred(p, support) for p in self.local]
        self.rejected = int(sum(np.isinf(b).sum() for b in self.barred))
        if past is not None:
            self.known = [past.cost_of(o.column, o.first, o.last) for o in model.options]
        else:
            self.known = [np.zeros(len(o.first)) for o in model.options]
        number = np.array([o.column for o in model.options], dtype=np.int64)
        fixed = [b + k for b, k in zip(self.barred, self.known, strict=True)]
        self.costs = OptionCosts.of(self.local, fixed, number, len(model.h), surface)
        pairs = self.place[self.neighbours.pairs].reshape(-1, 2)
        self.pairs = PairCosts.of(pairs[(pairs >= 0).all(1)], self.local, number, self.costs, model)

    def over(self, model: MoveModel) -> Descent:
        """Return a descent from where this one started, with other costs of the same moves (`held`)."""
        out = copy(self)
        out.model = model
        out.chosen = np.zeros_like(self.chosen)
        out.field, out.along = -2 * model.h, np.zeros(len(model.reach))
        out.depth = self.start.copy()
        if model is not self.model:
            out.local = [p.under(model) for p in self.local]
            out.costs, out.pairs = self.costs.under(out.local), self.pairs.under(model)
        return out

    def _prepare(self, columns: ColumnModel, o: Options) -> ColumnOptions:
        own = np.array(sorted({m for moves in o.moves for m in moves}), dtype=np.int64)
        pick = np.array([[m in moves for m in own] for moves in o.moves], dtype=float)
        rows = self.model.near[own]
        # Its own moves too, where the column lies beyond the image and acts on nothing.
        beside = np.union1d(rows.indices, own).astype(np.int64)
        pulls = rows[:, beside].toarray()
        direct = pulls[:, np.searchsorted(beside, own)]
        c = np.full(len(o.first), o.column)
        at = columns.site_depth
        top = (at(c, o.first) + at(c, o.first - 1)) / 2
        bottom = (at(c, o.last) + at(c, o.last + 1)) / 2
        near = self.surface.neighbours.of(o.column)
        near = near[columns.last[near] >= columns.first[near]]
        allowed = unavoidable_step(columns, np.full(len(near), o.column), near)
        surface = np.stack([top, bottom], axis=1)
        none = np.zeros(len(pick))
        options = ColumnOptions(own, pick, direct, direct, beside, pulls, none, surface, near, allowed)
        return options.under(self.model)

    def _barred(self, p: ColumnOptions, support: NeighbourStep) -> Floats:
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
        through = 2 * (self.model.answer @ self.along) @ self.model.reach[:, p.own]
        slope = self.field[p.own] - through
        cost = p.cost(slope, self.chosen[n], self.depth[p.near], self.surface)
        return np.asarray(cost + self.barred[n] + self.known[n])

    def choose(self, n: int, option: int) -> None:
        """Set the option of column number n and update what others see."""
        p = self.local[n]
        change = p.pick[option] - p.pick[self.chosen[n]]
        if change.any():
            self.field[p.beside] += 2 * change @ p.pulls
            self.along += self.model.reach[:, p.own] @ change
        self.chosen[n] = option
        self.depth[self.model.options[n].column] = p.surface[option]

    def every_cost(self) -> Floats:
        """Return the cost (N, S) of every option of every column, others as chosen; infinite for none."""
        through = 2 * (self.model.answer @ self.along) @ self.model.reach
        return self.costs.all(self.field - through, self.chosen, self.depth)

    def every_change(self) -> Floats:
        """Return what every option (N, S) would change of the cost, others as chosen; infinite for none."""
        cost = self.every_cost()
        return np.asarray(cost - cost[np.arange(len(cost)), self.chosen][:, None])

    def sweep(self) -> float:
        """Let every column that has a better option take its best, the most eager first; return the gain."""
        promise = self.every_change().min(1, initial=0.0)
        gain = 0.0
        for n in np.argsort(promise, kind="stable"):
            if promise[n] > -1e-9:
                break
            now = self.local_cost(n)  # those before it have moved
            best = int(now.argmin())
            if now[best] < now[self.chosen[n]] - 1e-9:
                gain += now[self.chosen[n]] - now[best]
                self.choose(n, best)
        return gain

    def pair_sweep(self) -> float:
        """Let neighbouring columns change together where it pays; return the gain."""
        pairs, every = self.pairs.pairs, np.arange(len(self.pairs.pairs))
        change = self.every_change()
        both = self.pairs.together(every, change[pairs[:, 0]], change[pairs[:, 1]], self.chosen)
        promise = both.min((1, 2), initial=0.0)
        gain = 0.0
        for e in np.argsort(promise, kind="stable"):
            if promise[e] > -1e-6:
                break
            i, j = pairs[e]
            a, b = self._changes(i), self._changes(j)
            now = self.pairs.together(every[e : e + 1], a[None], b[None], self.chosen)[0]  # others moved
            s, t = np.unravel_index(now.argmin(), now.shape)
            if now[s, t] < -1e-6:
                gain -= float(now[s, t])
                self.choose(i, int(s))
                self.choose(j, int(t))
        return gain

    def _changes(self, n: int) -> Floats:
        """Return what each option (S,) of column number n would change, padded like all others."""
        cost = self.local_cost(n)
        out = np.full(self.costs.square.shape[1], np.inf)
        out[: len(cost)] = cost - cost[self.chosen[n]]
        return out

    def run(self, sweeps: int = 12) -> None:
        """Sweep until nothing changes."""
        for _ in range(sweeps):
            if self.sweep() + self.pair_sweep() < 1e-3:
                break

    def adopt(self, chosen: Ints) -> None:
        """Take over the options (one a column) of another descent over the same options."""
        for n in np.flatnonzero(chosen != self.chosen):
            self.choose(int(n), int(chosen[n]))

    def picked(self) -> Floats:
        """Return which moves (M,) the chosen options make up, 0 or 1."""
        return self.model.picked(self.chosen)

    def cost(self) -> float:
        """Return the change of cost by the chosen options, surface energy and the past included."""
        surface = self.surface.cost(self.columns.with_ends(*self.model.ends(self.columns, self.chosen)))
        past = sum(known[s] - known[0] for known, s in zip(self.known, self.chosen, strict=True))
        return self.model.cost(self.picked()) + surface - self.surface.cost(self.columns) + float(past)

    def margins(self) -> Floats:
        """Return by how much (χ²) the second best option of each column, others as chosen, is behind."""
        out = np.full(len(self.chosen), np.inf)
        for n, s in enumerate(self.chosen):
            cost = self.local_cost(n)
            others = np.delete(cost, s)
            if len(others):
                out[n] = others.min() - cost[s]
        return out
