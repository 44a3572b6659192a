"""Structure: counts, positions and surfaces alternate until no move is an improvement.

Ways for the crystal to lie in the image that its smooth model cannot tell apart go through the first rounds
side by side; the best goes on, and the others stay as rivals that lessen what is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qhrtem.model.microscope import SPECIMEN, numbered
from qhrtem.specimen.crystal import Projection
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.assess import Evidence
from qhrtem.stages.checkpoint import Parts, Reached, ReachedForm
from qhrtem.stages.counts import TILTS, count_round
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, white_noise
from qhrtem.stages.start import Start
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thermal import PHONON_PAIRS, corrected, pooled, stale
from qhrtem.stages.thickness import Rival, basin_cost, other_thicknesses
from qhrtem.stages.watch import View, lens_sigma

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
SHIFT = ("shift_x", "shift_y")  # of a further image against the first, which says where positions count from
EARLY_ROUNDS = 2
ROUNDS = 3  # that move the outline as well; what is left to settle, `thickness.explore` does
# What a bond of the surface energy is worth in these rounds, over what makes the present roughness usual.
# Columns still wrong make a structure rougher than its specimen; a bond learned from it keeps them so.
SMOOTH_FIRST = 1.6
NOISE_DRAWS = 8  # of white noise, whose mean says what a perfect model would leave
STEEPEST_A = 6.0  # a surface does not jump by more between neighbours


@dataclass(frozen=True)
class Contender:
    """One way for the crystal to lie in the image, its lens fitted to a structure of smooth thickness."""

    bench: Bench
    state: State
    start: Start
    cost: float  # χ² units
    name: str = ""  # of its parts, empty for the only one
    place: int = 0  # which of the hypotheses it came from


@dataclass
class Rounds:
    """The rounds that find the structure of one contender, each a part that is computed once."""

    contender: Contender
    parts: Parts
    seed: int

    def __post_init__(self) -> None:
        self.bench, self.start, self.log = self.contender.bench, self.contender.start, self.parts.log
        columns = self.contender.state.columns
        self.neighbours = Neighbours.within(columns, neighbour_radius(columns.projection))
        self.support = NeighbourStep(self.neighbours, STEEPEST_A)
        self.energy = SurfaceEnergy(Neighbours.within(columns, terrace_radius(columns.projection)))
        self.rejected: dict[str, int] = {}
        self.generator = np.random.default_rng([self.seed, 1])
        view = View(self.bench, self.start)
        self.form = ReachedForm(columns.projection, self.rejected, self.generator, view)
        self.eligible = eligible(self.start)

    def part(self, name: str, make: partial[Reached]) -> Reached:
        """Return what a part reaches, computed or remembered."""
        return self.parts(f"{self.contender.name}{name}", make, self.form)

    def surface(self, state: State) -> SurfaceEnergy:
        """Return the surface energy for a specimen as rough as it has turned out to be."""
        seen = np.zeros(len(state.columns), dtype=bool)
        seen[list(self.eligible)] = True
        return self.energy.learned(state.columns, seen)

    def smoothing(self, state: State) -> SurfaceEnergy:
        """Return the surface energy under which a structure that has not settled finds its flat parts."""
        surface = self.surface(state)
        return replace(surface, bond=SMOOTH_FIRST * surface.bond)

    def cost(self, state: State, names: tuple[str, ...]) -> float:
        """Return the cost by which contenders are compared, with the named imaging parameters free."""
        return basin_cost(self.bench, state, free_lens(state, names), self.surface(state))

    def run(self, done: Reached, numbers: range) -> Reached:
        """Return the state after some rounds."""
        for number in numbers:
            state = done.state
            self.log.done = 0.3 + 0.45 * number / ROUNDS
            lens = free_lens(state, EARLY if number < EARLY_ROUNDS else LENS)
            surface = self.smoothing(state) if number else self.energy
            walk = np.random.default_rng([self.seed, 2, number])
            done = self.part(f"counts {number}", partial(self.counts, state, lens, surface, walk))
            state = self.part(f"surfaces {number}", partial(self.outline, done.state, lens)).state
            if not number or stale(state):
                state = self.part(f"thermal {number}", partial(self.thermal, state)).state
            done = replace(done, state=state)
        return done

    def positions(self, state: State) -> Reached:
        """Free all positions under the lens of the first rounds."""
        lens = free_lens(state, EARLY)
        refined = refine(self.bench, state, lens, state.occupied(), 1)
        self.log("positions", self.bench.chi2(refined.state))
        return Reached(refined.state, lens_sigma=lens_sigma(lens, refined.lens_sigma()))

    def counts(
        self,
        state: State,
        lens: list[int],
        surface: SurfaceEnergy,
        walk: np.random.Generator,
    ) -> Reached:
        """One round of count moves."""
        every = state.occupied()
        done = count_round(
            self.bench, state, lens, every, every, surface, self.support, self.rejected, collective=walk
        )
        self.log("counts", self.bench.chi2(done.state), f"{done.changed} columns changed")
        sigma = lens_sigma(lens, np.sqrt(np.diag(done.model.answer)))
        return Reached(done.state, done.gain, tuple(sorted(done.undecided)), sigma)

    def outline(self, state: State, lens: list[int]) -> Reached:
        """Let columns of the rim appear and vanish."""
        state, changed = outline_round(
            self.bench, state, lens, state.occupied(), self.eligible, self.neighbours
        )
        self.log("surfaces", self.bench.chi2(state), f"{changed} rim columns changed")
        return Reached(state)

    def thermal(self, state: State) -> Reached:
        """Compute the thermal diffuse correction anew."""
        state = corrected(self.bench, state, PHONON_PAIRS[0], self.generator)
        self.log("counts", self.bench.chi2(state), "thermal diffuse intensity renewed")
        return Reached(state)

    def last_thermal(self, state: State) -> Reached:
        """Compute the last thermal diffuse correction."""
        state = pooled(self.bench, state, PHONON_PAIRS[2], self.generator)
        self.log("joint", self.bench.chi2(state), "thermal diffuse intensity renewed")
        return Reached(state)

    def last(self, state: State, rivals: tuple[Rival, ...]) -> tuple[State, Evidence]:
        """Refine everything together and gather what the error bars need."""
        lens, surface = free_lens(state, LENS), self.surface(state)
        state = self.part("thermal last", partial(self.last_thermal, state)).state

        def note(state: State, cost: float) -> None:
            self.log("joint", self.bench.chi2(state))

        probe = white_noise(self.bench, self.seed, NOISE_DRAWS)
        refined = refine(
            self.bench, state, lens, state.occupied(), 2, report=note, probe=probe, error_bars=True
        )
        state, every = refined.state, refined.state.occupied()
        final = count_round(self.bench, state, lens, every, every, surface, self.support, self.rejected)
        self.log.done = 1.0
        self.log("joint", self.bench.chi2(final.state), f"{final.changed} columns changed")
        return final.state, Evidence(lens, refined, final, surface, self.support, self.rejected, rivals)


@dataclass(frozen=True)
class Lead:
    """The contender that leads, and how far it has come."""

    rounds: Rounds
    done: Reached
    begun: int  # rounds that it has been through
    rivals: tuple[Rival, ...]  # the contenders that were left behind


def settled(
    seed: int, contenders: list[Contender], parts: Parts, thickness_open: bool = True
) -> tuple[Rounds, State, tuple[Rival, ...]]:
    """Return the rounds of the contender that describes the image, the state they settle at, and its rivals.

    What is left is `Rounds.last`. thickness_open: fit specimens a period thicker and thinner as well.
    """
    lead = leading(seed, contenders, parts)
    state, others = finished(lead.rounds, lead.done, lead.begun, thickness_open)
    return lead.rounds, state, (*others, *lead.rivals)


def leading(seed: int, contenders: list[Contender], parts: Parts) -> Lead:
    """Return the contender that leads after the first rounds, which all go through.

    Mistilt and Debye–Waller scale, which a thick crystal needs, are not yet free in these. A contender that
    lags by less than its last round gained may still overtake: it goes on beside the leader for as many more.
    """
    rounds = [Rounds(contender, parts, seed) for contender in contenders]
    done: dict[int, Reached] = {}
    cost: dict[int, float] = {}
    racing, behind, begun = list(range(len(rounds))), dict[int, float](), 0
    while not begun or len(racing) > 1 and begun < ROUNDS:
        for n in racing:
            if not begun:
                parts.log.done = 0.25
                done[n] = rounds[n].part("positions", partial(rounds[n].positions, contenders[n].state))
            done[n] = rounds[n].run(done[n], range(begun, min(begun + EARLY_ROUNDS, ROUNDS)))
            cost[n] = rounds[n].cost(done[n].state, LENS if begun else EARLY)
        begun = min(begun + EARLY_ROUNDS, ROUNDS)
        best, *others = sorted(racing, key=lambda n: (cost[n], n))
        behind |= {n: cost[n] - cost[best] for n in others}
        racing = [best, *(n for n in others if behind[n] < done[n].number)]
    best = racing[0]
    name = "another place or thickness of the crystal"
    rivals = tuple(Rival(f"{name} ({n + 1})", behind[n]) for n in sorted(behind) if n != best)
    return Lead(rounds[best], done[best], begun, rivals)


def finished(
    rounds: Rounds, done: Reached, begun: int, thickness_open: bool = True
) -> tuple[State, tuple[Rival, ...]]:
    """Return the state at which the rounds settle, and specimens of other thickness as its rivals.

    begun: rounds that it has been through.
    """
    done = rounds.run(done, range(begun, ROUNDS))
    lens = free_lens(done.state, LENS)
    rounds.log.done = 0.75
    rules = rounds.surface(done.state), rounds.support, rounds.rejected
    settling = rounds.bench, done.state, lens, *rules, rounds.seed, rounds.part, rounds.log
    state, rivals = other_thicknesses(*settling, neighbours=thickness_open)
    return rounds.part("surfaces last", partial(rounds.outline, state, lens)).state, rivals


def eligible(start: Start) -> set[int]:
    """Return the columns that the image shows and that may therefore appear or vanish."""
    return {int(c) for c in np.flatnonzero(start.eligible)}


def free_lens(state: State, names: tuple[str, ...]) -> list[int]:
    """Return the numbers of those of the named imaging parameters that the prior leaves free.

    Of further images those that are their own, and where they lie on the first.
    """
    _, sigma = state.prior()
    every = [numbered(name, 0) for name in names]
    for n in range(1, len(state.others) + 1):
        own = (numbered(name, n) for name in dict.fromkeys((*names, *SHIFT)))
        every += [i for i in own if i not in SPECIMEN]
    return [i for i in every if sigma[i] > 0]


def neighbour_radius(projection: Projection) -> float:
    """Return a distance (Å) that reaches the first shell of neighbouring columns and little more."""
    points = np.array([k.fractional for k in projection.kinds]) @ projection.vectors
    cells = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)]) @ projection.vectors
    every = (points[:, None] + cells[None]).reshape(-1, 2)
    nearest = [np.sort(np.linalg.norm(every - p, axis=1))[1:5].mean() for p in points]
    return 1.25 * float(np.max(nearest))


def terrace_radius(projection: Projection) -> float:
    """Return a distance (Å) that reaches the next column of the same kind, and all columns between.

    Two kinds of column can differ by half a step on a flat surface; only like columns see a lone atom.
    """
    a, b = projection.vectors
    shortest = min(float(np.linalg.norm(i * a + j * b)) for i, j in ((1, 0), (0, 1), (1, 1), (1, -1)))
    return max(1.05 * shortest, neighbour_radius(projection))
