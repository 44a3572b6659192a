"""Tiles with halos against the whole field."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import slabs
from qhrtem.errors import InputError
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.tiles import columns_in, tiled_image, tiles
from slabs import Slab

PIXEL_A = 0.18


@pytest.fixture(scope="module")
def island() -> Slab:
    """A crystal that covers a part of the field only, tilted and turned."""
    slab = slabs.slab(shape=(150, 180), pixel=PIXEL_A, radius=9.0, angle=0.1, margin=6.0)
    lens = slab.microscope.with_values(tilt_x=2e-3, a1_x=10.0, b2_y=90.0, scale=1.01)
    return Slab(slab.model, slab.columns, lens)


def test_tiles_cover_the_image_once(island: Slab) -> None:
    field = island.model.field
    seen = np.zeros(field.image_shape, int)
    for tile in tiles(field, 9.0, 5.0):
        rows, cols = tile.field.image_shape
        seen[tile.row : tile.row + rows, tile.col : tile.col + cols] += 1
        assert all(p * PIXEL_A >= 5.0 - 1e-9 for p in tile.field.pad)
        there = tile.field.to_field(np.zeros(2)) + tile.origin
        assert np.allclose(there, field.to_field(np.array([tile.row, tile.col])))
    assert (seen == 1).all()


def test_tiles_give_the_whole_image(island: Slab) -> None:
    """Within 0.1 % of vacuum, away from where the whole field itself wraps around."""
    model = island.model
    whole = model.field.crop(model.image(island.columns, island.microscope))
    for workers in (1, 2):
        image = tiled_image(
            slabs.ENERGY, model.field, island.columns, island.microscope, 12.0, workers=workers
        )
        assert image.shape == whole.shape
        assert float((image - whole)[20:-20, 20:-20].abs().max()) < 1e-3
    narrow = tiled_image(slabs.ENERGY, model.field, island.columns, island.microscope, 12.0, halo=1.0)
    assert float((narrow - whole)[20:-20, 20:-20].abs().max()) > 3e-3


def test_a_tile_without_crystal_is_vacuum(island: Slab) -> None:
    model = island.model
    image = tiled_image(slabs.ENERGY, model.field, island.columns, island.microscope, 3.0, halo=0.5)
    assert torch.equal(image[:4, :4], torch.full((4, 4), 1.01))


def test_columns_keep_their_place(island: Slab) -> None:
    tile = next(t for t in tiles(island.model.field, 9.0, 5.0) if len(columns_in(island.columns, t)))
    part = columns_in(island.columns, tile)
    there = part.group_position()[:, 0] + np.array(tile.origin)
    distance = np.abs(there[:, None] - island.columns.group_position()[None, :, 0]).sum(-1).min(1)
    assert distance.max() < 1e-9


def test_nonsense_is_refused() -> None:
    field = make_field((32, 32), PIXEL_A, 40.0)
    assert ForwardModel(field, slabs.ENERGY).field is field
    with pytest.raises(InputError, match="positive edge"):
        next(tiles(field, 0.0))
