"""Bond-valence sums and stoichiometry.

s = exp((R0 − d)/b), b = 0.37 Å: Brown and Altermatt, Acta Cryst. B41, 244 (1985); R0 of oxides: Brese and
O'Keeffe, Acta Cryst. B47, 192 (1991).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.science.cages import crystal_of, shell
from qhrtem.science.estimates import JointEstimate, errors_of, linear

SOFTNESS_A = 0.37
# cation: formal charge, R0 in Å of the bond to O²⁻
R0_A: dict[str, tuple[int, float]] = {
    "Ba": (2, 2.29), "Sr": (2, 2.118), "Ca": (2, 1.967), "Pb": (2, 2.112), "Mg": (2, 1.693), "La": (3, 2.172),
    "Bi": (3, 2.09), "Al": (3, 1.651), "Fe": (3, 1.759), "Y": (3, 2.014), "Ti": (4, 1.815), "Zr": (4, 1.937),
    "Hf": (4, 1.923), "Ce": (4, 2.028), "Nb": (5, 1.911), "Ta": (5, 1.920), "K": (1, 2.13), "Na": (1, 1.80),
    "Zn": (2, 1.704), "Li": (1, 1.466),
}  # fmt: skip


@dataclass(frozen=True)
class ValenceMap:
    """Bond-valence sum of the complete polyhedra of each column, mean along the beam."""

    element: str
    formal: int
    column: NDArray[np.int64]  # (N,)
    atoms: NDArray[np.int64]  # (N,) complete polyhedra in the column
    sum: JointEstimate  # (N,) valence units; errors of positions across the beam alone


def valence_sums(twin: Twin, cation: str) -> ValenceMap:
    """Return bond-valence sums of a cation against oxygen.

    Raises InputError for a cation without tabulated R0 or an image without a complete polyhedron.
    """
    if cation not in R0_A or "O" not in twin.columns.elements:
        raise InputError(f"no bond-valence parameters for {cation} and O; tabulated: {', '.join(R0_A)}")
    formal, r0 = R0_A[cation]
    crystal, zone, _ = crystal_of(twin)
    site = next(i for i, s in enumerate(crystal.species) if s.element == cation)
    bonds = shell(crystal, zone, site, ("O",))
    reach = max(n.distance for n in bonds) * 1.12
    atoms, errors = twin.atoms, errors_of(twin)
    element = np.array(atoms.element)
    oxygen = np.flatnonzero(element == "O")
    centre = np.flatnonzero((element == cation) & twin.columns.inside[atoms.column])
    near = cKDTree(atoms.position_A[oxygen]).query_ball_point(atoms.position_A[centre], reach)
    index = errors.index(len(twin.columns.kind), len(twin.columns.elements))
    names = list(twin.columns.elements)
    total: dict[int, float] = {}
    number: dict[int, int] = {}
    rows: list[tuple[int, int, float]] = []
    for atom, found in zip(centre.tolist(), near, strict=True):
        if len(found) != len(bonds):
            continue
        c = int(atoms.column[atom])
        other = oxygen[found]
        delta = atoms.position_A[other] - atoms.position_A[atom]
        d = np.linalg.norm(delta, axis=1)
        s = np.exp((r0 - d) / SOFTNESS_A)
        total[c] = total.get(c, 0.0) + float(s.sum())
        number[c] = number.get(c, 0) + 1
        slope = -(s / d / SOFTNESS_A)[:, None] * delta[:, :2]
        for o, g in zip(other, slope, strict=True):
            for axis in (0, 1):
                rows.append((c, int(index[atoms.column[o], names.index("O"), axis]), float(g[axis])))
                rows.append((c, int(index[c, names.index(cation), axis]), -float(g[axis])))
    unrefined = {c for c, j, _ in rows if j < 0}
    column = np.array([c for c in total if c not in unrefined], dtype=np.int64)
    if not len(column):
        raise InputError(f"no {cation} atom inside the fitted region has its {len(bonds)} oxygen neighbours")
    place = {int(c): n for n, c in enumerate(column)}
    use = [(place[c], j, w / number[c]) for c, j, w in rows if c in place]
    i, j, w = (np.array(v) for v in zip(*use, strict=True))
    weight = sparse.csr_array((w, (i, j)), shape=(len(column), len(errors.column)))
    value = np.array([total[int(c)] / number[int(c)] for c in column])
    counted = np.array([number[int(c)] for c in column])
    return ValenceMap(cation, formal, column, counted, linear(twin, weight, value, "valence units"))


@dataclass(frozen=True)
class Composition:
    """Atoms of each element in the fitted region, and their ratio to the reference element."""

    elements: tuple[str, ...]
    atoms: NDArray[np.int64]  # (E,)
    sigma: NDArray[np.float64]  # (E,) one standard deviation
    ratio: NDArray[np.float64]  # (E,) to the rarest element of the ideal crystal
    ratio_sigma: NDArray[np.float64]  # (E,)
    ideal: NDArray[np.float64]  # (E,)


def composition(twin: Twin) -> Composition:
    """Return the stoichiometry of the columns inside the fitted region.

    A column whose counts are exact with probability p contributes the variance (1 − p) of one atom to each of
    its elements. Columns are taken as independent. An edge cuts cells, so a small field departs from the
    ideal ratio without being off stoichiometry.
    """
    table = twin.columns
    inner = table.inside
    counts = table.counts[inner]
    atoms = counts.sum(0)
    doubt = np.clip(1.0 - table.p_exact[inner], 0.0, 1.0)
    sigma = np.sqrt((doubt[:, None] * (counts > 0)).sum(0))
    crystal, _, _ = crystal_of(twin)
    content = np.array([sum(s.occupancy for s in crystal.species if s.element == e) for e in table.elements])
    rare = int(np.argmin(np.where(content > 0, content, np.inf)))
    ratio = atoms / max(int(atoms[rare]), 1)
    relative = np.hypot(sigma / np.maximum(atoms, 1), sigma[rare] / max(int(atoms[rare]), 1))
    relative[rare] = 0.0
    return Composition(table.elements, atoms, sigma, ratio, ratio * relative, content / content[rare])
