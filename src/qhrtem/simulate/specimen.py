"""Specimen: a phantom's columns of atoms from a plan, and columns as a supercell for any engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.grid import Grid
from qhrtem.model.forward import MARGIN_A, Field, make_field
from qhrtem.model.sampling import COARSEST, Sampling
from qhrtem.model.twin import ColumnTable
from qhrtem.plan import SimulatePlan
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import Projection
from qhrtem.specimen.supercell import Slicing, Supercell

Floats = NDArray[np.float64]
THICKNESS_NM = 4.0
VACUUM_SHARE = 0.2  # of the field's width
CLEARANCE_A = 1.0  # kept free at the border of the simulated area, where it meets itself again
FARTHEST_A = 8.0  # the lens is allowed to carry detail this far beyond the usual margin


@dataclass(frozen=True)
class Specimen:
    """A phantom before imaging."""

    field: Field  # its reference plane is the exit plane
    columns: ColumnModel

    @property
    def exit_z(self) -> float:
        """Depth (Å) of the lower face of the last slice."""
        return self.field.reference_z


def make_specimen(
    plan: SimulatePlan,
    projection: Projection,
    pixel: float,
    spread: float,
    refine: int = 1,
    sampling: Sampling = COARSEST,
) -> Specimen:
    """Return the specimen that a plan describes; the vacuum of an edge or wedge is on the left.

    pixel: Å; spread: how far the lens carries detail, Å; sampling: of waves for a coherent image; refine: how
    many times finer they are here. Both faces of a specimen are symmetric about a plane, to one atomic layer.
    """
    width, height = (10 * v for v in plan.field_nm)
    shape = (round(height / pixel), round(width / pixel))
    margin = MARGIN_A + min(spread, FARTHEST_A)
    field = make_field(shape, pixel, 0.0, margin=margin, sampling=sampling)
    field = replace(field, grid=finer(field.grid, refine), ratio=(field.ratio[0] * refine, field.ratio[1]))
    turn = math.radians(plan.rotation_deg)
    s, c = math.sin(turn), math.cos(turn)
    # The image of a crystal vector (x, y) is the vector @ frame as (row, column): a proper rotation.
    frame = np.array([[s, c], [c, -s]])
    extent = np.array(field.grid.extent)
    edge = vacuum_edge(plan, field)
    left = CLEARANCE_A if edge is None else edge
    box = (CLEARANCE_A, left, extent[0] - CLEARANCE_A, extent[1] - CLEARANCE_A)
    columns = lattice_columns(projection, field.to_field(np.array(shape) / 2), frame, box)
    layers = layers_at(plan, projection, columns.anchor[:, 1] - left)
    # Whole atomic layers about the plane between layers -1 and 0.
    above = layers // 2
    top = projection.origin - (above + 0.5) * projection.plane
    columns = columns.filled(np.asarray(top), np.asarray(top + layers * projection.plane))
    columns = subset(columns, np.flatnonzero(columns.occupied))
    atoms = columns.atoms()
    exit_z = projection.origin + (int(atoms.slice.max()) + 0.5) * projection.plane
    return Specimen(replace(field, reference_z=exit_z), columns)


def finer(grid: Grid, refine: int) -> Grid:
    """Return the grid of the same extent with `refine` times as many pixels along each edge."""
    shape = (grid.shape[0] * refine, grid.shape[1] * refine)
    return replace(grid, shape=shape, pixel=(grid.pixel[0] / refine, grid.pixel[1] / refine))


def vacuum_edge(plan: SimulatePlan, field: Field) -> float | None:
    """Return x in Å of the field where the crystal begins, None without vacuum."""
    if plan.shape == "slab":
        return None
    vacuum = VACUUM_SHARE * plan.field_nm[0] if plan.vacuum_nm is None else plan.vacuum_nm
    return float(field.to_field(np.zeros(2))[1] + 10 * vacuum)


def layers_at(plan: SimulatePlan, projection: Projection, depth: Floats) -> NDArray[np.int64]:
    """Return the number of atomic layers (C,), at least one, at a distance (C,) in Å from the thin end."""
    if plan.thickness_slices is not None:
        thickness = plan.thickness_slices * projection.plane
    else:
        thickness = 10 * (THICKNESS_NM if plan.thickness_nm is None else plan.thickness_nm)
    grown = math.tan((plan.wedge_mrad or 0.0) * 1e-3) * depth
    return np.maximum(np.round((thickness + grown) / projection.plane), 1).astype(np.int64)


def subset(columns: ColumnModel, keep: NDArray[np.int64]) -> ColumnModel:
    """Return some columns of a model."""
    names = ("kind", "cell", "anchor", "rise", "shift", "first", "last")
    return replace(columns, **{name: getattr(columns, name)[keep] for name in names})


def supercell_of(columns: ColumnModel, grid: Grid) -> tuple[Supercell, Slicing]:
    """Return the atoms of a column model in a box across the grid, in the slices of its projection."""
    atoms = columns.atoms()
    low, high = int(atoms.slice.min()), int(atoms.slice.max())
    p = columns.projection
    count = high - low + 1
    z = atoms.z - (p.origin + (low - 0.5) * p.plane)
    position = np.column_stack([atoms.position, z])
    extent = np.array([*grid.extent, count * p.plane])
    cell = Supercell(columns.species, atoms.species, position, extent)
    return cell, Slicing(atoms.slice - low, np.full(count, p.plane))


def column_table(specimen: Specimen, mistilt: tuple[float, float]) -> ColumnTable:
    """Return the columns whose heaviest element lies on the image, in the layout of a run's columns.csv.

    mistilt: (x, y) in rad; atoms above the exit plane are displaced by it, as a fit states them.
    """
    columns, field = specimen.columns, specimen.field
    counts, by_element, position = _places(specimen, mistilt)
    keep = listed(specimen, mistilt)
    c = np.arange(len(columns))
    top = columns.site_depth(c, columns.first)
    bottom = columns.site_depth(c, columns.last)
    start = top[keep].min() if len(keep) else 0.0
    return ColumnTable(
        kind=tuple(columns.kind_of(int(i)).name for i in keep),
        elements=columns.projection.elements,
        counts=counts[keep],
        position_px=position[keep],
        sigma_px=np.zeros((len(keep), 2)),
        element_position_px=field.to_detector(by_element)[keep],
        displacement_A=np.zeros((len(keep), 2)),
        p_exact=np.ones(len(keep)),
        top_A=(top - start)[keep],
        bottom_A=(bottom - start)[keep],
        inside=np.ones(len(keep), dtype=bool),
    )


def listed(specimen: Specimen, mistilt: tuple[float, float]) -> NDArray[np.int64]:
    """Return which columns the rows of `column_table` are."""
    position = _places(specimen, mistilt)[2]
    limit = np.array(specimen.field.image_shape) - 0.5
    return np.flatnonzero(((position > -0.5) & (position < limit)).all(1))


def _places(specimen: Specimen, mistilt: tuple[float, float]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Return atoms (C, E) and their mean place (C, E, 2) y, x in Å, and row, col (C, 2) of the heaviest."""
    columns = specimen.columns
    atoms = columns.atoms()
    tilt = np.tan(np.array(mistilt[::-1]))
    place = atoms.position + (atoms.z - specimen.exit_z)[:, None] * tilt
    elements = columns.projection.elements
    element = np.array([elements.index(s.element) for s in columns.species])[atoms.species]
    n = (len(columns), len(elements))
    counts, total = np.zeros(n, dtype=np.int64), np.zeros((*n, 2))
    np.add.at(counts, (atoms.column, element), 1)
    np.add.at(total, (atoms.column, element), place)
    by_element = np.full((*n, 2), np.nan)
    by_element[counts > 0] = total[counts > 0] / counts[counts > 0, None]
    heavy = np.array([elements.index(next(s.element for s in k.groups)) for k in columns.projection.kinds])[
        columns.kind
    ]
    # A column too short to hold its heaviest element is placed by what it has.
    c = np.arange(len(columns))
    heavy = np.where(counts[c, heavy] > 0, heavy, np.argmax(counts > 0, axis=1))
    return counts, by_element, specimen.field.to_detector(by_element[c, heavy])
