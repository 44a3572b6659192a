"""Following: each frame of a series is fitted from what the frames before it have told.

What a frame has to find, and what could mislead it:

- The drift. A lattice translation leaves the crystal as it is, so only its outline and thickness tell; they
  are compared by misfit (`stages.drift`); where several translations fit, the likeliest is taken and said.
- The lens. C1, A1, B2, A2, mistilt and vibration change from frame to frame, by `WALK` at most as far as is
  expected; the prior of a frame is the last value, as wide as the first frame left it and the walk together.
  What an instrument keeps is held near the first frame. So no error of the model, the same in every frame, is
  taken for ever better knowledge, and the lens cannot trade against a thickness that the first frame settled.
- The counts. They change in few columns (`specimen.persistence`). Costs are divided by the model error, and
  with them the prior: a frame's evidence fades by that factor with each frame, so evidence of several frames
  adds up no further than the error that they share allows.
- The positions are found anew in each frame, so errors of two frames are independent and a jump is a jump.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.area import grown, unusable_area
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse, diffuse_image
from qhrtem.model.forward import Field, ForwardModel
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope
from qhrtem.model.twin import Fitted, Twin
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.persistence import Persistence, certain
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.assess import Assessed, Evidence, assess
from qhrtem.stages.atlas import Atlas, numbers, sites
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.counts import LEAST_CHI2_GAIN, count_round
from qhrtem.stages.drift import LIMIT_A, Drift, find_drift, moved_image
from qhrtem.stages.joint import GROUP_SIGMA_A, IDEAL_SIGMA_A, Refined, refine, total_cost
from qhrtem.stages.linearise import prior_normal
from qhrtem.stages.objective import Bench, State, make_misfit, white_noise
from qhrtem.stages.start import Start, shown
from qhrtem.stages.structure import (
    EARLY,
    LENS,
    SHIFT,
    STEEPEST_A,
    eligible,
    free_lens,
    neighbour_radius,
    terrace_radius,
)
from qhrtem.stages.surfaces import outline_round

Floats = NDArray[np.float64]
# How far parameters of a lens go from one frame to the next, one standard deviation, Å or rad.
WALK = {
    **{"c1": 10.0, "a1_x": 5.0, "a1_y": 5.0, "b2_x": 30.0, "b2_y": 30.0, "a2_x": 30.0, "a2_y": 30.0},
    **{"tilt_x": 2e-4, "tilt_y": 2e-4, "scale": 0.002},
    **{"vibration_xx": 0.005, "vibration_yy": 0.005, "vibration_xy": 0.005},
}
# Every so many frames, a share of the thermal diffuse correction is drawn anew, from one pair of phonons.
EVERY, RENEWED = 4, 0.25
BESIDE_A = 1.5  # beyond the image, columns whose positions and counts a frame may still tell of
CRYSTAL_A = 2.2  # from a column, pixels that count as crystal
MOST_ROUNDS = 4  # of counts in a frame


@dataclass(frozen=True)
class Known:
    """What a series knows after a frame."""

    state: State  # in the frame of the image; the lens with the prior of the next frame
    field: Field
    atlas: Atlas
    ends: Persistence  # of the columns of the state
    drift_A: Floats  # (2,) y, x since the first frame
    whole: float  # probability that the specimen as a whole is as thick as it is taken to be
    waiting: int = 0  # frames since the one that this is known from


@dataclass(frozen=True)
class Followed:
    """A frame that was fitted, before it is judged."""

    bench: Bench
    start: Start
    state: State
    lattice: Lattice
    assessed: Assessed
    drift: Drift


def known_from(twin: Twin) -> Known:
    """Return what the first frame tells the next ones.

    The probability of its counts holds for the specimens of other thickness that it did not rule out; no
    later frame says more of these, so the largest of any column bounds those of all frames.
    """
    f = twin.fitted
    assert f is not None and twin.imaging_errors is not None
    where = f.claimed
    inside = twin.columns.inside
    best = float(twin.columns.p_exact[inside].max()) if inside.any() else 1.0
    ends = certain(f.columns, where, twin.columns.p_exact / max(best, 1e-6))
    state = State(f.columns, _prior(f, twin), Diffuse.without_slope(f.diffuse, f.microscope))
    return Known(state, f.field, Atlas(f.columns), ends, np.zeros(2), best)


def _prior(fitted: Fitted, twin: Twin) -> Microscope:
    """Return the lens of a fit as the prior of the next frame."""
    lens = fitted.microscope
    sigma = np.zeros(len(PARAMETERS))
    assert twin.imaging_errors is not None
    index = {p.key: n for n, p in enumerate(PARAMETERS)}
    for name, value in twin.imaging_errors.sigma().items():
        p = PARAMETERS[index[name]]
        sigma[index[name]] = np.hypot(value / p.factor, WALK.get(p.name, 0.0))
    return replace(lens, mean=lens.values.copy(), sigma=sigma)


def follow(
    known: Known,
    micrograph: Micrograph,
    lattice: Lattice,
    seed: int,
    number: int,
    workers: int,
    tell: Callable[[str, float, str], None] = lambda stage, chi2, note: None,
) -> Followed:
    """Return a frame fitted from what is known before it.

    lattice: of the first frame; seed, number: of the series and the frame, from which all draws come;
    workers: threads over columns; tell: of stage, χ² and a note on the way.
    """
    field = known.field
    last = known.state
    model = ForwardModel(field, last.microscope.energy)
    image = model.image(last.columns, last.microscope) + last.diffuse.at(last.microscope)
    drift = find_drift(image, micrograph, field, LIMIT_A * (1 + known.waiting))
    start, state = _placed(known, micrograph, drift.step_A)
    border = BORDER_A + start.microscope.delocalisation()
    bench = Bench(model, make_misfit(micrograph, field, border), workers, lagged=True)
    tell("drift", bench.chi2(state), "")
    state, drift = _aligned(bench, state, drift)
    start = replace(start, columns=state.columns)
    tell("lens", bench.chi2(state), "")
    if number % EVERY == 0:
        state = _warmer(bench, state, np.random.default_rng([seed, 6, number]))
    past = known.ends.renumbered(numbers(sites(state.columns), sites(last.columns)))
    state, evidence = _settled(bench, state, start, past, seed + number, tell)
    lattice = replace(lattice, crystal=crystal_of(field, state.columns))
    assessed = assess(bench, state, start, lattice, evidence, seed + number)
    return Followed(bench, start, state, lattice, assessed, drift)


def carried(known: Known, done: Followed) -> Known:
    """Return what is known after a frame that holds its gates."""
    state, before = done.state, known.state.microscope
    names = [p.name for p in PARAMETERS]
    moving = np.array([name in WALK for name in names])
    values = np.where(moving, state.microscope.values, before.mean)
    lens = replace(state.microscope, mean=values, sigma=before.sigma)
    drift = known.drift_A + done.drift.step_A
    assert done.assessed.ends is not None
    return replace(
        known,
        state=replace(state, microscope=lens),
        atlas=known.atlas.updated(state.columns, drift),
        ends=done.assessed.ends,
        drift_A=drift,
        waiting=0,
    )


def crystal_of(field: Field, columns: ColumnModel) -> NDArray[np.bool_]:
    """Return which pixels [row, col] of the recorded image are crystal: those near a column, and holes."""
    place = np.round(field.to_detector(columns.group_position()[columns.occupied, 0])).astype(int)
    pad = int(np.ceil(CRYSTAL_A / field.detector_pixel)) + 1
    rows, cols = field.image_shape
    mask = np.zeros((rows + 2 * pad, cols + 2 * pad), dtype=bool)
    place = place + pad
    near = ((place >= 0) & (place < np.array(mask.shape))).all(1)
    mask[tuple(place[near].T)] = True
    mask = grown(mask, CRYSTAL_A / field.detector_pixel)
    return np.asarray(ndimage.binary_fill_holes(mask)[pad : pad + rows, pad : pad + cols])


def _placed(known: Known, micrograph: Micrograph, step: Floats) -> tuple[Start, State]:
    """Return the first model of a frame: the specimen moved by a step (2,) y, x in Å."""
    field = known.field
    columns = known.atlas.at(field, known.drift_A + step)
    lens = known.state.microscope
    place = np.round(field.to_detector(columns.anchor)).astype(int)
    place = np.clip(place, 0, np.array(field.image_shape) - 1)
    blind = unusable_area(micrograph.valid)[place[:, 0], place[:, 1]]
    diffuse = known.state.diffuse.mapped(partial(moved_image, field=field, step=step))
    start = Start(field, columns, lens, shown(field, columns) & ~blind)
    return start, State(columns, replace(lens, values=lens.mean.copy()), diffuse)


def _aligned(bench: Bench, state: State, drift: Drift) -> tuple[State, Drift]:
    """Return the state with lens and drift fitted, the structure as it was."""
    free = free_lens(state, EARLY)
    lens = state.microscope
    sigma = lens.sigma.copy()
    held = [INDEX[name] for name in SHIFT]
    before = lens.values[held].copy()
    sigma[held] = 1.0
    loose = replace(lens, sigma=sigma, mean=lens.mean.copy())
    loose.mean[held] = before
    refined = refine(bench, replace(state, microscope=loose), [*free, *held], [], 4).state
    by = (refined.microscope.values[held] - before)[::-1]
    # The movement belongs to the specimen; the image shift stays as it was.
    values = refined.microscope.values.copy()
    values[held] = before
    lens = replace(lens, values=values)
    columns = replace(state.columns, anchor=state.columns.anchor + by)
    diffuse = state.diffuse.mapped(partial(moved_image, field=bench.model.field, step=by))
    return State(columns, lens, diffuse), replace(drift, step_A=drift.step_A + by)


def _warmer(bench: Bench, state: State, generator: np.random.Generator) -> State:
    """Return the state with a share of its thermal diffuse correction drawn anew."""
    fresh = diffuse_image(bench.model, state.columns, state.microscope, 1, generator, bench.workers)
    mixed = (1 - RENEWED) * state.diffuse.at(state.microscope) + RENEWED * fresh
    return replace(state, diffuse=Diffuse(mixed, state.diffuse.slope, state.microscope["b_scale"]))


def _settled(
    bench: Bench,
    state: State,
    start: Start,
    past: Persistence,
    seed: int,
    tell: Callable[[str, float, str], None],
) -> tuple[State, Evidence]:
    """Return the fitted state of a frame: outline, positions and counts until nothing changes."""
    lens = free_lens(state, LENS)
    projection = state.columns.projection
    neighbours = Neighbours.within(state.columns, neighbour_radius(projection))
    support = NeighbourStep(neighbours, STEEPEST_A)
    energy = SurfaceEnergy(Neighbours.within(state.columns, terrace_radius(projection)))
    rejected: dict[str, int] = {}
    seen = eligible(start)
    state, changed = outline_round(bench, state, free_lens(state, EARLY), [], seen, neighbours)
    tell("surfaces", bench.chi2(state), f"{changed} rim columns changed")
    probe = white_noise(bench, seed, 1)  # a draw takes as long as an image, and the next frame has its own
    near = _near(bench.model.field, state)
    moving, decided = near, frozenset[int]()
    for number in range(MOST_ROUNDS):
        surface = energy.learned(state.columns, start.eligible & state.columns.occupied)
        before = state
        final = count_round(
            *(bench, state, lens, near, moving, surface, support, rejected),
            past=past,
            probe=probe,
        )
        state = final.state
        tell("counts", bench.chi2(state), f"{final.changed} columns changed")
        if not final.changed and final.gain < LEAST_CHI2_GAIN:
            break
        if number < MOST_ROUNDS - 1:
            if final.changed:
                state, _ = outline_round(bench, state, lens, [], seen, neighbours)
            near = _near(bench.model.field, state)
            decided |= frozenset(moving) - final.undecided
            moving = [c for c in near if c not in decided]
    # Lens and positions follow the counts within each round, so its linearisation is theirs as well.
    assert final.quadratic is not None
    quadratic = final.quadratic.without_moves()
    prior, _ = prior_normal(before, quadratic, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    refined = Refined(before, total_cost(bench, before, lens), quadratic, quadratic.matrix.plus(prior))
    return state, Evidence(
        *(lens, refined, final, surface, support, rejected),
        past=past,
        decided=tuple(sorted(decided.intersection(near))),
    )


def _near(field: Field, state: State) -> list[int]:
    """Return the occupied columns on the image or a little beside it."""
    place = field.to_detector(state.columns.anchor)
    beyond = np.maximum(-place, place - (np.array(field.image_shape) - 1)).max(1) * field.detector_pixel
    return [int(c) for c in np.flatnonzero(state.columns.occupied & (beyond < BESIDE_A))]
