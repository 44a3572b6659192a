"""The joint covariance of a fit as later steps use it: of element positions, and of imaging parameters.

The refinement knows the positions of element groups in a frame that moves with tilted columns. What is
claimed are mean positions of elements in the frame of the image, which also depend on mistilt and depth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.spatial import cKDTree

from qhrtem.model.microscope import INDEX, PARAMETERS, image_of, parameter
from qhrtem.model.twin import ImagingErrors, PositionErrors
from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.joint import GROUP_SIGMA_A, Refined

Floats = NDArray[np.float64]
REACH_A = 10.0  # columns farther apart share errors through the imaging parameters alone
TILTS = ("tilt_y", "tilt_x")


def position_errors(
    refined: Refined,
    columns: ColumnModel,
    keep: NDArray[np.int64],
    pivot_z: float,
) -> PositionErrors:
    """Return the errors of all element positions of the kept columns.

    pivot_z: Å, depth at which the refined positions stand.
    """
    q, p = refined.quadratic, len(refined.quadratic.imaging)
    covariance = refined.covariance
    column, element, axis, average, slide = _coordinates(refined, columns, keep, pivot_z)
    imaging = covariance[:p, :p]
    # Derivative of the claimed coordinates by everything that was refined.
    cross = average @ covariance[p:, :p] + slide @ imaging
    total = average @ (average @ covariance[p:, p:]).T
    total += slide @ imaging @ slide.T
    mixed = (average @ covariance[p:, :p]) @ slide.T
    total += mixed + mixed.T
    root = linalg.cholesky(imaging + 1e-12 * np.diag(np.diag(imaging)), lower=True) if p else np.zeros((0, 0))
    common = linalg.solve_triangular(root, cross.T, lower=True).T if p else np.zeros((len(column), 0))
    local = total - common @ common.T
    prior, names = _prior_pull(refined, columns, column, element, axis, average)
    return PositionErrors(
        column,
        element,
        axis,
        np.hstack([common, prior]).astype(np.float32),
        (*(f"imaging {parameter(i).name}{whose(i)}" for i in q.imaging), *names),
        _near(local, columns.group_position()[keep[column], 0]),
        REACH_A,
    )


def imaging_errors(refined: Refined) -> ImagingErrors:
    """Return the covariance of the imaging parameters in the units users write.

    Those of a further image are called as in "c1_nm of image 2".
    """
    imaging = refined.quadratic.imaging
    p = len(imaging)
    unit = np.array([parameter(i).step * parameter(i).factor for i in imaging])
    covariance = refined.covariance[:p, :p] * np.outer(unit, unit)
    return ImagingErrors(tuple(f"{parameter(i).key}{whose(i)}" for i in imaging), covariance)


def whose(number: int) -> str:
    """Return a suffix that names a further image, empty for the first."""
    return f" of image {image_of(number) + 1}" if image_of(number) else ""


def _coordinates(
    refined: Refined, columns: ColumnModel, keep: NDArray[np.int64], pivot_z: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], sparse.csr_array, Floats]:
    """Return the claimed coordinates (K,): column, element, axis, the average over groups, slide by tilt.

    average: (K, T) weights of the refined group coordinates; slide: (K, P) Å for one step of each imaging
    parameter, by which the mistilt moves what lies above the reference plane.
    """
    q = refined.quadratic
    elements = columns.projection.elements
    number, depth = columns.group_depth()
    row = {int(c): n for n, c in enumerate(keep)}
    place: dict[tuple[int, int, int], int] = {}
    entries: list[tuple[int, int, float, float]] = []
    for n, (c, group, axis) in enumerate(q.tangents):
        if c not in row or number[c, group] == 0:
            continue
        name = columns.kind_of(c).groups[group].element
        key = (row[c], elements.index(name), 1 - axis)  # refined in the order y, x; claimed as x, y
        slot = place.setdefault(key, len(place))
        entries.append((slot, n, number[c, group], depth[c, group]))
    shape = (len(place), len(q.tangents))
    k, t = (np.array([e[n] for e in entries], dtype=np.int64) for n in (0, 1))
    weight, z = (np.array([e[n] for e in entries], dtype=float) for n in (2, 3))
    total = np.bincount(k, weight, minlength=shape[0])
    weight = weight / np.where(total > 0, total, 1)[k]
    average = sparse.csr_array((weight, (k, t)), shape=shape)
    z = np.bincount(k, weight * z, minlength=shape[0])
    keys = np.array(list(place), dtype=np.int64).reshape(-1, 3)
    slide = np.zeros((shape[0], len(q.imaging)))
    for name, axis in zip(TILTS, (1, 0), strict=True):
        if INDEX[name] in q.imaging:
            mine = keys[:, 2] == axis
            step = PARAMETERS[INDEX[name]].step
            slide[mine, q.imaging.index(INDEX[name])] = -(pivot_z - z[mine]) * step
    return keys[:, 0], keys[:, 1], keys[:, 2], average, slide


def _prior_pull(
    refined: Refined,
    columns: ColumnModel,
    column: NDArray[np.int64],
    element: NDArray[np.int64],
    axis: NDArray[np.int64],
    average: sparse.csr_array,
) -> tuple[Floats, tuple[str, ...]]:
    """Return the errors (K, Q) that a common error of the prior between elements of a column would make.

    A lighter element is drawn towards the place that the ideal crystal gives it beside the heaviest. Where
    the image says little, that is the same wrong place in every column, so one nuisance stands for each
    element and axis. Its effect is the share of the information that the prior has, times the prior's width.
    """
    q = refined.quadratic
    p = len(q.imaging)
    place = {key: p + n for n, key in enumerate(q.tangents)}
    pull = np.zeros(len(q.tangents))
    for t, (c, group, ax) in enumerate(q.tangents):
        base = place.get((c, 0, ax))
        if group and base is not None:
            i, cov = p + t, refined.covariance
            share = (cov[i, i] + cov[base, base] - 2 * cov[i, base]) / GROUP_SIGMA_A**2
            pull[t] = min(share, 1.0) * GROUP_SIGMA_A
    moved = average @ pull
    kinds = sorted({(int(e), int(a)) for e, a, m in zip(element, axis, moved, strict=True) if m > 0})
    out = np.zeros((len(column), len(kinds)))
    for n, (e, a) in enumerate(kinds):
        mine = (element == e) & (axis == a)
        out[mine, n] = moved[mine]
    elements = columns.projection.elements
    return out, tuple(f"prior {elements[e]} {'xy'[a]}" for e, a in kinds)


def _near(matrix: Floats, place: Floats) -> sparse.csr_array:
    """Return the entries of a symmetric matrix (K, K) between places (K, 2), Å, within `REACH_A`."""
    pairs = cKDTree(place).query_pairs(REACH_A, output_type="ndarray")
    own = np.arange(len(place))
    i = np.concatenate([own, pairs[:, 0], pairs[:, 1]])
    j = np.concatenate([own, pairs[:, 1], pairs[:, 0]])
    return sparse.csr_array((matrix[i, j], (i, j)), shape=matrix.shape)
