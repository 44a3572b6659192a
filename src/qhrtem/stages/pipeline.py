"""The stages of a fit: calibrate, imaging, counts, positions, surfaces, joint; micrograph in, twin out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.area import foreign_area
from qhrtem.calibrate.intensity import mean_pitch, normalise
from qhrtem.calibrate.lattice import Lattice, register, require_square
from qhrtem.errors import QualityError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.twin import Twin
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.stages.assess import assess
from qhrtem.stages.checkpoint import (
    Forgetful,
    HypothesisForm,
    LatticeForm,
    Log,
    Memory,
    Parts,
    RankingForm,
    Report,
)
from qhrtem.stages.contenders import choose
from qhrtem.stages.imaging import (
    CellAverages,
    CellMatch,
    Hypothesis,
    cell_averages,
    rank_orientations,
    search,
)
from qhrtem.stages.result import make_twin
from qhrtem.stages.start import planned_microscope, start_field, stated_pixel
from qhrtem.stages.structure import (
    structure,
)
from qhrtem.stages.tasks import Executor
from qhrtem.stages.tiling import MOST_COLUMNS, fit_tiles

Floats = NDArray[np.float64]

TRIALS = 96  # simulations of the global search over imaging parameters, for each orientation
TIE = 2.0  # hypotheses within this factor of the best misfit are kept until the whole field decides
ORIGINS = 3  # other places of the crystal that are tried
MOST_CONTENDERS = 4  # hypotheses that are compared on the whole field


def fit_image(
    plan: Plan,
    raw: RawImage,
    crystal: Crystal,
    progress: Report = lambda step: None,
    memory: Memory | None = None,
    executor: Executor | None = None,
) -> Twin:
    """Return the digital twin of one micrograph.

    memory: keeps finished parts; those that it holds already are not computed again. executor: does what can
    be spread over workers, such as the tiles of a large field; None: all is done here. Raises
    `InputError` when the image cannot be used and `QualityError` when no model of this crystal describes it.
    """
    log = Log(progress)
    parts = Parts(memory or Forgetful(), log)
    projection = project(crystal, plan.structure.zone_axis)
    with torch.inference_mode():
        micrograph, lattice = calibrate(plan, raw, projection, parts)
        averages, hypotheses = imaging(plan, micrograph, lattice, projection, parts)
        starts = [start_field(micrograph, lattice, projection, averages, h) for h in hypotheses]
        notes = (*crystal.notes, *micrograph.notes, *lattice.notes, *_assumed(plan, raw))
        if len(starts[0].columns) > MOST_COLUMNS:
            whole = fit_tiles(plan.run.seed, micrograph, lattice, starts, parts, executor)
            start, state, assessed, others, bend = whole
        else:
            contenders, others = choose(micrograph, starts, parts)
            winner, state, evidence = structure(plan.run.seed, contenders, parts)
            start, bend = winner.start, None
            assessed = assess(winner.bench, state, start, lattice, evidence, plan.run.seed)
        steps = tuple(log.steps)
        return make_twin(plan, state, start, lattice, micrograph, assessed, steps, (*notes, *others), bend)


def calibrate(plan: Plan, raw: RawImage, projection: Projection, parts: Parts) -> tuple[Micrograph, Lattice]:
    """Return the image on the absolute scale and the lattice in it."""
    stated = stated_pixel(plan, raw)
    micrograph = normalise(raw, plan.image, mean_pitch(stated))

    def registered() -> Lattice:
        found = register(micrograph.intensity, micrograph.valid, stated, projection, raw.path)
        against = ""
        if stated is not None:
            against = f" ({100 * (found.pixel_size_A / mean_pitch(stated) - 1):+.2f} %)"
        parts.log.done = 0.04
        parts.log(
            "calibrate",
            float("nan"),
            f"pixel {found.pixel_size_A:.4f} Å{against}, "
            f"rotation {found.rotation_deg:.2f}°, {100 * found.crystal.mean():.0f} % crystal",
        )
        return found

    lattice = parts("calibrate", registered, LatticeForm())
    require_square(lattice, raw.path)
    foreign = foreign_area(micrograph, lattice.crystal, lattice.frame, lattice.vectors)
    if foreign.any():
        note = f"{100 * foreign.mean():.1f} % of the image is neither lattice nor vacuum and is left out."
        micrograph = replace(micrograph, valid=micrograph.valid & ~foreign, notes=(*micrograph.notes, note))
    return micrograph, lattice


def imaging(
    plan: Plan, micrograph: Micrograph, lattice: Lattice, projection: Projection, parts: Parts
) -> tuple[CellAverages, list[Hypothesis]]:
    """Return repeated-cell averages and the orientations that describe them, each with its best lens."""
    log = parts.log
    microscope = planned_microscope(plan, micrograph.scale_sigma, micrograph.transfer)
    averages = cell_averages(micrograph, lattice, lattice.pixel_size_A)

    def rank() -> list[tuple[float, Floats]]:
        ranked = rank_orientations(averages, projection, lattice, microscope)
        log.done = 0.07
        log("imaging", ranked[0][0], f"{len(ranked)} orientations, C1 scanned")
        return [(misfit, match.symmetry) for misfit, match in ranked]

    ranked = parts("orientations", rank, RankingForm())
    found: list[tuple[Hypothesis, CellMatch]] = []

    def searched(name: str, match: CellMatch) -> None:
        job = partial(
            search,
            match,
            microscope,
            plan.run.seed,
            TRIALS,
            lambda n, best: log("imaging", best, f"trial {n}"),
            partial(parts.memory.trial, name),
            partial(parts.memory.note, name),
        )
        found.append((parts(name, job, HypothesisForm()), match))

    for place, (misfit, symmetry) in enumerate(ranked[:4]):
        if misfit > 2.0 * ranked[0][0]:
            break
        frame = lattice.frame * averages.pixel_A
        match = CellMatch(averages, projection, frame, symmetry, microscope.energy)
        searched(f"imaging {place}", match)
    best, match = min(found, key=lambda f: f[0].misfit)
    for place, origin in enumerate(match.elsewhere(best.microscope, best.origin)[:ORIGINS]):
        searched(f"imaging at origin {place}", match.near(origin))
    hypotheses = sorted((h for h, _ in found), key=lambda h: h.misfit)
    log.done = 0.17
    if hypotheses[0].misfit > 0.6:
        raise QualityError(
            f"no lens and thickness explain the image as {projection.crystal.name} along "
            f"{list(projection.zone)}: {100 * hypotheses[0].misfit:.0f} % of the lattice contrast is left "
            "over; check CIF, zone axis and vacuum level"
        )
    return averages, [h for h in hypotheses if h.misfit < TIE * hypotheses[0].misfit][:MOST_CONTENDERS]


def _assumed(plan: Plan, raw: RawImage) -> tuple[str, ...]:
    out = []
    if plan.microscope.c3_um is None:
        out.append("C3 was not given; -15 ± 1 µm was assumed.")
    if plan.microscope.focal_spread_nm is None:
        out.append("The focal spread was not given; 3.0 ± 0.3 nm was assumed.")
    if plan.microscope.semi_convergence_mrad is None:
        out.append("The semi-convergence was not given; 0.3 ± 0.1 mrad was assumed.")
    if plan.image.pixel_size_A is None and raw.pixel_size_A is not None:
        out.append(f"The pixel size was taken from the file ({raw.path}) as a starting value.")
    return tuple(out)
