"""A folder of Dr. Probe data: structures, wave sets, image records, and our own waves of them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.grid import Grid
from qhrtem.model.supercell import SupercellModel
from qhrtem.physics import drprobe
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import Slicing, Supercell, equal_slices, read_supercell

Array = NDArray[Any]
SAME = "weickenmeier_kohl"  # the form factors of Dr. Probe
MOST_SLICES = 16  # per period, tried where neither the record nor the atomic planes tell the number


def rms(a: Array, b: Array) -> float:
    """Return the rms of a - b over the rms of b."""
    return float(np.sqrt((np.abs(a - b) ** 2).mean() / (np.abs(b) ** 2).mean()))


@lru_cache
def arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def prose(folder: Path) -> str:
    """Return the text that describes the folder."""
    path = folder / "README.md"
    return path.read_text("utf-8") if path.is_file() else ""


@dataclass(frozen=True)
class WaveSet:
    """What the name of a wave set says: thermal motion, object tilt, propagator."""

    thermal: Thermal
    tilt: tuple[float, float]  # (x, y), rad
    large_angle: bool


def wave_set(name: str, folder: Path, content: dict[str, Array]) -> WaveSet:
    """Return the meaning of names such as elastic, dwf, dwf_abs, dwf_abf07, elastic_tilt, elastic_lapro."""
    tokens = name.split("_")
    share = next((t[3:] for t in tokens if re.fullmatch(r"abf\d+", t)), None)
    thermal = Thermal(
        absorption_scale=1.0 if "abs" in tokens else 0.0,
        proportional=float(f"0.{share}") if share else 0.0,
        rigid="dwf" not in tokens,
    )
    tilt = (0.0, 0.0)
    if "tilt" in tokens:
        if "object_tilt_deg" in content:
            x, y = content["object_tilt_deg"]
        else:
            number = r"(-?\d+(?:\.\d+)?)"
            found = re.search(rf"`{name}`.*?tilt x = {number}°, y = {number}°", prose(folder))
            if found is None:
                raise InputError(f"the object tilt of {name} is in neither README.md nor the waves")
            x, y = found[1], found[2]
        tilt = (math.radians(float(x)), math.radians(float(y)))
    return WaveSet(thermal, tilt, "lapro" in tokens)


def lateral_cell(cell: Supercell, shape: tuple[int, int]) -> tuple[Supercell, tuple[int, int]]:
    """Return the smallest part that repeats across the beam on whole pixels, and how often (y, x)."""
    times = [1, 1]
    for axis in (0, 1):
        counts = [n for n in range(shape[axis], 1, -1) if shape[axis] % n == 0 and len(cell.kind) % n == 0]
        times[axis] = next((n for n in counts if _repeats(cell, axis, n)), 1)
    edge = cell.extent / [*times, 1]
    inside = (cell.position[:, :2] < edge[:2] - 1e-4).all(1)
    return replace(cell, kind=cell.kind[inside], position=cell.position[inside], extent=edge), (
        times[0],
        times[1],
    )


def _repeats(cell: Supercell, axis: int, n: int) -> bool:
    """Return whether a shift by 1/n of an edge maps every atom onto one of its kind."""
    box = np.append(cell.extent, 1e3)
    place = np.column_stack([np.mod(cell.position, cell.extent), 10.0 * cell.kind])
    moved = place.copy()
    moved[:, axis] = np.mod(moved[:, axis] + cell.extent[axis] / n, cell.extent[axis])
    return bool(cKDTree(place, boxsize=box).query(moved)[0].max() < 1e-4)


@dataclass
class Structure:
    """One structure of the folder with its waves, its image records and our own waves of it."""

    folder: Path
    name: str
    own: dict[tuple[str, str], Array] = field(default_factory=dict)  # (set, table): waves of one lateral cell

    @cached_property
    def cell(self) -> Supercell:
        return structure(self.folder, self.name)

    @cached_property
    def waves(self) -> dict[str, Array]:
        return arrays(self.folder / f"{self.name}_waves.npz")

    @cached_property
    def record(self) -> dict[str, Any]:
        path = self.folder / f"{self.name}_images.json"
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {"images": []}
        return found

    @cached_property
    def energy(self) -> float:
        """Energy in eV: of the images, else of the description."""
        for image in self.record["images"]:
            return 1e3 * float(image["high_tension_kV"])
        found = re.search(r"[Hh]igh tension\D{0,5}(\d+(?:\.\d+)?) kV", prose(self.folder))
        if found is None:
            raise InputError(f"the high tension of {self.name} is in neither its images nor README.md")
        return 1e3 * float(found[1])

    @cached_property
    def sets(self) -> dict[str, Array]:
        return {k[5:]: v for k, v in self.waves.items() if k.startswith("wave_")}

    @cached_property
    def shape(self) -> tuple[int, int]:
        rows, cols = next(iter(self.sets.values())).shape[-2:]
        return rows, cols

    @cached_property
    def small(self) -> tuple[Supercell, tuple[int, int], Grid]:
        """The part that repeats across the beam, how often it does, and its grid."""
        cell, (ny, nx) = lateral_cell(self.cell, self.shape)
        shape = (self.shape[0] // ny, self.shape[1] // nx)
        return cell, (ny, nx), grid_for(cell, shape)

    @cached_property
    def grid(self) -> Grid:
        return grid_for(self.cell, self.shape)

    @cached_property
    def repeats(self) -> list[int]:
        return [int(n) for n in self.waves.get("z_repeats", np.array([1]))]

    @cached_property
    def slices(self) -> int:
        """Equidistant slices per period: as recorded, from the atomic planes, else those that fit best."""
        if "n_slices" in self.record:
            return int(self.record["n_slices"])
        cell = self.small[0]
        z = np.sort(np.mod(cell.position[:, 2] / cell.extent[2], 1))
        gaps = np.diff(z, append=z[0] + 1)
        n = round(1 / gaps[gaps > 1e-3].min())
        if np.abs(np.mod(z * n, 1) - 0.5).max() < 1e-2:
            return n
        first = next(iter(self.sets))
        fits = {n: rms(*self._pair(first, n)) for n in range(1, MOST_SLICES + 1)}
        return min(fits, key=lambda n: fits[n])

    def _pair(self, name: str, slices: int) -> tuple[Array, Array]:
        thinnest = self.sets[name][0]
        return self.tiled(self.simulate(name, SAME, [self.repeats[0]], slices)[0]), thinnest

    def simulate(self, name: str, table: str, repeats: list[int], slices: int) -> Array:
        """Return our waves of one lateral cell for a wave set."""
        cell, _, grid = self.small
        what = wave_set(name, self.folder, self.waves)
        slicing = equal_slices(cell, slices)
        thickness, mistilt = drprobe.object_tilt(slicing.thickness, what.tilt)
        model = as_drprobe(
            cell, Slicing(slicing.index, thickness), grid, self.energy, what.thermal, table, what.large_angle
        )
        return model.exit_waves(repeats, mistilt).numpy()

    def tiled(self, wave: Array) -> Array:
        """Return a field of one lateral cell on the whole grid."""
        return np.tile(wave, self.small[1])

    def thicknesses(self, name: str) -> list[int]:
        """Return the repeats of each wave of a set; fewer waves than thicknesses: those that fit best."""
        stored = self.sets[name]
        if f"z_repeats_{name}" in self.waves:
            return [int(n) for n in self.waves[f"z_repeats_{name}"]]
        if len(stored) == len(self.repeats):
            return self.repeats
        waves = self.simulate(name, SAME, self.repeats, self.slices)
        return [
            min(self.repeats, key=lambda n: rms(self.tiled(waves[self.repeats.index(n)]), wave))
            for wave in stored
        ]

    def own_waves(self, name: str, table: str) -> Array:
        """Return our waves of one lateral cell for every thickness of a set."""
        if (name, table) not in self.own:
            self.own[name, table] = self.simulate(name, table, self.thicknesses(name), self.slices)
        return self.own[name, table]


def structure(folder: Path, name: str) -> Supercell:
    """Return a structure, read from both formats where there are both; they must agree."""
    paths = [p for p in (folder / f"{name}.extxyz", folder / f"{name}.cif") if p.is_file()]
    if not paths:
        raise InputError(f"{folder} holds neither {name}.extxyz nor {name}.cif")
    cells = [read_supercell(p) for p in paths]
    for other in cells[1:]:
        if not np.allclose(other.position, cells[0].position, atol=1e-4) or other.species != cells[0].species:
            raise InputError(f"{name}.extxyz and {name}.cif hold different atoms")
    return cells[0]


def grid_for(cell: Supercell, shape: tuple[int, int]) -> Grid:
    """Return the double-precision grid of a shape over a cell."""
    pixel = (float(cell.extent[0]) / shape[0], float(cell.extent[1]) / shape[1])
    return Grid(shape, pixel, dtype=torch.float64)


def as_drprobe(
    cell: Supercell,
    slicing: Slicing,
    grid: Grid,
    energy: float,
    thermal: Thermal,
    table: str = SAME,
    large_angle: bool = False,
) -> SupercellModel:
    """Return a model that tapers, cuts and propagates as Dr. Probe does."""
    kind = "secant" if large_angle else "fresnel"
    return SupercellModel(
        cell,
        slicing,
        grid,
        energy,
        thermal,
        table,
        taper="nyquist",
        band_limit="transmission",
        propagation=kind,
    )
