"""Physics rules: what a structure must or should satisfy, applied before anything is simulated.

Hard rules discard a candidate; soft rules add to its cost. Each is an object with a name; `StructureRules`
lists them, switches them and counts what every one rejected. Those of chemistry stand in `chemistry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.errors import PlanError
from qhrtem.specimen.columns import ColumnModel

Floats = NDArray[np.float64]
USUAL_SHARE, USUAL_PAIRS = 0.25, 40  # stepped share of neighbouring pairs before a specimen is known
INDEPENDENT = 4.0  # pairs of a column that tell of different things: those of a square lattice
MOST_BOND = 6.0  # χ² units: however flat it is, a lone atom on a surface stays possible
HIGH = 3.0  # χ² units: what a high step costs beyond its bond, once the specimen is known


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
    """Soft rule: neighbours that no flat surface can cut cost a bond, and (excess/scale)² up to cap.

    An Ising model of either surface. What a bond is worth depends on how rough the specimen is, which
    `learned` takes from the specimen itself.
    """

    neighbours: Neighbours
    bond: float = 1.0  # χ² units for a step of any height
    scale: float = 2.0  # Å
    cap: float = 6.0  # χ² units: terraces end
    weight: float = 1.0  # of the height; less where a column has many neighbours, which tell of the same
    name: str = "surface energy"

    def cost(self, columns: ColumnModel) -> float:
        """Return the cost of all steps on both surfaces."""
        a, b, allowed = self._pairs(columns)
        return float(sum(self.pair_cost(s[a] - s[b], allowed).sum() for s in columns.surfaces()))

    def pair_cost(self, step: Floats, allowed: Floats) -> Floats:
        """Return the cost of surface steps (Å) beyond what the site spacing makes unavoidable."""
        excess = np.abs(step) - allowed
        height = np.minimum((np.maximum(excess, 0) / self.scale) ** 2, self.cap)
        return np.where(excess > 0, self.bond + self.weight * height, 0.0)

    def learned(self, columns: ColumnModel, seen: NDArray[np.bool_]) -> SurfaceEnergy:
        """Return the energy with the bond that makes the roughness of the seen columns (C,) usual.

        A share f of stepped pairs is usual where a step costs 2 ln((1 - f)/f): the likelihood of independent
        pairs, with `USUAL_PAIRS` pairs of the share `USUAL_SHARE` as the prior. Pairs are not independent; of
        a column's many, `INDEPENDENT` count in full. That there is a step matters more than how high it is,
        by the pseudo-likelihood (Besag 1975) of known specimens (benchmarks/surface_prior.py).
        """
        a, b, allowed = self._pairs(columns)
        both = seen[a] & seen[b]
        stepped = sum(
            float((np.abs(s[a] - s[b]) > allowed)[both].sum()) for s in columns.surfaces()
        )  # of both surfaces
        share = (stepped + USUAL_PAIRS * USUAL_SHARE) / (2 * both.sum() + USUAL_PAIRS)
        degree = 2 * len(a) / max(int(columns.occupied.sum()), 1)
        bond = float(np.clip(2 * np.log((1 - share) / share), 0.0, MOST_BOND))
        weight = INDEPENDENT / max(degree, INDEPENDENT)
        return replace(self, bond=bond * weight, cap=HIGH, weight=weight)

    def _pairs(self, columns: ColumnModel) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """Return the pairs of occupied neighbours and the step that is unavoidable between them."""
        occupied = columns.occupied
        a, b = self.neighbours.pairs.T
        both = occupied[a] & occupied[b]
        a, b = a[both], b[both]
        return a, b, unavoidable_step(columns, a, b)


def site_spacing(columns: ColumnModel) -> Floats:
    """Return the mean distance between sites along the beam of each column, Å."""
    m = np.array([len(k.sites) for k in columns.projection.kinds])
    return columns.projection.period / m[columns.kind]


def unavoidable_step(columns: ColumnModel, a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
    """Return a step that columns a and b cut from the same flat surface stay below, and others exceed.

    Sites lie on planes; where a plane fits between the last site and the next of both columns, their surfaces
    (midway between these sites) differ by at least one plane less than the mean of the site spacings.
    """
    spacing = site_spacing(columns)
    return (spacing[a] + spacing[b] - columns.projection.plane) / 2
