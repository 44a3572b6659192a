"""Benches over images that the forward model itself made, with or without noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import Microscope
from qhrtem.physics.detector import add_noise
from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.objective import Bench, make_misfit
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
    model = island.model
    image = model.field.crop(model.image(columns or island.columns, microscope or island.microscope)).double()
    if seed is not None:
        image = add_noise(image, electrons, 1.0, 0.0, 0.0, torch.Generator().manual_seed(seed)) / electrons
    valid = np.ones(tuple(image.shape), bool)
    micrograph = Micrograph(image.numpy(), valid, model.field.detector_pixel, electrons, 0.0, 0.002)
    return Bench(model, make_misfit(micrograph, model.field))


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
