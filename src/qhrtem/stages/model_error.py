"""Model error: what the residual image holds beyond noise, by column and common to all columns.

Shot noise is white; a model that is wrong leaves a residual as wide as a column. Where it differs from column
to column it blurs counts and positions. Where it is the same at all columns of a kind, more columns do not
average it away, and it biases what all columns share: lens, mistilt, Debye–Waller factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.twin import Match

Floats = NDArray[np.float64]
CORRELATION_A = 0.4  # scale on which a wrong model shows and shot noise does not: about the width of a column
LEVEL_A = 4.0  # some columns wide: a wrong mean level is what these have in common
STACK_A = 1.0  # half width of what is averaged around the columns of a kind
FEWEST = 6  # columns of a kind that are worth averaging


def normalised_residual(match: Match) -> Floats:
    """Return the residual [row, col] in units of its expected noise, zero where nothing is compared."""
    where = match.used & match.crystal
    return np.where(where, (match.measured - match.simulated) / match.sigma, 0.0).astype(float)


def column_error(match: Match, pixel: float, perfect: Sequence[Match]) -> float:
    """Return how much larger the column-scale residual of the crystal is than noise alone makes it (>= 1).

    perfect: draws of noise alone, fitted in the same way. Positions and lens follow the noise of what they
    are fitted to, so a perfect model leaves less than white noise holds: a quarter less on the scale of a
    column.
    """
    return _larger(column_power(match, pixel), [column_power(p, pixel) for p in perfect])


def common_error(
    match: Match, pixel: float, position: Floats, kind: tuple[str, ...], perfect: Sequence[Match]
) -> float:
    """Return how much larger the mean residual around columns of one kind is than noise makes it (>= 1).

    position: (C, 2) row, col in pixels of the columns; kind: (C,) their names; perfect: as for
    `column_error`; one draw alone says little, since a mean residual is small.
    """
    every = [common_power(p, pixel, position, kind) for p in perfect]
    return _larger(common_power(match, pixel, position, kind), every)


def of_images(
    measure: Callable[[Match, Sequence[Match]], float], matches: list[Match], perfect: list[list[Match]]
) -> float:
    """Return the model error of images of one area that are fitted together (>= 1).

    measure: the model error of a match, given what noise alone leaves; perfect: that, every image of each
    draw. What a wrong model leaves in each image does not average away where it is the same in all: then it
    is the mean residual that shows it.
    """
    each = [measure(m, p) for m, p in zip(matches, zip(*perfect, strict=True), strict=True)]
    if len(each) == 1:
        return each[0]
    return max(float(np.mean(each)), measure(pooled(matches), [pooled(p) for p in perfect]))


def pooled(matches: list[Match]) -> Match:
    """Return the mean residual of images of one area, in units of its noise, as a match with nothing."""
    used = np.all([m.used for m in matches], axis=0)
    total = sum((m.measured - m.simulated) / m.sigma for m in matches) / np.sqrt(len(matches))
    measured = np.where(used, total, 0.0).astype(np.float32)
    return Match(measured, np.zeros_like(measured), np.ones_like(measured), used, matches[0].crystal)


def _larger(found: float, perfect: list[float]) -> float:
    """Return how much larger than the mean; one where nothing could be measured, and never less."""
    usual = float(np.mean(perfect))
    return max(1.0, found / usual) if usual > 0 and np.isfinite(found / usual) else 1.0


def column_power(match: Match, pixel: float) -> float:
    """Return the power of the residual on the scale of a column over that of white noise; nan if unknown.

    About the mean level around it: how bright a crystal is against vacuum (electrons that end far off, or
    nowhere) does not vary from column to column.
    """
    where = match.used & match.crystal
    s = column_scale(pixel)
    residual, wide = normalised_residual(match), LEVEL_A / pixel
    share = np.where(where, ndimage.gaussian_filter(where.astype(float), wide), np.inf)
    level = ndimage.gaussian_filter(residual, wide) / share  # none outside
    smooth = ndimage.gaussian_filter(residual - level, s)
    inside = ndimage.binary_erosion(where, iterations=int(2 * s))
    return float((smooth[inside] ** 2).mean() / white_power(s)) if inside.sum() >= 100 else np.nan


def common_power(match: Match, pixel: float, position: Floats, kind: tuple[str, ...]) -> float:
    """Return the power of the mean residual around columns of one kind; nan with too few columns.

    The residual is averaged around the columns of each kind; its square, smoothed to the width of a column
    and times their number, is compared with that of white noise.
    """
    residual = normalised_residual(match)
    where = match.used & match.crystal
    s = column_scale(pixel)
    reach = int(np.ceil(STACK_A / pixel))
    half = reach + int(np.ceil(2 * s))
    total, weight = 0.0, 0
    for name in sorted(set(kind)):
        mine = np.array([k == name for k in kind])
        stack = _windows(residual, where, np.round(position[mine]).astype(int), half)
        if len(stack) < FEWEST:
            continue
        mean = ndimage.gaussian_filter(stack.sum(0) / np.sqrt(len(stack)), s)
        middle = slice(half - reach, half + reach + 1)
        total += len(stack) * float((mean[middle, middle] ** 2).mean())
        weight += len(stack)
    return total / weight / white_power(s) if weight else np.nan


def _windows(residual: Floats, where: NDArray[np.bool_], centre: NDArray[np.int64], half: int) -> Floats:
    """Return the windows (N, 2·half+1, 2·half+1) around centres that lie wholly where pixels count."""
    rows, cols = residual.shape
    out = []
    for r, c in centre:
        area = (slice(r - half, r + half + 1), slice(c - half, c + half + 1))
        inside = half <= r < rows - half and half <= c < cols - half
        if inside and where[area].all():
            out.append(residual[area])
    return np.array(out).reshape(-1, 2 * half + 1, 2 * half + 1)


def column_scale(pixel: float) -> float:
    """Return the width of a column in pixels of some Å."""
    return CORRELATION_A / pixel


def white_power(s: float) -> float:
    """Return the variance of unit white noise after a Gaussian filter of s pixels."""
    return 1 / (4 * np.pi * s**2)
