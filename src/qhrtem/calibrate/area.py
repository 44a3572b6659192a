"""Areas of an image that a crystal with vacuum around it does not explain: a film, a second grain, dirt."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.otherwise import other_structure
from qhrtem.calibrate.spectrum import flattened
from qhrtem.calibrate.vacuum import SMOOTH, local_roughness
from qhrtem.model.micrograph import Micrograph

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
RIM_A = 6.0  # beyond the lattice found, thin rims and delocalised fringes of the crystal itself
SMALLEST_A = 5.0  # edge of the smallest area that is reported
ROUGH = 2.5  # roughness over that of noise from which an area is not vacuum
AREA, MOST_MISSING = 9, 0.3  # pixels; share of them missing from which they are an area
LEVEL = 0.06  # departure of the smoothed level from vacuum that is no vacuum, relative


def foreign_area(micrograph: Micrograph, crystal: Bools, frame: Floats, vectors: Floats) -> Bools:
    """Return pixels that carry neither the lattice (nor lie at its rim) nor look like vacuum.

    crystal: [row, col] where the lattice is; frame, vectors: of the lattice, as in `Lattice`. A fit must
    leave these pixels out, or the model would take them for vacuum.
    """
    pixel_A = float(1 / math.sqrt(abs(np.linalg.det(frame))))
    image = np.where(micrograph.valid, micrograph.intensity, 1.0)
    noise = math.sqrt(1 / micrograph.electrons_per_pixel + micrograph.readout_variance)
    floor = noise / (2 * SMOOTH * math.sqrt(math.pi))
    level = ndimage.gaussian_filter(image, max(4.0, 1.0 / pixel_A))
    strange = (local_roughness(image) > ROUGH * floor) | (np.abs(level - 1) > LEVEL)
    away = ~grown(crystal, RIM_A / pixel_A)
    found = ndimage.binary_opening(strange & away, iterations=max(round(SMALLEST_A / 2 / pixel_A / 2), 1))
    # The rim of what is strange is strange too, but the crystal keeps its own.
    found = grown(found, 2.0 / pixel_A)
    # Strong structure needs no such distance to be told from the crystal's rim.
    flat = flattened(image, micrograph.valid)
    found |= grown(other_structure(flat, micrograph.valid, crystal, frame, vectors), 1.0 / pixel_A)
    return np.asarray(found & ~crystal)


def unusable_area(valid: Bools) -> Bools:
    """Return where unusable pixels make up an area; single ones, left out of means, do no harm."""
    return np.asarray(ndimage.uniform_filter((~valid).astype(float), AREA) > MOST_MISSING)


def grown(mask: Bools, pixels: float) -> Bools:
    """Return the mask with everything within some pixels of it."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= pixels)
