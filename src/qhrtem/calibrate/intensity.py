"""Absolute intensity: detector counts to vacuum = 1, with the noise that the image shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.camera import seen_offset, stand_in
from qhrtem.calibrate.defects import find_defects
from qhrtem.calibrate.lattice import SQUARE
from qhrtem.calibrate.noise import NoiseSpectrum, noise_spectrum
from qhrtem.calibrate.vacuum import (
    Transfer,
    Vacuum,
    find_vacuum,
    local_roughness,
    measure_vacuum,
    photon_transfer,
    pixel_noise,
)
from qhrtem.errors import InputError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.plan import ImagePlan

__all__ = ["find_vacuum", "local_roughness", "mean_pitch", "normalise", "planned_pitch", "valid_pixels"]

Floats = NDArray[np.float64]
SMALLEST_IMAGE = 48  # pixels along an edge
LEVEL_SIGMA = 0.002  # relative, of a vacuum level that was given
UNEVEN_SIGMA = 0.002  # relative, least of one that was found: vacuum beside a specimen is not quite empty
FEW_PIXELS = 1000  # that the noise is taken to be known from where there is no vacuum
LEAST_USABLE = 0.02  # share of pixels that a user's mask must leave
MOST_INVALID = 0.2  # share of unusable pixels beyond which an image is not worth fitting


def planned_pitch(plan: ImagePlan, raw: RawImage) -> tuple[float, float] | None:
    """Return the (row, col) pixel pitch in Å that the plan or else the file states, None where neither does.

    A single number in the plan is the geometric mean; the file's aspect, if it states one, is kept.
    """
    if plan.pixel_size_A is None:
        return raw.pixel_size_A
    if raw.pixel_size_A is not None and abs(raw.pixel_size_A[0] / raw.pixel_size_A[1] - 1) < SQUARE:
        return plan.pixel_size_A, plan.pixel_size_A
    aspect = 1.0 if raw.pixel_size_A is None else raw.pixel_size_A[0] / raw.pixel_size_A[1]
    return plan.pixel_size_A * math.sqrt(aspect), plan.pixel_size_A / math.sqrt(aspect)


def mean_pitch(pitch: tuple[float, float] | None) -> float:
    """Return the geometric mean of a (row, col) pitch in Å, nan where it is unknown."""
    return math.nan if pitch is None else math.sqrt(pitch[0] * pitch[1])


def valid_pixels(counts: Floats) -> NDArray[np.bool_]:
    """Return False at pixels that must not be used: dead, hot, saturated, hit by a zinger, or not finite."""
    return find_defects(counts).valid


@dataclass(frozen=True)
class _Levels:
    offset: float  # counts
    span: float  # vacuum level above the offset, counts
    span_sigma: float  # relative
    offset_sigma: float  # relative to the span
    notes: tuple[str, ...]


def normalise(raw: RawImage, plan: ImagePlan, pixel_size: float) -> Micrograph:
    """Return the micrograph on the scale vacuum = 1.

    What the plan leaves out is estimated from the image and noted: vacuum level and noise from an empty area,
    gain and offset also from how the noise rises with the intensity. Raises `InputError` for an image that
    cannot hold a lattice or whose vacuum level is neither given nor visible.
    """
    counts = raw.counts.astype(np.float64)
    if min(counts.shape) < SMALLEST_IMAGE:
        raise InputError(
            f"{raw.path}: the image must have at least {SMALLEST_IMAGE} × {SMALLEST_IMAGE} pixels, "
            f"got {counts.shape[0]} × {counts.shape[1]}; was the right dataset of the file chosen?"
        )
    if not np.ptp(counts[np.isfinite(counts)]) > 0:
        raise InputError(f"{raw.path}: the image is constant; there is no contrast to fit")
    defects = find_defects(counts)
    valid = defects.valid
    if raw.usable is not None and raw.usable.mean() < LEAST_USABLE:
        raise InputError(
            f"{raw.path}: mask and exclude leave {100 * raw.usable.mean():.2g} % of the pixels, at least "
            f"{100 * LEAST_USABLE:.0f} % are needed; is the mask inverted? Zero rules a pixel out"
        )
    if valid.mean() < 1 - MOST_INVALID:
        raise InputError(
            f"{raw.path}: {100 * (1 - valid.mean()):.0f} % of the pixels are dead, saturated or outliers, at "
            f"most {100 * MOST_INVALID:.0f} % may be; was the image clipped or masked before it was exported?"
        )
    excluded: tuple[str, ...] = ()
    if raw.usable is not None:
        valid = valid & raw.usable
        excluded = (f"{100 * (1 - raw.usable.mean()):.2g} % of the image is ruled out by the plan.",)
    filled = np.where(valid, counts, np.median(counts[valid]))
    where = find_vacuum(filled) & valid
    vacuum = measure_vacuum(filled, where) if where.any() else None
    transfer = photon_transfer(filled, valid)
    spectrum = noise_spectrum(filled, where, plan.readout_counts) if vacuum is not None else None
    levels = _levels(raw, plan, vacuum, transfer, spectrum, counts, valid)
    variance = vacuum.variance if vacuum is not None else pixel_noise(counts, valid)
    gain, gain_sigma, readout, said = _noise(plan, levels, variance, vacuum, transfer)
    said += stand_in(plan, vacuum, spectrum)
    return Micrograph(
        (counts - levels.offset) / levels.span,
        valid,
        pixel_size,
        levels.span / gain,
        readout / levels.span**2,
        levels.span_sigma,
        (*levels.notes, *said, *defects.notes(), *excluded),
        vacuum=where,
        gain=gain,
        gain_sigma=gain_sigma,
        noise_correlation=math.nan if vacuum is None else vacuum.correlation,
        transfer=spectrum.transfer if spectrum is not None and plan.mtf is None else None,
        offset_sigma=levels.offset_sigma,
    )


def _levels(
    raw: RawImage,
    plan: ImagePlan,
    vacuum: Vacuum | None,
    transfer: Transfer | None,
    spectrum: NoiseSpectrum | None,
    counts: Floats,
    valid: NDArray[np.bool_],
) -> _Levels:
    """Offset and vacuum level, given or found."""
    notes: list[str] = []
    level, sigma = plan.vacuum_counts, LEVEL_SIGMA
    if level is None:
        if vacuum is None:
            raise InputError(
                f"{raw.path}: no vacuum area was found, so the absolute intensity is unknown; give "
                "vacuum_counts (mean counts without specimen) in [image]"
            )
        level = vacuum.level
        notes.append(
            f"The vacuum level was taken from the image: {level:.1f} ± {vacuum.level_sigma:.1f} counts."
        )
    elif vacuum is not None and abs(vacuum.level - level) > 0.03 * abs(level) + 5 * vacuum.level_sigma:
        notes.append(
            f"A flat area of the image has {vacuum.level:.1f} counts, the plan gives {level:.1f} for vacuum; "
            "the plan was followed."
        )
    offset, offset_sigma = plan.offset_counts, 0.0
    if offset is None:
        offset, offset_sigma, said = seen_offset(plan, vacuum, transfer, spectrum, level)
        notes.append(said)
    span = level - offset
    if not span > 0:
        raise InputError(
            f"{raw.path}: vacuum_counts must exceed offset_counts, got {level:g} and {offset:g}; check both"
        )
    if plan.vacuum_counts is None and vacuum is not None:
        sigma = max(UNEVEN_SIGMA, 0.003, vacuum.level_sigma / span)
    inside = counts[valid].mean() - offset
    if not 0.2 < inside / span < 5:
        raise InputError(
            f"{raw.path}: the mean of the image is {inside / span:.2g} times the vacuum level; a crystal a "
            "few nm thick gives 0.5 to 1.5, check vacuum_counts and offset_counts"
        )
    return _Levels(offset, span, sigma, offset_sigma / span, tuple(notes))


def _noise(
    plan: ImagePlan, levels: _Levels, variance: float, vacuum: Vacuum | None, transfer: Transfer | None
) -> tuple[float, float, float, tuple[str, ...]]:
    """Return gain (counts per electron), its standard deviation, readout variance (counts²), and notes.

    Gain and readout are such that a pixel of vacuum has the variance seen.
    """
    notes: list[str] = []
    gain, span = plan.gain_counts_per_electron, levels.span
    readout = None if plan.readout_counts is None else plan.readout_counts**2
    sigma = 0.0
    if vacuum is None and (gain is None or readout is None):
        notes.append("No vacuum was found; the noise was taken from differences of neighbouring pixels.")
    if gain is None:
        most = variance / span  # if all noise is shot noise
        gain = max(variance - (readout or 0.0), 0.05 * variance) / span
        many = vacuum.pixels if vacuum is not None else FEW_PIXELS
        sigma = gain * math.hypot(math.sqrt(2 / many), levels.span_sigma)
        how = "the noise"
        if readout is None and transfer is not None:
            # Less steep than all shot noise would be: the rest is readout noise.
            if transfer.slope < most - 3 * transfer.slope_sigma:
                gain, sigma = max(transfer.slope, 0.05 * most), transfer.slope_sigma
                how = "the rise of the noise with intensity"
            else:
                sigma = max(sigma, min(transfer.slope_sigma, 0.5 * gain))
        notes.append(f"The gain was taken from {how}: {gain:.3g} ± {sigma:.2g} counts per electron.")
    if vacuum is not None and vacuum.correlated:
        notes.append(
            f"The noise of neighbouring pixels is correlated: at low frequencies it is "
            f"{vacuum.correlation:.2g} times that of a pixel. The dose from the noise is too high by that "
            "factor, and error bars are too small by its root."
        )
    if readout is None:
        # What the sample's own scatter explains is no readout noise.
        pixels = vacuum.pixels if vacuum is not None else FEW_PIXELS
        excess = variance - gain * span
        readout = excess if excess > 3 * variance * math.sqrt(2 / pixels) else 0.0
    return gain, sigma, readout, tuple(notes)
