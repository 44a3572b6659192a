"""Merging: the tiles of a large field as one specimen, one lens and one set of error bars."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import PARAMETERS, Microscope
from qhrtem.model.tiles import tiled_image
from qhrtem.model.twin import ImagingErrors, PositionErrors
from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.assess import Assessed, claimed, error_note, match_of
from qhrtem.stages.consensus import FieldLens, design
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.objective import State, make_misfit
from qhrtem.stages.start import Start

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WELL_INSIDE_A = 4.0  # from the rim of a tile's used pixels: columns there are worth comparing


@dataclass(frozen=True)
class Fitting:
    """A tile that has been fitted with the lens of the field."""

    name: str
    core: tuple[int, int, int, int]  # first row, end row, first column, end column that it answers for
    index: Ints  # (C,) its columns among those of the field
    start: Start
    state: State
    assessed: Assessed
    away: Floats  # (2,) Å, y and x of its middle from that of the field


def merged(
    whole: Start,
    plan: Microscope,
    micrograph: Micrograph,
    lattice: Lattice,
    agreed: FieldLens,
    tiles: list[Fitting],
    notes: tuple[str, ...],
) -> tuple[Start, State, Assessed, tuple[str, ...]]:
    """Return start, state and assessment of the whole field, and notes.

    plan: imaging parameters with the prior of the plan, by which users judge what was found.
    """
    owner = owners(whole, tiles)
    columns = _columns(whole, tiles, owner)
    lens = agreed.microscope(plan, np.zeros(2), prior=False)
    diffuse = _diffuse(whole, tiles)
    state = State(columns, lens, Diffuse.without_slope(diffuse, lens))
    start = replace(whole, columns=columns, microscope=lens)
    image = tiled_image(
        lens.energy, whole.field, columns, lens, workers=os.cpu_count() or 1, bend=agreed.bend
    )
    misfit = make_misfit(micrograph, whole.field, BORDER_A + lens.delocalisation())
    image += whole.field.crop(torch.from_numpy(diffuse))
    match = match_of(misfit, whole.field, image, lattice.crystal)
    keep = claimed(columns, start)
    own, shared = (float(np.mean([getattr(t.assessed, n) for t in tiles])) for n in ("own", "shared"))
    wider = max(own, shared, agreed.agreement) / agreed.agreement
    agreed = replace(agreed, covariance=agreed.covariance * wider)
    sigma = np.full(columns.shift.shape, np.nan)
    probability = np.full(len(columns), np.nan)
    for number, tile in enumerate(tiles):
        mine = owner[tile.index] == number
        sigma[tile.index[mine]] = tile.assessed.sigma[mine]
        probability[tile.index[mine]] = tile.assessed.probability[mine]
    assessed = Assessed(
        match,
        sigma,
        probability,
        _positions(tiles, owner, keep, agreed),
        _imaging(agreed),
        own,
        shared,
        agreed.imaging,
        _rejected(tiles),
        diffuse,
        (error_note(own, shared), _lens_note(agreed, tiles), _seam_note(tiles, owner), *_tile_notes(tiles)),
    )
    return start, state, assessed, notes


def owners(whole: Start, tiles: list[Fitting]) -> Ints:
    """Return which tile (C,) answers for each column of the field, -1 where none does."""
    place = whole.field.to_detector(whole.columns.anchor)
    place = np.clip(np.round(place), 0, np.array(whole.field.image_shape) - 1)
    out = np.full(len(place), -1, dtype=np.int64)
    for number, tile in enumerate(tiles):
        top, bottom, left, right = tile.core
        rows = (place[:, 0] >= top) & (place[:, 0] < bottom)
        out[rows & (place[:, 1] >= left) & (place[:, 1] < right)] = number
    return out


def _columns(whole: Start, tiles: list[Fitting], owner: Ints) -> ColumnModel:
    """Return the columns of the field as the tiles that answer for them have fitted them."""
    columns = whole.columns
    first, last, shift = columns.first.copy(), columns.first - 1, columns.shift.copy()
    for number, tile in enumerate(tiles):
        mine = owner[tile.index] == number
        fitted, to = tile.state.columns, tile.index[mine]
        first[to], last[to], shift[to] = fitted.first[mine], fitted.last[mine], fitted.shift[mine]
    return replace(columns.with_ends(first, last), shift=shift)


def _diffuse(whole: Start, tiles: list[Fitting]) -> NDArray[np.float32]:
    """Return the thermal diffuse correction of the recorded image, on the image grid."""
    image = np.zeros(whole.field.image_shape, dtype=np.float32)
    for tile in tiles:
        top, bottom, left, right = tile.core
        field = tile.start.field
        origin = whole.field.to_detector(whole.columns.anchor[tile.index[0]])
        row, col = np.round(origin - field.to_detector(tile.state.columns.anchor[0])).astype(int)
        part = tile.assessed.diffuse[field.pad[0] :, field.pad[1] :]
        image[top:bottom, left:right] = part[top - row : bottom - row, left - col : right - col]
    return np.asarray(whole.field.embed(image))


def _positions(tiles: list[Fitting], owner: Ints, keep: Ints, agreed: FieldLens) -> PositionErrors:
    """Return the errors of all positions: local ones of each tile, those of the lens common to all.

    Within a tile, common errors are those that its own knowledge of the lens leaves. How the positions answer
    to the lens is taken from there, how well the lens is known from the field.
    """
    row = np.full(len(owner), -1, dtype=np.int64)
    row[keep] = np.arange(len(keep))
    root = linalg.cholesky(agreed.covariance, lower=True)
    p = len(agreed.imaging)
    priors = sorted({n for t in tiles for n in t.assessed.positions.common_name[p:]})
    parts: dict[str, list[NDArray[np.generic]]] = {n: [] for n in ("column", "element", "axis", "common")}
    local = []
    for number, tile in enumerate(tiles):
        e = tile.assessed.positions
        column = tile.index[claimed(tile.state.columns, tile.start)][e.column]
        mine = np.flatnonzero((owner[column] == number) & (row[column] >= 0))
        answer = _answers(tile, p)[mine] @ design(agreed.imaging, tile.away)[:, : len(root)]
        prior = np.zeros((len(mine), len(priors)))
        for n, name in enumerate(e.common_name[p:]):
            prior[:, priors.index(name)] = e.common_A[mine, p + n]
        parts["column"].append(row[column[mine]])
        parts["element"].append(e.element[mine])
        parts["axis"].append(e.axis[mine])
        parts["common"].append(np.hstack([answer @ root, prior]).astype(np.float32))
        local.append(e.local_A2[mine][:, mine])
    names = [f"imaging {PARAMETERS[i].name}" for i in agreed.imaging]
    names += [f"bend {n}" for n in range(len(root) - p)]
    joined = {n: np.concatenate(v) for n, v in parts.items()}
    return PositionErrors(
        joined["column"],
        joined["element"],
        joined["axis"],
        joined["common"],
        (*names, *priors),
        sparse.csr_array(sparse.block_diag(local, format="csr")),
        tiles[0].assessed.positions.reach_A,
    )


def _answers(tile: Fitting, p: int) -> Floats:
    """Return how the positions of a tile (K, P) answer to one step of each imaging parameter, Å."""
    errors = tile.assessed.imaging
    unit = np.array([PARAMETERS[i].step * PARAMETERS[i].factor for i in tile.assessed.refined])
    covariance = errors.covariance / np.outer(unit, unit)
    root = linalg.cholesky(covariance + 1e-12 * np.diag(np.diag(covariance)), lower=True)
    common = tile.assessed.positions.common_A[:, :p].astype(float)
    return np.asarray(linalg.solve_triangular(root, common.T, lower=True, trans="T").T)


def _imaging(agreed: FieldLens) -> ImagingErrors:
    p = len(agreed.imaging)
    unit = np.array([PARAMETERS[i].step * PARAMETERS[i].factor for i in agreed.imaging])
    return ImagingErrors(
        tuple(PARAMETERS[i].key for i in agreed.imaging), agreed.covariance[:p, :p] * np.outer(unit, unit)
    )


def _rejected(tiles: list[Fitting]) -> dict[str, int]:
    out: dict[str, int] = {}
    for tile in tiles:
        for name, number in tile.assessed.rejected.items():
            out[name] = out.get(name, 0) + number
    return out


def _lens_note(agreed: FieldLens, tiles: list[Fitting]) -> str:
    """Return how well the tiles agree on the lens, and how much the foil is bent."""
    slope, sigma = 1e5 * agreed.bend, 1e5 * agreed.bend_sigma()  # mrad over 10 nm
    along = ", ".join(
        f"{name} by {slope[a, b]:+.2f} ± {sigma[a, b]:.2f} along {axis}"
        for a, name in enumerate(("mistilt y", "mistilt x"))
        for b, axis in enumerate(("y", "x"))
    )
    return (
        f"The field was fitted in {len(tiles)} tiles with one lens; their own estimates of it scatter "
        f"{agreed.agreement:.1f} times as much (variance) as their errors explain, which is included. Over "
        f"10 nm the foil bends (mrad): {along}."
    )


def _seam_note(tiles: list[Fitting], owner: Ints) -> str:
    """Return how columns that two tiles have fitted compare."""
    same, away, sigmas = [], [], []
    for number, tile in enumerate(tiles):
        field, columns = tile.start.field, tile.state.columns
        place = field.to_detector(columns.anchor)
        pixel = field.detector_pixel
        rim = (BORDER_A + tile.state.microscope.delocalisation() + WELL_INSIDE_A) / pixel
        inside = ((place > rim) & (place < np.array(field.image_shape) - 1 - rim)).all(1)
        for other, second in enumerate(tiles):
            shared = np.flatnonzero(inside & (owner[tile.index] == other) & columns.occupied)
            if other == number or not len(shared):
                continue
            number_of = {int(c): n for n, c in enumerate(second.index)}
            theirs = np.array([number_of[int(c)] for c in tile.index[shared]])
            a, b = columns.element_counts()[shared], second.state.columns.element_counts()[theirs]
            same.append((a == b).all(1))
            moved = columns.shift[shared, 0] - second.state.columns.shift[theirs, 0]
            away.append(moved)
            sigmas.append(second.assessed.sigma[theirs, 0])
    if not same:
        return "No column was fitted in two tiles."
    equal, moved, sigma = np.concatenate(same), np.concatenate(away), np.concatenate(sigmas)
    return (
        f"{len(equal)} columns were fitted in two tiles: the counts of {100 * equal.mean():.0f} % are the "
        f"same, their positions differ by {100 * np.sqrt((moved**2).mean()):.2f} pm (rms along an axis; one "
        f"standard deviation is {100 * np.nanmedian(sigma):.2f} pm)."
    )


def _tile_notes(tiles: list[Fitting]) -> tuple[str, ...]:
    """Return what was said of partial coherence in the first tile, and what the tiles do not rule out."""
    coherence = tiles[0].assessed.notes[2]
    open_ = [f"{t.name}: {t.assessed.notes[1]}" for t in tiles if "does not rule out" in t.assessed.notes[1]]
    return (*open_, coherence)
