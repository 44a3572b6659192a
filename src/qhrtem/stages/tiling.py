"""Large fields: cut into tiles that overlap, each fitted like a small image, and one lens for all of them.

What a column does to the image dies away within some Å, so a column knows nothing of what lies farther off
than that but the lens. A first tile finds how the crystal lies in the image, the lens and how thick the
specimen is; the others start from there. Each then says what it knows of the lens, the field agrees on one
(`consensus`), and with that every tile is brought to its end. A tile answers for the columns of its core;
around it a halo sees to it that they have their whole surroundings. Memory is that of one tile.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import MARGIN_A, ForwardModel, make_field
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.assess import Assessed, assess
from qhrtem.stages.bordered import Factor
from qhrtem.stages.checkpoint import Parts, Reached, ReachedForm, Snapshot
from qhrtem.stages.consensus import BEND_SIGMA, FieldLens, TileLens, consensus
from qhrtem.stages.contenders import BORDER_A, choose
from qhrtem.stages.joint import refine
from qhrtem.stages.merge import Fitting, merged
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.start import Start, shown
from qhrtem.stages.structure import (
    EARLY,
    LENS,
    PHONON_PAIRS,
    Contender,
    Rounds,
    corrected,
    eligible,
    free_lens,
    neighbour_radius,
    settled,
)
from qhrtem.stages.surfaces import outline_round
from qhrtem.stages.thickness import Rival
from qhrtem.stages.watch import View

Floats = NDArray[np.float64]
MOST_COLUMNS = 2500  # lattice sites of a field that is fitted in one piece; more are cut into tiles
EDGE_A = 60.0  # about the edge of a core
HALO_A = 6.0  # around it, besides the rim that the misfit leaves out: columns in it are fitted twice
KNOWN = 5.0  # standard deviations of the first tile within which the others look for the lens
PILOT_SHARE = 0.3  # of the work, done in the first tile


@dataclass(frozen=True)
class Tile:
    """A part of the image, in pixels: (first row, end row, first column, end column)."""

    name: str
    core: tuple[int, int, int, int]  # what it alone answers for
    seen: tuple[int, int, int, int]  # what it is fitted to


@dataclass(frozen=True)
class Piece:
    """A tile with its part of the image and its first model."""

    tile: Tile
    start: Start
    index: NDArray[np.int64]  # (C,) its columns among those of the whole field
    micrograph: Micrograph
    lattice: Lattice


@dataclass(frozen=True)
class Settled:
    """How far a tile has come before the field has agreed on a lens."""

    piece: Piece
    bench: Bench
    contender: Contender
    reached: Reached
    rivals: tuple[Rival, ...]
    lens: TileLens


def cut(shape: tuple[int, int], pixel: float, halo: float, edge: float = EDGE_A) -> list[Tile]:
    """Return the tiles of an image of some rows and columns; pixel, halo, edge in Å."""
    margin = int(np.ceil(halo / pixel))
    borders = [
        np.linspace(0, n, max(1, round(n * pixel / edge)) + 1).round().astype(int).tolist() for n in shape
    ]
    out: list[Tile] = []
    for top, bottom in zip(borders[0], borders[0][1:], strict=False):
        for left, right in zip(borders[1], borders[1][1:], strict=False):
            seen = (
                max(top - margin, 0),
                min(bottom + margin, shape[0]),
                max(left - margin, 0),
                min(right + margin, shape[1]),
            )
            out.append(Tile(f"tile {len(out) + 1}", (top, bottom, left, right), seen))
    return out


def piece_of(whole: Start, micrograph: Micrograph, lattice: Lattice, tile: Tile) -> Piece:
    """Return a tile with its part of the image and of the first model of the whole field."""
    top, bottom, left, right = tile.seen
    pixel = whole.field.detector_pixel
    margin = (whole.field.pad[0] - 0.5) * pixel
    field = make_field((bottom - top, right - left), pixel, whole.field.reference_z, margin=margin)
    origin = whole.field.to_field(np.array([top, left])) - field.to_field(np.zeros(2))
    place = field.to_detector(whole.columns.anchor - origin)
    reach = MARGIN_A / pixel
    index = np.flatnonzero(((place >= -reach) & (place <= np.array(field.image_shape) - 1 + reach)).all(1))
    columns = whole.columns.part(index, origin)
    where = (slice(top, bottom), slice(left, right))
    vacuum = None if micrograph.vacuum is None else micrograph.vacuum[where]
    part = replace(
        micrograph, intensity=micrograph.intensity[where], valid=micrograph.valid[where], vacuum=vacuum
    )
    start = Start(field, columns, whole.microscope, shown(field, columns) & whole.eligible[index])
    return Piece(tile, start, index, part, replace(lattice, crystal=lattice.crystal[where]))


def pilot(pieces: list[Piece]) -> int:
    """Return the tile to begin with: many columns, and thin ones, which leave least open."""
    thickness = [p.start.columns.thickness()[p.start.columns.occupied & p.start.eligible] for p in pieces]
    usual = float(np.median(np.concatenate(thickness)))
    return int(np.argmax([(t <= usual).sum() + 0.1 * len(t) for t in thickness]))


def fit_tiles(
    seed: int, micrograph: Micrograph, lattice: Lattice, starts: list[Start], parts: Parts
) -> tuple[Start, State, Assessed, tuple[str, ...], Floats]:
    """Return start, fitted state and assessment of a whole field, notes, and the bend of the foil.

    starts: a first model of the field for each hypothesis.
    """
    spread = max(s.microscope.delocalisation() for s in starts)
    shape, pixel = starts[0].field.image_shape, starts[0].field.detector_pixel
    tiles = cut(shape, pixel, HALO_A + BORDER_A + spread)
    first = pilot([piece_of(starts[0], micrograph, lattice, t) for t in tiles])
    log = parts.log
    log.span, log.where = (0.17, 0.17 + 0.83 * PILOT_SHARE), tiles[first].name
    pieces = [piece_of(s, micrograph, lattice, tiles[first]) for s in starts]
    name = f"{tiles[first].name} "
    contenders, notes = choose(pieces[0].micrograph, [p.start for p in pieces], parts, name)
    rounds, state, rivals = settled(seed, contenders, parts)
    place = rounds.contender.place
    plan = starts[place].microscope
    done = {first: _settled(rounds, state, rivals, pieces[place], starts[place], parts)}
    whole = _known(starts[place], done[first])
    others = [k for k in range(len(tiles)) if k != first]
    share = (1 - PILOT_SHARE) * 0.83 / max(len(tiles), 1)
    for number, k in enumerate(others):
        begin = 0.17 + 0.83 * PILOT_SHARE + number * share
        log.span, log.where = (begin, begin + share), tiles[k].name
        piece = piece_of(whole, micrograph, lattice, tiles[k])
        if piece.start.columns.occupied[piece.start.eligible].any():
            contender = _contender(piece, parts)
            rounds, state, rivals = settled(seed, [contender], parts)
            done[k] = _settled(rounds, state, rivals, piece, whole, parts)
    log.where = ""
    imaging = free_lens(State(whole.columns, plan), LENS)
    step = np.array([PARAMETERS[i].step for i in imaging])
    agreed = consensus(
        [s.lens for _, s in sorted(done.items())],
        tuple(imaging),
        plan.mean[imaging] / step,
        plan.sigma[imaging] / step,
    )
    fittings = []
    for k in sorted(done):
        log.span, log.where = (1 - share, 1.0), tiles[k].name
        fittings.append(_finished(seed, done[k], agreed, parts))
    log.where = ""
    return (*merged(whole, plan, micrograph, lattice, agreed, fittings, notes), agreed.bend)


def _known(whole: Start, first: Settled) -> Start:
    """Return the first model of the whole field with what the first tile has found."""
    before, after = first.piece.start.columns, first.reached.state.columns
    both = before.occupied & after.occupied & first.piece.start.eligible
    grown = [
        float(np.mean(b[both] - a[both])) for a, b in zip(before.surfaces(), after.surfaces(), strict=True)
    ]
    top, bottom = whole.columns.surfaces()
    filled = whole.columns.filled(top + grown[0], bottom + grown[1])
    # Thin columns stay: the image shows them, whatever the mean correction says.
    last = np.where(whole.columns.occupied, np.maximum(filled.last, filled.first), filled.first - 1)
    return replace(
        whole,
        columns=filled.with_ends(filled.first, last),
        microscope=_narrowed(first.reached.state.microscope, first),
    )


def _narrowed(lens: Microscope, first: Settled) -> Microscope:
    """Return the lens of the first tile with a prior of several of its errors, and room for a bent foil."""
    imaging = free_lens(first.reached.state, LENS)
    step = np.array([PARAMETERS[i].step for i in imaging])
    mean, sigma = lens.mean.copy(), lens.sigma.copy()
    width = KNOWN * np.sqrt(np.diag(first.lens.covariance)) * step
    mean[imaging] = lens.values[imaging]
    sigma[imaging] = np.minimum(sigma[imaging], width)
    for name in ("tilt_x", "tilt_y"):
        if INDEX[name] in imaging:
            sigma[INDEX[name]] = np.hypot(sigma[INDEX[name]], BEND_SIGMA * EDGE_A)
    return Microscope(lens.energy, lens.values.copy(), mean, sigma, lens.mtf)


def _bench(piece: Piece) -> Bench:
    start = piece.start
    border = BORDER_A + start.microscope.delocalisation()
    model = ForwardModel(start.field, start.microscope.energy)
    return Bench(model, make_misfit(piece.micrograph, start.field, border), os.cpu_count() or 1)


def _contender(piece: Piece, parts: Parts) -> Contender:
    """Return the first state of a tile whose lens is known: thermal motion and outline as its image says."""
    bench, start, name = _bench(piece), piece.start, f"{piece.tile.name} "

    def begin() -> Reached:
        state = State(start.columns, start.microscope)
        state = corrected(bench, state, PHONON_PAIRS[0], np.random.default_rng(0))
        near = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))
        state, changed = outline_round(bench, state, free_lens(state, EARLY), [], eligible(start), near)
        parts.log("surfaces", bench.chi2(state), f"{changed} rim columns changed")
        return Reached(state)

    form = ReachedForm(start.columns.projection, view=View(bench, start))
    first = parts(f"{name}lens", begin, form)
    return Contender(bench, first.state, start, first.number, name)


@dataclass(frozen=True)
class _Known:
    reached: Reached
    covariance: Floats  # (P, P) of the imaging parameters, in squared steps


@dataclass
class _KnownForm:
    """A state and what it says of the lens."""

    form: ReachedForm

    def save(self, value: _Known) -> Snapshot:
        """Return the snapshot."""
        snapshot = self.form.save(value.reached)
        return Snapshot(snapshot.facts, {**snapshot.arrays, "lens_covariance": value.covariance})

    def load(self, snapshot: Snapshot) -> _Known:
        """Return the value of a snapshot."""
        return _Known(self.form.load(snapshot), snapshot.arrays["lens_covariance"])


def _settled(
    rounds: Rounds, state: State, rivals: tuple[Rival, ...], piece: Piece, whole: Start, parts: Parts
) -> Settled:
    """Return how far a tile has come, with what it says of the lens."""
    contender = rounds.contender
    imaging = free_lens(state, LENS)

    def knowing() -> _Known:
        refined = refine(contender.bench, state, imaging, state.occupied(), 1)
        parts.log("joint", contender.bench.chi2(refined.state), "lens of the tile")
        return _Known(Reached(refined.state), Factor(refined.precision).corner)

    known = parts(f"{contender.name}lens known", knowing, _KnownForm(rounds.form))
    lens, step = known.reached.state.microscope, np.array([PARAMETERS[i].step for i in imaging])
    tile, field = piece.tile, whole.field
    area = [np.ptp(e[:2]) * np.ptp(e[2:]) for e in (tile.core, tile.seen)]
    middle = field.to_field(np.array([sum(tile.seen[:2]) - 1, sum(tile.seen[2:]) - 1]) / 2)
    said = TileLens(
        lens.values[imaging] / step,
        known.covariance,
        lens.mean[imaging] / step,
        lens.sigma[imaging] / step,
        float(area[0] / area[1]),
        middle - field.middle(),
    )
    return Settled(piece, contender.bench, contender, known.reached, rivals, said)


def _finished(seed: int, settled: Settled, agreed: FieldLens, parts: Parts) -> Fitting:
    """Return a tile brought to its end with the lens of the field."""
    rounds = Rounds(settled.contender, parts, seed)
    state, piece = settled.reached.state, settled.piece
    state = replace(state, microscope=agreed.microscope(state.microscope, settled.lens.away, prior=True))
    state, evidence = rounds.last(state, settled.rivals)
    assessed = assess(settled.bench, state, piece.start, piece.lattice, evidence, seed)
    tile, away = piece.tile, settled.lens.away
    return Fitting(tile.name, tile.core, piece.index, piece.start, state, assessed, away)
