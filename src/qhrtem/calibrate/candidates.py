"""Ways a projected lattice may lie in an image, at any rotation and pixel size, ranked by what they explain.

Two questions decide, asked of the spectrum alone: how much of what is seen does the lattice explain (one
too coarse in reciprocal space leaves spots over), and how much of what the crystal should show is seen (one
too fine, such as a √2 superlattice, predicts spots that are not there). Together they rank the candidates, so
the stated pixel size is not needed to find them and can be judged by them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.reflections import Reflections, reflections
from qhrtem.calibrate.spectrum import NYQUIST_SHARE, Peaks, Spectrum
from qhrtem.specimen.crystal import Projection

Floats = NDArray[np.float64]
SMALLEST_PITCH_A, LARGEST_PITCH_A = 0.015, 2.0  # beyond these no micrograph shows or resolves a lattice
LARGEST_SHEAR = 0.1  # distortion beyond scale and rotation; cameras and projector lenses stay far below
FINEST_A = 0.75  # Å, finest spacing that a reflection is asked for
WEAKEST = 0.06  # kinematic amplitude (strongest = 1) from which a reflection should be seen
SEEN_POWER = 10.0  # over the background, the largest within the resolution
CLEARLY_SEEN = 30.0  # power over the background that a reflection must promise to be asked for
MOST_CANDIDATES = 24  # distinct lattices that are kept
SEEDS = 8  # strongest spots from which candidates start


@dataclass(frozen=True)
class Candidate:
    """One way the lattice may lie in the image."""

    frame: Floats  # (2, 2): crystal-frame vector (x, y) in Å @ frame = (row, col) in pixels
    pitch_A: float  # geometric mean of the pixel pitches that it implies
    explained: float  # share of the spots, weighted by the logarithm of their power
    seen: float  # share of the reflections that the crystal should show, weighted by amplitude

    @property
    def merit(self) -> float:
        """Explained squared times seen: a spot off the lattice is harder evidence than one that is missing.

        Lenses have gaps in what they transfer; nothing but another object puts a spot where none can be.
        """
        return self.explained**2 * self.seen


def rotated_frame(rotation: float, pixels_per_A: float) -> Floats:
    """Frame that turns crystal x by `rotation` (rad) from columns towards rows; y at a right angle to it."""
    c, s = np.cos(rotation), np.sin(rotation)
    return pixels_per_A * np.array([[s, c], [c, -s]])


def pitch_of(frame: Floats) -> float:
    """Return the geometric mean of the pixel pitches in Å that a frame implies."""
    return float(1 / np.sqrt(abs(np.linalg.det(frame))))


def distortion(frame: Floats, aspect: float = 1.0) -> float:
    """Return the relative distortion that a frame leaves after scale and rotation.

    aspect: row over column pitch of the pixels, as stated.
    """
    long, short = np.linalg.svd(frame @ _isotropic(aspect), compute_uv=False)
    return float(long / short - 1)


def _isotropic(aspect: float) -> Floats:
    """Diagonal matrix from pixels (row, col) to a square length, area kept."""
    return np.diag([np.sqrt(aspect), 1 / np.sqrt(aspect)])


def find_candidates(
    spectrum: Spectrum, peaks: Peaks, projection: Projection, aspect: float = 1.0
) -> list[Candidate]:
    """Return distinct candidates, the best first; empty where the spectrum shows too few spots.

    aspect: row over column pitch of the pixels.
    """
    if len(peaks.snr) < 2:
        return []
    refl = reflections(projection, FINEST_A)
    found: list[Candidate] = []
    for frame in _starts(peaks, refl, aspect):
        fitted = _fitted(frame, peaks, projection.vectors, spectrum.resolution, aspect)
        if fitted is not None:
            found.append(judged(fitted, spectrum, peaks, projection, refl))
    found.sort(key=lambda c: -c.merit)
    out: list[Candidate] = []
    for c in found:
        if len(out) == MOST_CANDIDATES or c.merit < 0.02:
            break
        near = (o for o in out if abs(o.pitch_A / c.pitch_A - 1) < 0.05)
        if not any(_same(c.frame, o.frame, projection.vectors) for o in near):
            out.append(c)
    return out


def _starts(peaks: Peaks, refl: Reflections, aspect: float) -> list[Floats]:
    """Frames that put some reflection of the crystal onto one of the strongest spots."""
    seeds = peaks.frequency[:SEEDS] @ np.linalg.inv(_isotropic(aspect))
    # Coarse spacings first: a fine reflection on a seed makes a lattice that explains anything.
    radius = np.linalg.norm(refl.g, axis=1)
    g = refl.g[np.argsort(radius)[:40]]
    out = []
    known: set[tuple[int, int]] = set()
    for row, col in seeds:
        for gx, gy in g:
            # A frame k·[[s, c], [c, -s]] maps g to (s gx + c gy, c gx - s gy)/k, as (row, col).
            pitch = np.hypot(row, col) / np.hypot(gx, gy)
            if SMALLEST_PITCH_A < pitch < LARGEST_PITCH_A:
                angle = np.arctan2(row, col) + np.arctan2(gy, gx)
                # A lattice turned by half a turn is itself; starts this close end at the same place.
                key = (round(float(np.log(pitch)) / 0.01), round(float(np.mod(angle, np.pi)) / 0.01))
                if key in known:
                    continue
                known.add(key)
                out.append(rotated_frame(float(angle), 1 / pitch) @ np.linalg.inv(_isotropic(aspect)))
    return out


def _fitted(frame: Floats, peaks: Peaks, vectors: Floats, resolution: float, aspect: float) -> Floats | None:
    """Fit the reciprocal lattice to the spots near its points; None where it degenerates or bends."""
    for slack in (0.03, 0.012, 0.004):
        basis = vectors @ frame  # rows: lattice vectors, pixels
        whole = np.round(peaks.frequency @ basis.T)
        apart = np.linalg.norm(whole @ np.linalg.inv(basis).T - peaks.frequency, axis=1)
        use = (apart < 0.8 * resolution + slack * np.linalg.norm(peaks.frequency, axis=1)) & whole.any(1)
        n, f, w = whole[use], peaks.frequency[use], np.sqrt(peaks.weight[use])[:, None]
        if len(n) < 2 or np.linalg.matrix_rank(n) < 2:
            return None
        reciprocal = np.linalg.lstsq(n * w, f * w, rcond=None)[0]
        if abs(np.linalg.det(reciprocal)) < 1e-12:
            return None
        frame = np.linalg.inv(vectors) @ np.linalg.inv(reciprocal).T
    good = distortion(frame, aspect) < LARGEST_SHEAR and np.linalg.det(frame) < 0
    return frame if good and SMALLEST_PITCH_A < pitch_of(frame) < LARGEST_PITCH_A else None


def judged(
    frame: Floats, spectrum: Spectrum, peaks: Peaks, projection: Projection, refl: Reflections | None = None
) -> Candidate:
    """Return the candidate of a frame with the share of spots it explains and of its reflections seen."""
    basis = projection.vectors @ frame
    explained, top = 0.0, SEEN_POWER
    limit = 4 * spectrum.resolution
    if len(peaks.snr):
        apart = np.linalg.norm(
            np.round(peaks.frequency @ basis.T) @ np.linalg.inv(basis).T - peaks.frequency, axis=1
        )
        radius = np.linalg.norm(peaks.frequency, axis=1)
        on = apart < 0.8 * spectrum.resolution + 0.003 * radius
        top = float(peaks.snr[on].max(initial=SEEN_POWER))
        explained = float((peaks.weight * on).sum() / peaks.weight.sum())
        limit = max(limit, float(np.sort(radius)[-min(2, len(radius))]) * 1.01)
    refl = reflections(projection, FINEST_A) if refl is None else refl
    f = refl.g @ np.linalg.inv(frame).T
    within = (np.linalg.norm(f, axis=1) < limit) & (np.abs(f) < NYQUIST_SHARE).all(1)
    strength = refl.strength[within]
    if not len(strength):
        return Candidate(frame, pitch_of(frame), explained, 0.0)
    # What would stay below the noise even under the best transfer is not missed.
    asked = strength >= min(max(WEAKEST, np.sqrt(CLEARLY_SEEN / top)), 1.0) * strength.max()
    seen = spectrum.near(f[within][asked]) > SEEN_POWER
    weight = np.sqrt(strength[asked])
    return Candidate(frame, pitch_of(frame), explained, float((weight * seen).sum() / weight.sum()))


def _same(a: Floats, b: Floats, vectors: Floats) -> bool:
    """Whether two frames span the same lattice."""
    n = (vectors @ a) @ np.linalg.inv(vectors @ b)
    return bool(np.abs(n - np.round(n)).max() < 0.06 and abs(abs(np.linalg.det(np.round(n))) - 1) < 1e-6)
