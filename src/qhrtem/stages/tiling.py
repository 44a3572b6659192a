"""Large fields: cut into tiles that overlap, each fitted like a small image, and one lens for all of them.

What a column does to the image dies away within some Å, so a column knows nothing of what lies farther off
than that but the lens. A first tile finds how the crystal lies in the image, the lens and how thick the
specimen is; the others start from there. Each then says what it knows of the lens, the field agrees on one
(`consensus`), and with that every tile is brought to its end. A tile answers for the columns of its core;
around it a halo sees to it that they have their whole surroundings. Memory is that of one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import MARGIN_A, make_field
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope
from qhrtem.stages.assess import Assessed
from qhrtem.stages.checkpoint import Form, Parts, Snapshot, T, save_microscope
from qhrtem.stages.consensus import BEND_SIGMA, FieldLens, TileLens, consensus
from qhrtem.stages.contenders import BORDER_A, choose
from qhrtem.stages.merge import Fitting, merged
from qhrtem.stages.objective import State, threads_here
from qhrtem.stages.start import Start, shown
from qhrtem.stages.structure import LENS, free_lens, settled
from qhrtem.stages.tasks import Executor, Results, Task, gather
from qhrtem.stages.thickness import HOPELESS
from qhrtem.stages.tile import Job, Settled, finish, known, settle
from qhrtem.stages.tile_forms import FinishedForm, JobForm, SettledForm, finish_tile, joined, settle_tile

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
    """A tile of a field and what is needed to fit it."""

    tile: Tile
    index: NDArray[np.int64]  # (C,) its columns among those of the whole field
    away: Floats  # (2,) Å, y and x of its middle from that of the field
    job: Job

    def with_thickness(self, leave_open: bool) -> Piece:
        """Return the piece with its thickness left open, or taken as known."""
        return replace(self, job=replace(self.job, thickness_open=leave_open))


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


def piece_of(whole: Start, micrograph: Micrograph, lattice: Lattice, tile: Tile, seed: int = 0) -> Piece:
    """Return a tile with its part of the image and of the first model of the whole field."""
    top, bottom, left, right = tile.seen
    pixel = whole.field.detector_pixel
    margin = (whole.field.pad[0] - 0.5) * pixel
    field = make_field(
        (bottom - top, right - left),
        pixel,
        whole.field.reference_z,
        margin=margin,
        pivot_z=whole.field.pivot_z,
        sampling=whole.field.sampling,
    )
    origin = whole.field.to_field(np.array([top, left])) - field.to_field(np.zeros(2))
    place = field.to_detector(whole.columns.anchor - origin)
    reach = MARGIN_A / pixel
    index = np.flatnonzero(((place >= -reach) & (place <= np.array(field.image_shape) - 1 + reach)).all(1))
    columns = whole.columns.part(index, origin)
    where = (slice(top, bottom), slice(left, right))
    part = replace(
        micrograph, intensity=micrograph.intensity[where], valid=micrograph.valid[where], vacuum=None
    )
    start = Start(field, columns, whole.microscope, shown(field, columns) & whole.eligible[index])
    own = replace(lattice, crystal=lattice.crystal[where])
    middle = whole.field.to_field(np.array([top + bottom - 1, left + right - 1]) / 2)
    return Piece(tile, index, middle - whole.field.middle(), Job(tile.name, seed, start, part, own))


def at_odds(pairs: list[tuple[Piece, Settled]]) -> list[int]:
    """Return the pieces whose columns are thicker or thinner than a neighbour has the same ones.

    By more than half a period in the median over the columns that both were fitted to: one of the two then
    sits in a basin of wrong thickness, which a lens that is roughly known does not keep it from.
    """
    projection = pairs[0][1].state.columns.projection
    sites = np.array([len(kind.sites) for kind in projection.kinds])
    thickness = []
    for piece, fitted in pairs:
        columns = fitted.state.columns
        periods = (columns.last - columns.first + 1) / sites[columns.kind]
        seen = columns.occupied & piece.job.start.eligible
        thickness.append(dict(zip(piece.index[seen].tolist(), periods[seen].tolist(), strict=True)))
    out = set()
    for (i, a), (j, b) in combinations(enumerate(thickness), 2):
        apart = [a[c] - b[c] for c in a.keys() & b.keys()]
        if apart and abs(np.median(apart)) > 0.5:
            out |= {i, j}
    return sorted(out)


def pilot(pieces: list[Piece]) -> int:
    """Return the tile to begin with: many columns, and thin ones, which leave least open."""
    starts = [p.job.start for p in pieces]
    thickness = [s.columns.thickness()[s.columns.occupied & s.eligible] for s in starts]
    usual = float(np.median(np.concatenate(thickness)))
    return int(np.argmax([(t <= usual).sum() + 0.1 * len(t) for t in thickness]))


def fit_tiles(
    seed: int,
    micrograph: Micrograph,
    lattice: Lattice,
    starts: list[Start],
    parts: Parts,
    executor: Executor | None = None,
) -> tuple[Start, State, Assessed, tuple[str, ...], Floats]:
    """Return start, fitted state and assessment of a whole field, notes, and the bend of the foil.

    starts: a first model of the field for each hypothesis; executor: does the tiles, None: one after another
    here.
    """
    spread = max(s.microscope.delocalisation() for s in starts)
    shape, pixel = starts[0].field.image_shape, starts[0].field.detector_pixel
    tiles = cut(shape, pixel, HALO_A + BORDER_A + spread)
    first = pilot([piece_of(starts[0], micrograph, lattice, t) for t in tiles])
    parts.log.span, parts.log.where = (0.17, 0.17 + 0.83 * PILOT_SHARE), tiles[first].name
    options = [piece_of(s, micrograph, lattice, tiles[first], seed) for s in starts]
    prefix = options[0].job.prefix
    contenders, notes = choose(options[0].job.micrograph, [p.job.start for p in options], parts, prefix)
    rounds, state, rivals = settled(seed, contenders, parts)
    plan = starts[rounds.contender.place].microscope
    form = SettledForm(starts[0].columns.projection)
    make = partial(known, rounds, state, rivals)
    begun = options[rounds.contender.place], parts(f"{prefix}settled", make, form)
    whole = _known(starts[rounds.contender.place], *begun)
    work = _Work(parts, executor, 0.17 + 0.83 * PILOT_SHARE, len(tiles))
    pieces = [piece_of(whole, micrograph, lattice, t, seed) for k, t in enumerate(tiles) if k != first]
    pieces = [p for p in pieces if p.job.start.columns.occupied[p.job.start.eligible].any()]
    pairs = work.settle_beside(begun, pieces, form)
    imaging = tuple(free_lens(State(whole.columns, plan), LENS))
    step = np.array([PARAMETERS[i].step for i in imaging])
    index = list(imaging)
    said = [_said(p, s, imaging) for p, s in pairs]
    agreed = consensus(said, imaging, plan.mean[index] / step, plan.sigma[index] / step)
    finished = work.finish(pairs, agreed, FinishedForm(form.projection))
    fittings = [
        Fitting(p.tile.name, p.tile.core, p.index, p.job.start, state, assessed, p.away)
        for (p, _), (state, assessed) in zip(pairs, finished, strict=True)
    ]
    parts.log.where = ""
    return (*merged(whole, plan, micrograph, lattice, agreed, fittings, notes), agreed.bend)


@dataclass
class _Work:
    """The tiles of a field at work, here or by an executor."""

    parts: Parts
    executor: Executor | None
    begin: float  # share of the work done before
    tiles: int

    def settle_beside(
        self, first: tuple[Piece, Settled], pieces: list[Piece], form: SettledForm
    ) -> list[tuple[Piece, Settled]]:
        """Return all tiles settled, the first among them.

        Thickness goes with the lens: where the first tile has ruled out others, the rest are not asked again,
        but for those that turn out at odds with a neighbour.
        """
        leave_open = any(r.behind <= HOPELESS for r in first[1].rivals)
        pieces = [p.with_thickness(leave_open) for p in pieces]
        pairs = [first, *zip(pieces, self.settle(pieces, form), strict=True)]
        again = [k for k in at_odds(pairs) if not pairs[k][0].job.thickness_open]
        pieces = [pairs[k][0].with_thickness(True) for k in again]
        for k, piece, fitted in zip(again, pieces, self.settle(pieces, form), strict=True):
            pairs[k] = piece, fitted
        return pairs

    def settle(self, pieces: list[Piece], form: SettledForm) -> list[Settled]:
        """Return the tiles fitted from a lens that is roughly known."""
        share = (0.97 - self.begin) / max(self.tiles, 1)
        if self.executor is not None:
            tasks = [Task.of(settle_tile, *_given(job=JobForm().save(p.job))) for p in pieces]
            return self._gathered(tasks, pieces, form, self.begin, share)
        out = []
        for number, piece in enumerate(pieces):
            make = partial(settle, piece.job, self.parts, threads_here())
            name = "settled" if piece.job.thickness_open else "settled as thick as known"
            out.append(self._here(piece, name, make, form, self.begin + number * share, share))
        return out

    def finish(
        self, pairs: list[tuple[Piece, Settled]], agreed: FieldLens, form: FinishedForm
    ) -> list[tuple[State, Assessed]]:
        """Return the tiles brought to their ends with the lens of the field."""
        share = 0.03 / max(self.tiles, 1)
        lenses = [agreed.microscope(s.state.microscope, p.away, prior=True) for p, s in pairs]
        if self.executor is not None:
            before = SettledForm(form.projection)
            tasks = [
                Task.of(
                    finish_tile,
                    *_given(job=JobForm().save(p.job), settled=before.save(s), lens=save_microscope(lens)),
                )
                for (p, s), lens in zip(pairs, lenses, strict=True)
            ]
            return self._gathered(tasks, [p for p, _ in pairs], form, 0.97, share)
        out = []
        for number, ((piece, before_it), lens) in enumerate(zip(pairs, lenses, strict=True)):
            make = partial(finish, piece.job, before_it, lens, self.parts, threads_here())
            out.append(self._here(piece, "finished", make, form, 0.97 + number * share, share))
        return out

    def _here(
        self, piece: Piece, name: str, make: Callable[[], T], form: Form[T], begin: float, share: float
    ) -> T:
        log = self.parts.log
        log.span, log.where = (begin, begin + share), piece.tile.name
        return self.parts(f"{piece.job.prefix}{name}", make, form)

    def _gathered(
        self, tasks: list[Task], pieces: list[Piece], form: Form[T], begin: float, share: float
    ) -> list[T]:
        """Return the results of tasks in their order, whoever did them when."""
        assert self.executor is not None
        log, number = self.parts.log, count(1)
        name = {t.key: p.tile.name for t, p in zip(tasks, pieces, strict=True)}

        def done(key: str) -> None:
            n = next(number)
            log.span, log.where, log.done = (begin, begin + share * len(tasks)), name[key], n / len(tasks)
            log("counts" if form.__class__ is SettledForm else "joint", float("nan"), "done by a worker")

        results = gather(_Told(self.executor, done), tasks)
        return [form.load(results[t.key]) for t in tasks]


def _given(**parts: Snapshot) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    snapshot = joined(**parts)
    return snapshot.facts, snapshot.arrays


def _known(whole: Start, piece: Piece, first: Settled) -> Start:
    """Return the first model of the whole field with what the first tile has found."""
    before, after = piece.job.start.columns, first.state.columns
    both = before.occupied & after.occupied & piece.job.start.eligible
    grown = [
        float(np.mean(b[both] - a[both])) for a, b in zip(before.surfaces(), after.surfaces(), strict=True)
    ]
    top, bottom = whole.columns.surfaces()
    filled = whole.columns.filled(top + grown[0], bottom + grown[1])
    # Thin columns stay: the image shows them, whatever the mean correction says.
    last = np.where(whole.columns.occupied, np.maximum(filled.last, filled.first), filled.first - 1)
    return replace(whole, columns=filled.with_ends(filled.first, last), microscope=_narrowed(first))


def _narrowed(first: Settled) -> Microscope:
    """Return the lens of the first tile with a prior of several of its errors, and room for a bent foil."""
    lens = first.state.microscope
    imaging = free_lens(first.state, LENS)
    step = np.array([PARAMETERS[i].step for i in imaging])
    mean, sigma = lens.mean.copy(), lens.sigma.copy()
    width = KNOWN * np.sqrt(np.diag(first.covariance)) * step
    mean[imaging] = lens.values[imaging]
    sigma[imaging] = np.minimum(sigma[imaging], width)
    for name in ("tilt_x", "tilt_y"):
        if INDEX[name] in imaging:
            sigma[INDEX[name]] = np.hypot(sigma[INDEX[name]], BEND_SIGMA * EDGE_A)
    return Microscope(lens.energy, lens.values.copy(), mean, sigma, lens.mtf)


def _said(piece: Piece, settled: Settled, imaging: tuple[int, ...]) -> TileLens:
    """Return what a tile says of the lens."""
    lens, index = settled.state.microscope, list(imaging)
    step = np.array([PARAMETERS[i].step for i in index])
    area = [float(np.ptp(e[:2]) * np.ptp(e[2:])) for e in (piece.tile.core, piece.tile.seen)]
    values, mean, sigma = (v[index] / step for v in (lens.values, lens.mean, lens.sigma))
    return TileLens(values, settled.covariance, mean, sigma, area[0] / area[1], piece.away)


@dataclass
class _Told:
    """An executor that tells when a task is done."""

    executor: Executor
    tell: Callable[[str], None]

    @property
    def width(self) -> int:
        """How many tasks it does at a time."""
        return self.executor.width

    def run(self, tasks: Iterable[Task]) -> Results:
        """Yield what the executor yields, told before."""
        with closing(self.executor.run(tasks)) as running:
            for key, result in running:
                self.tell(key)
                yield key, result

    def close(self) -> None:
        """Do nothing: whoever made the executor closes it."""
