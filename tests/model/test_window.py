"""Changes of one column computed in a window against the whole field computed anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qhrtem.model.window import Move, SiteChange, Tangent, WindowModel
from slabs import Slab, place, slab

WIDE_A = 14.0  # holds the tails of all changes


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(pixel=0.15, shape=(80, 80))


@pytest.fixture(scope="module")
def window(island: Slab) -> WindowModel:
    return WindowModel(island.model, island.columns, island.microscope, WIDE_A)


def image(island: Slab, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whole-field image with other column ends."""
    return island.model.image(island.columns.with_ends(first, last), island.microscope).double().numpy()


def move_of(island: Slab, c: int, top: int, bottom: int) -> Move:
    """The atoms that change when both ends of a column move by some sites along the beam."""
    first, last = int(island.columns.first[c]), int(island.columns.last[c])
    changes = []
    if top:
        sites = range(first, first + top) if top > 0 else range(first + top, first)
        changes.append(SiteChange(tuple(sites), -1 if top > 0 else 1))
    if bottom:
        sites = range(last + 1, last + bottom + 1) if bottom > 0 else range(last + bottom + 1, last + 1)
        changes.append(SiteChange(tuple(sites), 1 if bottom > 0 else -1))
    return Move(tuple(changes))


ENDS = [(1, 0), (-1, 0), (0, 1), (0, -1), (2, 0), (-2, 0), (0, 2), (0, -2), (1, 1), (-1, 1)]


@pytest.mark.parametrize("name", ["BaO", "Ti", "O"])
def test_moves_match_the_whole_field(island: Slab, window: WindowModel, name: str) -> None:
    """Within 0.1 % of the vacuum intensity at every pixel, for atoms added and removed at both ends."""
    c = island.nearest(name)
    columns = island.columns
    base = image(island, columns.first, columns.last)
    ends = [e for e in ENDS if e[0] - e[1] < columns.last[c] - columns.first[c] + 1]
    response = window.respond(c, [move_of(island, c, *e) for e in ends])
    for (top, bottom), change in zip(ends, response.change, strict=True):
        first, last = columns.first.copy(), columns.last.copy()
        first[c] += top
        last[c] += bottom
        expected = image(island, first, last) - base
        found = place(change, response.row, response.col, base.shape)
        assert np.abs(found - expected).max() < 1e-3, (top, bottom)
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected), (top, bottom)


@pytest.mark.parametrize("name", ["BaO", "Ti"])
def test_changes_that_share_a_wave_come_out_as_on_their_own(
    island: Slab, window: WindowModel, name: str
) -> None:
    c = island.nearest(name)
    moves = [move_of(island, c, *e) for e in [(1, 0), (1, 1), (-1, 1), (1, -1), (0, 1), (0, 0)]]
    changes = [moves[0], Tangent(0, 1), *moves[1:], moves[1]]
    together = window.respond(c, changes).change
    alone = np.concatenate([window.respond(c, [change]).change for change in changes])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert not together[-2].any()  # no atom moved
    assert np.array_equal(together[2], together[-1])


def test_the_default_window_is_good_enough_to_rank_moves(island: Slab) -> None:
    columns = island.columns
    c = island.nearest("O")
    narrow = WindowModel(island.model, columns, island.microscope)
    base = image(island, columns.first, columns.last)
    response = narrow.respond(c, [move_of(island, c, 0, 1), move_of(island, c, 1, 0)])
    for (top, bottom), change in zip([(0, 1), (1, 0)], response.change, strict=True):
        first, last = columns.first.copy(), columns.last.copy()
        first[c], last[c] = first[c] + top, last[c] + bottom
        expected = image(island, first, last) - base
        found = place(change, response.row, response.col, base.shape)
        assert np.abs(found - expected).max() < 3e-3
        assert np.vdot(found, expected) > 0.99 * np.linalg.norm(found) * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["BaO", "Ti", "O"])
def test_changes_on_coarse_waves_are_those_on_fine_ones(name: str) -> None:
    """Atoms within 1 % of the change and derivatives within 4 %; a derivative reaches higher frequencies."""
    fine = slab(shape=(110, 110), pixel=0.105)
    assert fine.model.coarse.field.grid.pixel > fine.model.field.grid.pixel
    assert fine.model.coarse.field.image_grid == fine.model.field.image_grid
    c = fine.nearest(name)
    changes = [Tangent(0, 0), Tangent(0, 1), *(move_of(fine, c, *e) for e in [(1, 0), (0, 1), (1, 1)])]
    a, b = (
        WindowModel(model, fine.columns, fine.microscope, 10.0).respond(c, changes)
        for model in (fine.model, fine.model.coarse)
    )
    shape = fine.model.field.image_grid.shape
    for change, expected, found in zip(changes, a.change, b.change, strict=True):
        whole = place(expected, a.row, a.col, shape)
        apart = np.linalg.norm(place(found, b.row, b.col, shape) - whole)
        assert apart < (0.04 if isinstance(change, Tangent) else 0.01) * np.linalg.norm(whole)


@pytest.mark.parametrize(("name", "group"), [("BaO", 0), ("BaO", 1), ("Ti", 0), ("O", 0)])
def test_tangents_match_finite_differences(island: Slab, window: WindowModel, name: str, group: int) -> None:
    c, h = island.nearest(name), 0.005
    response = window.respond(c, [Tangent(group, 0), Tangent(group, 1)])
    for axis in (0, 1):
        pair = []
        for sign in (1, -1):
            shift = island.columns.shift.copy()
            shift[c, group, axis] += sign * h
            moved = replace(island.columns, shift=shift)
            pair.append(island.model.image(moved, island.microscope).double().numpy())
        expected = (pair[0] - pair[1]) / (2 * h)
        found = place(response.change[axis], response.row, response.col, expected.shape)
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_windows_work_under_mistilt_and_across_the_edge() -> None:
    """The lens slide of a tilted frame applies to the window too, and windows wrap around the field."""
    tilted = slab(pixel=0.18, radius=7.5, shape=(48, 48), margin=4.0)
    lens = tilted.microscope.with_values(tilt_x=4e-3, tilt_y=-2e-3, a1_x=20.0, b2_y=150.0)
    tilted = Slab(tilted.model, tilted.columns, lens)
    window = WindowModel(tilted.model, tilted.columns, lens, 11.0)
    image_of = tilted.model.image_of(window.spectrum, window.exit_z, lens)
    assert torch.allclose(image_of, tilted.model.image(tilted.columns, lens), atol=1e-5)
    c = tilted.nearest("Ti", (0.0, 0.0))
    response = window.respond(c, [move_of(tilted, c, 0, 1)])
    assert response.row < 0 or response.col < 0
    columns = tilted.columns
    last = columns.last.copy()
    last[c] += 1
    shape = tilted.model.field.image_grid.shape
    expected = image(tilted, columns.first, last) - image(tilted, columns.first, columns.last)
    found = place(response.change[0], response.row, response.col, shape)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_an_empty_column_has_no_tangent_but_may_be_filled(island: Slab) -> None:
    c = island.nearest("Ti")
    columns = island.columns
    last = columns.last.copy()
    last[c] = columns.first[c] - 1
    hole = columns.with_ends(columns.first, last)
    window = WindowModel(island.model, hole, island.microscope, WIDE_A)
    sites = tuple(range(int(columns.first[c]), int(columns.last[c]) + 1))
    response = window.respond(c, [Tangent(0, 0), Move((SiteChange(sites, 1),))])
    assert not response.change[0].any()
    expected = image(island, columns.first, columns.last) - image(island, columns.first, last)
    found = place(response.change[1], response.row, response.col, expected.shape)
    assert np.abs(found - expected).max() < 2e-3 and np.abs(expected).max() > 0.2
