"""Rules of chemistry: bonds, charge, composition and energy of a whole specimen.

A crystal's own bonds are the measure, not textbook valences, so that bond-valence parameters need only be
about right. Charge, composition and energy are soft: a small specimen with rough faces is never neutral.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.errors import PlanError
from qhrtem.specimen.columns import ColumnModel

Floats = NDArray[np.float64]

SOFTNESS_A = 0.37  # b of exp((R0 − d)/b); Brown and Altermatt 1985
REACH_A = 3.6  # bonds longer than this count less than 0.04 valence units for all parameters below
# Bond length R0 (Å) of one valence unit between a cation of some charge and oxygen (Brown and Altermatt, Acta
# Cryst. B41, 244, 1985, table 1), and the charge.
OXIDES = {
    "Na": (1.803, 1), "K": (2.132, 1), "Mg": (1.693, 2), "Ca": (1.967, 2), "Sr": (2.118, 2),
    "Ba": (2.285, 2), "Pb": (2.112, 2), "Ni": (1.654, 2), "Zn": (1.704, 2),
    "Al": (1.651, 3), "Fe": (1.759, 3), "La": (2.172, 3), "Bi": (2.094, 3),
    "Ti": (1.815, 4), "Ce": (2.028, 4), "Nb": (1.911, 5),
}  # fmt: skip
OXYGEN_CHARGE = -2


def charges_of(elements: tuple[str, ...]) -> dict[str, float]:
    """Return formal charges (e) of the elements of an oxide; PlanError for an element that has none here."""
    known = {"O": float(OXYGEN_CHARGE), **{e: float(q) for e, (_, q) in OXIDES.items()}}
    missing = [e for e in elements if e not in known]
    if missing:
        raise PlanError(
            f"no formal charge is known for {', '.join(missing)}; give the charges of all elements, in e"
        )
    return {e: known[e] for e in elements}


def valence_sums(columns: ColumnModel, radii: Mapping[str, float]) -> Floats:
    """Return the bond-valence sum (N,) of every atom: Σ exp((R0 − d)/b) over neighbours of opposite charge.

    radii: R0 in Å of cations with oxygen. Atoms of elements without one, other than O, have no bonds.
    """
    atoms = columns.atoms()
    element = np.array([s.element for s in columns.species])[atoms.species]
    points = np.column_stack([atoms.position, atoms.z])
    out = np.zeros(len(points))
    pairs = cKDTree(points).query_pairs(REACH_A, output_type="ndarray")
    first = np.concatenate([pairs[:, 0], pairs[:, 1]])
    second = np.concatenate([pairs[:, 1], pairs[:, 0]])
    r0 = np.array([radii.get(e, np.nan) for e in element])
    bond = np.isfinite(r0[first]) & (element[second] == "O")
    first, second = first[bond], second[bond]
    valence = np.exp((r0[first] - np.linalg.norm(points[first] - points[second], axis=1)) / SOFTNESS_A)
    np.add.at(out, first, valence)
    np.add.at(out, second, valence)
    return out


@dataclass(frozen=True)
class BondValence:
    """Hard rule: no atom may have much more bond valence than its like has in the crystal.

    Fewer bonds are what a surface is; more than in the crystal mean atoms squeezed together.
    """

    expected: Mapping[str, float]  # valence units by element, in the crystal
    limit: float = 0.6  # valence units beyond it
    radii: Mapping[str, float] = field(default_factory=lambda: {e: r for e, (r, _) in OXIDES.items()})  # Å
    name: str = "bond valence"

    @classmethod
    def like(cls, perfect: ColumnModel, limit: float = 0.6) -> BondValence:
        """Return the rule whose measure is the best-bonded atom of each element in a perfect slab."""
        rule = cls({}, limit)
        sums, element = valence_sums(perfect, rule.radii), _elements(perfect)
        return cls({str(e): float(sums[element == e].max()) for e in np.unique(element)}, limit)

    def broken(self, columns: ColumnModel) -> NDArray[np.bool_]:
        """Return (C,) True where a column holds an atom with too many or too short bonds."""
        sums = valence_sums(columns, self.radii)
        most = np.array([self.expected.get(e, np.inf) for e in _elements(columns)]) + self.limit
        out = np.zeros(len(columns), dtype=bool)
        out[columns.atoms().column[sums > most]] = True
        return out


@dataclass(frozen=True)
class ChargeBalance:
    """Soft rule: the specimen as a whole is neutral within `sigma`, which a rough surface may carry."""

    charges: Mapping[str, float]  # e, by element
    sigma: float  # e, one standard deviation
    name: str = "charge balance"

    def charge(self, columns: ColumnModel) -> float:
        """Return the formal charge of the specimen in e."""
        counts = columns.element_counts().sum(0)
        return float(
            sum(self.charges[e] * n for e, n in zip(columns.projection.elements, counts, strict=True))
        )

    def cost(self, columns: ColumnModel) -> float:
        """Return (charge / sigma)², χ² units."""
        return (self.charge(columns) / self.sigma) ** 2


@dataclass(frozen=True)
class Stoichiometry:
    """Soft rule: the shares of the elements are those of the formula within `sigma`."""

    shares: Mapping[str, float]  # by element, sum 1
    sigma: float  # one standard deviation of a share
    name: str = "stoichiometry"

    def cost(self, columns: ColumnModel) -> float:
        """Return Σ ((share − expected) / sigma)² over the elements, χ² units; 0 for an empty specimen."""
        counts = columns.element_counts().sum(0)
        if counts.sum() == 0:
            return 0.0
        expected = np.array([self.shares[e] for e in columns.projection.elements])
        return float((((counts / counts.sum() - expected) / self.sigma) ** 2).sum())


@dataclass(frozen=True)
class CalculatorEnergy:
    """Soft rule: the potential energy by any ASE calculator, less what the atoms would have in a reservoir.

    cost = (E − Σ μ n) / scale. Differences between candidates matter, its zero does not; with all μ = 0 only
    candidates of one composition compare.
    """

    calculator: Any  # of ASE, with get_potential_energy
    scale: float  # eV for one unit of χ²
    potentials: Mapping[str, float] = field(default_factory=dict)  # μ in eV by element
    name: str = "energy"

    def cost(self, columns: ColumnModel) -> float:
        """Return the energy in units of `scale`."""
        atoms = ase_atoms(columns)
        atoms.calc = self.calculator
        reservoir = sum(self.potentials.get(s, 0.0) for s in atoms.get_chemical_symbols())
        return float(atoms.get_potential_energy() - reservoir) / self.scale


def ase_atoms(columns: ColumnModel) -> Any:
    """Return the specimen as ase.Atoms without periodicity, x, y, z in Å."""
    from ase import Atoms  # here because only this rule needs it

    atoms = columns.atoms()
    points = np.column_stack([atoms.position[:, ::-1], atoms.z])
    return Atoms(symbols=_elements(columns).tolist(), positions=points)


def _elements(columns: ColumnModel) -> NDArray[np.str_]:
    """Return the element (N,) of every atom."""
    names: NDArray[np.str_] = np.array([s.element for s in columns.species])[columns.atoms().species]
    return names
