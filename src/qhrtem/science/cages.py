"""Cages: which columns hold the neighbours of an atom, from the ideal crystal and the fitted columns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.science.estimates import positions_A
from qhrtem.specimen.crystal import Crystal, zone_frame

Floats = NDArray[np.float64]
ANIONS = ("O", "F", "N", "S", "Cl", "Se", "Br", "Te", "I")
LEAST_SHELL, LARGEST_SHELL = 4, 14  # neighbours counted as a first shell
MATCH = 0.35  # a neighbour column stands within this share of the column spacing of its ideal place


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of a central atom in projection."""

    element: str
    offset: Floats  # (2,) ideal place from the central atom, crystal frame x, y in Å
    axis: Floats  # (3,) unit vector of the bond axis, from the opposite neighbour to this one, x, y, z
    distance: float  # Å


@dataclass(frozen=True)
class Cage:
    """The fitted columns around one central column; weights sum to one over each element."""

    column: int  # row of the central column
    members: NDArray[np.int64]  # (N,) rows of the neighbours' columns
    elements: tuple[str, ...]  # (N,)
    weight: Floats  # (N,) share of the shell's atoms that this column holds
    bonds: Floats  # (N, 2, 2) mean of n nᵀ in image x, y of the bond axes to this column


def shell(
    crystal: Crystal, zone: tuple[int, int, int], atom: int, elements: tuple[str, ...]
) -> list[Neighbour]:
    """Return the nearest shell of `elements` around an atom of the cell: up to the widest gap in distance."""
    _, frame = zone_frame(crystal, zone)
    cells = np.array(list(np.ndindex(5, 5, 5))) - 2
    picked = [i for i, s in enumerate(crystal.species) if s.element in elements]
    if not picked:
        return []
    delta = (crystal.fractional[picked][:, None] + cells[None] - crystal.fractional[atom]) @ crystal.cell
    flat = delta.reshape(-1, 3) @ frame.T
    owner = np.repeat(picked, len(cells))
    distance = np.linalg.norm(flat, axis=1)
    order = [i for i in np.argsort(distance, kind="stable") if distance[i] > 0.5][: LARGEST_SHELL + 1]
    d = distance[order]
    ratio = d[1:] / d[:-1]
    low = min(LEAST_SHELL, len(ratio)) - 1
    count = low + int(np.argmax(ratio[low:])) + 1
    found = order[:count]
    return [
        Neighbour(
            crystal.species[owner[i]].element, flat[i, :2], _axis(flat[i], flat[found]), float(distance[i])
        )
        for i in found
    ]


def _axis(bond: Floats, bonds: Floats) -> Floats:
    """Return the direction of a bond without the central atom's displacement, which its opposite shares."""
    cosine = bonds @ bond / np.linalg.norm(bonds, axis=1) / np.linalg.norm(bond)
    opposite = int(np.argmin(cosine))
    axis = bond - bonds[opposite] if cosine[opposite] < -0.8 else bond
    return np.asarray(axis / np.linalg.norm(axis))


def frame_of(twin: Twin) -> Floats:
    """Return (2, 2) the map of crystal-frame offsets (x, y) to image x, y in Å: offset @ frame."""
    projection = crystal_of(twin)[2]
    vectors_xy = twin.lattice_px[:, ::-1] * twin.pixel_size_A
    return np.asarray(np.linalg.solve(projection, vectors_xy))


def crystal_of(twin: Twin) -> tuple[Crystal, tuple[int, int, int], Floats]:
    """Return crystal, zone axis and projected lattice vectors (rows, crystal frame) of a twin's model."""
    if twin.fitted is None:
        raise InputError(
            "this result does not hold the crystal it was fitted with (it was written by an older version); "
            "fit the image again"
        )
    p = twin.fitted.columns.projection
    return p.crystal, p.zone, p.vectors


def find_cages(twin: Twin, centre: str, around: tuple[str, ...]) -> list[Cage]:
    """Return the complete cages of elements `around` about every column that holds the element `centre`.

    Columns without an inner place in the image, or with a neighbour missing or not refined, are left out:
    half a cage has another centre.
    """
    crystal, zone, _ = crystal_of(twin)
    table = twin.columns
    frame = frame_of(twin)
    if centre not in table.elements:
        return []
    places = positions_A(twin)
    neighbours = _one_shell(crystal, zone, centre, around)
    out = []
    trees = {e: _tree(places[:, k]) for k, e in enumerate(table.elements)}
    spacing = _spacing(places)
    at = list(table.elements).index(centre)
    for c in np.flatnonzero((table.counts[:, at] > 0) & table.inside):
        cage = _cage(int(c), places[c, at], neighbours, frame, trees, MATCH * spacing)
        if cage is not None and table.inside[cage.members].all():
            out.append(cage)
    return out


def _one_shell(
    crystal: Crystal, zone: tuple[int, int, int], centre: str, around: tuple[str, ...]
) -> list[Neighbour]:
    """Return the neighbours of all atoms of an element; raises InputError where they project differently."""
    atoms = [i for i, s in enumerate(crystal.species) if s.element == centre]
    shells = [shell(crystal, zone, atom, around) for atom in atoms]
    patterns = {tuple(sorted((n.element, *np.round(n.offset, 1)) for n in found)) for found in shells}
    if len(patterns) > 1:
        raise InputError(
            f"{centre} stands on sites with {len(patterns)} different surroundings along {list(zone)}, and a "
            "cage is defined for one; look along another zone axis, or use the positions in columns.csv"
        )
    return [n for found in shells for n in found]


def _cage(
    column: int,
    place: Floats,
    neighbours: list[Neighbour],
    frame: Floats,
    trees: dict[str, tuple[cKDTree, NDArray[np.int64]]],
    radius: float,
) -> Cage | None:
    turn = frame / np.sqrt(abs(np.linalg.det(frame)))
    share: dict[tuple[int, str], float] = defaultdict(float)
    bond: dict[tuple[int, str], Floats] = defaultdict(lambda: np.zeros((2, 2)))
    total: dict[str, float] = defaultdict(float)
    for neighbour in neighbours:
        tree, rows = trees[neighbour.element]
        distance, i = tree.query(place + neighbour.offset @ frame)
        if not np.isfinite(distance) or distance > radius:
            return None
        key = (int(rows[i]), neighbour.element)
        n = neighbour.axis[:2] @ turn
        share[key] += 1.0
        bond[key] += np.outer(n, n)
        total[neighbour.element] += 1.0
    if not share:
        return None
    keys = list(share)
    return Cage(
        column,
        np.array([k[0] for k in keys], dtype=np.int64),
        tuple(k[1] for k in keys),
        np.array([share[k] / total[k[1]] for k in keys]),
        np.array([bond[k] / share[k] for k in keys]),
    )


def _tree(place: Floats) -> tuple[cKDTree, NDArray[np.int64]]:
    rows = np.flatnonzero(np.isfinite(place).all(1))
    return cKDTree(place[rows] if len(rows) else np.full((1, 2), 1e9)), rows


def _spacing(places: Floats) -> float:
    """Return the typical distance (Å) between neighbouring columns of one element."""
    out = []
    for k in range(places.shape[1]):
        known = places[np.isfinite(places[:, k]).all(1), k]
        if len(known) > 2:
            out.append(float(np.median(cKDTree(known).query(known, k=2)[0][:, 1])))
    return min(out, default=2.0)
