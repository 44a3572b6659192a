"""Whole-specimen thickness: the basin that no single column can leave.

One period more or less in every column changes the image far less than in one column, because C1, vibration,
focal spread and Debye–Waller factors follow. Single-column moves therefore never cross between these basins.
Each neighbouring thickness is treated like the present one and compared by its exact cost; what
the image does not tell apart stays in the error bars. Costs compare under one draw of thermal displacements
alone, each specimen's correction computed for itself and without what its scatter costs: either is worth
hundreds of χ².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qhrtem.model.microscope import numbered, parameter
from qhrtem.specimen.rules import NeighbourStep, SurfaceEnergy
from qhrtem.stages.checkpoint import Log, Reached
from qhrtem.stages.counts import LEAST_CHI2_GAIN, count_round
from qhrtem.stages.joint import refine, total_cost
from qhrtem.stages.objective import Bench, State
from qhrtem.stages.thermal import PHONON_PAIRS, corrected_with_scatter, stale

HOPELESS = 300.0  # χ² units behind after the first round: no later one makes up for it
BEYOND_DOUBT = 30.0  # χ² units behind, of which nothing is seen in any probability
MOST_ROUNDS = 8  # of counts in a specimen of one thickness
NEARLY = 30.0  # χ² units: after a round that gains less, columns are tried farther away
MOST_PERIODS = 8  # tried in each direction; each ends where neither neighbour is better


@dataclass(frozen=True)
class Rival:
    """Another specimen that was fitted to the image, and how much worse it describes it."""

    name: str
    behind: float  # χ² units, surface energy and priors included
    counts: NDArray[np.int64] | None = None  # (C, E) atoms of its columns, None where it has other columns

    def agrees(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (C,) True where it has the same counts (C, E)."""
        if self.counts is None:
            return np.zeros(len(counts), dtype=bool)
        return np.asarray((self.counts == counts).all(1))


def shifted(state: State, periods: int) -> State:
    """Return the state with every column longer (or shorter) at its exit end by whole periods of the crystal.

    C1 follows by half the change, so that the mid-plane stays in focus.
    """
    columns = state.columns
    occupied = columns.occupied
    sites = np.array([len(k.sites) for k in columns.projection.kinds])[columns.kind]
    last = np.where(occupied, np.maximum(columns.last + periods * sites, columns.first), columns.last)
    depth = periods * columns.projection.period
    values = state.values()
    values[[numbered("c1", n) for n in range(len(state.views()))]] += depth / 2
    return replace(state.with_values(values), columns=columns.with_ends(columns.first, last))


def explore(
    bench: Bench,
    state: State,
    periods: int,
    imaging: list[int],
    surface: SurfaceEnergy,
    support: NeighbourStep,
    rejected: dict[str, int],
    target: float,
    seed: int,
) -> tuple[State, float]:
    """Return the best state found from a start `periods` thicker, and its cost with the surface energy.

    target: cost of the present basin; exploration stops early when the new one is far behind. seed: of the
    thermal displacements, the same for all that are compared. The cost is that under a thermal correction for
    the Debye–Waller scale reached, without what the scatter of its configurations adds: either would favour
    thin crystals with still atoms.
    """
    trial = state
    if periods:
        trial = refine(bench, shifted(state, periods), imaging, [], 3).state
    trial, scatter = corrected_with_scatter(bench, trial, PHONON_PAIRS[1], seed)
    cost = np.inf
    moving = trial.occupied()
    # What columns do to the image is simulated anew once an imaging parameter has moved by more than this.
    step = np.array([parameter(i).step for i in imaging])
    late, begun, far = bench.lagging(), trial, False
    for number in range(MOST_ROUNDS):
        walk = None if periods or far else np.random.default_rng([seed, 7, number])
        columns = trial.occupied()
        rules = surface, support, rejected
        done = count_round(late, trial, imaging, columns, moving, *rules, collective=walk, far=far)
        if far and done.gain < LEAST_CHI2_GAIN:
            break
        trial, moving = done.state, sorted(done.undecided)
        if done.gain < LEAST_CHI2_GAIN:
            # A step that leads too far, in lens and positions, hides moves that pay; here it is damped.
            trial = refine(late, trial, imaging, columns, 2).state
        renewed = stale(trial)
        if renewed:
            trial, scatter = corrected_with_scatter(late, trial, PHONON_PAIRS[1], seed)
        before, cost = cost, basin_cost(late, trial, imaging, surface) - scatter
        gain = before - cost
        if not renewed and cost - target > (max(gain, BEYOND_DOUBT) if number else HOPELESS):
            break
        moved = bool((np.abs(trial.values() - begun.values())[imaging] > step).any())
        # Where columns gain little site by site, a way of two sites may lead over what lies between.
        far = not renewed and gain < NEARLY
        if renewed or moved:
            late, begun = bench.lagging(), trial
    return trial, cost


def basin_cost(bench: Bench, state: State, imaging: list[int], surface: SurfaceEnergy) -> float:
    """Return the cost by which basins are compared: likelihood, priors and surface energy."""
    return total_cost(bench, state, imaging) + surface.cost(state.columns)


def other_thicknesses(
    bench: Bench,
    state: State,
    imaging: list[int],
    surface: SurfaceEnergy,
    support: NeighbourStep,
    rejected: dict[str, int],
    seed: int,
    part: Callable[[str, partial[Reached]], Reached],
    log: Log,
    neighbours: bool = True,
) -> tuple[State, tuple[Rival, ...]]:
    """Return the best state among thicker and thinner specimens, and the others as its rivals.

    Both neighbours are fitted before one is chosen: a state that has not converged loses against either.
    seed: of the thermal displacements; part: gives what a named part reaches, computed or remembered;
    neighbours: False where the thickness is known, so that the state is only brought to rest.
    """

    def explored(start: Reached, direction: int) -> Reached:
        target = start.number if direction else np.inf
        trial, value = explore(
            bench, start.state, direction, imaging, surface, support, rejected, target, seed
        )
        note = "thermal diffuse intensity renewed"
        if direction:
            note = f"{'thicker' if direction > 0 else 'thinner'} by a period: Δχ² {value - start.number:+.0f}"
        log("counts", bench.chi2(trial), note)
        return Reached(trial, value)

    tried = {0: part("thickness", partial(explored, Reached(state), 0))}  # by periods more than the first
    place = 0
    directions: tuple[int, ...] = (1, -1) if neighbours else ()
    for number in range(MOST_PERIODS):
        for direction in directions:
            name = f"thickness {number} {direction:+d}"
            tried[place + direction] = part(name, partial(explored, tried[place], direction))
        best = min(tried, key=lambda n: tried[n].number)
        if best == place:
            break
        directions, place = (best - place,), best
    chosen = tried[place]
    period = chosen.state.columns.projection.period
    rivals = [
        Rival(
            f"{abs(n - place) * period:.1f} Å {'thicker' if n > place else 'thinner'}",
            other.number - chosen.number,
            other.state.columns.element_counts(),
        )
        for n, other in tried.items()
        if n != place
    ]
    return chosen.state, tuple(rivals)
