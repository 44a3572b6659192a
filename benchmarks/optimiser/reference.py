"""The Dr. Probe targets, their settings in our notation, and noise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DATA = Path(__file__).parent / "data"
ENERGY = 300e3  # eV
DOSE = 1e4  # e/Å²
# Dr. Probe cuts its focal sum at twice the 1/e half width, which leaves 96 % of the variance.
CUT_VARIANCE = 0.96

# index of Dr. Probe: (our name, its value over ours, complex conjugate)
NOTATION = {
    "1": ("C1", 1, False),
    "2": ("A1", 1, False),
    "3": ("B2", 3, True),
    "4": ("A2", 1, False),
    "5": ("C3", 1, False),
    "6": ("S3", 4, True),
    "7": ("A3", 1, False),
}


@dataclass(frozen=True)
class Imaging:
    """Imaging parameters of one image, Å and rad."""

    aberrations: dict[str, complex]  # Å, keys of `qhrtem.physics.aberrations.TERMS`
    focal_spread: float  # Å, one standard deviation
    semi_convergence: float  # rad, 1/e half angle
    vibration: tuple[float, float, float]  # Å, Å, degrees: rms along two axes, the first turned from +x


@lru_cache
def data() -> dict[str, NDArray[Any]]:
    """Return images and atoms by name."""
    with np.load(DATA / "targets.npz") as file:
        return {name: file[name] for name in file.files}


def imaging(image: str) -> Imaging:
    """Return the settings that an image was made with."""
    s = json.loads((DATA / "settings.json").read_text("utf-8"))[image]
    aberrations = {}
    for index, (x, y) in s["aberrations_nm"].items():
        name, divisor, turned = NOTATION[index]
        aberrations[name] = 10 * complex(x, -y if turned else y) / divisor
    v = s["vibration_rms"]
    first, second, angle = v if isinstance(v, list) else (v, v, 0.0)
    return Imaging(
        aberrations,
        10 * s["focus_spread_1e_nm"] / math.sqrt(2) * math.sqrt(CUT_VARIANCE),
        1e-3 * s["semi_convergence_1e_mrad"],
        (10 * first, 10 * second, angle),
    )


def noisy(clean: Floats, electrons: float, seed: int | None) -> Floats:
    """Return an image (vacuum = 1) with shot noise at `electrons` per pixel of vacuum; None leaves it out."""
    if seed is None:
        return clean
    # A stream of its own, so that no optimiser's seed can share it.
    generator = np.random.default_rng([seed, 0x1A6E])
    return generator.poisson(np.maximum(clean, 0.0) * electrons) / electrons
