"""A fitted run simulated anew, from the atoms and the lens it claims, by any engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.engines.protocol import Engine, Job, Mode, simulate
from qhrtem.errors import InputError, PlanError
from qhrtem.grid import Grid, irfft2, rfft2
from qhrtem.io.twin import read_twin
from qhrtem.model.forward import MARGIN_A, Field, ForwardModel, make_field
from qhrtem.model.microscope import PARAMETERS, Microscope, nominal
from qhrtem.model.sampling import sampling_of
from qhrtem.model.tiles import tiled_image
from qhrtem.model.twin import Fitted, Twin
from qhrtem.physics.detector import half_frequencies
from qhrtem.physics.potential import Species, Thermal
from qhrtem.plan import MtfFormula, Plan, load_plan
from qhrtem.simulate.phantom import PHONON_REFINEMENT, Detector
from qhrtem.simulate.specimen import CLEARANCE_A, FARTHEST_A, finer
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.specimen.supercell import Slicing, Supercell

Floats = NDArray[np.float64]
PHONONS = 16  # the image of a fit includes thermal diffuse scattering, so it is compared with an average


@dataclass(frozen=True)
class Again:
    """A run's image by an engine, and how far it is from the run's own and from the measured one."""

    twin: Twin
    plan: Plan
    image: NDArray[np.float32]  # [row, col], vacuum = 1
    differences: dict[str, float]  # name → rms over the crystal, in units of the vacuum intensity
    shift_px: tuple[float, float]  # (row, col) by which the image was moved onto the run's own
    facts: dict[str, Any]


def simulate_again(
    run: Path,
    engine: Engine,
    configurations: int = PHONONS,
    mode: Mode = "focal",
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    reference: Engine | None = None,
) -> Again:
    """Return the image of a run's atoms and lens by an engine, compared with what the run holds.

    reference: another engine for the same displaced atoms, to compare the engines without the fit.

    A fit leaves the place of the image as a whole free, so the image is moved onto the run's own by a
    fraction of a pixel before they are compared. Raises `InputError` for a run without result or plan.
    """
    if seed < 0:
        raise PlanError(f"the seed must be at least 0, got {seed}")
    twin = read_twin(run)
    plan_file = run / "plan.toml"
    if not plan_file.is_file():
        raise InputError(
            f"{plan_file}: the plan of the run is missing; it is needed for crystal and detector"
        )
    plan = load_plan(plan_file)
    microscope = fitted_microscope(twin, plan)
    refine = PHONON_REFINEMENT if configurations else 1
    field, job = job_of_twin(twin, plan, microscope, refine, mode)
    sharp = simulate(engine, job, configurations, np.random.default_rng([seed, 3]), progress)
    model = ForwardModel(field, microscope.energy)
    whole = model.detect(sharp, model.response(microscope))
    shift = registration(whole, field, twin)
    moved = translated(whole, field.image_grid, shift)
    image = field.crop(moved).numpy().astype(np.float32)
    where = twin.match.used & twin.match.crystal
    differences = {
        "from the run's image": _rms(image - twin.match.simulated, where),
        "from the measured image": _rms(image - twin.match.measured, where),
        "run's image from the measured one": _rms(twin.match.simulated - twin.match.measured, where),
    }
    pixel = twin.pixel_size_A
    px = (shift[0] / pixel, shift[1] / pixel)
    if reference is not None:
        other = simulate(reference, job, configurations, np.random.default_rng([seed, 3]), progress)
        seen = field.crop(
            translated(model.detect(other, model.response(microscope)), field.image_grid, shift)
        )
        differences[f"from the image by {reference.name}"] = _rms(image - seen.numpy(), where)
    facts = {
        "parameters": {
            "run": {"value": str(run), "source": "command line"},
            "engine": {"value": engine.name, "source": "command line"},
            "mode": {"value": mode, "source": "command line"},
            "seed": {"value": seed, "source": "command line"},
            "phonon_configurations": {"value": configurations, "source": "command line"},
            "pixel_size_A": {"value": pixel, "source": "run"},
            **{
                e.name: {"value": e.value, "source": "run, refined" if e.refined else "run, held"}
                for e in twin.microscope
            },
        },
        "atoms": len(job.cell.kind),
        "slices": len(job.slicing.thickness),
        "wave_pixel_A": list(job.grid.pixel),
        "rms_over_crystal_in_units_of_vacuum": differences,
        "moved_by_px": list(px),
    }
    return Again(twin, plan, image, differences, px, facts)


def fitted_image(fitted: Fitted) -> NDArray[np.float32]:
    """Return the image of a fit, vacuum = 1 [row, col], from the model it ended with: the very same numbers.

    The sums are those of the fit in their order; another processor or library may change the last digit.
    """
    energy, diffuse = fitted.microscope.energy, torch.as_tensor(fitted.diffuse)
    with torch.inference_mode():
        if fitted.bend is not None:
            image = tiled_image(energy, fitted.field, fitted.columns, fitted.microscope, bend=fitted.bend)
            image = image + fitted.field.crop(diffuse)
        else:
            model = ForwardModel(fitted.field, energy)
            image = fitted.field.crop(model.image(fitted.columns, fitted.microscope) + diffuse)
    return np.asarray(image.numpy().astype(np.float32))


def reproduced(run: Path) -> Again:
    """Return a run's image made again by the model the fit ended with, and the largest difference to it.

    Raises `InputError` for a run without result or plan, or one of an older version, without its model.
    """
    twin = read_twin(run)
    if twin.fitted is None:
        raise InputError(
            f"{run}: the result does not hold the model of the fit (it was written by an older version); fit "
            "again, or give --engine to simulate its atoms anew"
        )
    image = fitted_image(twin.fitted)
    where = twin.match.used & twin.match.crystal
    differences = {
        "from the run's image, at most": float(np.abs(image - twin.match.simulated).max()),
        "from the measured image": _rms(image - twin.match.measured, where),
    }
    facts = {
        "parameters": {
            "run": {"value": str(run), "source": "command line"},
            "engine": {"value": "the model of the fit", "source": "run"},
            "pixel_size_A": {"value": twin.pixel_size_A, "source": "run"},
        },
        "difference_in_units_of_vacuum": differences,
    }
    return Again(twin, load_plan(run / "plan.toml"), image, differences, (0.0, 0.0), facts)


def counts_of(again: Again, dose: float, seed: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the image as counts, gain one, with shot noise at a dose (e/Å²), and its facts; 0 = no noise."""
    detector = Detector(dose * again.twin.pixel_size_A**2, 1.0, 0.0, 0.0)
    generator = torch.Generator().manual_seed(seed)
    counts = detector.counts(torch.as_tensor(again.image), generator)
    noise = {"dose_e_per_A2": dose, "vacuum_counts": detector.vacuum}
    return counts, {**again.facts, **noise}


def fitted_microscope(twin: Twin, plan: Plan) -> Microscope:
    """Return the imaging parameters that a run claims; what it does not state is zero or one.

    Raises `InputError` where the high tension is missing.
    """
    stated = {e.name: e.value for e in twin.microscope}
    tension = stated.get("high_tension_kV", plan.microscope.high_tension_kV)
    values = {"shift_x": 0.0, "shift_y": 0.0}
    for p in PARAMETERS:
        if np.isfinite(stated.get(p.key, np.nan)):
            values[p.name] = stated[p.key] / p.factor
    # The claimed factors hold the Debye–Waller scale, the claimed places the mistilt.
    values |= {"b_scale": 1.0, "tilt_x": 0.0, "tilt_y": 0.0}
    base = nominal(1e3 * tension).with_values(**values)
    if isinstance(plan.image.mtf, MtfFormula):
        return replace(base, mtf=(plan.image.mtf.a, plan.image.mtf.b))
    if plan.image.mtf is not None:
        return replace(base, mtf=np.array([plan.image.mtf.q, plan.image.mtf.value]))
    # Where the plan gives none, the fit may have taken the one that the noise shows.
    return base if twin.fitted is None else replace(base, mtf=twin.fitted.microscope.mtf)


def job_of_twin(twin: Twin, plan: Plan, microscope: Microscope, refine: int, mode: Mode) -> tuple[Field, Job]:
    """Return the field around a run's image and the job of its atoms, in the atomic layers of its crystal."""
    atoms = twin.atoms
    if not len(atoms.element):
        raise InputError("the run claims no atoms, so there is nothing to simulate; see its report.html")
    projection = project(read_cif(plan.structure.path), plan.structure.zone_axis)
    plane = projection.plane
    rows, cols = twin.match.measured.shape
    margin = MARGIN_A + min(microscope.delocalisation(), FARTHEST_A)
    sampling = sampling_of(projection, microscope.energy)
    field = make_field((rows, cols), twin.pixel_size_A, 0.0, margin=margin, sampling=sampling)
    field = replace(field, grid=finer(field.grid, refine), ratio=(field.ratio[0] * refine, field.ratio[1]))
    place = field.to_field(atoms.position_A[:, 1::-1] / twin.pixel_size_A)
    extent = np.array(field.grid.extent)
    near_border = (place < CLEARANCE_A / 2) | (place > extent - CLEARANCE_A / 2)
    beyond = np.asarray(near_border.any(axis=1))
    place, z = place[~beyond], atoms.position_A[~beyond, 2]
    index = layers(z, plane)
    kinds: dict[Species, int] = {}
    kind = [
        kinds.setdefault(Species(e, round(float(b), 6), min(float(o), 1.0)), len(kinds))
        for e, b, o, out in zip(atoms.element, atoms.b_iso_A2, atoms.occupancy, beyond, strict=True)
        if not out
    ]
    count = int(index.max()) + 1
    cell = Supercell(
        tuple(kinds),
        np.array(kind),
        np.column_stack([place, (index + 0.5) * plane]),
        np.array([*extent, count * plane]),
    )
    thermal = Thermal(1.0, microscope["absorption"])
    slicing = Slicing(index, np.full(count, plane))
    return field, Job(cell, slicing, field.grid, microscope.lens(), thermal=thermal, mode=mode)


def layers(z: Floats, plane: float) -> NDArray[np.int64]:
    """Return the number of the atomic layer (N,) of depths z (Å), counted from the first atom's.

    The origin of the layers is where atoms lie nearest to their centres.
    """
    angle = np.angle(np.exp(2j * np.pi * z / plane).mean())
    number = np.round(z / plane - angle / (2 * np.pi)).astype(np.int64)
    return np.asarray(number - number.min())


def registration(image: torch.Tensor, field: Field, twin: Twin) -> tuple[float, float]:
    """Return the shift (y, x) in Å that brings an image nearest to the run's own, by least squares."""
    where = torch.as_tensor(twin.match.used & twin.match.crystal)
    target = torch.as_tensor(twin.match.simulated, dtype=torch.float64)
    grid, step = field.image_grid, 0.01
    shift = np.zeros(2)

    def at(y: float, x: float) -> torch.Tensor:
        return field.crop(translated(image, grid, (shift[0] + y, shift[1] + x))).double()[where]

    for _ in range(4):
        along = [(at(step, 0) - at(-step, 0)) / (2 * step), (at(0, step) - at(0, -step)) / (2 * step)]
        design = torch.stack([*along, torch.ones_like(along[0])], -1)
        move = torch.linalg.lstsq(design, (target[where] - at(0, 0))[:, None]).solution[:2, 0]
        # Never farther than half an atom: beyond, the images do not belong together.
        shift = np.clip(shift + move.numpy(), -0.7, 0.7)
    return float(shift[0]), float(shift[1])


def translated(image: torch.Tensor, grid: Grid, shift: tuple[float, float]) -> torch.Tensor:
    """Return a periodic image (rows, columns) moved by (y, x) in Å."""
    ky, kx = half_frequencies(grid)
    angle = -2 * np.pi * (ky * shift[0] + kx * shift[1])
    spectrum = rfft2(image.double()) * torch.polar(torch.ones_like(angle), angle)
    return irfft2(spectrum, grid.shape).to(image.dtype)


def _rms(difference: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    return float(np.sqrt((difference[where].astype(float) ** 2).mean()))
