"""Crystal: a CIF seen along a zone axis, as a projected lattice of atomic columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import InputError, PlanError
from qhrtem.physics.potential import Species
from qhrtem.specimen.cif import (
    LARGEST_B_A2,
    centring,
    equivalent_u,
    read_block,
    require_cell,
    require_few,
    settle_symmetry,
)

# Projected distance within which atoms form one column: below the resolution of any lens in use.
COLUMN_RADIUS_A = 0.6
# Mean square displacement assumed where a CIF gives none, as B in Å².
DEFAULT_B = 0.5
CLOSEST_A = 0.3  # distance below which atoms share a site


@dataclass(frozen=True)
class Crystal:
    """All atoms of one unit cell."""

    name: str
    cell: NDArray[np.float64]  # (3, 3) rows: a, b, c in Å, cartesian
    fractional: NDArray[np.float64]  # (N, 3)
    species: tuple[Species, ...]  # (N,)
    centring: NDArray[np.float64]  # (M, 3) fractional centring translations, the first is zero
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """One atom position in the repeat of a column."""

    z: float  # Å along the beam, 0 <= z < period
    group: int  # which element group of the column it belongs to


@dataclass(frozen=True)
class ColumnKind:
    """One inequivalent column of the projected cell."""

    name: str  # elements, heaviest first, e.g. "BaO"
    fractional: tuple[float, float]  # of the projected cell, position of the heaviest element
    groups: tuple[Species, ...]  # (G,) element groups, heaviest first
    offset: NDArray[np.float64]  # (G, 2) Å, group position relative to the heaviest, crystal frame (x, y)
    sites: tuple[Site, ...]  # ascending z


@dataclass(frozen=True)
class Projection:
    """The crystal along one zone axis."""

    crystal: Crystal
    zone: tuple[int, int, int]
    vectors: NDArray[np.float64]  # (2, 2) rows: projected lattice vectors (x, y) in Å, right-handed
    depth: tuple[float, float]  # Å, rise along the beam of the two lattice vectors
    period: float  # Å, repeat along the beam
    slices: int  # planes per period
    origin: float  # Å, depth of the centre of slice 0
    kinds: tuple[ColumnKind, ...]

    @property
    def plane(self) -> float:
        """Slice thickness in Å."""
        return self.period / self.slices

    @property
    def elements(self) -> tuple[str, ...]:
        """Elements present, sorted by symbol."""
        return tuple(sorted({g.element for k in self.kinds for g in k.groups}))

    def slice_of(self, z: ArrayLike) -> NDArray[np.int64]:
        """Return the number of the slice that holds depth z (Å)."""
        return np.floor((np.asarray(z) - self.origin) / self.plane + 0.5 + 1e-6).astype(np.int64)


def read_cif(path: str | Path) -> Crystal:
    """Return the crystal in a CIF with occupancies and displacement factors kept.

    The first structure of several; B_eq for anisotropic factors; deuterium as hydrogen; P1 where no symmetry
    is stated and the atoms fill the cell. What was chosen so is noted. Raises `InputError` when the file is
    missing, is no CIF, holds no atoms, or holds impossible ones.
    """
    path = Path(path)
    block, notes = read_block(path)
    return _from_small(gemmi.make_small_structure_from_block(block), path, notes, block)


def _from_small(
    small: gemmi.SmallStructure,
    path: Path,
    notes: tuple[str, ...],
    block: gemmi.cif.Block | None = None,
) -> Crystal:
    require_cell(small.cell, path)
    require_few(len(small.sites), path)
    notes += settle_symmetry(small, path)
    sites = small.get_all_unit_cell_sites()
    require_few(len(sites), path)
    if not sites:
        raise InputError(f"{path} holds no atoms; give a CIF of a crystal structure")
    u_equivalent = equivalent_u(small, block)
    assumed = averaged = False
    species = []
    for site in sites:
        element = "H" if site.element.name == "D" else site.element.name
        if element == "X":
            raise InputError(
                f"{path}: atom {site.label!r} has an unknown element; correct _atom_site_type_symbol"
            )
        if not 0 < site.occ <= 1.001:
            raise InputError(f"{path}: occupancy of {site.label!r} must be within 0 to 1, got {site.occ:g}")
        u = site.u_iso if site.u_iso > 0 else u_equivalent.get(site.label, 0.0)
        averaged |= site.u_iso <= 0 < u
        assumed |= u <= 0
        b = 8 * math.pi**2 * u if u > 0 else DEFAULT_B
        if b > LARGEST_B_A2:
            raise InputError(
                f"{path}: B of {site.label!r} must be at most {LARGEST_B_A2:g} Å², got {b:.3g}; was B "
                "written as U, or in pm²?"
            )
        species.append(Species(element, round(b, 6), min(site.occ, 1.0)))
    if any(s.element.name == "D" for s in sites):
        notes += ("Deuterium was taken as hydrogen, which scatters electrons alike.",)
    if averaged:
        notes += ("Anisotropic displacement factors were replaced by their isotropic equivalents.",)
    if assumed:
        notes += (
            f"The CIF gives no usable displacement factors for some atoms; B = {DEFAULT_B} Å² was assumed.",
        )
    matrix = np.array(small.cell.orth.mat.tolist()).T
    frac = np.mod(np.array([[s.fract.x, s.fract.y, s.fract.z] for s in sites]), 1.0)
    frac[frac > 1 - 1e-9] = 0.0
    _refuse_overlap(frac, matrix, species, path)
    return Crystal(path.stem, matrix, frac, tuple(species), centring(small), notes)


def _refuse_overlap(
    frac: NDArray[np.float64], cell: NDArray[np.float64], species: list[Species], path: Path
) -> None:
    delta = frac[:, None] - frac[None]
    distance = np.linalg.norm((delta - np.round(delta)) @ cell, axis=-1)
    occupancy = np.array([s.occupancy for s in species])
    # Atoms may share a place, as long as no more than one is ever there.
    held = (distance < CLOSEST_A) @ occupancy
    worst = int(np.argmax(held))
    if held[worst] > 1.001:
        others = np.flatnonzero((distance[worst] < CLOSEST_A) & (np.arange(len(frac)) != worst))
        near = int(others[np.argmin(distance[worst][others])])
        raise InputError(
            f"{path}: {species[worst].element} and {species[near].element} are {distance[worst, near]:.2f} Å "
            f"apart, and the occupancies there add up to {held[worst]:.3g}; atoms must be at least "
            f"{CLOSEST_A:g} Å apart unless they share a site, check coordinates, occupancies and symmetry of "
            "the CIF"
        )


def _primitive(crystal: Crystal) -> NDArray[np.float64]:
    """Rows: fractional vectors that generate the lattice with its centring, reduced greedily."""
    vectors = [*np.eye(3), *[c for c in crystal.centring if np.abs(c).max() > 1e-9]]
    metric = crystal.cell @ crystal.cell.T
    best: list[NDArray[np.float64]] = []
    combos = [np.tensordot(np.array(n) - 1, np.array(vectors), 1) for n in np.ndindex(*(3,) * len(vectors))]
    for v in sorted(combos, key=lambda v: (round(float(v @ metric @ v), 6), (-np.round(v, 6)).tolist())):
        if np.abs(v).max() > 1e-9 and np.linalg.matrix_rank(np.array([*best, v]), tol=1e-6) > len(best):
            best.append(v)
        if len(best) == 3:
            break
    return np.array(best)


def _zone_basis(crystal: Crystal, zone: tuple[int, int, int]) -> NDArray[np.float64]:
    """Rows p, q, r (cartesian): a lattice basis whose r is the shortest repeat along the zone axis."""
    basis = _primitive(crystal)
    n = np.array(zone, dtype=float) @ np.linalg.inv(basis)
    n = np.round(n * 12).astype(int)
    n //= math.gcd(*[int(v) for v in n])
    # Complete n to a unimodular matrix by searching small integer vectors, the shortest projections first.
    cart = basis @ crystal.cell
    axis = n @ cart
    unit = axis / np.linalg.norm(axis)
    span = np.array(list(np.ndindex(9, 9, 9))) - 4
    vectors = span @ cart
    flat = vectors - np.outer(vectors @ unit, unit)
    length = np.round(np.linalg.norm(flat, axis=1), 6)
    rise = np.round(np.abs(vectors @ unit), 6)
    order = [i for i in np.lexsort((rise, length)) if length[i] > 1e-3]
    if length[order[0]] < COLUMN_RADIUS_A:
        order = []  # neighbouring columns would be one
    for rank, i in enumerate(order[:60]):
        for j in order[rank + 1 : 200]:
            if round(abs(float(np.linalg.det(np.array([span[i], span[j], n]))))) == 1:
                p, q = vectors[i], vectors[j]
                if np.dot(np.cross(p, q), unit) < 0:
                    q = -q
                return np.array([p, q, axis])
    raise PlanError(
        f"zone axis {list(zone)} is too high-indexed for an atomic-column model; use a low-index axis"
    )


def zone_frame(
    crystal: Crystal, zone: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a lattice basis p, q, r (rows, Å) with r along the zone axis, and the unit axes x, y, z (rows).

    x lies along the projection of p, z along the beam; both are cartesian as `Crystal.cell` is.
    """
    basis = _zone_basis(crystal, zone)
    ez = basis[2] / np.linalg.norm(basis[2])
    ex = basis[0] - (basis[0] @ ez) * ez
    ex /= np.linalg.norm(ex)
    return basis, np.array([ex, np.cross(ez, ex), ez])


def project(crystal: Crystal, zone: tuple[int, int, int]) -> Projection:
    """Return the atomic columns of a crystal along a zone axis [u v w].

    The projected lattice, its columns with the sequence of sites along the beam, and the slicing.
    Raises `PlanError` for a zero or too high-indexed axis.
    """
    if not any(zone):
        raise PlanError("zone_axis must not be [0, 0, 0]; give three integers such as [1, 1, 0]")
    (p, q, axis), frame = zone_frame(crystal, zone)
    ex, ey, ez = frame
    period = float(np.linalg.norm(axis))
    vectors = np.array([[p @ ex, p @ ey], [q @ ex, q @ ey]])
    depth = (float(p @ ez), float(q @ ez))
    # Every atom of a block of cells, then reduced to one projected primitive cell.
    lattice_inverse = np.linalg.inv(np.array([p, q, axis]))
    cart = crystal.fractional @ crystal.cell
    reduced = cart @ lattice_inverse
    reduced = np.mod(np.round(reduced, 9), 1.0)
    keep = _unique(reduced, crystal.species)
    position = (reduced[keep] @ np.array([p, q, axis])) @ frame.T
    kinds = _columns(position, [crystal.species[i] for i in keep], vectors, depth, period)
    return Projection(crystal, zone, vectors, depth, period, *_slices(kinds, depth, period), kinds)


def _unique(reduced: NDArray[np.float64], species: tuple[Species, ...]) -> list[int]:
    """Indices of atoms that are distinct modulo the (primitive) lattice."""
    keep: list[int] = []
    for i, r in enumerate(reduced):
        for j in keep:
            d = r - reduced[j]
            if species[i] == species[j] and np.abs(d - np.round(d)).max() < 1e-3:
                break
        else:
            keep.append(i)
    return keep


def _columns(
    position: NDArray[np.float64],
    species: list[Species],
    vectors: NDArray[np.float64],
    depth: tuple[float, float],
    period: float,
) -> tuple[ColumnKind, ...]:
    """Group atoms (x, y, z) whose projections fall together, the heaviest element first."""
    inverse = np.linalg.inv(vectors)
    heavy = sorted(
        range(len(species)),
        key=lambda i: (-atomic_number(species[i].element), tuple(np.round(position[i], 4))),
    )
    members: list[list[tuple[int, NDArray[np.float64], float]]] = []
    for i in heavy:
        for column in members:
            d = (position[i, :2] - position[column[0][0], :2]) @ inverse
            n = np.round(d)
            offset = (d - n) @ vectors
            if np.linalg.norm(offset) < COLUMN_RADIUS_A:
                column.append((i, offset, position[i, 2] - n @ np.array(depth)))
                break
        else:
            members.append([(i, np.zeros(2), position[i, 2])])
    kinds = []
    for column in members:
        groups: list[Species] = []
        offsets: list[NDArray[np.float64]] = []
        sites: list[Site] = []
        for i, offset, z in column:
            found = [
                g
                for g, s in enumerate(groups)
                if s == species[i] and np.linalg.norm(offsets[g] - offset) < 0.02
            ]
            if not found:
                groups.append(species[i])
                offsets.append(offset)
                found = [len(groups) - 1]
            sites.append(Site(float(np.mod(round(z, 6), period)), found[0]))
        names = sorted({s.element for s in groups}, key=lambda e: -atomic_number(e))
        f = np.mod(position[column[0][0], :2] @ inverse + 1e-9, 1.0) - 1e-9
        kinds.append(
            ColumnKind(
                "".join(names),
                (float(f[0]), float(f[1])),
                tuple(groups),
                np.array(offsets),
                tuple(sorted(sites, key=lambda s: (s.z, s.group))),
            )
        )
    return tuple(kinds)


def _slices(kinds: tuple[ColumnKind, ...], depth: tuple[float, float], period: float) -> tuple[int, float]:
    """Slices per period and the depth of a slice centre: one per atomic plane where planes are evenly spaced
    (ripples below 0.3 Å count as one plane), else about 1.5 Å thick."""
    level = sorted(
        {
            round(float(np.mod(s.z + i * depth[0] + j * depth[1], period)), 3)
            for k in kinds
            for s in k.sites
            for i in range(4)
            for j in range(4)
        }
    )
    planes: list[list[float]] = []
    start = max(range(len(level)), key=lambda i: (level[i] - level[i - 1]) % period)  # behind the widest gap
    for z in [*level[start:], *[v + period for v in level[:start]]]:
        if planes and z - planes[-1][0] < 0.3:
            planes[-1].append(z)
        elif not planes or planes[0][0] + period - z > 0.1:
            planes.append([z])
    centre = np.array([(p[0] + p[-1]) / 2 for p in planes])
    gap = np.diff(np.append(centre, centre[0] + period))
    if np.ptp(gap) < 0.1 * gap.mean() and 0.9 <= gap.mean() <= 2.5:
        n = len(centre)
        return n, float(np.mod((centre - np.arange(n) * period / n).mean(), period))
    return max(1, round(period / 1.5)), float(centre[0])


def shortest_distance(crystal: Crystal) -> float:
    """Return the shortest distance between two atoms of the crystal, Å (shared sites left out)."""
    cells = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=float)
    delta = crystal.fractional[:, None, None] - crystal.fractional[None, :, None] + cells
    distance = np.linalg.norm(delta @ crystal.cell, axis=-1)
    return float(distance[distance > 0.3].min())


def atomic_number(element: str) -> int:
    """Return Z of an element symbol."""
    return int(gemmi.Element(element).atomic_number)
