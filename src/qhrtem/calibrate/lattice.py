"""Lattice registration: how the crystal lies in the image, and the true pixel size, from its spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from qhrtem.errors import InputError
from qhrtem.physics.scattering import form_factor
from qhrtem.specimen.crystal import Projection

Floats = NDArray[np.float64]
SCALE_TOLERANCE = 0.12  # how wrong a stated pixel size may be before it is refused
LARGEST_SHEAR = 0.1  # distortion beyond scale and rotation; cameras and projector lenses stay far below
EVIDENCE_NEEDED = 12.0  # power of the stronger reflections over the background; noise alone reaches about 4
RESOLUTION_A = 0.9  # reflections beyond this spacing are not used to find the lattice


@dataclass(frozen=True)
class Lattice:
    """The projected lattice in the image."""

    frame: Floats  # (2, 2): crystal-frame vector (x, y) in Å @ frame = (row, col) in pixels
    vectors: Floats  # (2, 2) rows: projected lattice vectors (x, y) in Å, crystal frame
    pixel_size_A: float  # the pixel size that the lattice implies
    rotation_deg: float  # of the crystal x axis, from image columns towards rows
    shear: float  # relative distortion left after scale and rotation
    evidence: float  # mean signal of the reflections over the background, in units of the background
    crystal: NDArray[np.bool_]  # [row, col] pixels that carry the lattice


@dataclass(frozen=True)
class Reflections:
    """Reflections of the projected lattice up to a resolution."""

    index: NDArray[np.int64]  # (K, 2)
    g: Floats  # (K, 2) x, y in 1/Å, crystal frame
    strength: Floats  # (K,) kinematic amplitude relative to the strongest


def reflections(projection: Projection, spacing: float) -> Reflections:
    """Return reflections with a spacing above `spacing` Å (one of each Friedel pair), without the origin."""
    reciprocal = np.linalg.inv(projection.vectors).T
    reach = int(np.ceil(np.abs(projection.vectors).sum(1).max() / spacing)) + 1
    index = np.array([(h, k) for h in range(-reach, reach + 1) for k in range(reach + 1) if k > 0 or h > 0])
    g = index @ reciprocal
    keep = np.linalg.norm(g, axis=1) < 1 / spacing
    index, g = index[keep], g[keep]
    radius = np.linalg.norm(g, axis=1)
    amplitude = np.zeros(len(g), dtype=complex)
    for kind in projection.kinds:
        base = np.array(kind.fractional) @ projection.vectors
        for site in kind.sites:
            s = kind.groups[site.group]
            phase = np.exp(-2j * np.pi * (g @ (base + kind.offset[site.group])))
            amplitude += (
                s.occupancy * form_factor(s.element, radius) * np.exp(-s.b_iso * radius**2 / 4) * phase
            )
    strength = np.abs(amplitude)
    order = np.argsort(radius)
    return Reflections(index[order], g[order], (strength / strength.max())[order])


def register(
    image: Floats, valid: NDArray[np.bool_], pixel: float, projection: Projection, name: str
) -> Lattice:
    """Return the lattice found in an image (vacuum = 1).

    pixel: stated pixel size in Å; name: of the file, for messages. Raises `InputError` when no lattice of
    this crystal and zone axis is there, or only at a pixel size far from the stated one.
    """
    flat = _flattened(image, valid)
    signal = _Spectrum(flat)
    refl = reflections(projection, max(RESOLUTION_A, 2.5 * pixel))
    angles = np.arange(0.0, 180.0, 0.5)
    scales = np.exp(np.arange(np.log(0.35), np.log(2.9), 0.006))
    score = signal.score(refl, angles, scales, pixel)
    near = np.abs(np.log(scales)) <= np.log(1 + SCALE_TOLERANCE)
    best_near = np.unravel_index(np.argmax(np.where(near[None, :], score, -np.inf)), score.shape)
    top = float(score[best_near])
    frame = _frame(np.deg2rad(angles[best_near[0]]), scales[best_near[1]] / pixel)
    refined = _refine(flat, refl, frame)
    if _plausible(refined * pixel):
        frame = refined
    evidence = _evidence(signal, refl, frame)
    far = float(np.where(near[None, :], -np.inf, score).max())
    if evidence < EVIDENCE_NEEDED or far > 1.6 * top:
        _refuse(signal, refl, score, near, angles, scales, pixel, evidence, projection, name)
    linear = frame * pixel
    singular = np.linalg.svd(linear, compute_uv=False)
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    rotation = float(np.rad2deg(np.arctan2(frame[0, 0], frame[0, 1])))
    crystal = lattice_area(flat, refl, frame)
    return Lattice(
        frame,
        projection.vectors,
        pixel / scale,
        rotation,
        float(singular[0] / singular[1] - 1),
        evidence,
        crystal,
    )


def _refuse(
    signal: _Spectrum,
    refl: Reflections,
    score: Floats,
    near: NDArray[np.bool_],
    angles: Floats,
    scales: Floats,
    pixel: float,
    evidence: float,
    p: Projection,
    name: str,
) -> None:
    """Raise the error that fits: the lattice is there at another pixel size, or nowhere."""
    away = np.where(near[None, :], -np.inf, score)
    i = np.unravel_index(np.argmax(away), away.shape)
    zone = " ".join(str(v) for v in p.zone)
    elsewhere = _frame(np.deg2rad(angles[i[0]]), scales[i[1]] / pixel)
    if _evidence(signal, refl, elsewhere) > EVIDENCE_NEEDED:
        raise InputError(
            f"{name}: the lattice of {p.crystal.name} [{zone}] fits a pixel size of "
            f"{pixel / scales[i[1]]:.4g} Å, but {pixel:.4g} Å was stated; correct "
            "pixel_size_A, or the CIF if that is not this crystal"
        )
    if evidence >= EVIDENCE_NEEDED:
        raise InputError(
            f"{name}: the image shows a lattice, but only part of the reflections of {p.crystal.name} "
            f"[{zone}]; check the CIF and zone_axis"
        )
    raise InputError(
        f"{name}: no lattice of {p.crystal.name} along [{zone}] was found (signal {evidence:.1f} times the "
        f"background, {EVIDENCE_NEEDED:g} needed); check CIF, zone_axis and pixel_size_A, or choose an "
        "image that resolves the lattice"
    )


def _flattened(image: Floats, valid: NDArray[np.bool_]) -> Floats:
    filled = np.where(valid, image, np.median(image[valid]))
    return filled - ndimage.gaussian_filter(filled, max(8.0, min(image.shape) / 24))


class _Spectrum:
    """Power spectrum over its radial background, looked up at any frequency (cycles per pixel)."""

    def __init__(self, flat: Floats) -> None:
        n = 2 ** int(np.ceil(np.log2(max(flat.shape))) + 1)
        window = np.hanning(flat.shape[0])[:, None] * np.hanning(flat.shape[1])[None, :]
        power = np.abs(np.fft.fftshift(np.fft.fft2(flat * window, (n, n)))) ** 2
        self.n = n
        f = np.fft.fftshift(np.fft.fftfreq(n))
        radius = np.hypot(f[:, None], f[None, :])
        bins = np.minimum((radius * n / 4).astype(int), n // 8 + 2)
        order = np.argsort(bins.ravel(), kind="stable")
        edges = np.searchsorted(bins.ravel()[order], np.arange(bins.max() + 2))
        ranked = power.ravel()[order]
        background = np.array(
            [np.median(ranked[a:b]) if b > a else np.nan for a, b in zip(edges[:-1], edges[1:], strict=True)]
        )
        background = np.interp(
            np.arange(len(background)),
            np.flatnonzero(np.isfinite(background)),
            background[np.isfinite(background)],
        )
        self.snr = power / (background[bins] / np.log(2))

    def at(self, frequency: Floats) -> Floats:
        """Return power over background at (row, col) frequencies (..., 2) in cycles per pixel."""
        index = frequency * self.n + self.n / 2
        inside = (np.abs(frequency) < 0.47).all(-1)
        value = ndimage.map_coordinates(
            self.snr, np.moveaxis(index, -1, 0).reshape(2, -1), order=1, mode="nearest"
        )
        return np.where(inside, value.reshape(frequency.shape[:-1]), np.nan)

    def score(self, refl: Reflections, angles: Floats, scales: Floats, pixel: float) -> Floats:
        """Return ten times the weighted mean of log(1 + signal) for every angle and scale, (A, S)."""
        weight = np.sqrt(refl.strength)
        out = np.zeros((len(angles), len(scales)))
        for i, a in enumerate(np.deg2rad(angles)):
            direction = refl.g @ np.linalg.inv(_frame(a, 1.0)).T * pixel
            value = self.at(direction[None] / scales[:, None, None])
            known = np.isfinite(value)
            total = np.where(known, weight * np.log1p(np.nan_to_num(value)), 0).sum(1)
            out[i] = 10 * total / np.maximum((known * weight).sum(1), 0.3 * weight.sum())
        return out


def _frame(rotation: float, pixels_per_A: float) -> Floats:
    """Frame that turns crystal x by `rotation` (rad) from columns towards rows; y at a right angle to it."""
    c, s = np.cos(rotation), np.sin(rotation)
    return pixels_per_A * np.array([[s, c], [c, -s]])


def amplitudes(image: Floats, weight: Floats, frequency: Floats) -> NDArray[np.complex128]:
    """Return Σ w I exp(-2πi f·r)/Σ w for (row, col) frequencies (K, 2) in cycles per pixel."""
    y = np.exp(-2j * np.pi * frequency[:, :1] * np.arange(image.shape[0]))
    x = np.exp(-2j * np.pi * frequency[:, 1:] * np.arange(image.shape[1]))
    return np.einsum("ky,ky->k", y, (image * weight @ x.T).T) / weight.sum()


def _refine(flat: Floats, refl: Reflections, frame: Floats) -> Floats:
    """Maximise the spectral power at all reflections over the four numbers of the frame."""
    taper = np.hanning(flat.shape[0])[:, None] * np.hanning(flat.shape[1])[None, :]
    best = frame
    for spacing in (1.8, RESOLUTION_A):
        use = np.linalg.norm(refl.g, axis=1) < 1 / spacing
        g, w = refl.g[use], np.sqrt(refl.strength[use])
        start = best

        def loss(step: Floats, start: Floats = start, g: Floats = g, w: Floats = w) -> float:
            f = g @ np.linalg.inv((np.eye(2) + step.reshape(2, 2)) @ start).T
            power = np.abs(amplitudes(flat, taper, f)) ** 2
            return -float((w * np.sqrt(power)).sum()) * 1e3

        size = 0.004 if spacing > 1 else 0.001
        simplex = np.vstack([np.zeros(4), size * np.eye(4)])
        found = optimize.minimize(
            loss,
            np.zeros(4),
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxiter": 250, "xatol": 1e-6},
        )
        best = (np.eye(2) + found.x.reshape(2, 2)) @ start
    return best


def _plausible(linear: Floats) -> bool:
    """Whether a refined frame (times the pixel size) is still the lattice that was found."""
    long, short = np.linalg.svd(linear, compute_uv=False)
    scale = abs(0.5 * np.log(long * short))
    return bool(scale < np.log(1 + SCALE_TOLERANCE) + 0.02 and long < (1 + LARGEST_SHEAR) * short)


def _evidence(signal: _Spectrum, refl: Reflections, frame: Floats) -> float:
    f = refl.g @ np.linalg.inv(frame).T
    strong = refl.strength > 0.2
    value = signal.at(f[strong])
    value = value[np.isfinite(value)]
    return float(np.median(np.sort(value)[len(value) // 2 :])) if len(value) >= 2 else 0.0


def lattice_area(flat: Floats, refl: Reflections, frame: Floats, sigma_A: float = 2.2) -> NDArray[np.bool_]:
    """Return pixels where the lattice is present: local power of the strongest reflections over the noise."""
    per_A = float(np.sqrt(abs(np.linalg.det(frame))))
    f = refl.g @ np.linalg.inv(frame).T
    taper = np.ones_like(flat)
    power = np.abs(amplitudes(flat, taper, f)) ** 2
    pick = np.argsort(power)[::-1][:6]
    y, x = np.arange(flat.shape[0])[:, None], np.arange(flat.shape[1])[None, :]
    sigma = sigma_A * per_A
    total = np.zeros_like(flat)
    for k in pick:
        wave = flat * np.exp(-2j * np.pi * (f[k, 0] * y + f[k, 1] * x))
        local = ndimage.gaussian_filter(wave.real, sigma) + 1j * ndimage.gaussian_filter(wave.imag, sigma)
        total += np.abs(local) ** 2
    level = np.sqrt(total)
    high = np.percentile(level, 90)
    mask = level > 0.3 * high
    mask = ndimage.binary_opening(mask, iterations=2)
    return ndimage.binary_fill_holes(mask)
