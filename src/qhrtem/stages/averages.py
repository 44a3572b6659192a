"""Repeated-cell averages: the lattice Fourier coefficients of the image at places inside the crystal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.area import unusable_area
from qhrtem.calibrate.lattice import Lattice, amplitudes
from qhrtem.errors import QualityError
from qhrtem.model.micrograph import Micrograph

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
TILE_SIGMA_A = 3.0  # Gaussian window over which cells are averaged
RESOLUTION_A = 0.85  # finest image spacing compared


@dataclass(frozen=True)
class CellAverages:
    """Lattice Fourier coefficients of the image at T places."""

    centre: Floats  # (T, 2) row, col in pixels
    index: Ints  # (K, 2) reflections of the projected lattice, the first is the origin
    frequency: Floats  # (K, 2) row, col, 1/Å
    value: NDArray[np.complex128]  # (T, K) relative to the first pixel, vacuum = 1
    weight: Floats  # (K,) multiplicity: 1 for the origin, 2 for a Friedel pair
    pixel_A: float  # pixel size of the image


def cell_averages(micrograph: Micrograph, lattice: Lattice, pixel: float) -> CellAverages:
    """Return lattice coefficients on a raster of places inside the crystal."""
    frame = lattice.frame
    reciprocal = np.linalg.inv(frame)  # cycles per pixel (row, col) for crystal g: g @ inv(frame).T
    sigma = TILE_SIGMA_A / pixel
    inside = ndimage.binary_erosion(
        lattice.crystal & ~unusable_area(micrograph.valid), iterations=int(1.2 * sigma), border_value=1
    )
    ny, nx = inside.shape
    step = 1.6 * sigma
    edge = 1.2 * sigma
    rows = np.linspace(edge, ny - 1 - edge, max(1, int((ny - 2 * edge) / step) + 1))
    cols = np.linspace(edge, nx - 1 - edge, max(1, int((nx - 2 * edge) / step) + 1))
    centre = np.array([(r, c) for r in rows for c in cols if inside[int(r), int(c)]])
    if len(centre) == 0:
        raise QualityError(
            "the crystal in the image is smaller than the 6 Å over which cells are averaged; "
            "choose a larger area"
        )
    if len(centre) > 16:
        centre = centre[np.linspace(0, len(centre) - 1, 16).astype(int)]
    index, g = _lattice_points(lattice, pixel)
    f = g @ reciprocal.T
    y, x = np.arange(ny)[:, None], np.arange(nx)[None, :]
    # Windows cut by the image's edge leak the mean into the reflections: the vacuum level is taken off.
    filled = np.where(micrograph.valid, micrograph.intensity - 1.0, 0.0)
    value = [
        amplitudes(filled, np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * sigma**2)) * micrograph.valid, f)
        for r, c in centre
    ]
    weight = np.where((index == 0).all(1), 1.0, 2.0)
    return CellAverages(centre, index, f / pixel, np.array(value) + (weight == 1.0), weight, pixel)


def _lattice_points(lattice: Lattice, pixel: float) -> tuple[Ints, Floats]:
    """Reflections (one of each Friedel pair, the origin first) and their g in the crystal frame, 1/Å."""
    vectors = lattice.vectors
    reciprocal = np.linalg.inv(vectors).T
    n = int(np.ceil(np.abs(vectors).sum(1).max() / RESOLUTION_A)) + 1
    index = np.array([(h, k) for h in range(-n, n + 1) for k in range(n + 1) if k > 0 or h >= 0])
    g = index @ reciprocal
    radius = np.linalg.norm(g, axis=1)
    keep = (radius < 1 / RESOLUTION_A) & (radius < 0.42 / pixel)
    order = np.argsort(radius[keep])
    return index[keep][order], g[keep][order]
