"""Real-space refinement: how the lattice drifts across the image, and the frame that takes the drift out.

At places all over the crystal the phases of the reflections under a window are compared with their means; the
phase that a displacement u leaves is -2π f·u, so all reflections together give u. A plane through the
displacements is what the frame is wrong by; their scatter gives its covariance. Places are weighted down
where they do not follow the plane: columns near steps, a defect, a second grain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.area import unusable_area
from qhrtem.calibrate.reflections import Reflections
from qhrtem.calibrate.spectrum import NYQUIST_SHARE, amplitudes

Floats = NDArray[np.float64]
WINDOW_A = 3.0  # one standard deviation of the window over which phases are averaged
ROUNDS = 2
FEWEST_PLACES, MOST_PLACES = 8, 200
# Phases of reflections turn with thickness, so steps, wedges and mistilt feign a drift: 0.3 pm, one standard
# deviation, over the crystal, as phantoms of known lattice show (benchmarks/calibration.md).
FEIGNED_A = 0.003
TRUST = 1.5  # robust standard deviations beyond which a place loses weight


@dataclass(frozen=True)
class Drift:
    """A refined frame, its uncertainty, and what the lattice does beyond it."""

    frame: Floats  # (2, 2): crystal-frame vector (x, y) in Å @ frame = (row, col) in pixels
    covariance: Floats  # (4, 4) of the relative change D (row-major): a pixel vector r is off by r @ D
    place: Floats  # (P, 2) row, col
    displacement: Floats  # (P, 2) pixels, what is left after the plane


def refine_frame(
    flat: Floats, valid: NDArray[np.bool_], crystal: NDArray[np.bool_], refl: Reflections, frame: Floats
) -> Drift | None:
    """Return the frame that fits the lattice all over the crystal, or None where the crystal is too small.

    flat: image [row, col] without its slow variation.
    """
    per_A = float(np.sqrt(abs(np.linalg.det(frame))))
    sigma = WINDOW_A * per_A
    inner = ndimage.binary_erosion(
        crystal & ~unusable_area(valid), iterations=max(int(sigma), 1), border_value=0
    )
    step = sigma * max(1.0, np.sqrt(inner.sum() / (MOST_PLACES * sigma**2)))
    place = _raster(inner, step)
    if len(place) < FEWEST_PLACES:
        return None
    weighted = flat * valid
    for _ in range(ROUNDS):
        f = refl.g @ np.linalg.inv(frame).T
        f = f[(np.abs(f) < NYQUIST_SHARE).all(1)]
        u = _displacements(weighted, inner, place, f, sigma)
        design = np.column_stack([np.ones(len(place)), place - place.mean(0)])
        if np.linalg.matrix_rank(design) < 3 or np.linalg.cond(design) > 1e6:
            return None
        plane, left, weight = _robust_plane(design, u)
        frame = frame @ (np.eye(2) + plane[1:])
    # Windows overlap: a Gaussian of width σ averages over 4πσ², but the raster has one place in step².
    repeats = max(4 * np.pi * (sigma / step) ** 2, 1.0)
    normal = np.linalg.inv(design.T @ (design * weight[:, None]))[1:, 1:]
    variance = (weight[:, None] * left**2).sum(0) / max(weight.sum() - 3 * repeats, 0.3 * weight.sum())
    covariance = repeats * np.kron(normal, np.diag(variance))
    extent = np.linalg.inv(np.cov((place / per_A).T))  # 1/Å²
    covariance += FEIGNED_A**2 * np.kron(extent, np.eye(2))
    return Drift(frame, covariance, place, left)


def _raster(inner: NDArray[np.bool_], step: float) -> Floats:
    rows, cols = (np.arange(step / 2, n - step / 2, step) for n in inner.shape)
    return np.array([(r, c) for r in rows for c in cols if inner[int(r), int(c)]]).reshape(-1, 2)


def _displacements(flat: Floats, inner: NDArray[np.bool_], place: Floats, f: Floats, sigma: float) -> Floats:
    """Return the displacement (P, 2) row, col in pixels that the phases at each place ask for."""
    mean = amplitudes(flat, inner.astype(float), f)
    reach = int(np.ceil(3 * sigma))
    local = np.empty((len(place), len(f)), dtype=complex)
    for p, (row, col) in enumerate(place):
        y = np.arange(max(int(row) - reach, 0), min(int(row) + reach + 1, flat.shape[0]))
        x = np.arange(max(int(col) - reach, 0), min(int(col) + reach + 1, flat.shape[1]))
        along_y = np.exp(-((y - row) ** 2) / (2 * sigma**2) - 2j * np.pi * f[:, :1] * y)
        along_x = np.exp(-((x - col) ** 2) / (2 * sigma**2) - 2j * np.pi * f[:, 1:] * x)
        local[p] = np.einsum("ky,yk->k", along_y, flat[y[0] : y[-1] + 1, x[0] : x[-1] + 1] @ along_x.T)
    cross = local * mean.conj()
    wave = 2 * np.pi * f
    weight = np.abs(cross)
    normal = np.einsum("pk,ki,kj->pij", weight, wave, wave)
    right = -np.einsum("pk,pk,ki->pi", weight, np.angle(cross), wave)
    normal += 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(2)
    return np.asarray(np.linalg.solve(normal, right[..., None])[..., 0])


def _robust_plane(design: Floats, u: Floats) -> tuple[Floats, Floats, Any]:
    """Return the plane (3, 2) through displacements, what it leaves (P, 2) and the weights (P,)."""
    weight = np.ones(len(u))
    for _ in range(12):
        root = np.sqrt(weight)[:, None]
        plane = np.linalg.lstsq(design * root, u * root, rcond=None)[0]
        left = u - design @ plane
        spread = 1.4826 * float(np.median(np.abs(left)))
        weight = np.minimum(1.0, TRUST * max(spread, 1e-6) / np.maximum(np.linalg.norm(left, axis=1), 1e-9))
    return np.asarray(plane), left, np.asarray(weight)
