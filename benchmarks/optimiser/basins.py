"""Where single descents of imaging-22 end: python -m optimiser.basins --help.

Least squares from Sobol points, the thickness held while the rest converges and then moved to its best level,
until it stays. What ends have in common says how a search must leave them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimiser.problem import Floats, oracle
from optimiser.reference import ENERGY
from optimiser.repeated import INDEX, Imaging22, imaging22, settings
from qhrtem.optimise.least_squares import levenberg_marquardt
from qhrtem.physics.aberrations import chi

FIRST_SEED = 1000  # none of these is reported in the table of methods
REFLECTIONS = 13  # strongest of the exit wave
SETTLED = 1e-4  # relative decrease of the cost at which a descent has arrived
SAME_LENS = 0.05  # of 2π: rms aberration phase at the reflections below which two lenses are one


@dataclass(frozen=True)
class End:
    """Where one descent came to rest."""

    excess: float  # reduced χ² above the good target
    thickness: int  # slices from the truth
    phase: float  # rms difference of the aberration phase from the truth's over the reflections, 2π
    at_bound: int  # parameters on a bound


def descend(problem: Imaging22, start: Floats, target: float) -> End:
    """Return the end of the descent from one point."""
    low, high, x = problem.space.low, problem.space.high, start.copy()
    free = np.arange(len(x)) != INDEX["thickness"]

    def model(v: Floats) -> tuple[Floats, Floats]:
        found = problem.evaluate(v, "jacobian")
        assert found.residual is not None and found.jacobian is not None
        return found.residual, np.where(free, found.jacobian, 0.0)

    while True:
        lower, upper = np.where(free, low, x), np.where(free, high, x)
        fit = levenberg_marquardt(
            model, x, lower=lower, upper=upper, max_evaluations=60, cost_tolerance=SETTLED
        )
        x, levels = fit.x.copy(), problem.evaluate(fit.x, "levels").levels
        assert levels is not None
        best = int(levels.argmin()) + 1
        if best == round(x[0]) or levels.min() > 2 * fit.data_cost * (1 - SETTLED):
            break
        x[0] = best
    wave = problem.cell.spectrum((0.0, 0.0), 1.0, round(problem.truth[0])).abs().ravel()
    strong = wave.argsort(descending=True)[:REFLECTIONS]
    phases = [
        chi(problem.cell.grid, ENERGY, settings(v)["aberrations"]).ravel()[strong] for v in (x, problem.truth)
    ]
    turns = ((phases[0] - phases[1]) / (2 * np.pi)).numpy()
    on = free & ((x <= low) | (x >= high))
    excess = (2 * fit.data_cost - target) / problem.pixels
    return End(excess, round(x[0] - problem.truth[0]), float(np.sqrt((turns**2).mean())), int(on.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--starts", type=int, default=12)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    ends: list[End] = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        problem = imaging22(seed)
        target = oracle(problem) + problem.space.dimension
        starts = problem.space.sobol(options.starts, np.random.default_rng(seed))
        ends += [descend(problem, s, target) for s in starts]
    text = said(ends, options.seeds)
    print(text)
    if options.write:
        options.write.write_text(text + "\n", "utf-8")


def said(ends: list[End], truths: int) -> str:
    """Return what the ends have in common, in a sentence or two."""
    solved = [e for e in ends if e.excess <= 0]
    missed = [e for e in ends if e.excess > 0]
    right = sum(e.phase < SAME_LENS for e in missed)
    thick = sum(e.thickness != 0 for e in missed)
    bound = sum(e.at_bound > 0 for e in missed)
    twins = sum(e.phase < SAME_LENS and e.thickness != 0 for e in missed)
    return (
        f"{len(solved)} of {len(ends)} single descents ({truths} truths) reach the good target. Of the other "
        f"{len(missed)}, {thick} end at a wrong thickness, {bound} with a parameter on a bound, and {right} "
        "with the lens right at the strong reflections (aberration phase within "
        f"{SAME_LENS:g} of 2π, rms), {twins} of these at a wrong thickness."
    )


if __name__ == "__main__":
    main()
