"""The stages of a fit: calibrate, imaging, counts, positions, surfaces, joint; micrograph in, twin out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from qhrtem.calibrate.area import foreign_area
from qhrtem.calibrate.intensity import SQUARE, mean_pitch, normalise, planned_pitch
from qhrtem.calibrate.lattice import Lattice, register
from qhrtem.errors import InputError, QualityError
from qhrtem.model.diffuse import diffuse_image
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import INDEX
from qhrtem.model.twin import Step, Twin
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.counts import LEAST_CHI2_GAIN, count_round
from qhrtem.stages.imaging import CellAverages, Hypothesis, cell_averages, rank_orientations, search
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.result import Evidence, make_twin
from qhrtem.stages.start import Start, planned_microscope, start_field
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thickness import basin_cost, explore

Report = Callable[[Step], None]

# Freed first: what an image of a roughly right structure determines. The Debye–Waller scale, C3 and the focal
# spread trade against thickness; freed while atoms are missing, they absorb the lack and lead into a wrong
# basin.
EARLY = (
    *("c1", "a1_x", "a1_y", "b2_x", "b2_y", "a2_x", "a2_y"),
    *("vibration_xx", "vibration_yy", "vibration_xy", "tilt_x", "tilt_y"),
)
LENS = (
    *(*EARLY, "c3", "s3_x", "s3_y", "a3_x", "a3_y"),
    *("focal_spread", "semi_convergence", "b_scale", "scale"),
)
EARLY_ROUNDS = 2
SHIFT = ("shift_x", "shift_y")
TRIALS = 96  # simulations of the global search over imaging parameters, for each orientation
TIE = 1.3  # orientations within this factor of the best misfit are kept until the whole field decides
PHONON_PAIRS = (3, 6, 8)  # frozen-phonon pairs of the first, middle and last thermal correction
COUNT_ROUNDS = 10
BORDER_A = 1.5  # rim of the image left out of the misfit: columns beyond the image disturb it
MOST_PERIODS = 3  # tried in each direction
USUAL_ROUNDS = 7  # for the estimate of the time left


@dataclass
class _Log:
    """Sends progress to the caller with the time since the start."""

    report: Report
    begin: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    done: float = 0.0  # estimated share of the work finished

    def __call__(self, stage: str, chi2: float, note: str = "") -> None:
        number = self.numbers.get(stage, 0)
        self.numbers[stage] = number + 1
        step = Step(stage, number, float(chi2), time.monotonic() - self.begin, note, self.done)
        self.steps.append(step)
        self.report(step)


def fit_image(plan: Plan, raw: RawImage, crystal: Crystal, progress: Report = lambda step: None) -> Twin:
    """Return the digital twin of one micrograph.

    Raises `InputError` when the image cannot be used and `QualityError` when no model of this crystal
    describes it.
    """
    log = _Log(progress)
    projection = project(crystal, plan.structure.zone_axis)
    with torch.inference_mode():
        micrograph, lattice = calibrate(plan, raw, projection, log)
        averages, hypotheses = imaging(plan, micrograph, lattice, projection, log)
        bench, state, start, others = choose(micrograph, lattice, projection, averages, hypotheses, log)
        state, evidence = structure(plan, bench, state, start, log)
        notes = (*crystal.notes, *micrograph.notes, *lattice.notes, *_assumed(plan, raw), *others)
        return make_twin(plan, bench, state, start, lattice, micrograph, evidence, tuple(log.steps), notes)


def calibrate(plan: Plan, raw: RawImage, projection: Projection, log: _Log) -> tuple[Micrograph, Lattice]:
    """Return the image on the absolute scale and the lattice in it."""
    stated = stated_pixel(plan, raw)
    micrograph = normalise(raw, plan.image, mean_pitch(stated))
    lattice = register(micrograph.intensity, micrograph.valid, stated, projection, raw.path)
    foreign = foreign_area(micrograph, lattice.crystal, lattice.pixel_size_A)
    if foreign.any():
        note = f"{100 * foreign.mean():.1f} % of the image is neither lattice nor vacuum and is left out."
        micrograph = replace(
            micrograph, valid=micrograph.valid & ~foreign, notes=(*micrograph.notes, note)
        )
    against = ""
    if stated is not None:
        against = f" ({100 * (lattice.pixel_size_A / mean_pitch(stated) - 1):+.2f} %)"
    log.done = 0.04
    log(
        "calibrate",
        float("nan"),
        f"pixel {lattice.pixel_size_A:.4f} Å{against}, "
        f"rotation {lattice.rotation_deg:.2f}°, {100 * lattice.crystal.mean():.0f} % crystal",
    )
    return micrograph, lattice


def stated_pixel(plan: Plan, raw: RawImage) -> tuple[float, float] | None:
    """Return the (row, col) pixel pitch in Å that the plan or else the file states, None where neither does.

    Raises InputError where a fit cannot use the pixels: the lens is simulated on square ones.
    """
    stated = planned_pitch(plan.image, raw)
    if stated is not None and abs(stated[0] / stated[1] - 1) > SQUARE:
        raise InputError(
            f"{raw.path}: pixels must be square for a fit, the file states {stated[0]:g} × {stated[1]:g} Å; "
            "resample the image first"
        )
    return stated


def imaging(
    plan: Plan, micrograph: Micrograph, lattice: Lattice, projection: Projection, log: _Log
) -> tuple[CellAverages, list[Hypothesis]]:
    """Return repeated-cell averages and the orientations that describe them, each with its best lens."""
    microscope = planned_microscope(plan, micrograph.scale_sigma)
    averages = cell_averages(micrograph, lattice, lattice.pixel_size_A)
    ranked = rank_orientations(averages, projection, lattice, microscope)
    log.done = 0.07
    log("imaging", ranked[0][0], f"{len(ranked)} orientations, C1 scanned")
    found: list[Hypothesis] = []
    for misfit, match in ranked[:4]:
        if misfit > 2.0 * ranked[0][0]:
            break
        found.append(
            search(
                match, microscope, plan.run.seed, TRIALS, lambda n, best: log("imaging", best, f"trial {n}")
            )
        )
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
    log: _Log,
) -> tuple[Bench, State, Start, tuple[str, ...]]:
    """Return the whole-field model of the orientation that the field prefers, its lens refined."""
    results = []
    for hypothesis in hypotheses:
        start = start_field(micrograph, lattice, projection, averages, hypothesis)
        model = ForwardModel(start.field, start.microscope.energy)
        border = BORDER_A + start.microscope.delocalisation()
        bench = Bench(model, make_misfit(micrograph, start.field, border), os.cpu_count() or 1)
        state = State(start.columns, start.microscope)
        state = corrected(bench, state, PHONON_PAIRS[0], np.random.default_rng(0))
        log("lens", bench.chi2(state), "first model of the field")
        state, cost = first_lens(bench, state, start, log)
        results.append((cost, bench, state, start))
    results.sort(key=lambda r: r[0])
    notes = []
    if len(results) > 1:
        notes.append(
            f"{len(results)} orientations of the crystal were compared on the whole field; the other one "
            f"fits worse by Δχ² = {results[1][0] - results[0][0]:.0f}."
        )
    _, bench, state, start = results[0]
    return bench, state, start, tuple(notes)


def first_lens(bench: Bench, state: State, start: Start, log: _Log) -> tuple[State, float]:
    """Return the state with lens and outline fitted to a structure of smooth thickness, and its cost."""
    free = _free(state, (*EARLY, *SHIFT))
    neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))

    def note(s: State, cost: float) -> None:
        log("lens", bench.chi2(s))

    state = refine(bench, state, free, [], 4, report=note).state
    state, changed = outline_round(bench, state, _free(state, EARLY), [], eligible(start), neighbours)
    log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
    refined = refine(bench, state, free, [], 2, report=note)
    return refined.state, refined.cost


def eligible(start: Start) -> set[int]:
    """Return the columns that the image shows and that may therefore appear or vanish."""
    return {int(c) for c in np.flatnonzero(start.eligible)}


def corrected(bench: Bench, state: State, pairs: int, generator: np.random.Generator) -> State:
    """Return the state with its thermal diffuse correction computed anew."""
    diffuse = diffuse_image(bench.model, state.columns, state.microscope, pairs, generator, bench.workers)
    return replace(state, diffuse=diffuse)


def _free(state: State, names: tuple[str, ...]) -> list[int]:
    return [INDEX[n] for n in names if state.microscope.sigma[INDEX[n]] > 0]


def structure(plan: Plan, bench: Bench, state: State, start: Start, log: _Log) -> tuple[State, Evidence]:
    """Return the fitted state: counts, positions and surfaces alternate until no move is an improvement."""
    generator = np.random.default_rng([plan.run.seed, 1])
    neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))
    surface = SurfaceEnergy(neighbours)
    support = NeighbourStep(neighbours, 6.0)
    rejected: dict[str, int] = {}

    log.done = 0.25
    state = refine(bench, state, _free(state, EARLY), state.occupied(), 1).state
    log("positions", bench.chi2(state))
    for number in range(COUNT_ROUNDS):
        log.done = 0.3 + 0.45 * min(number / USUAL_ROUNDS, 1.0)
        lens = _free(state, EARLY if number < EARLY_ROUNDS else LENS)
        done = count_round(bench, state, lens, state.occupied(), state.occupied(), surface, support, rejected)
        state = done.state
        log("counts", bench.chi2(state), f"{done.changed} columns changed")
        if number in (0, 1, 3):
            state, changed = outline_round(bench, state, lens, state.occupied(), eligible(start), neighbours)
            log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
        if number in (0, 2):
            state = corrected(bench, state, PHONON_PAIRS[min(number, 1)], generator)
            log("counts", bench.chi2(state), "thermal diffuse intensity renewed")
        elif number > 2 and done.gain < LEAST_CHI2_GAIN:
            break
    lens = _free(state, LENS)
    log.done = 0.75
    state, behind = other_thicknesses(bench, state, lens, surface, support, rejected, log)
    log.done = 0.9
    state = corrected(bench, state, PHONON_PAIRS[2], generator)
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
    rejected: dict[str, int],
    log: _Log,
) -> tuple[State, tuple[float, ...]]:
    """Return the best state among thicker and thinner specimens, and how far (χ²) the others are behind.

    Both neighbours are fitted before one is chosen: a state that has not converged loses against either.
    """
    cost = basin_cost(bench, state, lens, surface)
    behind: list[float] = []
    directions: tuple[int, ...] = (1, -1)
    for _ in range(MOST_PERIODS):
        tried = []
        for direction in directions:
            trial, value = explore(bench, state, direction, lens, surface, support, rejected, cost)
            note = f"{'thicker' if direction > 0 else 'thinner'} by a period: Δχ² {value - cost:+.0f}"
            log("counts", bench.chi2(trial), note)
            tried.append((value, direction, trial))
        value, direction, trial = min(tried, key=lambda t: t[0])
        behind += [max(value, other) - min(value, cost) for other, *_ in tried if other != value]
        behind.append(abs(value - cost))
        if value >= cost:
            break
        state, cost, directions = trial, value, (direction,)
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
