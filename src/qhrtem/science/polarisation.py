"""Off-centring of cations against their anion cage, and polarisation by Born effective charges.

In a projection along a zone axis only the two components across the beam are seen. Anions in columns of their
own are placed by the image. Anions that share a column with a heavier atom are not: what the fit says of them
is an asymmetry of a strong peak, which a model error of one per cent shifts by several picometres, the same
way in many columns. Off-centring therefore uses by default the part of the cage that the image determines,
which in a centrosymmetric crystal has the centre of the whole cage; and polarisation places shared anions
beside their heavy atom as the ideal crystal does, with an error that all cells have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.science.cages import ANIONS, Cage, crystal_of, find_cages, shell
from qhrtem.science.charges import BornCharges, charges_of
from qhrtem.science.estimates import JointEstimate, errors_of, linear, positions_A
from qhrtem.specimen.crystal import atomic_number

Floats = NDArray[np.float64]
UC_PER_CM2 = 1602.176634  # one e/Å² in µC/cm²
SHARED_SIGMA_A = (
    0.05  # per axis, of an anion beside a heavier atom against the ideal crystal; in all cells at once
)
Shared = Literal["ideal", "fitted"]
Cages = Literal["resolved", "whole"]
Term = tuple[int, int, Floats]  # column, element, (2, 2) weight of its position
CENTRED_A = 0.25  # part of a cage counts as a cage if its ideal centre is this near the whole cage's


@dataclass(frozen=True)
class CellMap:
    """A vector quantity at N cells of the projection, components along the image axes x and y."""

    name: str
    column: NDArray[np.int64]  # (N,) row of the central column
    xy_A: Floats  # (N, 2) place of the cell
    vectors: JointEstimate  # (2N,) x, y of the first cell, x, y of the second, ...
    note: str
    scatter: float  # factor on the local standard deviations, from the scatter between neighbouring cells

    @property
    def value(self) -> Floats:
        """Components (N, 2) x, y."""
        return self.vectors.value.reshape(-1, 2)

    @property
    def sigma(self) -> Floats:
        """Standard deviations (N, 2)."""
        return self.vectors.sigma.reshape(-1, 2)

    def along(self, direction: ArrayLike) -> JointEstimate:
        """Return the component (N,) along a direction (x, y) of the image, made a unit vector."""
        unit = np.asarray(direction, dtype=float)
        unit = unit / np.linalg.norm(unit)
        return self.vectors.combined(np.kron(np.eye(len(self.column)), unit[None]))

    def mean_vector(self) -> JointEstimate:
        """Return the mean over the cells: two components x, y with their joint errors."""
        n = len(self.column)
        return self.vectors.combined(np.kron(np.full((1, n), 1 / n), np.eye(2)))

    def principal_direction(self) -> Floats:
        """Return the unit vector (2,) of the mean, or of the largest spread where the mean is no signal."""
        mean = self.mean_vector()
        if (np.abs(mean.value) > 3 * mean.sigma).any():
            return np.asarray(mean.value / np.linalg.norm(mean.value))
        _, axes = np.linalg.eigh(self.value.T @ self.value)
        return np.asarray(axes[:, -1])


def polar_cation(twin: Twin) -> str:
    """Return the cation with the tightest cage that is not a whole A-site: B of a perovskite, else the first.

    Raises InputError for a crystal without anions or cations.
    """
    charges = charges_of(twin.columns.elements)
    if charges is not None:
        return charges.b
    cations = [e for e in twin.columns.elements if e not in ANIONS]
    if not cations or len(cations) == len(twin.columns.elements):
        raise InputError(
            "off-centring needs cations and anions, the crystal has " + ", ".join(twin.columns.elements)
        )
    crystal, zone, _ = crystal_of(twin)

    def tightness(element: str) -> float:
        atom = next(i for i, s in enumerate(crystal.species) if s.element == element)
        return min(n.distance for n in shell(crystal, zone, atom, ANIONS))

    return min(cations, key=tightness)


def off_centring(
    twin: Twin, cation: str | None = None, cage: Cages = "resolved", shared: Shared = "ideal"
) -> CellMap:
    """Return the displacement in Å of each cation column from the centre of its anion cage.

    cage: "resolved", the anions that stand in columns of their own; "whole", all of them. Where the resolved
    ones alone would be centred elsewhere, the whole cage is used and the note says so. shared: where anions
    beside a heavier atom stand, as in `polarisation`.
    Raises InputError where the result holds no joint errors or no complete cage.
    """
    name = cation or polar_cation(twin)
    cages = find_cages(twin, name, ANIONS)
    if not cages:
        raise InputError(f"no {name} column has a complete cage of anions inside the fitted region")
    note = "against every anion of the cage"
    if cage == "resolved":
        parts = [resolved(twin, c) for c in cages]
        if all(p is not None for p in parts):
            cages = [p for p in parts if p is not None]
            note = "against the anions of the cage that stand in columns of their own"
        else:
            note += ", for those in columns of their own do not surround the cation"
    at = list(twin.columns.elements).index(name)
    terms = []
    for c in cages:
        terms.append([(c.column, at, np.eye(2)), *_mean_terms(twin, c, -1.0)])
    return _assembled(twin, f"off-centring of {name}", cages, terms, "Å", 1.0, note, shared)


def resolved(twin: Twin, cage: Cage) -> Cage | None:
    """Return the part of a cage in which an anion is the heaviest atom of its column, None if off centre."""
    table = twin.columns
    z = np.array([atomic_number(e) for e in table.elements])
    index = [list(table.elements).index(e) for e in cage.elements]
    heaviest = [max(z[k] for k in np.flatnonzero(table.counts[m] > 0)) for m in cage.members]
    own = z[index] == np.array(heaviest)
    if not own.any():
        return None
    places = positions_A(twin)
    place = places[cage.members, index]
    weight = np.where(own, cage.weight, 0.0)
    centre = (weight[:, None] * place).sum(0) / weight.sum()
    whole = (cage.weight[:, None] * place).sum(0) / cage.weight.sum()
    if np.linalg.norm(centre - whole) > CENTRED_A:
        return None
    return Cage(
        cage.column,
        cage.members[own],
        tuple(e for e, o in zip(cage.elements, own, strict=True) if o),
        cage.weight[own] / cage.weight[own].sum(),
        cage.bonds[own],
    )


def polarisation(twin: Twin, charges: BornCharges | None = None, shared: Shared = "ideal") -> CellMap:
    """Return the polarisation in µC/cm² of each perovskite cell, by Born effective charges.

    P = (e/V) Σ Z*·r over the atoms of a cell centred on B, with neighbours shared; in the cubic reference all
    shells have one centre, so with neutral charges neither origin nor strain enters. V is the cell volume of
    the ideal crystal. Errors do not include those of the charges themselves.

    charges: None takes the table's. shared: anions that share a column with a heavier atom stand beside it as
    in the "ideal" crystal, ±5 pm that all cells have in common, or where the fit put them, "fitted".
    Raises InputError where the crystal is not in the table or no cell is complete.
    """
    z = charges or charges_of(twin.columns.elements)
    if z is None:
        raise InputError(
            f"no Born charges are tabulated for {', '.join(twin.columns.elements)}; give your own with "
            "own_charges(a, b, ...)"
        )
    z = z.neutral()
    crystal, _, _ = crystal_of(twin)
    formulas = sum(s.occupancy for s in crystal.species if s.element == z.b)
    volume = abs(float(np.linalg.det(crystal.cell))) / formulas
    around_a = {c.column: c for c in find_cages(twin, z.b, (z.a,))}
    cages, terms = [], []
    at = list(twin.columns.elements).index(z.b)
    for cage in find_cages(twin, z.b, (z.anion,)):
        if cage.column not in around_a:
            continue
        cages.append(cage)
        tensor = z.z_perpendicular * np.eye(2) + (z.z_parallel - z.z_perpendicular) * cage.bonds
        here: list[Term] = [(cage.column, at, z.z_b * np.eye(2))]
        here += _mean_terms(twin, around_a[cage.column], z.z_a)
        # Six anions, each shared by two cells: three a cell.
        for (c, e, w), t in zip(_mean_terms(twin, cage, 3.0), tensor, strict=True):
            here.append((c, e, w @ t))
        terms.append(here)
    if not cages:
        raise InputError(f"no complete perovskite cell around {z.b} inside the fitted region")
    note = f"Born charges: {z.source}; cell volume {volume:.2f} Å³"
    return _assembled(twin, "polarisation", cages, terms, "µC/cm²", UC_PER_CM2 / volume, note, shared)


def _mean_terms(twin: Twin, cage: Cage, factor: float) -> list[Term]:
    elements = list(twin.columns.elements)
    return [
        (int(m), elements.index(e), factor * float(w) * np.eye(2))
        for m, e, w in zip(cage.members, cage.elements, cage.weight, strict=True)
    ]


def _assembled(
    twin: Twin,
    name: str,
    cages: list[Cage],
    terms: list[list[Term]],
    unit: str,
    scale: float,
    note: str,
    shared: Shared,
) -> CellMap:
    """Return Σ tensor·position of each cell; cells with a coordinate that was not refined are left out."""
    errors, places = errors_of(twin), positions_A(twin)
    index = errors.index(len(twin.columns.kind), len(twin.columns.elements))
    beside = _beside(twin) if shared == "ideal" else {}
    rows: list[tuple[int, int, float]] = []
    value: list[Floats] = []
    kept: list[int] = []
    assumed: list[Floats] = []  # (2, 2) change of a cell by a common displacement of the shared anions
    for cage, here in zip(cages, terms, strict=True):
        leaders = [(c, *beside.get((c, e), (e, None)), w) for c, e, w in here]
        if any((index[c, e] < 0).any() for c, e, *_ in leaders):
            continue
        n = len(kept)
        total, moved = np.zeros(2), np.zeros((2, 2))
        origin = places[cage.column, here[0][1]]
        for c, e, offset, w in leaders:
            total += w @ (places[c, e] - origin)
            if offset is not None:
                total += w @ offset
                moved += w
            rows += [
                (2 * n + i, int(index[c, e, j]), float(w[i, j])) for i in (0, 1) for j in (0, 1) if w[i, j]
            ]
        value.append(scale * total)
        kept.append(cage.column)
        assumed.append(scale * SHARED_SIGMA_A * moved)
    if not kept:
        raise InputError(f"{name}: no cell whose atoms were all refined")
    i, j, factor = (np.array(v) for v in zip(*rows, strict=True))
    weight = sparse.csr_array((factor, (i, j)), shape=(2 * len(kept), len(errors.column)))
    column = np.array(kept, dtype=np.int64)
    vectors = linear(twin, weight, np.concatenate(value), unit, scale)
    if np.any(assumed):
        vectors = replace(
            vectors,
            common=np.hstack([vectors.common, np.concatenate(assumed)]),
            common_name=(*vectors.common_name, "shared anions x", "shared anions y"),
        )
        note += f"; anions beside a heavier atom as in the ideal crystal ± {100 * SHARED_SIGMA_A:g} pm"
    xy = places[column, terms[0][0][1]]
    scatter = neighbour_scatter(xy, vectors)
    vectors = replace(vectors, local=vectors.local * scatter**2)
    return CellMap(name, column, xy, vectors, note, scatter)


def _beside(twin: Twin) -> dict[tuple[int, int], tuple[int, Floats]]:
    """Return for anions (column, element) beside a heavier atom: its element, and the ideal offset x, y."""
    if twin.fitted is None:
        return {}
    table, columns = twin.columns, twin.fitted.columns
    elements = list(table.elements)
    out = {}
    for row, c in enumerate(twin.fitted.claimed):
        groups = columns.kind_of(int(c)).groups
        offset = (columns.kind_of(int(c)).offset @ columns.frame)[:, ::-1]
        present = [g for g, s in enumerate(groups) if table.counts[row, elements.index(s.element)] > 0]
        for g in present[1:]:
            lead = elements.index(groups[present[0]].element)
            own = elements.index(groups[g].element)
            if own != lead and groups[g].element in ANIONS:
                out[row, own] = (lead, offset[g] - offset[present[0]])
    return out


def neighbour_scatter(xy_A: Floats, vectors: JointEstimate) -> float:
    """Return by how much cells differ from the mean of their neighbours beyond their local errors (>= 1).

    The scale factor of measurements that scatter more than they claim (Particle Data Group, Review of
    Particle Physics, introduction). It takes the true field as smooth between neighbouring cells; a real
    disorder of single cells is then part of the error bar.
    """
    n = len(xy_A)
    if n < 12:
        return 1.0
    tree = cKDTree(xy_A)
    near = 1.6 * float(np.median(tree.query(xy_A, k=2)[0][:, 1]))
    weight: Floats = np.zeros((n, n))
    for c, found in enumerate(tree.query_ball_point(xy_A, near)):
        others = [k for k in found if k != c]
        middle = xy_A[others].mean(0) - xy_A[c] if others else np.full(2, np.inf)
        if len(others) < 2 or np.linalg.norm(middle) > 0.2 * near:
            continue  # a slope would count as scatter where neighbours stand on one side alone
        weight[c, c] = 1.0
        weight[c, others] = -1 / len(others)
    differences = vectors.combined(np.asarray(np.kron(weight, np.eye(2)), dtype=float))
    expected = float(np.trace(differences.local))
    if np.count_nonzero(np.diag(weight)) < 6 or expected <= 0:
        return 1.0
    return max(1.0, float(np.sqrt((differences.value**2).sum() / expected)))
