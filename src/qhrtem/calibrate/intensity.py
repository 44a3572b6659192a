"""Absolute intensity: detector counts to vacuum = 1, with the noise that the vacuum shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.errors import InputError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.plan import ImagePlan

Floats = NDArray[np.float64]
SMALLEST_IMAGE = 48  # pixels along an edge
VACUUM_BLOCK = 12  # pixels; local statistics are taken over blocks of about this size


def local_roughness(counts: Floats, size: int = VACUUM_BLOCK) -> Floats:
    """Return the local standard deviation of the lightly smoothed image, [row, col], counts.

    Smoothing suppresses shot noise, so lattice contrast stands out against vacuum.
    """
    smooth = ndimage.gaussian_filter(counts, 1.5)
    mean = ndimage.uniform_filter(smooth, size)
    square = ndimage.uniform_filter(smooth**2, size)
    return np.sqrt(np.maximum(square - mean**2, 0))


def find_vacuum(counts: Floats) -> NDArray[np.bool_]:
    """Return pixels that look like vacuum: a connected area whose roughness is that of noise alone.

    Empty (all False) when the image shows none.
    """
    rough = local_roughness(counts)
    noise = np.median(np.abs(counts - ndimage.gaussian_filter(counts, 1.0))) / 0.6745 / 0.92
    # White noise through the same smoothing leaves 1/(2·1.5·√π) of its standard deviation.
    floor = noise / (2 * 1.5 * np.sqrt(np.pi))
    flat = rough < 1.9 * floor
    flat = ndimage.binary_opening(flat, iterations=3)
    label, n = ndimage.label(flat)
    if n == 0:
        return np.zeros(counts.shape, dtype=bool)
    size = ndimage.sum_labels(flat, label, np.arange(1, n + 1))
    keep = label == 1 + int(np.argmax(size))
    keep = ndimage.binary_erosion(keep, iterations=VACUUM_BLOCK // 2, border_value=1)
    return keep if keep.sum() >= max(400, 0.005 * counts.size) else np.zeros(counts.shape, dtype=bool)


def valid_pixels(counts: Floats) -> NDArray[np.bool_]:
    """Return False at pixels that stick out of their surroundings (dead, hot, zingers) or are not finite."""
    finite = np.isfinite(counts)
    filled = np.where(finite, counts, np.median(counts[finite]))
    median = ndimage.median_filter(filled, 5)
    spread = np.sqrt(ndimage.uniform_filter((filled - median) ** 2, 15))
    # A zinger raises its own neighbourhood's spread; a second pass with it removed sees the true one.
    bad = np.abs(filled - median) > 8 * np.median(spread)
    return finite & ~bad


def normalise(raw: RawImage, plan: ImagePlan, pixel_size: float) -> Micrograph:
    """Return the micrograph on the scale vacuum = 1.

    What the plan leaves out is estimated from the vacuum in the image and noted. Raises `InputError` for an
    image that cannot hold a lattice or whose vacuum level is neither given nor visible.
    """
    counts = raw.counts.astype(np.float64)
    if min(counts.shape) < SMALLEST_IMAGE:
        raise InputError(
            f"{raw.path}: the image must have at least {SMALLEST_IMAGE} × {SMALLEST_IMAGE} pixels, "
            f"got {counts.shape[0]} × {counts.shape[1]}; was the right dataset of the file chosen?"
        )
    if not np.ptp(counts[np.isfinite(counts)]) > 0:
        raise InputError(f"{raw.path}: the image is constant; there is no contrast to fit")
    notes: list[str] = []
    valid = valid_pixels(counts)
    offset = plan.offset_counts
    if offset is None:
        offset = 0.0
        notes.append("The detector offset was not given; 0 counts were assumed.")
    vacuum = find_vacuum(np.where(valid, counts, np.median(counts[valid])))
    level = plan.vacuum_counts
    scale_sigma = 0.002
    if level is None:
        if not vacuum.any():
            raise InputError(
                f"{raw.path}: no vacuum area was found, so the absolute intensity is unknown; give "
                "vacuum_counts (mean counts without specimen) in [image]"
            )
        level = float(counts[vacuum & valid].mean())
        scale_sigma = 0.003
        notes.append(f"The vacuum level was taken from the image: {level:.1f} counts.")
    span = level - offset
    if not span > 0:
        raise InputError(
            f"{raw.path}: vacuum_counts must exceed offset_counts, got {level:g} and {offset:g}; check both"
        )
    inside = counts[valid].mean() - offset
    if not 0.2 < inside / span < 5:
        raise InputError(
            f"{raw.path}: the mean of the image is {inside / span:.2g} times the vacuum level; a crystal a "
            "few nm thick gives 0.5 to 1.5, check vacuum_counts and offset_counts"
        )
    variance = float(counts[vacuum & valid].var()) if vacuum.any() else None
    gain, readout = _noise(plan, span, variance, notes, counts, valid)
    return Micrograph(
        (counts - offset) / span, valid, pixel_size, span / gain, readout / span**2, scale_sigma, tuple(notes)
    )


def _noise(
    plan: ImagePlan,
    span: float,
    variance: float | None,
    notes: list[str],
    counts: Floats,
    valid: NDArray[np.bool_],
) -> tuple[float, float]:
    """Gain (counts per electron) and readout variance (counts²) from the plan and the vacuum's variance."""
    if variance is None:
        # Neighbouring-pixel differences see mostly noise, as the lattice is well sampled.
        d = (counts[1:, 1:] - counts[1:, :-1] - counts[:-1, 1:] + counts[:-1, :-1])[valid[1:, 1:]]
        variance = float((np.median(np.abs(d)) / 0.6745) ** 2 / 4)
    gain = plan.gain_counts_per_electron
    readout = plan.readout_counts
    if gain is None:
        gain = max(variance - (readout or 0.0) ** 2, 0.05 * variance) / span
        notes.append(f"The gain was taken from the noise: {gain:.3g} counts per electron.")
    if readout is None:
        extra = max(variance - gain * span, 0.0)
        return gain, extra
    return gain, readout**2
