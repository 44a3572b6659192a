"""Benches over images that the forward model itself made, with or without noise."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, Microscope
from qhrtem.physics.detector import add_noise
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.descent import Descent
from qhrtem.stages.linearise import linearise, possible_moves
from qhrtem.stages.move_model import profile
from qhrtem.stages.objective import Bench, State, make_misfit
from slabs import Slab


def bench_of(
    island: Slab,
    columns: ColumnModel | None = None,
    microscope: Microscope | None = None,
    electrons: float = 4000.0,
    seed: int | None = 0,
) -> Bench:
    """Return a bench whose image shows `columns` through `microscope` (default: those of the island).

    electrons: vacuum electrons per pixel; seed: of the noise, None for an image without noise.
    """
    micrograph = micrograph_of(island, columns, microscope, electrons, seed)
    return Bench(island.model, make_misfit(micrograph, island.model.field))


def bench_of_series(
    island: Slab,
    columns: ColumnModel,
    microscopes: list[Microscope],
    electrons: float = 4000.0,
    seed: int = 0,
) -> Bench:
    """Return a bench over several images of the same columns, each through its own microscope."""
    first, *others = (
        bench_of(island, columns, m, electrons, seed + n).misfit for n, m in enumerate(microscopes)
    )
    return Bench(island.model, first, others=tuple(others))


def micrograph_of(
    island: Slab,
    columns: ColumnModel | None = None,
    microscope: Microscope | None = None,
    electrons: float = 4000.0,
    seed: int | None = 0,
) -> Micrograph:
    """Return the micrograph that `bench_of` compares with."""
    model = island.model
    image = model.field.crop(model.image(columns or island.columns, microscope or island.microscope)).double()
    if seed is not None:
        image = add_noise(image, electrons, 1.0, 0.0, 0.0, torch.Generator().manual_seed(seed)) / electrons
    valid = np.ones(tuple(image.shape), bool)
    return Micrograph(image.numpy(), valid, model.field.detector_pixel, electrons, 0.0, 0.002)


def without(island: Slab, column: int) -> ColumnModel:
    """Return the island's columns with one of them empty."""
    last = island.columns.last.copy()
    last[column] = island.columns.first[column] - 1
    return island.columns.with_ends(island.columns.first, last)


def with_last(columns: ColumnModel, changes: dict[int, int]) -> ColumnModel:
    """Return columns whose last sites are moved by some sites along the beam."""
    last = columns.last.copy()
    for c, n in changes.items():
        last[c] += n
    return replace(columns, last=last)


def descent_of(island: Slab, electrons: float, columns: int | None = None) -> tuple[Descent, NeighbourStep]:
    """Return a descent over the first columns (all), of which one has an atom too many, and its support rule.

    C1 and the mistilt are free.
    """
    state = State(island.columns, island.microscope)
    bench = bench_of(island, with_last(island.columns, {0: -1}), electrons=electrons, seed=2)
    some = list(range(len(island.columns)))[:columns]
    free = [INDEX[n] for n in ("c1", "tilt_x", "tilt_y")]
    quadratic = linearise(bench, state, free, some, {c: possible_moves(state.columns, c) for c in some})
    neighbours = Neighbours.within(island.columns, 2.8)
    support = NeighbourStep(neighbours, 6.0)
    return Descent(state.columns, profile(state, quadratic), SurfaceEnergy(neighbours), support), support


def listed(descent: Descent) -> tuple[list[tuple[int, ...]], NDArray[np.float64]]:
    """Return every combination of options that no rule bars, and its cost."""
    allowed = [np.flatnonzero(np.isfinite(b)).tolist() for b in descent.barred]
    every = list(itertools.product(*allowed))
    cost = np.empty(len(every))
    here = descent.over(descent.model)
    for i, chosen in enumerate(every):
        here.adopt(np.array(chosen))
        cost[i] = here.cost()
    return every, cost


def trapped(made: Descent, support: NeighbourStep, alone: float) -> Descent:
    """Return a descent in which three columns gain 6 if they move together, and one that moves alone pays."""
    model = made.model
    moves = [int(made.local[n].own[0]) for n in range(3)]
    near = 40.0 * np.eye(len(model.h))
    near[np.ix_(moves, moves)] = alone * np.eye(3) - (1 + alone / 2) * (1 - np.eye(3))
    model = replace(model, h=np.zeros(len(model.h)), near=sparse.csr_array(near), reach=0 * model.reach)
    flat = SurfaceEnergy(Neighbours(np.zeros((0, 2), dtype=np.int64)))
    return Descent(made.columns, model, flat, support)
