"""Contenders: the ways for the crystal to lie in the image that a lens fitted to the field leaves open."""

from __future__ import annotations

import os
from functools import partial

import numpy as np

from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.checkpoint import Log, Parts, Reached, ReachedForm
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.start import Start
from qhrtem.stages.structure import (
    EARLY,
    SHIFT,
    Contender,
    eligible,
    free_lens,
    neighbour_radius,
)
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thermal import PHONON_PAIRS, corrected
from qhrtem.stages.thickness import HOPELESS
from qhrtem.stages.watch import View, lens_sigma

BORDER_A = 1.5  # rim of the image left out of the misfit: columns beyond the image disturb it


def choose(
    micrograph: Micrograph, starts: list[Start], parts: Parts, prefix: str = ""
) -> tuple[list[Contender], tuple[str, ...]]:
    """Return the starts that the field leaves open, best first, lens refined; and notes on all.

    starts: one for each hypothesis; prefix: of the names of their parts.
    """
    every = []
    border = BORDER_A + max(s.microscope.delocalisation() for s in starts)  # one, so that costs compare
    for place, start in enumerate(starts):
        model = ForwardModel(start.field, start.microscope.energy)
        bench = Bench(model, make_misfit(micrograph, start.field, border), os.cpu_count() or 1)
        job = partial(first_lens, bench, start, parts.log)
        form = ReachedForm(start.columns.projection, view=View(bench, start))
        first = parts(f"{prefix}lens {place}", job, form)
        name = f"{prefix}({place + 1}) " if place else prefix
        every.append(Contender(bench, first.state, start, first.number, name, place))
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
