"""Which columns of the lattice are there: each site's own contrast, compared with sites that surely are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
COLUMN_A, AROUND_A = (
    0.35,
    1.2,
)  # one standard deviation of the two smoothings whose difference is the contrast
SURE_A = 4.0  # inside the crystal's outline by this much, a site is surely occupied
FEWEST = 4  # sure sites of a kind below which its usual contrast is unknown
CLEAR = 6.0  # standard deviations of the noise by which the usual contrast must stand out
SHELL = 1.3  # times the distance of the nearest one, within which columns are neighbours
THIN = 0.25  # share of the usual contrast that a column at a thin rim still has


def column_contrast(image: Floats, valid: Bools, position: Floats, pixel_A: float) -> Floats:
    """Return the contrast (N,) of sites at (row, col): the column's own disc less its surroundings.

    image: vacuum = 1; sites beyond the image take its nearest pixel.
    """
    difference = _narrow(image, valid, COLUMN_A / pixel_A) - _narrow(image, valid, AROUND_A / pixel_A)
    return np.asarray(ndimage.map_coordinates(difference, position.T, order=1, mode="nearest"))


def _narrow(image: Floats, valid: Bools, sigma: float) -> Floats:
    """Gaussian mean over usable pixels."""
    weight = ndimage.gaussian_filter(valid.astype(float), sigma)
    value = ndimage.gaussian_filter(np.where(valid, image - 1, 0.0), sigma)
    return np.asarray(1 + value / np.maximum(weight, 1e-3))


def present_columns(
    image: Floats,
    valid: Bools,
    position: Floats,
    kind: NDArray[np.int64],
    crystal: Bools,
    pixel_A: float,
    noise: float,
) -> Bools:
    """Return which sites (N,) inside the crystal's outline carry a column.

    position: (N, 2) row, col; kind: (N,) of each site; crystal: [row, col] outline of the lattice; noise: one
    standard deviation of a pixel. Kinds that hardly stand out of their surroundings, or do so with either
    sign, are kept where the outline holds them and at least half of the nearest columns that do stand out are
    there: at a rim the light columns end with the heavy ones.
    """
    at = np.clip(np.round(position).astype(int), 0, np.array(image.shape) - 1)
    inside = crystal[at[:, 0], at[:, 1]]
    depth = ndimage.distance_transform_edt(np.pad(crystal, 1, mode="edge"))[1:-1, 1:-1] * pixel_A
    within = ((position >= 0) & (position <= np.array(image.shape) - 1)).all(1)
    sure = inside & within & (depth[at[:, 0], at[:, 1]] > SURE_A)
    contrast = column_contrast(image, valid, position, pixel_A)
    # White noise under the narrow smoothing.
    level = noise / (2 * np.sqrt(np.pi) * COLUMN_A / pixel_A)
    out = inside.copy()
    judged = np.zeros(len(kind), dtype=bool)
    for k in np.unique(kind):
        mine = kind == k
        known = contrast[mine & sure]
        if len(known) < FEWEST:
            continue
        usual = float(np.median(known))
        if abs(usual) < CLEAR * level or (np.sign(known) == np.sign(usual)).mean() < 0.95:
            continue
        out[mine & within] &= (contrast * np.sign(usual) > THIN * abs(usual))[mine & within]
        judged |= mine
    out |= sure
    if judged.any() and not judged.all():
        out[~judged & ~sure] &= _accompanied(position[~judged & ~sure], position[judged], out[judged])
    return out


def _accompanied(position: Floats, others: Floats, there: Bools) -> Bools:
    """Return for each site (N,) whether at least half of the nearest other sites (M,) are there."""
    if not len(position):
        return np.zeros(0, dtype=bool)
    tree = spatial.cKDTree(others)
    nearest = tree.query(position)[0]
    return np.array(
        [
            there[tree.query_ball_point(p, SHELL * d)].mean() >= 0.5
            for p, d in zip(position, nearest, strict=True)
        ]
    )
