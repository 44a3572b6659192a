"""The stages of a fit: calibrate, imaging, counts, positions, surfaces, joint; micrograph in, twin out."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.area import foreign_area
from qhrtem.calibrate.intensity import mean_pitch, normalise
from qhrtem.calibrate.lattice import Lattice, register
from qhrtem.errors import QualityError
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.twin import Twin
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.checkpoint import (
    Forgetful,
    HypothesisForm,
    LatticeForm,
    Log,
    Memory,
    Parts,
    RankingForm,
    Reached,
    ReachedForm,
    Report,
)
from qhrtem.stages.imaging import (
    CellAverages,
    CellMatch,
    Hypothesis,
    cell_averages,
    rank_orientations,
    search,
)
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.result import make_twin
from qhrtem.stages.start import Start, planned_microscope, start_field, stated_pixel
from qhrtem.stages.structure import (
    EARLY,
    PHONON_PAIRS,
    Contender,
    corrected,
    eligible,
    free_lens,
    neighbour_radius,
    structure,
)
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thickness import HOPELESS
from qhrtem.stages.watch import View, lens_sigma

Floats = NDArray[np.float64]

SHIFT = ("shift_x", "shift_y")
TRIALS = 96  # simulations of the global search over imaging parameters, for each orientation
TIE = 2.0  # hypotheses within this factor of the best misfit are kept until the whole field decides
ORIGINS = 3  # other places of the crystal that are tried
MOST_CONTENDERS = 4  # hypotheses that are compared on the whole field
BORDER_A = 1.5  # rim of the image left out of the misfit: columns beyond the image disturb it


def fit_image(
    plan: Plan,
    raw: RawImage,
    crystal: Crystal,
    progress: Report = lambda step: None,
    memory: Memory | None = None,
) -> Twin:
    """Return the digital twin of one micrograph.

    memory: keeps finished parts; those that it holds already are not computed again. Raises `InputError` when
    the image cannot be used and `QualityError` when no model of this crystal describes it.
    """
    log = Log(progress)
    parts = Parts(memory or Forgetful(), log)
    projection = project(crystal, plan.structure.zone_axis)
    with torch.inference_mode():
        micrograph, lattice = calibrate(plan, raw, projection, parts)
        averages, hypotheses = imaging(plan, micrograph, lattice, projection, parts)
        contenders, others = choose(micrograph, lattice, projection, averages, hypotheses, parts)
        winner, state, evidence = structure(plan.run.seed, contenders, parts)
        notes = (*crystal.notes, *micrograph.notes, *lattice.notes, *_assumed(plan, raw), *others)
        steps = tuple(log.steps)
        return make_twin(plan, winner.bench, state, winner.start, lattice, micrograph, evidence, steps, notes)


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
    foreign = foreign_area(micrograph, lattice.crystal, lattice.pixel_size_A)
    if foreign.any():
        note = f"{100 * foreign.mean():.1f} % of the image is neither lattice nor vacuum and is left out."
        micrograph = replace(micrograph, valid=micrograph.valid & ~foreign, notes=(*micrograph.notes, note))
    return micrograph, lattice


def imaging(
    plan: Plan, micrograph: Micrograph, lattice: Lattice, projection: Projection, parts: Parts
) -> tuple[CellAverages, list[Hypothesis]]:
    """Return repeated-cell averages and the orientations that describe them, each with its best lens."""
    log = parts.log
    microscope = planned_microscope(plan, micrograph.scale_sigma)
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


def choose(
    micrograph: Micrograph,
    lattice: Lattice,
    projection: Projection,
    averages: CellAverages,
    hypotheses: list[Hypothesis],
    parts: Parts,
) -> tuple[list[Contender], tuple[str, ...]]:
    """Return the hypotheses that the whole field leaves open, best first, lens refined; and notes on all."""
    every = []
    starts = [start_field(micrograph, lattice, projection, averages, h) for h in hypotheses]
    border = BORDER_A + max(s.microscope.delocalisation() for s in starts)  # one, so that costs compare
    for place, start in enumerate(starts):
        model = ForwardModel(start.field, start.microscope.energy)
        bench = Bench(model, make_misfit(micrograph, start.field, border), os.cpu_count() or 1)
        job = partial(first_lens, bench, start, parts.log)
        first = parts(f"lens {place}", job, ReachedForm(projection, view=View(bench, start)))
        name = f"({place + 1}) " if place else ""
        every.append(Contender(bench, first.state, start, first.number, name))
    every.sort(key=lambda c: c.cost)
    best = every[0]
    # What the best leaves unexplained, it leaves because its structure is smooth: another may gain that.
    unexplained = max(best.bench.chi2(best.state) - 1.0, 0.0) * best.bench.misfit.pixels
    notes = tuple(
        f"{len(every)} ways for the crystal to lie in the image were compared on the whole field, lens and "
        f"smooth thickness fitted; the next best is worse by Δχ² = {c.cost - best.cost:.0f}."
        for c in every[1:2]
    )
    return [c for c in every if c.cost - best.cost <= max(HOPELESS, unexplained)], notes


def first_lens(bench: Bench, start: Start, log: Log) -> Reached:
    """Return the state with lens and outline fitted to a structure of smooth thickness, and its cost."""
    state = State(start.columns, start.microscope)
    state = corrected(bench, state, PHONON_PAIRS[0], np.random.default_rng(0))
    log("lens", bench.chi2(state), "first model of the field")
    free = free_lens(state, (*EARLY, *SHIFT))
    neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))

    def note(s: State, cost: float) -> None:
        log("lens", bench.chi2(s))

    state = refine(bench, state, free, [], 4, report=note).state
    state, changed = outline_round(bench, state, free_lens(state, EARLY), [], eligible(start), neighbours)
    log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
    refined = refine(bench, state, free, [], 2, report=note)
    return Reached(refined.state, refined.cost, lens_sigma=lens_sigma(free, refined.lens_sigma()))


def _assumed(plan: Plan, raw: RawImage) -> tuple[str, ...]:
    out = []
    if plan.image.mtf is None:
        out.append("No MTF was given; a perfect detector was assumed, which inflates the vibration.")
    if plan.microscope.c3_um is None:
        out.append("C3 was not given; -15 ± 1 µm was assumed.")
    if plan.microscope.focal_spread_nm is None:
        out.append("The focal spread was not given; 3.0 ± 0.3 nm was assumed.")
    if plan.microscope.semi_convergence_mrad is None:
        out.append("The semi-convergence was not given; 0.3 ± 0.1 mrad was assumed.")
    if plan.image.pixel_size_A is None and raw.pixel_size_A is not None:
        out.append(f"The pixel size was taken from the file ({raw.path}) as a starting value.")
    return tuple(out)
