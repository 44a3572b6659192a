"""Twins of known specimens: a column model claimed as it is, with errors of known covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.twin import (
    Atoms,
    ColumnTable,
    Estimate,
    Fitted,
    Gate,
    ImagingErrors,
    Match,
    PositionErrors,
    Step,
    Twin,
)
from slabs import BTO, slab


def twin_of_crystal(
    view: tuple[str, tuple[int, int, int]] = BTO,
    *,
    angle: float = 0.0,
    radius: float = 8.0,
    size: int = 150,
    bend: NDArray[np.float64] | None = None,
    local_A: float = 0.02,
    common_A: float = 0.01,
) -> Twin:
    """Return a twin of a square island of the ideal crystal, every column inside.

    bend: (2, 2) displacement gradient applied to all positions x, y; local_A: independent error of each
    coordinate; common_A: error by which all coordinates of oxygen move together along x.
    """
    made = slab(view, (size, size), 0.18, radius, angle=angle)
    columns, field = made.columns, made.model.field
    elements = columns.projection.elements
    counts = columns.element_counts()
    group = columns.group_position()
    places = np.full((len(columns), len(elements), 2), np.nan)
    for c in range(len(columns)):
        for g, species in enumerate(columns.kind_of(c).groups):
            if counts[c, elements.index(species.element)]:
                places[c, elements.index(species.element)] = group[c, g]
    if bend is not None:
        middle = field.to_field(np.array(field.image_shape) / 2)
        places = places + (places - middle) @ np.asarray(bend)[::-1, ::-1].T
    n = np.arange(len(columns))
    heaviest = [elements.index(columns.kind_of(c).groups[0].element) for c in n]
    depth = columns.site_depth(n, columns.first), columns.site_depth(n, columns.last)
    pixel = field.detector_pixel
    table = ColumnTable(
        kind=tuple(columns.kind_of(c).name for c in n),
        elements=elements,
        counts=counts,
        position_px=field.to_detector(places[n, heaviest]),
        sigma_px=np.full((len(columns), 2), local_A / pixel),
        element_position_px=field.to_detector(places),
        displacement_A=np.zeros((len(columns), 2)),
        p_exact=np.full(len(columns), 0.9),
        top_A=depth[0] - depth[0].min(),
        bottom_A=depth[1] - depth[0].min(),
        inside=np.ones(len(columns), bool),
    )
    return Twin(
        columns=table,
        atoms=_atoms(columns, places, field.to_field(np.zeros(2)), local_A),
        microscope=(
            Estimate("high_tension_kV", "high tension", 300.0, np.nan, "kV", False),
            Estimate("c1_nm", "C1", 5.5, 0.1, "nm", True),
            Estimate("a1_x_nm", "A1 x", 0.2, 0.2, "nm", True),
        ),
        match=_match(field.image_shape),
        pixel_size_A=pixel,
        lattice_px=columns.projection.vectors @ columns.frame / pixel,
        thickness_A=float(table.bottom_A.max()),
        chi2_crystal=1.0,
        chi2_vacuum=1.0,
        gates=(Gate("columns", 9.0, 6.0, True, "Columns needed."),),
        history=(Step("joint", 0, 1.0, 1.0),),
        position_errors=_errors(places, elements, local_A, common_A),
        imaging_errors=ImagingErrors(("c1_nm", "a1_x_nm"), np.array([[0.01, 0.004], [0.004, 0.04]])),
        fitted=Fitted(columns, n, made.microscope, field, np.zeros(field.image_grid.shape, np.float32)),
    )


def _errors(
    places: NDArray[np.float64], elements: tuple[str, ...], local_A: float, common_A: float
) -> PositionErrors:
    column, element = np.nonzero(np.isfinite(places[..., 0]))
    column, element = np.repeat(column, 2), np.repeat(element, 2)
    axis = np.tile([0, 1], len(column) // 2)
    oxygen = element == elements.index("O") if "O" in elements else np.zeros(len(element), bool)
    common = np.where(oxygen & (axis == 0), common_A, 0.0)[:, None].astype(np.float32)
    local = sparse.csr_array(sparse.identity(len(column)) * local_A**2)
    return PositionErrors(column, element, axis, common, ("lens",), local, 10.0)


def _atoms(columns, places, origin, sigma) -> Atoms:  # type: ignore[no-untyped-def]
    atoms = columns.atoms()
    species = [columns.species[i] for i in atoms.species]
    elements = columns.projection.elements
    xy = places[atoms.column, [elements.index(s.element) for s in species]] - origin
    return Atoms(
        element=tuple(s.element for s in species),
        position_A=np.column_stack([xy[:, 1], xy[:, 0], atoms.z - atoms.z.min()]),
        occupancy=np.array([s.occupancy for s in species]),
        b_iso_A2=np.array([s.b_iso for s in species]),
        sigma_A=np.full((len(species), 3), sigma),
        column=atoms.column,
    )


def _match(shape: tuple[int, int]) -> Match:
    flat = np.ones(shape, np.float32)
    everywhere = np.ones(shape, bool)
    return Match(flat, flat.copy(), 0.05 * flat, everywhere, everywhere)
