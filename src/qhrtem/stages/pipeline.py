"""The stages of a fit: calibrate, imaging, counts, positions, surfaces, joint; micrograph in, twin out."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.errors import InputError, QualityError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.sampling import sampling_of
from qhrtem.model.twin import Twin
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.stages.assess import assess
from qhrtem.stages.averages import CellAverages, cell_averages
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.cell_match import CellMatch
from qhrtem.stages.checkpoint import (
    Forgetful,
    HypothesisForm,
    Log,
    Memory,
    Parts,
    RankingForm,
    Report,
)
from qhrtem.stages.contenders import choose
from qhrtem.stages.further import Further, calibrated, together
from qhrtem.stages.imaging import Hypothesis, rank_orientations, search
from qhrtem.stages.objective import State
from qhrtem.stages.result import Placed, make_twin
from qhrtem.stages.start import planned_microscope, start_field
from qhrtem.stages.structure import EARLY_ROUNDS, Contender, Rounds, finished, leading
from qhrtem.stages.tasks import Executor
from qhrtem.stages.thickness import Rival
from qhrtem.stages.tiling import MOST_COLUMNS, fit_tiles

Floats = NDArray[np.float64]

TRIALS = 96  # simulations of the global search over imaging parameters, for each orientation
TIE = 2.0  # hypotheses within this factor of the best misfit are kept until the whole field decides
ORIGINS = 3  # other places of the crystal that are tried
BASINS = 2  # other thicknesses of the crystal that are tried
MOST_CONTENDERS = 4  # hypotheses that are compared on the whole field


def fit_image(
    plan: Plan,
    raw: RawImage,
    crystal: Crystal,
    progress: Report = lambda step: None,
    memory: Memory | None = None,
    executor: Executor | None = None,
) -> Twin:
    """Return the digital twin of one micrograph, or of several of one area (`RawImage.also`).

    memory: keeps finished parts; those that it holds already are not computed again. executor: does what can
    be spread over workers, such as the tiles of a large field; None: all is done here. Raises
    `InputError` when the image cannot be used and `QualityError` when no model of this crystal describes it.
    """
    log = Log(progress)
    parts = Parts(memory or Forgetful(), log)
    projection = project(crystal, plan.structure.zone_axis)
    with torch.inference_mode():
        micrograph, lattice = calibrate(plan, raw, projection, parts)
        further = calibrated(plan, raw, micrograph, lattice, projection, parts)
        averages, hypotheses = imaging(plan, micrograph, lattice, projection, parts)
        sampling = sampling_of(projection, 1e3 * plan.microscope.high_tension_kV)
        starts = [start_field(micrograph, lattice, projection, averages, h, sampling) for h in hypotheses]
        notes = (*crystal.notes, *micrograph.notes, *lattice.notes, *_assumed(plan, raw))
        placed: tuple[Placed, ...] = ()
        if len(starts[0].columns) > MOST_COLUMNS:
            _require_alone(raw, len(starts[0].columns))
            whole = fit_tiles(plan.run.seed, micrograph, lattice, starts, parts, executor)
            start, state, assessed, others, bend = whole
        else:
            contenders, others = choose(micrograph, starts, parts)
            rounds, state, rivals, placed, said = settled_together(
                plan.run.seed, contenders, further, lattice, parts
            )
            log.done, others = 0.9, (*others, *said)
            state, evidence = rounds.last(state, rivals)
            start, bend = rounds.start, None
            assessed = assess(rounds.bench, state, start, lattice, evidence, plan.run.seed)
        steps = tuple(log.steps)
        told = (*notes, *others)
        return make_twin(plan, state, start, lattice, micrograph, assessed, steps, told, bend, placed)


def settled_together(
    seed: int, contenders: list[Contender], further: list[Further], lattice: Lattice, parts: Parts
) -> tuple[Rounds, State, tuple[Rival, ...], tuple[Placed, ...], tuple[str, ...]]:
    """Return rounds, state and rivals as `settled` does, where the further images lie, and notes on them.

    The first rounds see the first image alone; its structure says where the others lie, and from there all
    go on together.
    """
    lead = leading(seed, contenders, parts)
    rounds, done, begun = lead.rounds, lead.done, lead.begun
    placed: tuple[Placed, ...] = ()
    notes: tuple[str, ...] = ()
    if further:
        joined, placed, notes = together(rounds.contender, done.state, further, lattice, parts)
    if placed:
        rejected, rounds = rounds.rejected, Rounds(joined, parts, seed)
        rounds.rejected.update(rejected)
        done, begun = rounds.part("positions", partial(rounds.positions, joined.state)), EARLY_ROUNDS
    state, others = finished(rounds, done, begun)
    return rounds, state, (*others, *lead.rivals), placed, notes


def _require_alone(raw: RawImage, columns: int) -> None:
    """Raise InputError where a field that is fitted in tiles has further images."""
    if raw.also:
        raise InputError(
            f"{raw.path}: images fitted together must show at most {MOST_COLUMNS} lattice sites, got "
            f"{columns}; cut all of them to the same smaller part, or fit one of them alone"
        )


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
    for place, thickness in enumerate(match.other_basins(best.microscope, best.thickness)[:BASINS]):
        searched(f"imaging in basin {place}", match.about(thickness))
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
