"""Lattice registration: how the crystal lies in the image, and the true pixel size, from its spectrum.

Candidates are sought at any rotation and pixel size (`candidates`), so a stated size that is wrong is told
from one that is right, and a superlattice is not taken for the lattice. The chosen one is refined over
the whole crystal (`refine`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.candidates import (
    LARGEST_SHEAR,
    Candidate,
    distortion,
    find_candidates,
    judged,
    pitch_of,
    rotated_frame,
)
from qhrtem.calibrate.otherwise import other_structure
from qhrtem.calibrate.refine import Drift, refine_frame
from qhrtem.calibrate.reflections import Reflections, reflections
from qhrtem.calibrate.spectrum import Spectrum, amplitudes, flattened
from qhrtem.errors import InputError
from qhrtem.specimen.crystal import Projection

__all__ = ["Lattice", "amplitudes", "lattice_area", "reflections", "register"]

Floats = NDArray[np.float64]
SCALE_TOLERANCE = 0.12  # how wrong a stated pixel size may be before it is refused
EVIDENCE_NEEDED = 12.0  # power of the stronger reflections over the background; noise alone reaches about 4
RESOLUTION_A = 0.9  # reflections beyond this spacing are not used to find the lattice
CLEARLY_BETTER = 1.25  # ratio of merits from which a pixel size far from the stated one is preferred
LEAST_MERIT = 0.3  # share explained times share seen below which no lattice is claimed
DOUBTFUL_MERIT = 0.55  # below it the crystal itself is in question, not the pixel size
SQUARE = 0.02  # relative difference of the pitches up to which pixels count as square
PRECISE = 0.005  # relative pixel size from which a difference to the stated one is worth a note


@dataclass(frozen=True)
class Lattice:
    """The projected lattice in the image."""

    frame: Floats  # (2, 2): crystal-frame vector (x, y) in Å @ frame = (row, col) in pixels
    vectors: Floats  # (2, 2) rows: projected lattice vectors (x, y) in Å, crystal frame
    pixel_size_A: float  # the pixel size that the lattice implies, geometric mean of both axes
    rotation_deg: float  # of the crystal x axis, from image columns towards rows
    shear: float  # relative distortion left after scale and rotation
    evidence: float  # mean signal of the reflections over the background, in units of the background
    crystal: NDArray[np.bool_]  # [row, col] pixels that carry the lattice
    pixel_size_sigma_A: float = math.nan  # one standard deviation
    rotation_sigma_deg: float = math.nan
    explained: float = math.nan  # share of the spectrum's spots that lie on the lattice
    seen: float = math.nan  # share of the expected reflections that are there
    aspect: float = 1.0  # row over column pitch of the pixels, as stated
    notes: tuple[str, ...] = ()  # what was found beside it

    @property
    def pitch_A(self) -> tuple[float, float]:
        """(row, col) pitch in Å: the stated aspect at the scale of the lattice."""
        root = math.sqrt(self.aspect)
        return self.pixel_size_A * root, self.pixel_size_A / root


def register(
    image: Floats,
    valid: NDArray[np.bool_],
    pixel: float | tuple[float, float] | None,
    projection: Projection,
    name: str,
) -> Lattice:
    """Return the lattice found in an image (vacuum = 1).

    pixel: stated pixel size in Å, (row, col) where the axes differ, None where nothing is stated; name: of
    the file, for messages. Raises `InputError` when no lattice of this crystal and zone axis is there, when
    it is there only at a pixel size far from the stated one, or when nothing is stated and several sizes fit.
    """
    stated, aspect = _stated(pixel)
    if abs(aspect - 1) > SQUARE:
        return _oblong(image, valid, (stated, aspect), projection, name)
    return _registered(image, valid, stated, aspect, projection, name)


def _oblong(
    image: Floats,
    valid: NDArray[np.bool_],
    said: tuple[float | None, float],
    projection: Projection,
    name: str,
) -> Lattice:
    """Return the lattice for stated rectangular pixels: on them, or on square ones if they fit better."""
    stated, aspect = said
    try:
        oblong = _registered(image, valid, stated, aspect, projection, name)
    except InputError as error:
        oblong, refused = None, error
    if oblong is not None and oblong.shear < 0.5 * abs(aspect - 1):
        return oblong
    try:
        square = _registered(image, valid, stated, 1.0, projection, name)
    except InputError:
        square = None
    if square is None or (oblong is not None and square.shear > 0.5 * oblong.shear):
        if oblong is None:
            raise refused
        return oblong
    note = (
        f"The stated pixels are rectangular (row : column = {aspect:.4g}), but the lattice fits square ones, "
        "which were used."
    )
    return replace(square, notes=(*square.notes, note))


def require_square(lattice: Lattice, name: str) -> None:
    """Raise InputError where pixels are not square and say what makes them so; the lens is simulated on them.

    name: of the file, for the message.
    """
    if abs(lattice.aspect - 1) <= SQUARE:
        return
    row, col = lattice.pitch_A
    axis, fine, coarse = (0, row, col) if row < col else (1, col, row)
    length = lattice.crystal.shape[axis]
    count = round(length * fine / coarse)
    raise InputError(
        f"{name}: pixels must be square for a fit, these are {row:.5g} × {col:.5g} Å (row × column), and the "
        "lattice agrees; cut the spectrum of the finer axis, for instance by scipy.signal.resample(image, "
        f"{count}, axis={axis}), which keeps the noise white, give pixel_size_A = "
        f"{length * fine / count:.5g} and multiply a known gain_counts_per_electron by {count / length:.4g}"
    )


def _registered(
    image: Floats,
    valid: NDArray[np.bool_],
    stated: float | None,
    aspect: float,
    projection: Projection,
    name: str,
) -> Lattice:
    flat = flattened(image, valid)
    spectrum = Spectrum(flat)
    every = find_candidates(spectrum, spectrum.peaks(), projection, aspect)
    best, rival = _choose(every, flat, spectrum, stated, aspect, projection, name)
    refl = reflections(projection, max(RESOLUTION_A, 2.5 * best.pitch_A))

    def area(frame: Floats) -> NDArray[np.bool_]:
        wide = lattice_area(flat, refl, frame)
        return wide & ~other_structure(flat, valid, wide, frame, projection.vectors)

    frame, crystal, drift = best.frame, area(best.frame), None
    for _ in range(2):
        drift = refine_frame(flat, valid, crystal, refl, frame)
        if drift is None or distortion(drift.frame, aspect) > LARGEST_SHEAR:
            drift = None
            break
        frame = drift.frame
        crystal = area(frame)
    evidence = _evidence(spectrum, refl, frame)
    if evidence < EVIDENCE_NEEDED:
        _refuse_absent(evidence, projection, name)
    final = judged(frame, spectrum, spectrum.peaks(), projection)
    return _lattice(final, drift, projection, stated, aspect, evidence, crystal, rival)


def _stated(pixel: float | tuple[float, float] | None) -> tuple[float | None, float]:
    """Return the geometric mean of the stated pitches and their ratio row over column."""
    if pixel is None:
        return None, 1.0
    if isinstance(pixel, tuple):
        return math.sqrt(pixel[0] * pixel[1]), pixel[0] / pixel[1]
    return pixel, 1.0


def _choose(
    every: list[Candidate],
    flat: Floats,
    spectrum: Spectrum,
    stated: float | None,
    aspect: float,
    projection: Projection,
    name: str,
) -> tuple[Candidate, Candidate | None]:
    """Return the candidate to refine and, where there is one, another pixel size that fits about as well."""
    good = [c for c in every if c.merit >= LEAST_MERIT]
    if stated is None:
        if not good:
            _refuse_absent(0.0, projection, name)
        rival = next((c for c in good[1:] if not _close(c.pitch_A, good[0].pitch_A)), None)
        if rival is not None and good[0].merit < CLEARLY_BETTER * rival.merit:
            raise InputError(
                f"{name}: the file states no pixel size, and the lattice of {_title(projection)} fits both "
                f"{good[0].pitch_A:.4g} and {rival.pitch_A:.4g} Å; give pixel_size_A in [image]"
            )
        return good[0], None
    near = [c for c in good if _close(c.pitch_A, stated)]
    far = next((c for c in good if not _close(c.pitch_A, stated)), None)
    if not near:
        swept = _swept(flat, spectrum, stated, aspect, projection)
        near = [swept] if swept is not None else []
    if far is not None and (not near or far.merit > CLEARLY_BETTER * near[0].merit):
        _refuse_scale(far, stated, projection, name)
    if not near:
        _refuse_absent(0.0, projection, name)
    rival = far if far is not None and CLEARLY_BETTER * far.merit > near[0].merit else None
    return near[0], rival


def _close(pitch: float, stated: float) -> bool:
    return abs(math.log(pitch / stated)) <= math.log(1 + SCALE_TOLERANCE)


def _swept(
    flat: Floats, spectrum: Spectrum, stated: float, aspect: float, projection: Projection
) -> Candidate | None:
    """Return the best lattice near the stated pixel size where single spots are too weak to start from."""
    if not 0.01 < stated < 1.5:
        return None
    refl = reflections(projection, max(RESOLUTION_A, 2.5 * stated))
    if len(refl.g) < 2:
        return None
    weight = np.sqrt(refl.strength)
    square = np.diag([1 / math.sqrt(aspect), math.sqrt(aspect)])
    best, top = None, -np.inf
    for angle in np.deg2rad(np.arange(0.0, 180.0, 0.5)):
        for scale in np.exp(np.arange(-0.11, 0.111, 0.006)):
            frame = rotated_frame(angle, scale / stated) @ square
            value = spectrum.at(refl.g @ np.linalg.inv(frame).T)
            known = np.isfinite(value)
            if known.sum() < 2:
                continue
            total = float((weight * np.log1p(np.nan_to_num(value)))[known].sum() / weight[known].sum())
            if total > top:
                best, top = frame, total
    if best is None or _evidence(spectrum, refl, best) < EVIDENCE_NEEDED:
        return None
    return judged(best, spectrum, spectrum.peaks(), projection)


def _lattice(
    found: Candidate,
    drift: Drift | None,
    projection: Projection,
    stated: float | None,
    aspect: float,
    evidence: float,
    crystal: NDArray[np.bool_],
    rival: Candidate | None,
) -> Lattice:
    pitch = pitch_of(found.frame)
    root = math.sqrt(aspect)
    square = found.frame @ np.diag([root, 1 / root])
    # The rotation of the polar decomposition: a shear must not count as a turn.
    rotation = math.degrees(math.atan2(square[0, 0] - square[1, 1], square[0, 1] + square[1, 0]))
    pitch_sigma = rotation_sigma = math.nan
    if drift is not None:
        c = drift.covariance
        pitch_sigma = pitch * math.sqrt(max(c[0, 0] + c[3, 3] + 2 * c[0, 3], 0.0)) / 2
        rotation_sigma = math.degrees(math.sqrt(max(c[1, 1] + c[2, 2] - 2 * c[1, 2], 0.0)) / 2)
    notes = []
    if stated is None:
        notes.append(f"No pixel size was stated; the lattice gives {pitch:.4f} Å.")
    elif abs(pitch / stated - 1) > PRECISE:
        way = "large" if stated > pitch else "small"
        notes.append(
            f"The stated pixel size, {stated:.5g} Å, is {100 * abs(stated / pitch - 1):.1f} % too {way}; "
            f"the lattice gives {pitch:.5g} Å, which is used."
        )
    bent = distortion(found.frame, aspect)
    if bent > SQUARE:
        notes.append(
            f"The lattice is distorted by {100 * bent:.1f} % beyond scale and rotation: by strain, drift, "
            "pixels that are not as stated, or because the crystal is another. It is taken for strain."
        )
    if rival is not None:
        notes.append(
            f"The lattice alone would also allow a pixel size of {rival.pitch_A:.4g} Å; "
            "the stated one decided."
        )
    return Lattice(
        found.frame,
        projection.vectors,
        pitch,
        rotation,
        bent,
        evidence,
        crystal,
        pitch_sigma,
        rotation_sigma,
        found.explained,
        found.seen,
        aspect,
        tuple(notes),
    )


def _title(projection: Projection) -> str:
    return f"{projection.crystal.name} [{' '.join(str(v) for v in projection.zone)}]"


def _refuse_scale(far: Candidate, stated: float, projection: Projection, name: str) -> None:
    """Raise the error for a lattice that is there at another pixel size, with the likely cause."""
    ratio = stated / far.pitch_A
    cause = "or the CIF if that is not this crystal"
    for factor, why in (
        (10.0, "was it given in pm or nm instead of Å?"),
        (100.0, "was it given in pm instead of Å?"),
        (2.0, "was the image binned or resampled after its scale was written?"),
        (4.0, "was the image binned or resampled after its scale was written?"),
    ):
        if abs(abs(math.log(ratio)) - math.log(factor)) < 0.1:
            cause = why
            break
    if far.merit < DOUBTFUL_MERIT:
        raise InputError(
            f"{name}: the lattice of {_title(projection)} does not fit at the stated {stated:.4g} Å; even at "
            f"{far.pitch_A:.4g} Å it explains only {100 * far.explained:.0f} % of the spots and shows "
            f"{100 * far.seen:.0f} % of its reflections; check the CIF and zone_axis first, then pixel_size_A"
        )
    raise InputError(
        f"{name}: the lattice of {_title(projection)} fits a pixel size of {far.pitch_A:.4g} Å, but "
        f"{stated:.4g} Å was stated; correct pixel_size_A, {cause}"
    )


def _refuse_absent(evidence: float, projection: Projection, name: str) -> None:
    p = projection
    zone = " ".join(str(v) for v in p.zone)
    raise InputError(
        f"{name}: no lattice of {p.crystal.name} along [{zone}] was found (signal {evidence:.1f} times the "
        f"background, {EVIDENCE_NEEDED:g} needed); check CIF, zone_axis and pixel_size_A, or choose an "
        "image that resolves the lattice"
    )


def _evidence(spectrum: Spectrum, refl: Reflections, frame: Floats) -> float:
    f = refl.g @ np.linalg.inv(frame).T
    strong = refl.strength > 0.2
    value = spectrum.at(f[strong])
    value = value[np.isfinite(value)]
    return float(np.median(np.sort(value)[len(value) // 2 :])) if len(value) >= 2 else 0.0


def lattice_area(flat: Floats, refl: Reflections, frame: Floats, sigma_A: float = 1.8) -> NDArray[np.bool_]:
    """Return pixels where the lattice is present: local power of the strongest reflections over the noise."""
    per_A = float(np.sqrt(abs(np.linalg.det(frame))))
    f = refl.g @ np.linalg.inv(frame).T
    taper = np.ones_like(flat)
    power = np.abs(amplitudes(flat, taper, f)) ** 2
    pick = np.argsort(power)[::-1][:6]
    sigma = sigma_A * per_A
    # A smooth map needs no finer raster than a third of its smoothing.
    block = max(1, int(sigma / 3))
    rows, cols = flat.shape
    padded = np.pad(flat, ((0, -rows % block), (0, -cols % block)), mode="symmetric")
    y, x = np.arange(padded.shape[0])[:, None], np.arange(padded.shape[1])[None, :]
    coarse = (padded.shape[0] // block, padded.shape[1] // block)
    total = np.zeros(coarse)
    for k in pick:
        wave = padded * (np.exp(-2j * np.pi * f[k, 0] * y) * np.exp(-2j * np.pi * f[k, 1] * x))
        mean = wave.reshape(coarse[0], block, coarse[1], block).mean((1, 3))
        local = ndimage.gaussian_filter(mean, sigma / block)
        total += np.abs(local) ** 2
    total = ndimage.zoom(total, block, order=1, mode="nearest", grid_mode=True)[:rows, :cols]
    level = np.sqrt(np.maximum(total, 0))
    high = np.percentile(level, 90)
    mask = level > 0.3 * high
    mask = ndimage.binary_opening(mask, iterations=2)
    return ndimage.binary_fill_holes(mask)
