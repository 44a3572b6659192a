"""A supercell: any atoms in an orthogonal box with the beam along +z, periodic across it, cut into slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError, PlanError
from qhrtem.physics.potential import Species

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLOSEST_A = 0.3  # atoms of full occupancy nearer than this are one atom listed twice
FACE_A = 1e-6  # rounding of coordinates: an atom this near to a face of a slice lies on it


@dataclass(frozen=True)
class Supercell:
    """N atoms of S species; occupancy and Debye–Waller factor belong to the species."""

    species: tuple[Species, ...]  # (S,)
    kind: Ints  # (N,) index into species
    position: Floats  # (N, 3) y, x, z in Å, beam along +z
    extent: Floats  # (3,) edges y, x, z of the box in Å


@dataclass(frozen=True)
class Slicing:
    """Which slice each atom is put into; slices follow each other along the beam."""

    index: Ints  # (N,) slice of each atom, from 0
    thickness: Floats  # (S,) Å of each slice


def make_supercell(
    elements: Sequence[str], position: Floats, extent: Floats, b_iso: Floats, occupancy: Floats
) -> Supercell:
    """Return a checked supercell with its atoms moved into the box.

    elements: (N,) symbols; position: (N, 3) y, x, z in Å; extent: (3,) y, x, z in Å; b_iso: (N,) Å²;
    occupancy: (N,). Raises `InputError` for no atoms, an unknown element, numbers that are none, impossible
    occupancies or displacement factors, and atoms on top of each other.
    """
    position, extent = np.asarray(position, dtype=np.float64), np.asarray(extent, dtype=np.float64)
    b_iso, occupancy = np.asarray(b_iso, dtype=np.float64), np.asarray(occupancy, dtype=np.float64)
    if not len(elements):
        raise InputError("a supercell needs at least 1 atom, got none; is the file a structure?")
    for symbol in sorted(set(elements)):
        if gemmi.Element(symbol).atomic_number == 0:
            raise InputError(f"unknown element {symbol!r} in the supercell; correct its symbol")
    _require(np.isfinite(position).all(1), "coordinates", "a finite number of Å", position)
    _require(np.isfinite(b_iso) & (b_iso >= 0), "B_iso", "at least 0 Å²", b_iso)
    _require((occupancy > 0) & (occupancy <= 1.001), "occupancy", "within 0 to 1", occupancy)
    if not (np.isfinite(extent).all() and extent.min() > 0):
        raise InputError(f"edges of the supercell must be positive lengths in Å, got {extent.tolist()}")
    position = np.mod(position + FACE_A, extent) - FACE_A
    _refuse_overlaps(elements, position, extent, occupancy)
    labels = [Species(e, float(b), float(o)) for e, b, o in zip(elements, b_iso, occupancy, strict=True)]
    species = tuple(dict.fromkeys(labels))
    where = {s: i for i, s in enumerate(species)}
    return Supercell(species, np.array([where[s] for s in labels]), position, extent)


def _require(valid: Any, name: str, wanted: str, value: Floats) -> None:
    if not np.all(valid):
        first = int(np.argmin(valid))
        raise InputError(f"atom {first + 1}: {name} must be {wanted}, got {value[first]}; correct the file")


def _refuse_overlaps(elements: Sequence[str], position: Floats, extent: Floats, occupancy: Floats) -> None:
    """Raise `InputError` where atoms nearer than `CLOSEST_A` share more than one full occupancy."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    n = len(position)
    tree = cKDTree(np.mod(position, extent), boxsize=extent)
    pairs = tree.query_pairs(CLOSEST_A, output_type="ndarray")
    if not len(pairs):
        return
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, site = connected_components(links, directed=False)
    shared = np.bincount(site, occupancy)[site]
    for i, j in pairs.tolist():
        if shared[i] > 1.001:
            raise InputError(
                f"atoms {i + 1} ({elements[i]}) and {j + 1} ({elements[j]}) lie within {CLOSEST_A} Å of each "
                f"other with occupancies summing to {shared[i]:.3g}; remove the copy, or give the "
                "occupancies of a shared site"
            )


def read_supercell(path: str | Path, b_iso: float | None = None) -> Supercell:
    """Return the supercell in a CIF or an extended XYZ file (columns occupancy and B_iso), beam along +z.

    b_iso: Å², for atoms without displacement factors of their own. Raises `InputError` for a file that is
    missing or no structure, a box that is not orthogonal, and whatever `make_supercell` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"structure file {path} does not exist; give the path of a .cif or .extxyz file")
    readers = {".cif": _read_cif, ".extxyz": _read_extxyz, ".xyz": _read_extxyz}
    if path.suffix.lower() not in readers:
        raise InputError(f"a supercell is read from .cif or .extxyz, got {path.name}; export it as one")
    try:
        elements, position, extent, b, occupancy = readers[path.suffix.lower()](path)
        if np.isnan(b).any():
            if b_iso is None:
                raise InputError("some atoms have no displacement factor; add B_iso to the file, or give one")
            b = np.where(np.isnan(b), b_iso, b)
        return make_supercell(elements, position, extent, b, occupancy)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None


_Content = tuple[list[str], Floats, Floats, Floats, Floats]  # elements, position, extent, B, occupancy


def _read_cif(path: Path) -> _Content:
    try:
        block = gemmi.cif.read(str(path)).sole_block()
        small = gemmi.make_small_structure_from_block(block)
    except (ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"not a readable CIF of one structure ({str(error).splitlines()[0]})") from None
    cell = small.cell
    if small.sites and max(abs(a - 90) for a in (cell.alpha, cell.beta, cell.gamma)) > 1e-3:
        angles = f"{cell.alpha:g}, {cell.beta:g}, {cell.gamma:g}"
        raise InputError(
            f"the box must have right angles, got {angles} degrees; build an orthogonal supercell"
        )
    extent = np.array([cell.b, cell.a, cell.c])
    given = {
        name: list(block.find_values(f"_atom_site_{name}")) for name in ("B_iso_or_equiv", "U_iso_or_equiv")
    }
    known = any(given.values()) or any(site.aniso.nonzero() for site in small.sites)
    sites = small.get_all_unit_cell_sites()
    position = np.array([[s.fract.y, s.fract.x, s.fract.z] for s in sites]).reshape(-1, 3) * extent
    b = np.array([_b_of(site) if known else math.nan for site in sites])
    occupancy = np.array([site.occ for site in sites])
    return [site.element.name for site in sites], position, extent, b, occupancy


def _b_of(site: gemmi.SmallStructure.Site) -> float:
    """Return the isotropic B (Å²) of a site, the mean of the axes where it is given anisotropic."""
    u = site.aniso.trace() / 3 if site.aniso.nonzero() else site.u_iso
    return round(8 * math.pi**2 * u, 9)


def _read_extxyz(path: Path) -> _Content:
    import ase.io

    try:
        atoms = ase.io.read(path, format="extxyz")
    except Exception as error:  # the reader lets any error of its parsing through
        raise InputError(f"not a readable extended XYZ file ({type(error).__name__}: {error})") from None
    box = np.asarray(atoms.cell.array)
    if np.abs(box - np.diag(np.diag(box))).max() > 1e-4:
        raise InputError(
            "the box must be orthogonal with edges along x, y and z (beam along z), got lattice vectors "
            f"{box.round(4).tolist()}; build an orthogonal supercell"
        )
    n = len(atoms)
    b = atoms.arrays.get("B_iso", np.full(n, math.nan))
    occupancy = atoms.arrays.get("occupancy", np.ones(n))
    return atoms.get_chemical_symbols(), atoms.positions[:, [1, 0, 2]], np.diag(box)[[1, 0, 2]], b, occupancy


def repeat(cell: Supercell, ny: int, nx: int, nz: int = 1) -> Supercell:
    """Return the supercell repeated along y, x and the beam."""
    if min(ny, nx, nz) < 1:
        raise PlanError(f"a supercell is repeated at least once along each edge, got {ny}, {nx}, {nz}")
    steps = np.stack(np.meshgrid(range(ny), range(nx), range(nz), indexing="ij"), -1).reshape(-1, 1, 3)
    position = (cell.position + steps * cell.extent).reshape(-1, 3)
    return replace(
        cell, kind=np.tile(cell.kind, len(steps)), position=position, extent=cell.extent * [ny, nx, nz]
    )


def sheared(cell: Supercell, tilt: tuple[float, float], z_reference: float = 0.0) -> Supercell:
    """Return the supercell tilted by (x, y) rad: atoms at depth z move by (z - z_reference)·tan t."""
    position = cell.position.copy()
    depth = position[:, 2] - z_reference
    position[:, 1] += depth * math.tan(tilt[0])
    position[:, 0] += depth * math.tan(tilt[1])
    return replace(cell, position=position)


def displaced(cell: Supercell, generator: np.random.Generator, along_beam: bool = True) -> Supercell:
    """Return one frozen-phonon configuration: independent normal displacements of variance B/8π² per axis.

    The Einstein model: neighbours move independently. along_beam: also along z. Slice it as the cell at rest,
    so that no atom changes its slice.
    """
    sigma = np.sqrt(np.array([s.b_iso for s in cell.species])[cell.kind] / (8 * math.pi**2))
    shift = generator.standard_normal(cell.position.shape) * sigma[:, None]
    if not along_beam:
        shift[:, 2] = 0
    return replace(cell, position=cell.position + shift)


def equal_slices(cell: Supercell, count: int, offset: float = 0.0) -> Slicing:
    """Return `count` slices of equal thickness; an atom on a face belongs to the slice behind it.

    offset: depth (Å) of the first face, such as minus half a slice for atoms at z = 0 to lie at the centre;
    the cell counts as periodic along the beam.
    """
    if count < 1:
        raise PlanError(f"a supercell needs at least one slice, got {count}")
    step = float(cell.extent[2]) / count
    index = np.floor((cell.position[:, 2] - offset + 2 * FACE_A) / step).astype(np.int64)
    return Slicing(index % count, np.full(count, step))


def fixed_thickness(cell: Supercell, thickness: float) -> Slicing:
    """Return slices of a thickness (Å) from the entrance face on; the last one takes what is left."""
    depth = float(cell.extent[2])
    if not 0 < thickness <= depth * (1 + 1e-6):
        raise PlanError(
            f"slice thickness must be within 0 to the {depth:g} Å of the supercell, got {thickness:g} Å; "
            "repeat the cell along the beam, or choose thinner slices"
        )
    count = max(1, math.ceil(depth / thickness - 1e-6))
    index = np.floor((cell.position[:, 2] + 2 * FACE_A) / thickness).astype(np.int64)
    steps = np.full(count, thickness)
    steps[-1] = depth - thickness * (count - 1)
    return Slicing(np.clip(index, 0, count - 1), steps)


def atomic_planes(cell: Supercell, tolerance: float = 0.1) -> Slicing:
    """Return one slice for each plane of atoms; atoms within `tolerance` (Å) of its first belong to a plane.

    Each slice is as thick as the way to the next plane (the last to the first one of the next cell), so that
    the distances between planes are kept.
    """
    depth = float(cell.extent[2])
    if not 0 < tolerance < depth:
        raise PlanError(
            f"plane tolerance must be within 0 to the {depth:g} Å of the supercell, got {tolerance:g} Å"
        )
    z = cell.position[:, 2]
    index = np.empty(len(z), dtype=np.int64)
    starts: list[float] = []
    for i in np.argsort(z, kind="stable"):
        if not starts or z[i] - starts[-1] > tolerance:
            starts.append(float(z[i]))
        index[i] = len(starts) - 1
    if len(starts) > 1 and starts[0] + depth - starts[-1] <= tolerance:
        index[index == len(starts) - 1] = 0  # the plane on the face, written at both ends
        starts.pop()
    wrapped = z - depth * ((index == 0) & (z - starts[0] > depth / 2))
    centre = np.bincount(index, wrapped) / np.bincount(index)
    return Slicing(index, np.diff(centre, append=centre[0] + depth))


def slices_of(slicing: Slicing) -> Sequence[Ints]:
    """Return the atoms (indices) of each slice in beam order."""
    order = np.argsort(slicing.index, kind="stable")
    edges = np.searchsorted(slicing.index[order], np.arange(len(slicing.thickness) + 1))
    return [order[edges[i] : edges[i + 1]] for i in range(len(slicing.thickness))]
