"""Phantom: the image of a known specimen by a known microscope, as detector counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.engines.protocol import Engine, Job, simulate
from qhrtem.model.forward import ForwardModel
from qhrtem.model.microscope import PARAMETERS, Microscope, nominal
from qhrtem.model.sampling import sampling_of
from qhrtem.model.twin import ColumnTable
from qhrtem.physics.detector import add_noise
from qhrtem.physics.potential import Thermal
from qhrtem.plan import ImagePlan, MtfFormula, Plan, SimulatePlan
from qhrtem.simulate.specimen import (
    THICKNESS_NM,
    VACUUM_SHARE,
    Specimen,
    column_table,
    make_specimen,
    supercell_of,
)
from qhrtem.specimen.crystal import Crystal, project

PIXEL_A = 0.1
GAIN = 1.0  # counts per electron
# Displaced rigid atoms scatter farther than damped ones; coarser waves change their image by some per cent.
PHONON_REFINEMENT = 2
# key of a plan: parameters of the microscope, factor to Å and rad
LENS = {
    "c1_nm": (("c1",), 10.0),
    "a1_nm": (("a1_x", "a1_y"), 10.0),
    "b2_nm": (("b2_x", "b2_y"), 10.0),
    "a2_nm": (("a2_x", "a2_y"), 10.0),
    "c3_um": (("c3",), 1e4),
    "s3_um": (("s3_x", "s3_y"), 1e4),
    "a3_um": (("a3_x", "a3_y"), 1e4),
    "c5_mm": (("c5",), 1e7),
    "focal_spread_nm": (("focal_spread",), 10.0),
    "semi_convergence_mrad": (("semi_convergence",), 1e-3),
    "vibration_pm": (("vibration_xx", "vibration_yy"), 1e-2),
    "mistilt_mrad": (("tilt_x", "tilt_y"), 1e-3),
}


@dataclass(frozen=True)
class Detector:
    """What turns intensities into counts."""

    electrons: float  # per pixel of vacuum; 0 = no noise, counts stay proportional to the intensity
    gain: float  # counts per electron; without noise counts of the vacuum above the offset
    offset: float  # counts
    readout: float  # one standard deviation, counts

    def counts(self, image: Tensor, generator: torch.Generator) -> NDArray[np.float32]:
        """Return detector counts [row, col] of an image, vacuum = 1."""
        if self.electrons == 0:
            return (image.double() * self.gain + self.offset).numpy().astype(np.float32)
        drawn = add_noise(image, self.electrons, self.gain, self.offset, self.readout, generator)
        return drawn.numpy().astype(np.float32)

    @property
    def vacuum(self) -> float:
        """Mean counts of vacuum, offset included."""
        return self.offset + self.gain * (self.electrons or 1.0)


@dataclass(frozen=True)
class Phantom:
    """A simulated image, its answer and what it was made with."""

    counts: NDArray[np.float32]  # [row, col]
    image: NDArray[np.float32]  # [row, col], vacuum = 1, without noise
    pixel_size_A: float
    columns: ColumnTable
    facts: dict[str, Any]  # JSON values


class Parameters:
    """Values as they are settled, each with where it came from."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}

    def __call__(self, key: str, given: Any, default: Any, origin: str = "plan") -> Any:
        value = default if given is None else given
        written = list(value) if isinstance(value, tuple) else value
        self.table[key] = {"value": written, "source": "default" if given is None else origin}
        return value


def make_phantom(
    plan: Plan,
    crystal: Crystal,
    engine: Engine,
    options: frozenset[str] = frozenset(),
    progress: Callable[[int], None] = lambda done: None,
) -> Phantom:
    """Return the phantom that a plan describes; the same plan and seed give the same counts.

    options: keys of [simulate] that came from the command line, for the record. Raises `PlanError` where the
    engine cannot do what was asked.
    """
    asked = plan.simulate or SimulatePlan()
    note = Parameters()
    origin = {k: "command line" if k in options else "plan" for k in SimulatePlan.model_fields}
    for key in ("engine", "shape", "field_nm", "rotation_deg", "phonon_configurations"):
        given = getattr(asked, key) if key in asked.model_fields_set else None
        note(key, given, getattr(asked, key), origin[key])
    note("mode", asked.mode, asked.coherence, origin["mode"])
    seed = note("seed", asked.seed, plan.run.seed, origin["seed"])
    pixel = note("pixel_size_A", plan.image.pixel_size_A, PIXEL_A)
    microscope = planned_lens(plan, note)
    projection = project(crystal, plan.structure.zone_axis)
    count = asked.phonon_configurations
    spread = microscope.delocalisation()
    refine, sampling = PHONON_REFINEMENT if count else 1, sampling_of(projection, microscope.energy)
    specimen = make_specimen(asked, projection, pixel, spread, refine, sampling)
    _note_shape(asked, specimen, note)
    detector = planned_detector(plan.image, asked, pixel, note, origin["dose_e_per_A2"])
    job = job_of(specimen, microscope, asked)
    sharp = simulate(engine, job, count, np.random.default_rng([seed, 3]), progress)
    model = ForwardModel(specimen.field, microscope.energy)
    image = specimen.field.crop(model.detect(sharp, model.response(microscope)))
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 2]).generate_state(1)[0]))
    columns = column_table(specimen, job.mistilt)
    facts = {
        "program": f"qhrtem {version('qhrtem')}",
        "structure": {"name": crystal.name, "zone_axis": list(plan.structure.zone_axis)},
        "high_tension_kV": plan.microscope.high_tension_kV,
        "parameters": note.table,
        "vacuum_counts": detector.vacuum,
        "electrons_per_vacuum_pixel": detector.electrons,
        "atoms": len(job.cell.kind),
        "columns_on_the_image": len(columns.kind),
        "slices": len(job.slicing.thickness),
        "slice_thickness_A": projection.plane,
        "wave_pixel_A": list(job.grid.pixel),
        "thermal_motion": _thermal_words(count),
        "notes": [*crystal.notes, *_contradictions(plan, detector)],
    }
    return Phantom(
        counts=detector.counts(image, generator),
        image=image.numpy().astype(np.float32),
        pixel_size_A=pixel,
        columns=columns,
        facts=facts,
    )


def job_of(specimen: Specimen, microscope: Microscope, asked: SimulatePlan) -> Job:
    """Return the job for an engine: C1 counts from the exit plane of the specimen."""
    cell, slicing = supercell_of(specimen.columns, specimen.field.grid)
    thermal = Thermal(microscope["b_scale"], microscope["absorption"])
    tilt = (microscope["tilt_x"], microscope["tilt_y"])
    return Job(cell, slicing, specimen.field.grid, microscope.lens(), tilt, thermal, mode=asked.coherence)


def planned_lens(plan: Plan, note: Parameters) -> Microscope:
    """Return the microscope of a plan: [simulate] first, then [microscope], then a tuned instrument."""
    base = nominal(plan.microscope.high_tension_kV * 1e3)
    values: dict[str, float] = {}
    for key, (names, factor) in LENS.items():
        given = getattr(plan.simulate, key, None)
        origin = "plan [simulate]"
        if given is None:
            given, origin = getattr(plan.microscope, key, None), "plan [microscope]"
        squared = key == "vibration_pm"
        usual = [(base[n] ** 0.5 if squared else base[n]) / factor for n in names]
        rounded = [float(f"{v:.6g}") for v in usual]
        chosen = note(key, given, rounded[0] if len(names) == 1 else rounded, origin)
        for name, value in zip(names, (chosen,) if len(names) == 1 else chosen, strict=True):
            values[name] = (value * factor) ** 2 if squared else value * factor
    others = ("vibration_xy", "shift_x", "shift_y")
    unit = {"scale": 1.0, "b_scale": 1.0, "absorption": 1.0}
    microscope = base.with_values(**values, **dict.fromkeys(others, 0.0), **unit)
    mtf: tuple[float, float] | NDArray[np.float64] = (1.0, 1.0)
    written: Any = None
    if isinstance(plan.image.mtf, MtfFormula):
        mtf = (plan.image.mtf.a, plan.image.mtf.b)
        written = {"a": mtf[0], "b": mtf[1]}
    elif plan.image.mtf is not None:
        mtf = np.array([plan.image.mtf.q, plan.image.mtf.value])
        written = str(plan.image.mtf.path)
    note("mtf", written, "none: a perfect detector")
    assert len(microscope.values) == len(PARAMETERS)
    return Microscope(base.energy, microscope.values, base.mean, base.sigma, mtf)


def planned_detector(
    image: ImagePlan, asked: SimulatePlan, pixel: float, note: Parameters, origin: str
) -> Detector:
    """Return gain, offset, noise and dose; without a dose the plan's vacuum level and gain set it."""
    offset = note("offset_counts", image.offset_counts, 0.0)
    given = asked.dose_e_per_A2 if "dose_e_per_A2" in asked.model_fields_set else None
    level = None if image.vacuum_counts is None else image.vacuum_counts - offset
    if given == 0:
        note("dose_e_per_A2", 0.0, 0.0, origin)
        scale = note("vacuum_above_offset_counts", level, 1.0)
        return Detector(0.0, scale, offset, 0.0)
    gain = note("gain_counts_per_electron", image.gain_counts_per_electron, GAIN)
    readout = note("readout_counts", image.readout_counts, 0.0)
    dose = asked.dose_e_per_A2
    if given is None and level is not None:
        dose = note("dose_e_per_A2", level / gain / pixel**2, None, "plan, from vacuum_counts and gain")
    else:
        note("dose_e_per_A2", given, dose, origin)
    return Detector(dose * pixel**2, gain, offset, readout)


def _note_shape(asked: SimulatePlan, specimen: Specimen, note: Parameters) -> None:
    if asked.thickness_slices is not None:
        note("thickness_slices", asked.thickness_slices, None)
    else:
        note("thickness_nm", asked.thickness_nm, THICKNESS_NM)
    if asked.shape == "wedge":
        note("wedge_mrad", asked.wedge_mrad, None)
    if asked.shape != "slab":
        note("vacuum_nm", asked.vacuum_nm, VACUUM_SHARE * asked.field_nm[0])


def _contradictions(plan: Plan, detector: Detector) -> list[str]:
    level = plan.image.vacuum_counts
    if level is None or abs(level / detector.vacuum - 1) < 1e-3:
        return []
    return [
        f"the vacuum of the phantom is {detector.vacuum:.6g} counts, by its dose; the plan says {level:g}: "
        "correct vacuum_counts, or leave it out, before fitting the phantom"
    ]


def _thermal_words(count: int) -> str:
    if count:
        return (
            f"average over {count} frozen-phonon configurations, independent atoms displaced across the beam"
        )
    return "Debye-Waller factors and absorption; diffusely scattered electrons do not reach the image"
