"""Profiles: a map averaged over cells at the same distance to the edge, or of the same thickness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.science.estimates import JointEstimate

Floats = NDArray[np.float64]
BINS = 8
LEAST_VACUUM = 0.01  # share of the image that must be vacuum for it to have an edge


@dataclass(frozen=True)
class Profile:
    """A quantity against a coordinate; the errors of different bins belong together."""

    abscissa: str  # with its unit
    centre: Floats  # (B,) mean coordinate of the cells in a bin
    estimate: JointEstimate  # (B,)
    cells: NDArray[np.int64]  # (B,) number of cells
    weight: Floats  # (B, N) weight of each cell in each bin


def distance_to_edge(twin: Twin, xy_A: Floats) -> Floats:
    """Return the distance (N,) in Å from places x, y to the nearest vacuum seen in the image.

    Vacuum is what lies farther than one column spacing from every column. Raises InputError for an image
    without any.
    """
    rows, cols = twin.match.measured.shape
    place = twin.columns.position_px
    spacing = float(np.median(cKDTree(place).query(place, k=2)[0][:, 1])) if len(place) > 1 else 1.0
    empty = np.ones((rows, cols), dtype=bool)
    index = np.clip(np.round(place).astype(int), 0, [rows - 1, cols - 1])
    empty[index[:, 0], index[:, 1]] = False
    far = ndimage.distance_transform_edt(empty) > 1.5 * spacing
    if far.mean() < LEAST_VACUUM:
        raise InputError("the image shows no vacuum, so no distance to an edge is defined")
    depth = ndimage.distance_transform_edt(~far) - 1.5 * spacing
    pixel = np.clip(np.asarray(xy_A)[:, ::-1] / twin.pixel_size_A, 0, [rows - 1, cols - 1])
    return np.asarray(ndimage.map_coordinates(depth, pixel.T, order=1) * twin.pixel_size_A)


def thickness_at(twin: Twin, column: NDArray[np.int64]) -> Floats:
    """Return the distance (N,) in Å from the first to the last atom of columns."""
    return np.asarray((twin.columns.bottom_A - twin.columns.top_A)[column])


def profile(
    coordinate: Floats, estimate: JointEstimate, abscissa: str, width: float | None = None, least: int = 4
) -> Profile:
    """Return the mean of an estimate in bins of a coordinate, cells weighted by their local variance.

    width: of a bin; None: so that at most eight bins cover the range. Bins with fewer than `least` cells join
    their neighbour.
    """
    coordinate = np.asarray(coordinate, dtype=float)
    if len(coordinate) != len(estimate) or not len(estimate):
        raise InputError(f"a profile needs one coordinate a cell, got {len(coordinate)} for {len(estimate)}")
    span = float(np.ptp(coordinate))
    step = width or max(span / BINS, 1e-9)
    number = np.floor((coordinate - coordinate.min()) / step + 1e-9).astype(int)
    bins: list[list[int]] = []
    for b in range(number.max() + 1):
        members = np.flatnonzero(number == b).tolist()
        if bins and (len(members) < least or len(bins[-1]) < least):
            bins[-1] += members
        elif members:
            bins.append(members)
    if len(bins) > 1 and len(bins[-1]) < least:
        bins[-2] += bins.pop()
    weight = np.zeros((len(bins), len(estimate)))
    precision = 1 / np.maximum(np.diag(estimate.local), 1e-30)
    for b, members in enumerate(bins):
        weight[b, members] = precision[members] / precision[members].sum()
    return Profile(
        abscissa, weight @ coordinate, estimate.combined(weight), np.array([len(b) for b in bins]), weight
    )
