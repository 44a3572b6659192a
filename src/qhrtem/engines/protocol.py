"""One job, several programs: what every simulation engine is given, what it returns, how one is chosen.

A job is a list of atoms in slices, a grid and a lens. An engine makes its exit wave and, from a wave, the
sharp image in front of the detector. Vibration, MTF and noise are the same code for all, so two engines
differ by their physics alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import InputError, PlanError, ResourceError
from qhrtem.grid import Grid
from qhrtem.physics.lens import Lens
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import Slicing, Supercell, displaced

Mode = Literal["focal", "full"]
# name → module and class; imported when chosen, as the other programs may be missing.
ENGINES = {
    "qhrtem": ("qhrtem.engines.ours", "Ours"),
    "abtem": ("qhrtem.engines.abtem", "AbTem"),
    "drprobe": ("qhrtem.engines.drprobe", "DrProbe"),
}


@dataclass(frozen=True)
class Job:
    """One image to simulate, without detector."""

    cell: Supercell  # its extent across the beam is that of the grid
    slicing: Slicing
    grid: Grid  # sampling of waves
    lens: Lens  # its C1 counts from the lower face of the last slice
    mistilt: tuple[float, float] = (0.0, 0.0)  # (x, y) of the specimen, rad
    thermal: Thermal = Thermal()
    repeats: int = 1  # how often the cell follows itself along the beam
    mode: Mode = "focal"  # incoherent sum over focus with a source envelope, or over focus and source angle
    foci: int = 21  # equidistant nodes of the focus distribution, where the engine takes a choice
    source: int = 5  # nodes along each axis of the source, mode "full"

    def __post_init__(self) -> None:
        """Raise `InputError` where cell, slices and grid do not describe one box."""
        n, slices = len(self.cell.kind), len(self.slicing.thickness)
        if not n:
            raise InputError("a simulation needs at least 1 atom, got none; is the specimen empty?")
        if not (np.isfinite(self.cell.position).all() and np.isfinite(self.slicing.thickness).all()):
            raise InputError("atom positions and slice thicknesses must be finite (Å), got nan or inf")
        if not np.allclose(self.cell.extent[:2], self.grid.extent, rtol=1e-6):
            raise InputError(
                f"the cell must be as wide as the grid, {self.grid.extent[0]:.6g} × "
                f"{self.grid.extent[1]:.6g} Å, got {self.cell.extent[0]:.6g} × {self.cell.extent[1]:.6g} Å"
            )
        if len(self.slicing.index) != n or not (0 <= self.slicing.index).all():
            raise InputError(f"every one of the {n} atoms needs a slice number from 0")
        if slices == 0 or self.slicing.index.max() >= slices or not (self.slicing.thickness > 0).all():
            raise InputError(f"slices must be thicker than 0 Å and hold every atom, got {slices} slices")
        if self.repeats < 1:
            raise PlanError(f"a cell must follow itself at least once along the beam, got {self.repeats}")
        if self.mode not in ("focal", "full"):
            raise PlanError(f"the coherence mode must be focal or full, got '{self.mode}'")

    @property
    def thickness(self) -> float:
        """Depth of the whole specimen in Å."""
        return float(self.slicing.thickness.sum()) * self.repeats


class Engine(Protocol):
    """A program that simulates HRTEM images."""

    name: str

    def available(self) -> str | None:
        """Return None if the program can be used, else the reason why not and the remedy."""
        ...

    def check(self, job: Job) -> None:
        """Raise `PlanError` where the program cannot do what the job asks, before anything is computed."""
        ...

    def exit_wave(self, job: Job) -> Tensor:
        """Return the wave (rows, columns) behind the last slice, incident wave 1, complex."""
        ...

    def image(self, wave: Tensor, job: Job) -> Tensor:
        """Return the image (rows, columns) of a wave on the job's grid, vacuum = 1."""
        ...


def engine_named(name: str) -> Engine:
    """Return the engine of a name of `ENGINES`.

    Raises `PlanError` for an unknown name, `ResourceError` with the remedy where the program is missing.
    """
    if name not in ENGINES:
        raise PlanError(f"unknown engine '{name}'; known here: {', '.join(ENGINES)}")
    module, kind = ENGINES[name]
    engine: Engine = getattr(import_module(module), kind)()
    reason = engine.available()
    if reason is not None:
        raise ResourceError(reason)
    return engine


def simulate(
    engine: Engine,
    job: Job,
    configurations: int = 0,
    generator: np.random.Generator | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Return the sharp image (rows, columns) of a job, vacuum = 1.

    configurations: 0 for one coherent wave with the job's thermal model, else how many frozen-phonon
    configurations are averaged (Loane, Xu and Silcox 1991), displaced by `generator`. progress: called with
    the number of configurations done.
    """
    if configurations == 0:
        engine.check(job)
        return engine.image(engine.exit_wave(job), job)
    if generator is None:
        raise PlanError("frozen-phonon configurations need an explicit random generator")
    rigid = replace(job, thermal=Thermal(rigid=True))
    engine.check(rigid)
    total = torch.zeros(job.grid.shape, dtype=torch.float64)
    for n, cell in enumerate(configurations_of(job, configurations, generator), 1):
        moved = replace(rigid, cell=cell)
        total += engine.image(engine.exit_wave(moved), moved)
        progress(n)
    return (total / configurations).to(job.grid.dtype)


def configurations_of(job: Job, count: int, generator: np.random.Generator) -> Iterator[Supercell]:
    """Yield cells with every atom displaced across the beam by its own B = 8π²⟨u²⟩, independently.

    Each second one is the mirror image of the one before, which cancels what is linear in the displacements.
    All repeats along the beam share the displacements of the cell.
    """
    rest, scale = job.cell.position, math.sqrt(float(job.thermal.b_scale))
    move = np.zeros_like(rest)
    for n in range(count):
        move = -move if n % 2 else scale * (displaced(job.cell, generator, along_beam=False).position - rest)
        yield replace(job.cell, position=rest + move)
