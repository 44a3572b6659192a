"""Rules of chemistry against textbook valences, hand-counted charges and a pair potential summed directly."""

from __future__ import annotations

import numpy as np
import pytest

import crystals
from qhrtem.errors import PlanError
from qhrtem.specimen import chemistry
from qhrtem.specimen.chemistry import (
    OXIDES,
    BondValence,
    CalculatorEnergy,
    ChargeBalance,
    Stoichiometry,
    ase_atoms,
    charges_of,
    valence_sums,
)
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.rules import MinimumDistance, StructureRules

RADII = {e: r for e, (r, _) in OXIDES.items()}


def slab(name: str, zone: tuple[int, int, int], size: float = 16.0, thickness: float = 20.0) -> ColumnModel:
    columns = lattice_columns(
        crystals.projection(name, zone), np.zeros(2), np.array([[0.0, 1], [1, 0]]), (0, 0, size, size)
    )
    n = len(columns)
    return columns.filled(np.zeros(n), np.full(n, thickness))


def inner(columns: ColumnModel) -> np.ndarray:
    """Atoms with all their neighbours."""
    atoms = columns.atoms()
    points = np.column_stack([atoms.position, atoms.z])
    low, high = points.min(0), points.max(0)
    return ((points > low + 3.7) & (points < high - 3.7)).all(1)


@pytest.mark.parametrize(
    ("name", "zone", "valence"),
    [("MgO", (0, 0, 1), {"Mg": 2, "O": 2}), ("SrTiO3", (1, 1, 0), {"Sr": 2, "Ti": 4, "O": 2})],
)
def test_atoms_inside_a_crystal_have_their_valence(name, zone, valence) -> None:
    columns = slab(name, zone)
    sums, deep = valence_sums(columns, RADII), inner(columns)
    element = np.array([s.element for s in columns.species])[columns.atoms().species]
    for e, expected in valence.items():
        mine = sums[deep & (element == e)]
        assert mine.size
        np.testing.assert_allclose(mine, expected, rtol=0.12)


def test_a_perfect_slab_passes_and_an_atom_squeezed_in_does_not() -> None:
    columns = slab("SrTiO3", (1, 1, 0))
    rule = BondValence.like(columns)
    assert not rule.broken(columns).any()
    c = int(np.argmin(np.linalg.norm(columns.anchor - 8, axis=1)))
    near = int(np.argsort(np.linalg.norm(columns.anchor - columns.anchor[c], axis=1))[1])
    shift = columns.shift.copy()
    shift[c] += 0.5 * (columns.anchor[near] - columns.anchor[c])
    squeezed = type(columns)(**{**vars(columns), "shift": shift})
    assert rule.broken(squeezed)[[c, near]].any()


def test_charge_is_what_the_missing_atom_carried() -> None:
    columns = slab("MgO", (0, 0, 1))
    rule = ChargeBalance(charges_of(columns.projection.elements), sigma=4.0)
    c = int(columns.occupied.argmax())
    element = columns.projection.elements[int(columns.element_counts()[c].argmax())]
    last = columns.last.copy()
    removed = columns.element_counts()[c].sum()
    last[c] = columns.first[c] - 1
    less = columns.with_ends(columns.first, last)
    gone = columns.element_counts()[c] @ [rule.charges[e] for e in columns.projection.elements]
    assert element in rule.charges
    assert removed > 0
    assert rule.charge(columns) - rule.charge(less) == pytest.approx(gone)
    assert rule.cost(less) == pytest.approx((rule.charge(less) / 4.0) ** 2)


def test_composition_of_the_formula_costs_nothing() -> None:
    columns = slab("SrTiO3", (1, 1, 0))
    counts = columns.element_counts().sum(0)
    own = dict(zip(columns.projection.elements, counts / counts.sum(), strict=True))
    assert Stoichiometry(own, 0.01).cost(columns) == pytest.approx(0)
    e, f = list(own)[:2]
    other = {**own, e: own[e] + 0.02, f: own[f] - 0.02}
    assert Stoichiometry(other, 0.01).cost(columns) == pytest.approx(8)


def test_any_calculator_gives_the_energy() -> None:
    from ase.calculators.lj import LennardJones

    columns = slab("MgO", (0, 0, 1), size=6.0, thickness=6.0)
    calculator = LennardJones(sigma=1.9, epsilon=0.1, rc=50.0, smooth=False)
    cost = CalculatorEnergy(calculator, scale=0.5, potentials={"Mg": -1.0}).cost(columns)
    points = ase_atoms(columns).get_positions()
    d = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(len(points), 1)]
    lj = 4 * 0.1 * ((1.9 / d) ** 12 - (1.9 / d) ** 6)
    shifted = lj - 4 * 0.1 * ((1.9 / 50) ** 12 - (1.9 / 50) ** 6)
    magnesium = ase_atoms(columns).get_chemical_symbols().count("Mg")
    assert cost == pytest.approx((shifted.sum() + magnesium) / 0.5, rel=1e-6)


def test_rules_are_listed_switched_and_counted() -> None:
    columns = slab("MgO", (0, 0, 1))
    charge = ChargeBalance(charges_of(columns.projection.elements), 1.0)
    rules = StructureRules((MinimumDistance(50.0), BondValence.like(columns)), (charge,))
    assert rules.refused_by(columns) == "minimum distance"
    rules.switch("minimum distance", False)
    assert rules.refused_by(columns) is None
    assert (rules.tallies["minimum distance"].rejected, rules.tallies["bond valence"].tested) == (1, 1)
    assert rules.cost(columns) == charge.cost(columns) == rules.tallies["charge balance"].cost
    with pytest.raises(PlanError, match="'towers'; the rules are"):
        rules.switch("towers", True)
    with pytest.raises(PlanError, match="names must differ"):
        StructureRules((MinimumDistance(1.0), MinimumDistance(2.0)))
    with pytest.raises(PlanError, match="Xe"):
        charges_of(("Xe", "O"))


def test_reach_holds_all_bonds_that_count() -> None:
    longest = max(r for r, _ in OXIDES.values())
    assert np.exp((longest - chemistry.REACH_A) / chemistry.SOFTNESS_A) < 0.04
