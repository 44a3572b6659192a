"""Reference waves and images of BaTiO3 [110] that Dr. Probe computed; see data/drprobe/SOURCES.md.

Everything covers one unit cell: 60 x 80 pixels, rows y along [001], columns x along [1-10], beam [110].
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.grid import Grid
from qhrtem.physics.coherence import Transfer
from qhrtem.physics.potential import PhaseKernels, Species, Thermal

FOLDER = Path(__file__).parent / "data" / "drprobe"
ENERGY = 300e3
C_A, A_A = 4.036, 5.64836897  # cell edges along y, x (and the period along the beam), Å
GRID = Grid((60, 80), (C_A / 60, A_A / 80), dtype=torch.float64)
SLICES = 4
PLANE_A = A_A / SLICES
SPECIES = (Species("Ba", 0.5), Species("Ti", 0.6), Species("O", 0.75))
# element, x, y in cell edges, slice
ATOMS = (
    ("Ba", 0.0, 0.0, 0),
    ("Ti", 0.5, 0.5224, 0),
    ("O", 0.5, 0.9756, 0),
    ("O", 0.25, 0.4895, 1),
    ("O", 0.75, 0.4895, 1),
    ("Ba", 0.5, 0.0, 2),
    ("Ti", 0.0, 0.5224, 2),
    ("O", 0.0, 0.9756, 2),
    ("O", 0.25, 0.4895, 3),
    ("O", 0.75, 0.4895, 3),
)


@lru_cache
def data() -> dict[str, NDArray[Any]]:
    """Return waves (thickness, y, x), images and potentials (slice, y, x) by name."""
    with np.load(FOLDER / "bto110.npz") as file:
        return {name: file[name] for name in file.files}


@lru_cache
def form_factors() -> dict[str, NDArray[Any]]:
    """Return Weickenmeier-Kohl form factors at 300 kV: g_inv_A and, by element, B, real, imaginary part."""
    with np.load(FOLDER / "form_factors_300kV.npz") as file:
        return {name: file[name] for name in file.files}


@lru_cache
def settings(image: str) -> dict[str, Any]:
    """Return the imaging parameters of an image as Dr. Probe was given them (nm, mrad)."""
    found: dict[str, Any] = json.loads((FOLDER / "images.json").read_text("utf-8"))[image]
    return found


def wave(image: str) -> torch.Tensor:
    """Return the spectrum of the exit wave an image was made from."""
    s = settings(image)
    return torch.fft.fft2(
        torch.as_tensor(data()[f"wave_{s['wave_set']}"][s["wave_index"]], dtype=torch.complex128)
    )


def coefficients(image: str) -> dict[str, complex]:
    """Return the aberrations of an image in Å and in the notation of `qhrtem.physics.aberrations`.

    Dr. Probe writes (1/m)|w|^(m-n) Re[conj(a) w^n]: conjugate where w leads, and 1/3 or 1/4 where we have 1.
    """
    table = {
        "1": ("C1", 1, False),
        "2": ("A1", 1, False),
        "3": ("B2", 3, True),
        "4": ("A2", 1, False),
        "5": ("C3", 1, False),
        "6": ("S3", 4, True),
        "7": ("A3", 1, False),
    }
    out: dict[str, complex] = {}
    for index, (x, y) in settings(image)["aberrations_nm"].items():
        name, divisor, turned = table[index]
        out[name] = 10 * complex(x, -y if turned else y) / divisor
    return out


def focus_samples(image: str, wavelength: float) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return focus offsets (Å), their weights, and the information limit (1/Å) of Dr. Probe's focal sum."""
    s = settings(image)
    spread = 10 * float(s["focus_spread_1e_nm"])
    limit = 1 / ((math.pi * wavelength * spread) ** 2 / 8) ** 0.25
    vibration = 10 * float(
        np.max(s["vibration_rms"][:2] if isinstance(s["vibration_rms"], list) else s["vibration_rms"])
    )
    if vibration:
        limit = min(limit, 1 / (math.pi * vibration))
    n = 1 + int(2 * spread / (2 / (wavelength * (3 * limit) ** 2)))
    z = np.linspace(-2 * spread, 2 * spread, 2 * n + 1)
    w = np.exp(-((z / spread) ** 2))
    return z, w / w.sum(), limit


def phases(thermal: Thermal, table: str = "lobato", grid: Grid = GRID) -> torch.Tensor:
    """Return our phase of the four slices of one period."""
    kernels = PhaseKernels(grid, SPECIES, ENERGY, thermal, table)
    names = [s.element for s in SPECIES]
    position = torch.tensor([[y * C_A, x * A_A] for _, x, y, _ in ATOMS], dtype=torch.float64)
    owner = torch.tensor([j for *_, j in ATOMS])
    kind = torch.tensor([names.index(e) for e, *_ in ATOMS])
    return kernels.phases(position, owner, kind, torch.ones(len(ATOMS), dtype=torch.float64), SLICES)


def single(function: torch.Tensor) -> Transfer:
    """Return a coherent transfer."""
    return Transfer(function[None], torch.ones(1, dtype=torch.float64))


def rms(a: Any, b: Any) -> float:
    """Return the rms of a - b over the rms of b."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.sqrt((np.abs(a - b) ** 2).mean() / (np.abs(b) ** 2).mean()))
