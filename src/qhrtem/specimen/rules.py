"""Physics rules: what a structure must or should satisfy, applied before anything is simulated.

Hard rules discard a candidate; soft rules add to its cost. Each is an object with a name; `StructureRules`
lists them, switches them and counts what every one rejected. Those of chemistry stand in `chemistry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.errors import PlanError
from qhrtem.specimen.columns import ColumnModel

Floats = NDArray[np.float64]


class HardRule(Protocol):
    """A rule that says which columns of a candidate break it."""

    name: str

    def broken(self, columns: ColumnModel) -> NDArray[np.bool_]:
        """Return (C,) True where the column breaks the rule."""
        ...


class SoftRule(Protocol):
    """A rule that says what a candidate costs."""

    name: str

    def cost(self, columns: ColumnModel) -> float:
        """Return the cost in χ² units."""
        ...


@dataclass
class Tally:
    """What one rule has done so far."""

    tested: int = 0  # candidates
    rejected: int = 0  # candidates with a broken column; 0 for soft rules
    cost: float = 0.0  # χ² units, of the last candidate; 0 for hard rules


class StructureRules:
    """Named rules for whole specimens, each with a switch and a tally; hard ones first."""

    def __init__(self, hard: Iterable[HardRule] = (), soft: Iterable[SoftRule] = ()) -> None:
        """Raise PlanError for two rules of one name."""
        self.hard, self.soft = tuple(hard), tuple(soft)
        names = [*(rule.name for rule in self.hard), *(rule.name for rule in self.soft)]
        if len(set(names)) < len(names):
            raise PlanError(f"rule names must differ, got {', '.join(names)}")
        self.on = dict.fromkeys(names, True)
        self.tallies = {name: Tally() for name in names}

    def switch(self, name: str, on: bool) -> None:
        """Switch a rule on or off; raise PlanError for a name that no rule has."""
        if name not in self.on:
            raise PlanError(f"no rule is named {name!r}; the rules are: {', '.join(self.on) or 'none'}")
        self.on[name] = on

    def refused_by(self, columns: ColumnModel) -> str | None:
        """Return the name of the first hard rule that a candidate breaks anywhere, None if it breaks none."""
        for rule in self.hard:
            if not self.on[rule.name]:
                continue
            tally = self.tallies[rule.name]
            tally.tested += 1
            if rule.broken(columns).any():
                tally.rejected += 1
                return rule.name
        return None

    def cost(self, columns: ColumnModel) -> float:
        """Return what the soft rules that are on cost together, χ² units."""
        total = 0.0
        for rule in self.soft:
            if self.on[rule.name]:
                tally = self.tallies[rule.name]
                tally.tested += 1
                tally.cost = float(rule.cost(columns))
                total += tally.cost
        return total


@dataclass(frozen=True)
class Neighbours:
    """Pairs of neighbouring columns; a fixed graph, since columns keep their lattice sites."""

    pairs: NDArray[np.int64]  # (E, 2)

    def of(self, column: int) -> NDArray[np.int64]:
        """Return the neighbours of one column."""
        a, b = self.pairs.T
        return np.concatenate([b[a == column], a[b == column]])

    @staticmethod
    def within(columns: ColumnModel, radius: float) -> Neighbours:
        """Return pairs whose ideal positions lie within `radius` Å."""
        return Neighbours(cKDTree(columns.anchor).query_pairs(radius, output_type="ndarray").astype(np.int64))


@dataclass(frozen=True)
class NeighbourStep:
    """A surface may not jump by more than `limit` Å between neighbours (no unsupported towers or pits)."""

    neighbours: Neighbours
    limit: float  # Å, beyond what the spacing of sites makes unavoidable
    name: str = "neighbour step"

    def unsupported(self, step: Floats, allowed: Floats) -> NDArray[np.bool_]:
        """Return (...,) True where more than half of the steps (..., neighbours) in Å exceed the limit."""
        return np.mean(np.abs(step) - allowed > self.limit, axis=-1) > 0.5

    def broken(self, columns: ColumnModel) -> NDArray[np.bool_]:
        """Return columns whose surface jumps too far against more than half of their occupied neighbours."""
        out = np.zeros(len(columns), dtype=bool)
        occupied = columns.occupied
        a, b = self.neighbours.pairs.T
        both = occupied[a] & occupied[b]
        a, b = a[both], b[both]
        for surface in columns.surfaces():
            jump = np.abs(surface[a] - surface[b]) - unavoidable_step(columns, a, b)
            count = np.bincount(a, minlength=len(out)) + np.bincount(b, minlength=len(out))
            bad = np.bincount(a, jump > self.limit, len(out)) + np.bincount(b, jump > self.limit, len(out))
            out |= (bad > count / 2) & (count > 0)
        return out


@dataclass(frozen=True)
class MinimumDistance:
    """No two atoms may come closer than a fraction of the shortest distance of that pair in the crystal."""

    shortest: float  # Å
    name: str = "minimum distance"

    def broken(self, columns: ColumnModel) -> NDArray[np.bool_]:
        """Return columns that hold an atom too close to another."""
        atoms = columns.atoms()
        points = np.column_stack([atoms.position, atoms.z])
        out = np.zeros(len(columns), dtype=bool)
        pairs = cKDTree(points).query_pairs(self.shortest, output_type="ndarray")
        out[atoms.column[pairs.ravel()]] = True
        return out


@dataclass(frozen=True)
class SurfaceEnergy:
    """Soft rule: a step between neighbouring columns costs (step/scale)², at most `cap` (terraces end)."""

    neighbours: Neighbours
    scale: float = 2.0  # Å
    cap: float = 6.0  # χ² units
    name: str = "surface energy"

    def cost(self, columns: ColumnModel) -> float:
        """Return the cost of all steps on both surfaces."""
        occupied = columns.occupied
        a, b = self.neighbours.pairs.T
        both = occupied[a] & occupied[b]
        a, b = a[both], b[both]
        allowed = unavoidable_step(columns, a, b)
        return float(sum(self.pair_cost(s[a] - s[b], allowed).sum() for s in columns.surfaces()))

    def pair_cost(self, step: Floats, allowed: Floats) -> Floats:
        """Return the cost of surface steps (Å) beyond what the site spacing makes unavoidable."""
        excess = np.maximum(np.abs(step) - allowed, 0)
        return np.minimum((excess / self.scale) ** 2, self.cap)


def site_spacing(columns: ColumnModel) -> Floats:
    """Return the mean distance between sites along the beam of each column, Å."""
    m = np.array([len(k.sites) for k in columns.projection.kinds])
    return columns.projection.period / m[columns.kind]


def unavoidable_step(columns: ColumnModel, a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
    """Return the largest step (Å) between columns a and b cut from the same flat surface."""
    spacing = site_spacing(columns)
    return (spacing[a] + spacing[b]) / 2
