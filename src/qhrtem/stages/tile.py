"""One tile of a large field: fitted with a roughly known lens, and brought to its end with that of the field.

Both are pure functions of what a job holds, so that they can be done anywhere (`stages.tasks`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import Microscope
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.assess import Assessed, assess
from qhrtem.stages.bordered import Factor
from qhrtem.stages.checkpoint import Parts, Reached, ReachedForm
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.start import Start
from qhrtem.stages.structure import (
    EARLY,
    LENS,
    Contender,
    Rounds,
    eligible,
    free_lens,
    neighbour_radius,
    settled,
)
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thermal import PHONON_PAIRS, corrected
from qhrtem.stages.thickness import Rival
from qhrtem.stages.watch import View

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """A tile with its part of the image and its first model."""

    name: str
    seed: int
    start: Start
    micrograph: Micrograph
    lattice: Lattice
    thickness_open: bool = True  # whether specimens a period thicker and thinner are fitted as well

    @property
    def prefix(self) -> str:
        """What the names of its parts begin with."""
        return f"{self.name} "

    def bench(self, threads: int) -> Bench:
        """Return the forward model and the misfit of the tile."""
        border = BORDER_A + self.start.microscope.delocalisation()
        model = ForwardModel(self.start.field, self.start.microscope.energy)
        return Bench(model, make_misfit(self.micrograph, self.start.field, border), threads)


@dataclass(frozen=True)
class Settled:
    """How far a tile has come before the field has agreed on a lens."""

    state: State
    covariance: Floats  # (P, P) of the refined imaging parameters, in squared steps
    rivals: tuple[Rival, ...]
    rejected: dict[str, int]  # candidates refused, by rule


def settle(job: Job, parts: Parts, threads: int) -> Settled:
    """Return a tile fitted from its first model, whose lens is roughly known."""
    bench, start = job.bench(threads), job.start

    def begin() -> Reached:
        state = State(start.columns, start.microscope)
        state = corrected(bench, state, PHONON_PAIRS[0], np.random.default_rng(0))
        near = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))
        state, changed = outline_round(bench, state, free_lens(state, EARLY), [], eligible(start), near)
        parts.log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
        return Reached(state)

    form = ReachedForm(start.columns.projection, view=View(bench, start))
    first = parts(f"{job.prefix}lens", begin, form)
    contender = Contender(bench, first.state, start, first.number, job.prefix)
    return known(*settled(job.seed, [contender], parts, job.thickness_open))


def known(rounds: Rounds, state: State, rivals: tuple[Rival, ...]) -> Settled:
    """Return a tile that has settled with what it says of the lens."""
    bench, imaging = rounds.bench, free_lens(state, LENS)
    refined = refine(bench, state, imaging, state.occupied(), 1, error_bars=True)
    rounds.log("joint", bench.chi2(refined.state), "lens of the tile")
    return Settled(refined.state, Factor(refined.precision).corner, rivals, dict(rounds.rejected))


def finish(job: Job, before: Settled, lens: Microscope, parts: Parts, threads: int) -> tuple[State, Assessed]:
    """Return a settled tile brought to its end, and its assessment; lens: of the field, with its prior."""
    contender = Contender(job.bench(threads), before.state, job.start, 0.0, job.prefix)
    rounds = Rounds(contender, parts, job.seed)
    rounds.rejected.update(before.rejected)
    state, evidence = rounds.last(replace(before.state, microscope=lens), before.rivals)
    return state, assess(rounds.bench, state, job.start, job.lattice, evidence, job.seed)
