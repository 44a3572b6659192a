"""Structure that is not the crystal's: a second grain, another phase, a film on top.

Around every place the strongest reflections of the lattice are fitted under a window; what they give together
is what the image would be if the crystal went on there. In the crystal, steps, tilt and strain included, a
few per cent of the local power are left over; in a grain that lies otherwise, most of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.spectrum import amplitudes
from qhrtem.calibrate.vacuum import pixel_noise

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
WINDOW_A = 4.0  # one standard deviation of the window under which reflections are fitted
AVERAGE_A = 1.5  # of the mean over which powers are compared
FINEST_A = 1.3  # Å, spacing of the finest reflections used
COARSE_A = 0.35  # pixels that suffice for them
BLUR_A = 0.3  # one standard deviation of the smoothing that takes noise of finer detail away
POWER, MOST = 0.98, 16  # share of the reflections' power that the ones used hold, and their largest number
LEFT_OVER = 0.35  # share of the local power left over from which structure is another; steps leave 0.2
STRONG = 0.3  # of the power usual in the crystal: at its rim to the vacuum, a quarter is left over
CLEAR = 4.0  # standard deviations of the noise by which it must stand out
BORDER = 0.65  # share left over at the border between them, 0.4 Å on the crystal's side
SMALLEST_A = 8.0  # width of the smallest area that counts; two missing columns side by side leave less
ISLAND_A = 10.0  # a piece of lattice this small amid other structure is there by chance
ROUNDS = 3  # what was found is left out of the fits, which sharpens its border


def other_structure(image: Floats, valid: Bools, crystal: Bools, frame: Floats, vectors: Floats) -> Bools:
    """Return pixels [row, col] of strong structure that the lattice does not explain.

    image: without its slow variation; crystal: where the lattice was found; frame: crystal-frame vector
    (x, y) in Å @ frame = (row, col) in pixels; vectors (2, 2) rows: projected lattice vectors (x, y) in Å.
    """
    per_A = float(np.sqrt(abs(np.linalg.det(frame))))
    nothing = np.zeros(image.shape, dtype=bool)
    n = max(1, int(COARSE_A * per_A))
    weight, inside = _binned(valid.astype(np.float64), n), _binned(crystal.astype(np.float64), n) > 0.5
    per_A /= n
    small = _mean(_binned(image * valid, n) / np.maximum(weight, 0.1), weight, BLUR_A * per_A)
    if not inside.any():
        return nothing
    f = _frequencies(frame, vectors) * n
    power = np.abs(amplitudes(small, weight * inside, f)) ** 2
    order = np.argsort(-power)
    most = int(np.searchsorted(np.cumsum(power[order]), POWER * power.sum())) + 1
    f = f[order[: min(most, MOST)]]
    blur, mean = BLUR_A * per_A, AVERAGE_A * per_A
    noise = pixel_noise(image, valid) / n**2 / max(4 * math.pi * blur**2, 1.0)
    there = _mean(small**2, weight, mean) - noise
    # The mean of N squared normal numbers scatters by √(2/N); here N pixels of the smoothed noise are one.
    sure = CLEAR * noise * math.sqrt(2) * max(blur, 0.3) / mean
    found = np.zeros(small.shape, dtype=bool)
    for _ in range(ROUNDS):
        left = _mean((small - _continued(small, weight * ~found, f, WINDOW_A * per_A)) ** 2, weight, mean)
        left -= noise
        own = inside & ~found & (left < 0.5 * LEFT_OVER * there)
        if not own.any():  # the lattice explains nothing: another stage refuses it
            return nothing
        usual = float(np.median(there[own]))
        share = left / np.maximum(there, 1e-12)
        other = (share > LEFT_OVER) & (np.minimum(left, there) > max(STRONG * usual, sure))
        found = _opened(other, SMALLEST_A / 2 * per_A)
        lost = _islands(inside & ~found, found, (ISLAND_A * per_A) ** 2)
        found, share = found | lost, np.where(lost, 1.0, share)
    if not found.any():
        return nothing
    # The border is placed on the fine raster, between the places where powers were compared.
    fine = ndimage.zoom(np.where(_grown(found, 2.0), share, 0.0), n, order=1, mode="nearest", grid_mode=True)
    out = nothing.copy()
    rows, cols = (min(a, b) for a, b in zip(image.shape, fine.shape, strict=True))
    out[:rows, :cols] = fine[:rows, :cols] > BORDER
    # Rows and columns that filled no whole block.
    out[rows:], out[:, cols:] = out[rows - 1], out[:, cols - 1 : cols]
    return np.asarray(ndimage.binary_fill_holes(out))


def _frequencies(frame: Floats, vectors: Floats) -> Floats:
    """Frequencies (K, 2) in cycles/pixel of the reciprocal lattice, one of each Friedel pair."""
    reciprocal = np.linalg.inv(vectors).T
    reach = int(np.ceil(np.abs(vectors).sum(1).max() / FINEST_A)) + 1
    index = np.array([(h, k) for h in range(-reach, reach + 1) for k in range(reach + 1) if k > 0 or h > 0])
    g = index @ reciprocal
    return np.asarray(g[np.linalg.norm(g, axis=1) < 1 / FINEST_A] @ np.linalg.inv(frame).T)


def _continued(image: Floats, weight: Floats, f: Floats, sigma: float) -> Floats:
    """Return what the reflections fitted under a window around each pixel give at that pixel."""
    y, x = np.arange(image.shape[0])[:, None], np.arange(image.shape[1])[None, :]
    around = np.maximum(ndimage.gaussian_filter(weight, sigma, mode="constant"), 1e-3)
    out = np.zeros(image.shape)
    for row, col in f:
        wave = np.exp(-2j * np.pi * row * y) * np.exp(-2j * np.pi * col * x)
        local = ndimage.gaussian_filter(image * weight * wave, sigma, mode="constant") / around
        out += 2 * (local * wave.conj()).real
    return out


def _mean(power: Floats, weight: Floats, sigma: float) -> Floats:
    around = np.maximum(ndimage.gaussian_filter(weight, sigma), 1e-3)
    return np.asarray(ndimage.gaussian_filter(power * weight, sigma) / around)


def _binned(image: Floats, n: int) -> Floats:
    rows, cols = image.shape[0] // n, image.shape[1] // n
    return np.asarray(image[: rows * n, : cols * n].reshape(rows, n, cols, n).mean((1, 3)))


def _grown(mask: Bools, pixels: float) -> Bools:
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= pixels)


def _islands(crystal: Bools, found: Bools, area: float) -> Bools:
    """Return the small pieces of crystal that other structure cuts off."""
    label, n = ndimage.label(crystal)
    if n < 2 or not found.any():
        return np.zeros(crystal.shape, dtype=bool)
    size = ndimage.sum_labels(crystal, label, np.arange(1, n + 1))
    touches = ndimage.maximum(_grown(found, 2.0), label, np.arange(1, n + 1)) > 0
    small = 1 + np.flatnonzero((size < area) & touches)
    return np.asarray(np.isin(label, small))


def _opened(mask: Bools, radius: float) -> Bools:
    """Return the parts of a mask that hold a disc; the image's edge cuts no disc."""
    reach = int(np.ceil(radius)) + 1
    padded = np.pad(mask, reach, mode="edge")
    inner = ndimage.distance_transform_edt(padded) > radius
    return _grown(inner, radius)[reach:-reach, reach:-reach] & mask
