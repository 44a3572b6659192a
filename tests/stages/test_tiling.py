"""A field cut into tiles: nothing lost, nothing twice, and the image of a tile is that of the field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import slabs
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph
from qhrtem.stages.objective import State
from qhrtem.stages.start import Start
from qhrtem.stages.tile import Settled
from qhrtem.stages.tiling import Piece, at_odds, cut, piece_of, pilot
from slabs import Slab

PIXEL_A = 0.18


@pytest.fixture(scope="module")
def island() -> Slab:
    """A crystal that covers a part of the field only, tilted and turned."""
    slab = slabs.slab(shape=(150, 180), pixel=PIXEL_A, radius=10.0, angle=0.1, margin=6.0)
    return Slab(slab.model, slab.columns, slab.microscope.with_values(tilt_x=2e-3, a1_x=10.0, b2_y=90.0))


@pytest.fixture(scope="module")
def pieces(island: Slab) -> list[Piece]:
    field = island.model.field
    image = field.crop(island.model.image(island.columns, island.microscope)).numpy().astype(float)
    everywhere = np.ones(field.image_shape, bool)
    micrograph = Micrograph(image, everywhere, PIXEL_A, 1e4, 0.0, 0.002)
    vectors = island.columns.projection.vectors
    lattice = Lattice(island.columns.frame / PIXEL_A, vectors, PIXEL_A, 0.0, 0.0, 100.0, everywhere)
    start = Start(field, island.columns, island.microscope, np.ones(len(island.columns), bool))
    tiles = cut((150, 180), PIXEL_A, 6.0, 14.0)
    return [piece_of(start, micrograph, lattice, t) for t in tiles]


@given(
    rows=st.integers(20, 900),
    cols=st.integers(20, 900),
    halo=st.floats(0.0, 30.0),
    edge=st.floats(5.0, 90.0),
)
def test_cores_cover_the_image_once_and_halos_stay_on_it(
    rows: int, cols: int, halo: float, edge: float
) -> None:
    seen = np.zeros((rows, cols), int)
    for tile in cut((rows, cols), 0.1, halo, edge):
        top, bottom, left, right = tile.core
        seen[top:bottom, left:right] += 1
        sides = zip(tile.core[::2], tile.seen[::2], tile.seen[1::2], (rows, cols), strict=True)
        for inner, outer, end, size in sides:
            assert 0 <= outer <= inner < end <= size
            assert inner - outer >= halo / 0.1 - 1e-9 or outer == 0
    assert (seen == 1).all()


def test_the_image_of_a_tile_is_that_of_the_field(island: Slab, pieces: list[Piece]) -> None:
    """Simulated from the columns of the tile alone, within 0.2 % of vacuum where a fit compares it."""
    assert len(pieces) == 4
    for piece in pieces:
        field, columns = piece.job.start.field, piece.job.start.columns
        model = ForwardModel(field, slabs.ENERGY)
        with torch.inference_mode():
            image = field.crop(model.image(columns, island.microscope)).numpy()
        rim = round(2.5 / PIXEL_A)
        difference = (image - piece.job.micrograph.intensity)[rim:-rim, rim:-rim]
        assert np.abs(difference).max() < 2e-3
        there = piece.job.start.field.to_detector(columns.anchor) + np.array(piece.tile.seen[::2])
        whole = island.model.field.to_detector(island.columns.anchor[piece.index])
        assert np.allclose(there, whole)
        assert piece.job.lattice.crystal.shape == piece.job.micrograph.intensity.shape == field.image_shape


def test_the_first_tile_is_one_with_many_thin_columns(pieces: list[Piece]) -> None:
    thicker = []
    for n, piece in enumerate(pieces):
        columns = piece.job.start.columns
        last = columns.last + (0 if n == 2 else 3)
        start = replace(piece.job.start, columns=columns.with_ends(columns.first, last))
        thicker.append(replace(piece, job=replace(piece.job, start=start)))
    assert pilot(thicker) == 2


def test_tiles_that_find_shared_columns_thicker_than_a_neighbour_are_told(pieces: list[Piece]) -> None:
    """A period in every column shows; an atom here and there does not."""

    def settled(piece: Piece, periods: int, every: int = 1) -> tuple[Piece, Settled]:
        columns = piece.job.start.columns
        sites = np.array([len(k.sites) for k in columns.projection.kinds])[columns.kind]
        chosen = columns.occupied & (np.arange(len(columns)) % every == 0)
        last = columns.last + np.where(chosen, periods * sites, 0)
        state = State(columns.with_ends(columns.first, last), piece.job.start.microscope)
        return piece, Settled(state, np.eye(1), (), {})

    assert at_odds([settled(p, 0) for p in pieces]) == []
    assert at_odds([settled(p, int(n == 1), every=3) for n, p in enumerate(pieces)]) == []
    assert at_odds([settled(p, 1) for p in pieces]) == []
    odd = at_odds([settled(p, int(n == 1)) for n, p in enumerate(pieces)])
    assert 1 in odd and len(odd) > 1


def test_a_tile_may_be_told_that_its_thickness_is_known(pieces: list[Piece]) -> None:
    assert pieces[0].job.thickness_open
    known = pieces[0].with_thickness(False)
    assert not known.job.thickness_open and known.with_thickness(True).job.thickness_open
    assert known.tile == pieces[0].tile and known.job.start is pieces[0].job.start
