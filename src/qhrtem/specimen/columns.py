"""The column model: whole numbers of atoms along the beam at refined positions, and the atoms they mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.physics.potential import Species
from qhrtem.specimen.crystal import ColumnKind, Projection

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AtomList:
    """Atoms of a specimen as arrays over N atoms."""

    position: Floats  # (N, 2) y, x in Å of the field
    z: Floats  # (N,) Å along the beam
    slice: Ints  # (N,) slice number, may start anywhere
    species: Ints  # (N,) index into the species list
    column: Ints  # (N,)
    site: Ints  # (N,) site number within the column
    group: Ints  # (N,) element group within the column


@dataclass(frozen=True)
class ColumnModel:
    """C columns of a projected crystal in the frame of the field (y, x in Å, beam along +z).

    Column c holds the sites first[c] … last[c] of its kind's endless sequence; site s of a kind with m sites
    lies at z = z[s mod m] + period·(s div m) + rise[c]. An empty column has last < first.
    """

    projection: Projection
    kind: Ints  # (C,) index into projection.kinds
    cell: Ints  # (C, 2) lattice cell numbers
    anchor: Floats  # (C, 2) ideal position y, x in Å of the heaviest element
    frame: Floats  # (2, 2) maps crystal-frame (x, y) offsets to field (y, x): offset @ frame
    rise: Floats  # (C,) Å, depth offset of the lattice cell
    shift: Floats  # (C, G, 2) displacement y, x in Å of each element group from its ideal place
    first: Ints  # (C,)
    last: Ints  # (C,)

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def species(self) -> tuple[Species, ...]:
        """Distinct scatterers, in the order that `AtomList.species` counts."""
        return distinct_species(self.projection)

    @property
    def occupied(self) -> NDArray[np.bool_]:
        """Which columns (C,) hold at least one atom."""
        return self.last >= self.first

    def kind_of(self, c: int) -> ColumnKind:
        """Return the kind of column c."""
        return self.projection.kinds[self.kind[c]]

    def group_position(self) -> Floats:
        """Return positions of all element groups, (C, G, 2) y, x in Å; nan where a kind has fewer groups."""
        out = np.full(self.shift.shape, np.nan)
        for k, kind in enumerate(self.projection.kinds):
            mine = self.kind == k
            n = len(kind.groups)
            offset = kind.offset @ self.frame
            out[mine, :n] = self.anchor[mine, None] + offset + self.shift[mine, :n]
        return out

    def site_depth(self, c: Ints, site: Ints) -> Floats:
        """Return z in Å of sites of columns (arrays of equal shape)."""
        table = _SiteTable.of(self.projection)
        m = table.count[self.kind[c]]
        z = table.z[self.kind[c], np.mod(site, m)]
        return z + self.projection.period * np.floor_divide(site, m) + self.rise[c]

    def atoms(self) -> AtomList:
        """Return every atom of the model."""
        number = np.maximum(self.last - self.first + 1, 0)
        column = np.repeat(np.arange(len(self)), number)
        start = np.cumsum(number) - number
        site = np.arange(number.sum()) - start[column] + self.first[column]
        return self.atoms_at(column, site)

    def atoms_at(self, column: Ints, site: Ints) -> AtomList:
        """Return the atoms on given sites of given columns, occupied or not."""
        table = _SiteTable.of(self.projection)
        kind = self.kind[column]
        group = table.group[kind, np.mod(site, table.count[kind])]
        z = self.site_depth(column, site)
        position = self.group_position()[column, group]
        return AtomList(position, z, self.slice_of(z), table.species[kind, group], column, site, group)

    def slice_of(self, z: Floats) -> Ints:
        """Return the number of the slice that holds depth z (Å)."""
        return self.projection.slice_of(z)

    def element_counts(self) -> Ints:
        """Return atoms of each element of the projection, (C, E)."""
        atoms = self.atoms()
        elements = self.projection.elements
        index = np.array([elements.index(s.element) for s in self.species])
        out = np.zeros((len(self), len(elements)), dtype=np.int64)
        np.add.at(out, (atoms.column, index[atoms.species]), 1)
        return out

    def group_depth(self) -> tuple[Floats, Floats]:
        """Return the number of atoms (C, G) of each element group of each column and their mean depth, Å.

        The depth of a group without atoms is nan.
        """
        atoms = self.atoms()
        number, depth = np.zeros(self.shift.shape[:2]), np.zeros(self.shift.shape[:2])
        np.add.at(number, (atoms.column, atoms.group), 1)
        np.add.at(depth, (atoms.column, atoms.group), atoms.z)
        with np.errstate(invalid="ignore"):
            return number, np.where(number > 0, depth / number, np.nan)

    def thickness(self) -> Floats:
        """Return the depth spanned by each column in Å, counted as sites times the mean site spacing."""
        number = np.maximum(self.last - self.first + 1, 0)
        m = np.array([len(k.sites) for k in self.projection.kinds])[self.kind]
        return number * self.projection.period / m

    def surfaces(self) -> tuple[Floats, Floats]:
        """Return depths (C,) in Å of both surfaces at each column, midway from end atom to next site."""
        c = np.arange(len(self))
        top = (self.site_depth(c, self.first) + self.site_depth(c, self.first - 1)) / 2
        bottom = (self.site_depth(c, self.last) + self.site_depth(c, self.last + 1)) / 2
        return top, bottom

    def with_ends(self, first: Ints, last: Ints) -> ColumnModel:
        """Return the model with other ends."""
        return replace(self, first=np.asarray(first, np.int64), last=np.asarray(last, np.int64))

    def part(self, which: NDArray[np.bool_] | Ints, origin: Floats) -> ColumnModel:
        """Return some of the columns, in a frame that begins at `origin` (2,) y, x in Å of this one."""
        names = ("kind", "cell", "rise", "shift", "first", "last")
        chosen = {name: getattr(self, name)[which] for name in names}
        return replace(self, anchor=self.anchor[which] - origin, **chosen)

    def filled(self, top: Floats, bottom: Floats) -> ColumnModel:
        """Return the model with every column filled between two depths (C,) in Å."""
        table = _SiteTable.of(self.projection)
        m = table.count[self.kind]
        first = np.floor((top - self.rise) / self.projection.period).astype(np.int64) * m - m
        c = np.arange(len(self))
        last = first.copy()
        for _ in range(3 * int(m.max()) + 3):
            first = np.where(self.site_depth(c, first) < top, first + 1, first)
        last = np.floor((bottom - self.rise) / self.projection.period).astype(np.int64) * m + 2 * m
        for _ in range(4 * int(m.max()) + 4):
            last = np.where(self.site_depth(c, last) > bottom, last - 1, last)
        return self.with_ends(first, last)


@dataclass(frozen=True)
class _SiteTable:
    count: Ints  # (K,) sites per repeat
    z: Floats  # (K, M)
    group: Ints  # (K, M)
    species: Ints  # (K, G)

    @staticmethod
    def of(projection: Projection) -> _SiteTable:
        kinds = projection.kinds
        m = max(len(k.sites) for k in kinds)
        g = max(len(k.groups) for k in kinds)
        species = distinct_species(projection)
        z = np.zeros((len(kinds), m))
        group = np.zeros((len(kinds), m), dtype=np.int64)
        index = np.zeros((len(kinds), g), dtype=np.int64)
        for i, k in enumerate(kinds):
            z[i, : len(k.sites)] = [s.z for s in k.sites]
            group[i, : len(k.sites)] = [s.group for s in k.sites]
            index[i, : len(k.groups)] = [species.index(s) for s in k.groups]
        return _SiteTable(np.array([len(k.sites) for k in kinds]), z, group, index)


def distinct_species(projection: Projection) -> tuple[Species, ...]:
    """Return the distinct scatterers of a projection in a fixed order."""
    out: list[Species] = []
    for kind in projection.kinds:
        for s in kind.groups:
            if s not in out:
                out.append(s)
    return tuple(out)


def lattice_columns(
    projection: Projection, origin: Floats, frame: Floats, box: tuple[float, float, float, float]
) -> ColumnModel:
    """Return empty columns of the lattice within a box (y0, x0, y1, x1) in Å.

    origin: y, x of the projected cell origin; frame: (2, 2) such that a crystal-frame vector (x, y) maps to
    field (y, x) as vector @ frame (rotation, mirror and distortion included).
    """
    vectors = projection.vectors @ frame
    corner = np.array([[box[i], box[j]] for i in (0, 2) for j in (1, 3)]) - origin
    span = corner @ np.linalg.inv(vectors)
    low, high = np.floor(span.min(0)).astype(int) - 1, np.ceil(span.max(0)).astype(int) + 1
    cells = np.array([(i, j) for i in range(low[0], high[0] + 1) for j in range(low[1], high[1] + 1)])
    kind, cell, anchor = [], [], []
    for k, column in enumerate(projection.kinds):
        p = origin + (cells + np.array(column.fractional)) @ vectors
        keep = (p[:, 0] >= box[0]) & (p[:, 0] <= box[2]) & (p[:, 1] >= box[1]) & (p[:, 1] <= box[3])
        kind.append(np.full(keep.sum(), k))
        cell.append(cells[keep])
        anchor.append(p[keep])
    cells = np.concatenate(cell)
    rise = np.mod(cells @ np.array(projection.depth), projection.period)
    rise[rise > projection.period - 1e-6] = 0
    groups = max(len(k.groups) for k in projection.kinds)
    n = len(cells)
    return ColumnModel(
        projection,
        np.concatenate(kind),
        cells,
        np.concatenate(anchor),
        np.asarray(frame, dtype=float),
        rise,
        np.zeros((n, groups, 2)),
        np.zeros(n, dtype=np.int64),
        np.full(n, -1, dtype=np.int64),
    )
