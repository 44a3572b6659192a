"""Local lattice vectors, strain and tetragonality from the columns of the heaviest kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.science.cages import crystal_of, frame_of
from qhrtem.science.estimates import JointEstimate, errors_of, linear, positions_A
from qhrtem.specimen.crystal import Crystal, atomic_number, zone_frame

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StrainMap:
    """Local lattice of N columns, from their neighbours on both sides along both lattice vectors."""

    column: NDArray[np.int64]  # (N,)
    xy_A: Floats  # (N, 2)
    a_A: JointEstimate  # (N,) length of the first projected lattice vector
    b_A: JointEstimate  # (N,) length of the second
    exx: JointEstimate  # (N,) strain against the mean lattice of the image, image axes
    eyy: JointEstimate  # (N,)
    exy: JointEstimate  # (N,)
    ratio: JointEstimate  # (N,) |b|/|a| over that of the crystal with three equal axes: the tetragonality
    reference: Floats  # (2, 2) mean lattice vectors x, y in Å (rows)


def strain_map(twin: Twin) -> StrainMap:
    """Return the local lattice of every column of the heaviest kind that has its four neighbours.

    The pixel size is calibrated by the crystal itself, so strain is against the mean of the image and lengths
    hold on that scale. Raises InputError where too few columns have all neighbours.
    """
    errors, places = errors_of(twin), positions_A(twin)
    crystal, zone, ideal = crystal_of(twin)
    elements = list(twin.columns.elements)
    at = max(range(len(elements)), key=lambda k: atomic_number(elements[k]))
    vectors = ideal @ frame_of(twin)
    rows = np.flatnonzero(np.isfinite(places[:, at]).all(1) & twin.columns.inside)
    if len(rows) < 9:
        raise InputError(f"a strain map needs at least 9 {elements[at]} columns, the image has {len(rows)}")
    tree = cKDTree(places[rows, at])
    index = errors.index(len(twin.columns.kind), len(elements))[:, at]
    radius = 0.3 * min(np.linalg.norm(v) for v in vectors)
    found = []
    for c in rows:
        pairs = []
        for v in vectors:
            reached = [tree.query(places[c, at] + s * v) for s in (1, -1)]
            pairs.append([int(rows[i]) if d < radius else -1 for d, i in reached])
        ends = np.array(pairs)
        if (ends >= 0).all() and (index[ends.ravel()] >= 0).all():
            found.append((int(c), ends))
    if len(found) < 3:
        raise InputError("fewer than 3 columns have their four neighbours; the field is too small for strain")
    column = np.array([c for c, _ in found], dtype=np.int64)
    ends = np.array([e for _, e in found])  # (N, vector, +/-)
    local = (places[ends[..., 0], at] - places[ends[..., 1], at]) / 2  # (N, vector, xy)
    reference = local.mean(0)
    inverse = np.linalg.inv(reference)
    n = len(column)

    def sums(derivative: Floats, value: Floats, unit: str) -> JointEstimate:
        """Errors of a function of the local vectors with derivative (N, vector, xy)."""
        i = np.broadcast_to(np.arange(n)[:, None, None], derivative.shape)
        parts = [(sign * derivative / 2, index[ends[..., k]]) for k, sign in ((0, 1.0), (1, -1.0))]
        weight = sparse.csr_array((n, len(errors.column)))
        for w, j in parts:
            weight = weight + sparse.csr_array((w.ravel(), (i.ravel(), j.ravel())), shape=weight.shape)
        return linear(twin, weight, value, unit)

    gradient = np.einsum("ij,njk->nik", inverse, local)  # reference⁻¹·local
    length = np.linalg.norm(local, axis=2)
    unit_vectors = local / length[..., None]
    zero = np.zeros_like(local)

    def of_length(k: int) -> Floats:
        out = zero.copy()
        out[:, k] = unit_vectors[:, k]
        return out

    def of_strain(i: int, j: int) -> Floats:
        out = zero.copy()
        out[:, :, j] += inverse[i] / 2
        out[:, :, i] += inverse[j] / 2
        return out

    strain = (gradient + np.swapaxes(gradient, 1, 2)) / 2 - np.eye(2)
    shape = shape_ratio(crystal, zone)
    ratio = length[:, 1] / length[:, 0]
    per_a = 1 / (length[:, 0, None, None] * shape)
    of_ratio = (of_length(1) - of_length(0) * ratio[:, None, None]) * per_a
    return StrainMap(
        column,
        places[column, at],
        sums(of_length(0), length[:, 0], "Å"),
        sums(of_length(1), length[:, 1], "Å"),
        sums(of_strain(0, 0), strain[:, 0, 0], "1"),
        sums(of_strain(1, 1), strain[:, 1, 1], "1"),
        sums(of_strain(0, 1), strain[:, 0, 1], "1"),
        sums(of_ratio, ratio / shape, "1"),
        reference,
    )


def shape_ratio(crystal: Crystal, zone: tuple[int, int, int]) -> float:
    """Return |b|/|a| of the projected lattice if the crystal's axes were equally long, angles kept."""
    basis, _ = zone_frame(crystal, zone)
    steps = basis @ np.linalg.inv(crystal.cell)
    even = crystal.cell / np.linalg.norm(crystal.cell, axis=1)[:, None]
    p, q, r = steps @ even
    along = r / np.linalg.norm(r)
    a, b = (np.linalg.norm(v - (v @ along) * along) for v in (p, q))
    return float(b / a)
