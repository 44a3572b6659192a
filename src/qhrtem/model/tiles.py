"""A large field computed in tiles with halos: the memory of one tile, and work that can be spread.

What a column does to the image dies away within some Å, so a tile simulated with enough of its surroundings
gives the part of the image inside as the whole field would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.grid import Grid
from qhrtem.model.forward import Field, ForwardModel, paired_size
from qhrtem.model.microscope import Microscope
from qhrtem.specimen.columns import ColumnModel

TILE_A = 60.0  # edge of the part of a tile that is kept
HALO_A = 10.0  # around it: the image inside is then within 0.1 % of vacuum of that of the whole field


@dataclass(frozen=True)
class Tile:
    """A part of a field: its own field, whose recorded image is the part that is kept."""

    field: Field
    row: int  # first recorded pixel (row, col) of the whole image that this tile gives
    col: int
    origin: tuple[float, float]  # y, x in Å of the tile's corner in the whole field


def tiles(field: Field, edge: float = TILE_A, halo: float = HALO_A) -> Iterator[Tile]:
    """Yield tiles that cover the recorded image; edge and halo in Å, the same sampling as the field."""
    if not (edge > 0 and halo >= 0):
        raise InputError(f"tiles need a positive edge and no negative halo, got {edge:g} and {halo:g} Å")
    pixel, (up, down) = field.detector_pixel, field.ratio
    margin = math.ceil(halo / pixel)
    parts = [max(1, round(n * pixel / edge)) for n in field.image_shape]
    borders = [
        np.linspace(0, n, k + 1).round().astype(int) for n, k in zip(field.image_shape, parts, strict=True)
    ]
    for top, bottom in zip(borders[0], borders[0][1:], strict=False):
        for left, right in zip(borders[1], borders[1][1:], strict=False):
            shape = (int(bottom - top), int(right - left))
            rows, cols = (paired_size(n + 2 * margin, up, down) for n in shape)
            # Tiles begin on whole wave pixels, so that the sampling of both fields is one.
            corner = [
                int(p + first - margin) // down * down
                for p, first in zip(field.pad, (top, left), strict=True)
            ]
            pad = (int(field.pad[0] + top) - corner[0], int(field.pad[1] + left) - corner[1])
            image = replace(field.image_grid, shape=(rows, cols))
            wave = Grid(
                (rows * up // down, cols * up // down), field.grid.pixel, field.grid.device, field.grid.dtype
            )
            own = replace(field, grid=wave, image_grid=image, image_shape=shape, pad=pad)
            yield Tile(own, int(top), int(left), (corner[0] * pixel, corner[1] * pixel))


def columns_in(columns: ColumnModel, tile: Tile) -> ColumnModel:
    """Return the columns of a tile, in its own frame."""
    origin = np.array(tile.origin)
    anchor = columns.anchor - origin
    inside = ((anchor >= 0) & (anchor < np.array(tile.field.grid.extent))).all(1) & columns.occupied
    return columns.part(inside, origin)


def tiled_image(
    energy: float,
    field: Field,
    columns: ColumnModel,
    microscope: Microscope,
    edge: float = TILE_A,
    halo: float = HALO_A,
    workers: int = 1,
    bend: np.ndarray | None = None,
) -> Tensor:
    """Return the recorded image (rows, cols), vacuum = 1, computed tile by tile.

    energy: eV; edge, halo: Å; workers: threads that share the tiles; bend: (2, 2) rad/Å, change of the
    mistilt (y, x) along rows and columns, each tile having that of its middle.
    """
    out = torch.empty(field.image_shape, dtype=field.grid.dtype, device=field.grid.device)

    def one(tile: Tile) -> None:
        part = columns_in(columns, tile)
        rows, cols = tile.field.image_shape
        where = out[tile.row : tile.row + rows, tile.col : tile.col + cols]
        if not len(part):
            where.fill_(microscope["scale"])  # vacuum
            return
        with torch.inference_mode():
            lens = microscope if bend is None else _bent(microscope, bend, field, tile)
            where.copy_(tile.field.crop(ForwardModel(tile.field, energy).image(part, lens)))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, tiles(field, edge, halo)))
    return out


def _bent(microscope: Microscope, bend: np.ndarray, field: Field, tile: Tile) -> Microscope:
    away = tile.field.middle() + np.array(tile.origin) - field.middle()
    tilt_y, tilt_x = bend @ away + (microscope["tilt_y"], microscope["tilt_x"])
    return microscope.with_values(tilt_y=float(tilt_y), tilt_x=float(tilt_x))
