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
from qhrtem.model.diffuse import diffuse_image
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import INDEX
from qhrtem.model.twin import Twin
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
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
from qhrtem.stages.counts import LEAST_CHI2_GAIN, TILTS, count_round
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
from qhrtem.stages.result import Evidence, make_twin
from qhrtem.stages.start import Start, planned_microscope, start_field, stated_pixel
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thickness import basin_cost, explore

Floats = NDArray[np.float64]

# Freed first: what an image of a roughly right structure determines. The Debye–Waller scale, C3 and the focal
# spread trade against thickness; freed while atoms are missing, they absorb the lack and lead into a wrong
# basin. The mistilt trades against which end of each column the missing atoms are at: freed before the counts
# are settled it runs away by many mrad, and the ends then settle around it.
EARLY = (
    *("c1", "a1_x", "a1_y", "b2_x", "b2_y", "a2_x", "a2_y"),
    *("vibration_xx", "vibration_yy", "vibration_xy"),
)
LENS = (
    *(*EARLY, *TILTS, "c3", "s3_x", "s3_y", "a3_x", "a3_y"),
    *("focal_spread", "semi_convergence", "b_scale", "scale"),
)
EARLY_ROUNDS = 2
SETTLED_ROUNDS = 4  # from here on the outline stays and only undecided columns are looked at
SHIFT = ("shift_x", "shift_y")
TRIALS = 96  # simulations of the global search over imaging parameters, for each orientation
TIE = 1.3  # orientations within this factor of the best misfit are kept until the whole field decides
PHONON_PAIRS = (3, 6, 8)  # frozen-phonon pairs of the first, middle and last thermal correction
COUNT_ROUNDS = 10
BORDER_A = 1.5  # rim of the image left out of the misfit: columns beyond the image disturb it
MOST_PERIODS = 3  # tried in each direction
USUAL_ROUNDS = 7  # for the estimate of the time left


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
        bench, state, start, others = choose(micrograph, lattice, projection, averages, hypotheses, parts)
        state, evidence = structure(plan, bench, state, start, parts)
        notes = (*crystal.notes, *micrograph.notes, *lattice.notes, *_assumed(plan, raw), *others)
        return make_twin(plan, bench, state, start, lattice, micrograph, evidence, tuple(log.steps), notes)


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
    found: list[Hypothesis] = []
    for place, (misfit, symmetry) in enumerate(ranked[:4]):
        if misfit > 2.0 * ranked[0][0]:
            break
        name = f"imaging {place}"
        match = CellMatch(averages, projection, lattice.frame * averages.pixel_A, symmetry, microscope.energy)
        job = partial(
            search,
            match,
            microscope,
            plan.run.seed,
            TRIALS,
            lambda n, best: log("imaging", best, f"trial {n}"),
            partial(parts.memory.trial, name),
        )
        found.append(parts(name, job, HypothesisForm()))
    found.sort(key=lambda h: h.misfit)
    log.done = 0.17
    if found[0].misfit > 0.6:
        raise QualityError(
            f"no lens and thickness explain the image as {projection.crystal.name} along "
            f"{list(projection.zone)}: {100 * found[0].misfit:.0f} % of the lattice contrast is left over; "
            "check CIF, zone axis and vacuum level"
        )
    return averages, [h for h in found if h.misfit < TIE * found[0].misfit]


def choose(
    micrograph: Micrograph,
    lattice: Lattice,
    projection: Projection,
    averages: CellAverages,
    hypotheses: list[Hypothesis],
    parts: Parts,
) -> tuple[Bench, State, Start, tuple[str, ...]]:
    """Return the whole-field model of the orientation that the field prefers, its lens refined."""
    results = []
    for place, hypothesis in enumerate(hypotheses):
        start = start_field(micrograph, lattice, projection, averages, hypothesis)
        model = ForwardModel(start.field, start.microscope.energy)
        border = BORDER_A + start.microscope.delocalisation()
        bench = Bench(model, make_misfit(micrograph, start.field, border), os.cpu_count() or 1)
        job = partial(first_lens, bench, start, parts.log)
        first = parts(f"lens {place}", job, ReachedForm(projection))
        results.append((first.number, bench, first.state, start))
    results.sort(key=lambda r: r[0])
    notes = []
    if len(results) > 1:
        notes.append(
            f"{len(results)} orientations of the crystal were compared on the whole field; the other one "
            f"fits worse by Δχ² = {results[1][0] - results[0][0]:.0f}."
        )
    _, bench, state, start = results[0]
    return bench, state, start, tuple(notes)


def first_lens(bench: Bench, start: Start, log: Log) -> Reached:
    """Return the state with lens and outline fitted to a structure of smooth thickness, and its cost."""
    state = State(start.columns, start.microscope)
    state = corrected(bench, state, PHONON_PAIRS[0], np.random.default_rng(0))
    log("lens", bench.chi2(state), "first model of the field")
    free = _free(state, (*EARLY, *SHIFT))
    neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))

    def note(s: State, cost: float) -> None:
        log("lens", bench.chi2(s))

    state = refine(bench, state, free, [], 4, report=note).state
    state, changed = outline_round(bench, state, _free(state, EARLY), [], eligible(start), neighbours)
    log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
    refined = refine(bench, state, free, [], 2, report=note)
    return Reached(refined.state, refined.cost)


def eligible(start: Start) -> set[int]:
    """Return the columns that the image shows and that may therefore appear or vanish."""
    return {int(c) for c in np.flatnonzero(start.eligible)}


def corrected(bench: Bench, state: State, pairs: int, generator: np.random.Generator) -> State:
    """Return the state with its thermal diffuse correction computed anew."""
    diffuse = diffuse_image(bench.model, state.columns, state.microscope, pairs, generator, bench.workers)
    return replace(state, diffuse=diffuse)


def _free(state: State, names: tuple[str, ...]) -> list[int]:
    return [INDEX[n] for n in names if state.microscope.sigma[INDEX[n]] > 0]


def structure(plan: Plan, bench: Bench, state: State, start: Start, parts: Parts) -> tuple[State, Evidence]:
    """Return the fitted state: counts, positions and surfaces alternate until no move is an improvement."""
    log = parts.log
    generator = np.random.default_rng([plan.run.seed, 1])
    neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))
    surface = SurfaceEnergy(neighbours)
    support = NeighbourStep(neighbours, 6.0)
    rejected: dict[str, int] = {}
    form = ReachedForm(state.columns.projection, rejected, generator)

    def positions(state: State) -> Reached:
        state = refine(bench, state, _free(state, EARLY), state.occupied(), 1).state
        log("positions", bench.chi2(state))
        return Reached(state)

    def counts(state: State, lens: list[int], moving: list[int]) -> Reached:
        every = state.occupied()
        done = count_round(bench, state, lens, every, moving, surface, support, rejected, collective=True)
        log("counts", bench.chi2(done.state), f"{done.changed} columns changed")
        return Reached(done.state, done.gain, tuple(sorted(done.undecided)))

    def outline(state: State, lens: list[int]) -> Reached:
        state, changed = outline_round(bench, state, lens, state.occupied(), eligible(start), neighbours)
        log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
        return Reached(state)

    def thermal(state: State, pairs: int, stage: str) -> Reached:
        state = corrected(bench, state, pairs, generator)
        log(stage, bench.chi2(state), "thermal diffuse intensity renewed")
        return Reached(state)

    log.done = 0.25
    state = parts("positions", partial(positions, state), form).state
    done = Reached(state)
    for number in range(COUNT_ROUNDS):
        log.done = 0.3 + 0.45 * min(number / USUAL_ROUNDS, 1.0)
        lens = _free(state, EARLY if number < EARLY_ROUNDS else LENS)
        moving = list(done.undecided) if number >= SETTLED_ROUNDS else state.occupied()
        done = parts(f"counts {number}", partial(counts, state, lens, moving), form)
        state = done.state
        if number in (0, 1, 3):
            state = parts(f"surfaces {number}", partial(outline, state, lens), form).state
        if number in (0, 2):
            pairs = PHONON_PAIRS[min(number, 1)]
            state = parts(f"thermal {number}", partial(thermal, state, pairs, "counts"), form).state
        elif number > 2 and done.number < LEAST_CHI2_GAIN:
            break
    lens = _free(state, LENS)
    log.done = 0.75
    state, behind = other_thicknesses(bench, state, lens, surface, support, form, parts)
    log.done = 0.9
    state = parts("thermal last", partial(thermal, state, PHONON_PAIRS[2], "joint"), form).state
    refined = refine(bench, state, lens, state.occupied(), 2, report=lambda s, c: log("joint", bench.chi2(s)))
    state = refined.state
    final = count_round(bench, state, lens, state.occupied(), state.occupied(), surface, support, rejected)
    log.done = 1.0
    log("joint", bench.chi2(final.state), f"{final.changed} columns changed")
    return final.state, Evidence(lens, refined, final, surface, support, rejected, behind)


def other_thicknesses(
    bench: Bench,
    state: State,
    lens: list[int],
    surface: SurfaceEnergy,
    support: NeighbourStep,
    form: ReachedForm,
    parts: Parts,
) -> tuple[State, tuple[float, ...]]:
    """Return the best state among thicker and thinner specimens, and how far (χ²) the others are behind.

    Both neighbours are fitted before one is chosen: a state that has not converged loses against either.
    """
    cost = basin_cost(bench, state, lens, surface)
    behind: list[float] = []
    directions: tuple[int, ...] = (1, -1)

    def explored(state: State, direction: int, cost: float) -> Reached:
        trial, value = explore(bench, state, direction, lens, surface, support, form.rejected, cost)
        note = f"{'thicker' if direction > 0 else 'thinner'} by a period: Δχ² {value - cost:+.0f}"
        parts.log("counts", bench.chi2(trial), note)
        return Reached(trial, value)

    for number in range(MOST_PERIODS):
        tried = []
        for direction in directions:
            name = f"thickness {number} {direction:+d}"
            trial = parts(name, partial(explored, state, direction, cost), form)
            tried.append((trial.number, direction, trial.state))
        value, direction, best = min(tried, key=lambda t: t[0])
        behind += [max(value, other) - min(value, cost) for other, *_ in tried if other != value]
        behind.append(abs(value - cost))
        if value >= cost:
            break
        state, cost, directions = best, value, (direction,)
    return state, tuple(behind)


def neighbour_radius(projection: Projection) -> float:
    """Return a distance (Å) that reaches the first shell of neighbouring columns and little more."""
    points = np.array([k.fractional for k in projection.kinds]) @ projection.vectors
    cells = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)]) @ projection.vectors
    every = (points[:, None] + cells[None]).reshape(-1, 2)
    nearest = [np.sort(np.linalg.norm(every - p, axis=1))[1:5].mean() for p in points]
    return 1.25 * float(np.max(nearest))


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
