"""Unexplained features: places where the image holds what the fitted crystal does not.

An adsorbate, an amorphous patch, a defect: the residual is there larger than noise and larger than the model
error of the rest of the image, over an area wider than one column. Such places are listed, their columns do
not count among those that the fit describes, and too many of them refuse the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.twin import Match
from qhrtem.stages.model_error import column_scale, white_power

Floats = NDArray[np.float64]
REACH_A = 1.5  # over which the residual on the scale of a column is averaged
STRONG = 10.0  # power of the residual over that of noise from which a place is a feature,
TIMES = 5.0  # provided that it is as many times that of the median place of the crystal
REGION_A = 10.0  # edge of the regions whose χ² is stated


@dataclass(frozen=True)
class Feature:
    """A place that the model does not describe."""

    row: float  # px, middle
    col: float
    area: float  # Å²
    power: float  # largest, of the residual on the scale of a column over that of noise


def unexplained(match: Match, pixel: float) -> tuple[tuple[Feature, ...], NDArray[np.bool_]]:
    """Return the unexplained features, the largest first, and the pixels [row, col] that they cover.

    pixel: Å.
    """
    local = _local_power(match, pixel)
    crystal = local[match.crystal & np.isfinite(local)]
    usual = float(np.median(crystal)) if crystal.size else 1.0
    mask = np.nan_to_num(local) > max(STRONG, TIMES * usual)
    label, number = ndimage.label(mask)
    found = []
    for k in range(1, number + 1):
        rows, cols = np.nonzero(label == k)
        power = float(local[rows, cols].max())
        found.append(Feature(float(rows.mean()), float(cols.mean()), len(rows) * pixel**2, power))
    return tuple(sorted(found, key=lambda f: -f.area)), mask


def _local_power(match: Match, pixel: float) -> Floats:
    """Return the power [row, col] of the residual on the scale of a column over noise; nan at rims."""
    used = match.used
    residual = np.where(used, (match.measured - match.simulated) / match.sigma, 0.0).astype(float)
    scale, reach = column_scale(pixel), REACH_A / pixel
    power = ndimage.gaussian_filter(residual, scale) ** 2 / white_power(scale)
    weight = ndimage.gaussian_filter(used.astype(float), reach)
    total = ndimage.gaussian_filter(power * used, reach)
    return np.where(used & (weight > 0.5), total / np.maximum(weight, 1e-9), np.nan)


def feature_note(features: tuple[Feature, ...]) -> tuple[str, ...]:
    """Return where the image holds what the crystal does not, in one sentence or none."""
    if not features:
        return ()
    listed = "; ".join(
        f"row {f.row:.0f}, column {f.col:.0f} ({f.area:.0f} Å², {f.power:.0f} times noise)"
        for f in features[:8]
    )
    more = f" and {len(features) - 8} more" if len(features) > 8 else ""
    return (
        f"The crystal does not explain the image near {listed}{more}: an adsorbate, a defect or amorphous "
        "material? Columns there are not counted among those that the fit describes.",
    )


def region_note(match: Match, pixel: float) -> tuple[str, ...]:
    """Return how χ² varies over the crystal, region by region of `REGION_A`."""
    where = match.used & match.crystal
    r2 = np.where(where, ((match.measured - match.simulated) / match.sigma) ** 2, 0.0)
    parts = [max(1, round(n * pixel / REGION_A)) for n in where.shape]
    values = []
    for rows in np.array_split(np.arange(where.shape[0]), parts[0]):
        for cols in np.array_split(np.arange(where.shape[1]), parts[1]):
            number = int(where[np.ix_(rows, cols)].sum())
            if number >= 0.5 * len(rows) * len(cols):
                place = f"rows {rows[0]} to {rows[-1]}, columns {cols[0]} to {cols[-1]}"
                values.append((float(r2[np.ix_(rows, cols)].sum()) / number, place, number))
    if len(values) < 2:
        return ()
    best, worst = min(values), max(values)
    noise = float(np.sqrt(2 / worst[2]))
    return (
        f"χ² over regions of about {REGION_A / 10:g} nm of the crystal runs from {best[0]:.3f} to "
        f"{worst[0]:.3f} (± {noise:.3f} by noise), largest at {worst[1]}.",
    )
