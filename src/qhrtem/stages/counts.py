"""Counts: the two whole numbers of every column, by exact single-column moves and a joint quadratic model.

Every ±1 and ±2 move of both ends of every column, and its slides along the beam, are simulated exactly in
its window. The moves then compete in one quadratic model in which imaging parameters and positions are
re-optimised for every candidate (they are projected out), so a lens error cannot buy atoms. The best set of
moves under that model and the surface rules is found by descent over columns, pairs and terraces, and
accepted only if the exact image agrees; where it does not, lens and positions follow less, then the half
with the smaller single gains is dropped, and so forth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.specimen.persistence import Persistence
from qhrtem.specimen.rules import NeighbourStep, SurfaceEnergy
from qhrtem.stages.descent import Descent
from qhrtem.stages.joint import apply_step, room, total_cost
from qhrtem.stages.linearise import Quadratic, linearise, possible_moves
from qhrtem.stages.move_model import MoveModel, profile
from qhrtem.stages.objective import Bench, State
from qhrtem.stages.terraces import settle
from qhrtem.stages.walks import anneal

Floats = NDArray[np.float64]
TILTS = ("tilt_x", "tilt_y")
TILT_STEP = PARAMETERS[INDEX["tilt_x"]].step  # rad
LEAST_CHI2_GAIN = 6.0  # a round of count moves that gains less has converged


# Mistilts (rad, x and y) away from the present one from which collective moves are sought.
LEAN = tuple(
    (r * np.cos(a), r * np.sin(a)) for r in (1.5e-3, 3.5e-3) for a in (np.arange(8) + 200 * r) * np.pi / 4
)
SHORTER = 0.25  # of the step of lens and positions, where all of it leads too far
DECIDED = 40.0  # a column whose second best option is this far (χ²) behind is left alone in the next round


@dataclass(frozen=True)
class CountRound:
    """What one round of count moves did."""

    state: State
    changed: int  # columns
    gain: float  # fall of the exact cost, surface energy included
    model: MoveModel  # around the state before the round
    undecided: frozenset[int]  # columns that a next round should look at
    quadratic: Quadratic | None = None  # that the model was made from, where a probe was given


def count_round(
    bench: Bench,
    state: State,
    imaging: list[int],
    positions: list[int],
    moving: list[int],
    surface: SurfaceEnergy,
    support: NeighbourStep,
    rejected: dict[str, int],
    tick: Callable[[float], None] = lambda fraction: None,
    collective: np.random.Generator | None = None,
    past: Persistence | None = None,
    probe: torch.Tensor | None = None,
    far: bool = False,
) -> CountRound:
    """Return the state after one round of joint count moves with everything continuous following along.

    collective: if given, also look for moves of many columns that pay only together and with another
    mistilt, where it is free; its random numbers. past: what an earlier image of the specimen says of the
    column ends. probe: as for `linearise`; far: as for `possible_moves`.
    """
    candidates = {c: possible_moves(state.columns, c, far) for c in moving}
    quadratic = linearise(bench, state, imaging, positions, candidates, tick, probe)
    kept = None if probe is None else quadratic
    model = profile(state, quadratic)
    descent = Descent(state.columns, model, surface, support, past)
    rejected[support.name] = rejected.get(support.name, 0) + descent.rejected
    settle(descent)

    def exact(s: State) -> float:
        known = 0.0 if past is None else past.cost(s.columns)
        return total_cost(bench, s, imaging) + surface.cost(s.columns) + known

    before = exact(state)
    ranked = _ranked(descent)
    trial = _applied(state, quadratic, descent, ranked)
    after = exact(trial)
    index = [quadratic.imaging.index(INDEX[n]) for n in TILTS if INDEX[n] in quadratic.imaging]
    if collective is not None and index:
        leant = collective_moves(descent, index)
        for other in dict.fromkeys((leant, anneal(leant, collective))):
            if other is not descent:
                moved = _applied(state, quadratic, other, _ranked(other))
                cost = exact(moved)
                if cost < min(before, after):
                    descent, ranked, trial, after = other, _ranked(other), moved, cost
    undecided = _undecided(descent)
    if after < before:
        return CountRound(trial, len(ranked), before - after, model, undecided, kept)
    for number, share in _lesser(len(ranked)):
        trial = _applied(state, quadratic, descent, ranked[:number], share)
        after = exact(trial)
        if after < before:
            return CountRound(trial, number, before - after, model, undecided, kept)
    return CountRound(state, 0, 0.0, model, undecided, kept)


def _lesser(columns: int) -> Iterator[tuple[int, float]]:
    """Yield ever less of a step: moved columns, and the share of the way that lens and positions follow.

    Where lens and positions went too far, the same moves may pay with less of that.
    """
    yield columns, SHORTER
    while columns:
        columns //= 2
        yield columns, 1.0
        yield columns, SHORTER


def collective_moves(descent: Descent, index: list[int]) -> Descent:
    """Return the best of the descents that start where another mistilt would lead.

    Moves of many columns that only another mistilt makes worthwhile, and the mistilt that only those moves
    allow, hold each other in place; single moves never part them. Each start holds the mistilt elsewhere,
    lets the columns answer, and then sets it free again. No image is simulated.
    """
    best, model = descent, descent.model
    lowest = descent.cost()
    for lean in LEAN:
        present = model.step(best.picked())[index]
        value = present + np.array(lean)[: len(index)] / TILT_STEP
        held = descent.over(model.held(index, value))
        held.adopt(best.chosen)
        held.run(3)
        free = descent.over(model)
        free.adopt(held.chosen)
        free.run(4)
        cost = free.cost()
        if cost < lowest - 1e-3:
            best, lowest = free, cost
    return best


def _undecided(descent: Descent) -> frozenset[int]:
    """Return columns that changed, touch one that did, or have a second option nearly as good."""
    columns = np.array([o.column for o in descent.model.options], dtype=np.int64)
    changed = {int(c) for c in columns[descent.chosen != 0]}
    touched = {int(m) for c in changed for m in descent.neighbours.of(c)}
    near = {int(c) for c in columns[descent.margins() < DECIDED]}
    return frozenset((near | changed | touched) & set(columns.tolist()))


def _ranked(descent: Descent) -> list[int]:
    """Changed columns, the largest single gain first."""
    changed = [n for n in range(len(descent.chosen)) if descent.chosen[n]]
    gain = []
    for n in changed:
        cost = descent.local_cost(n)
        gain.append(cost[0] - cost[descent.chosen[n]])
    return [changed[i] for i in np.argsort(gain)[::-1]]


def _applied(
    state: State, quadratic: Quadratic, descent: Descent, take: list[int], share: float = 1.0
) -> State:
    """Return the state with the options of the columns `take` (numbers in the model) and what follows.

    share: how much of the step that lens and positions would make.
    """
    chosen = np.zeros_like(descent.chosen)
    chosen[take] = descent.chosen[take]
    model = descent.model
    step = model.step(model.picked(chosen), room(state, quadratic.imaging))
    stepped = apply_step(state, quadratic, share * step)
    return replace(stepped, columns=stepped.columns.with_ends(*model.ends(state.columns, chosen)))
