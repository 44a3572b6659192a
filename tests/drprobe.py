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
from qhrtem.model.supercell import SupercellModel
from qhrtem.physics.drprobe import Settings, information_limit, settings_of
from qhrtem.physics.drprobe import focus_samples as drprobe_focus
from qhrtem.physics.multislice import Propagation
from qhrtem.physics.potential import PhaseKernels, Species, Thermal
from qhrtem.specimen.supercell import Slicing, Supercell, equal_slices, make_supercell

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
    out = {}
    for name in ("bto110.npz", "modes.npz"):
        with np.load(FOLDER / name) as file:
            out.update({key: file[key] for key in file.files})
    return out


@lru_cache
def form_factors() -> dict[str, NDArray[Any]]:
    """Return Weickenmeier-Kohl form factors at 300 kV: g_inv_A and, by element, B, real, imaginary part."""
    with np.load(FOLDER / "form_factors_300kV.npz") as file:
        return {name: file[name] for name in file.files}


@lru_cache
def _records() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "images.json").read_text("utf-8"))
    return found


def image_names() -> tuple[str, ...]:
    """Return the names of all images."""
    return tuple(_records())


def settings(image: str) -> dict[str, Any]:
    """Return the imaging parameters of an image as Dr. Probe was given them (nm, mrad)."""
    return _records()[image]


def wave(image: str) -> torch.Tensor:
    """Return the spectrum of the exit wave an image was made from."""
    s = settings(image)
    return torch.fft.fft2(
        torch.as_tensor(data()[f"wave_{s['wave_set']}"][s["wave_index"]], dtype=torch.complex128)
    )


def imaging(image: str) -> Settings:
    """Return the imaging parameters of an image in our units and notation."""
    return settings_of(settings(image))


def focus_samples(image: str, wavelength: float) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return focus offsets (Å), their weights, and the information limit (1/Å) of Dr. Probe's focal sum."""
    s = imaging(image)
    spread = math.sqrt(2) * float(s.lens.focal_spread)
    limit = information_limit(spread, max(s.vibration[:2]), wavelength)
    rule = drprobe_focus(spread, limit, wavelength)
    return float(s.lens.focal_spread) * rule.offset, rule.weight, limit


def phases(thermal: Thermal, table: str = "lobato", grid: Grid = GRID) -> torch.Tensor:
    """Return our phase of the four slices of one period."""
    kernels = PhaseKernels(grid, SPECIES, ENERGY, thermal, table)
    names = [s.element for s in SPECIES]
    position = torch.tensor([[y * C_A, x * A_A] for _, x, y, _ in ATOMS], dtype=torch.float64)
    owner = torch.tensor([j for *_, j in ATOMS])
    kind = torch.tensor([names.index(e) for e, *_ in ATOMS])
    return kernels.phases(position, owner, kind, torch.ones(len(ATOMS), dtype=torch.float64), SLICES)


def cell() -> Supercell:
    """Return the unit cell as a supercell."""
    b_iso = {species.element: species.b_iso for species in SPECIES}
    return make_supercell(
        [e for e, *_ in ATOMS],
        np.array([[y * C_A, x * A_A, (j + 0.5) * PLANE_A] for _, x, y, j in ATOMS]),
        np.array([C_A, A_A, A_A]),
        np.array([b_iso[e] for e, *_ in ATOMS]),
        np.ones(len(ATOMS)),
    )


def model(
    thermal: Thermal, propagation: Propagation = "fresnel", thickness: NDArray[Any] | None = None
) -> SupercellModel:
    """Return a model of the unit cell with Dr. Probe's form factors, taper and band limit."""
    return model_of(cell(), GRID, SLICES, thermal, propagation, thickness)


def model_of(
    atoms: Supercell,
    grid: Grid,
    slices: int,
    thermal: Thermal,
    propagation: Propagation = "fresnel",
    thickness: NDArray[Any] | None = None,
) -> SupercellModel:
    """Return a model of any supercell as Dr. Probe computes it; thickness: of the slices, Å."""
    slicing = equal_slices(atoms, slices)
    if thickness is not None:
        slicing = Slicing(slicing.index, thickness)
    table, taper = "weickenmeier_kohl", "nyquist"
    return SupercellModel(atoms, slicing, grid, ENERGY, thermal, table, taper, "transmission", propagation)


def rms(a: Any, b: Any) -> float:
    """Return the rms of a - b over the rms of b."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.sqrt((np.abs(a - b) ** 2).mean() / (np.abs(b) ** 2).mean()))
