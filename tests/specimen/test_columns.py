"""Columns as whole numbers: ends, depths, atoms and counts agree for any thickness and orientation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crystals
from qhrtem.specimen.columns import ColumnModel, distinct_species, lattice_columns
from qhrtem.specimen.crystal import atomic_number

VIEWS = [
    ("BaTiO3", (1, 1, 0)),
    ("SrTiO3", (1, 1, 1)),
    ("MgO", (0, 0, 1)),
    ("Si", (1, 1, 2)),
    ("CeO2", (1, 1, 0)),
]
views = st.sampled_from(VIEWS)


def field_of(view: tuple[str, tuple[int, int, int]], angle: float = 0.3, size: float = 14.0) -> ColumnModel:
    """Empty columns in a square field, the crystal turned by `angle`."""
    frame = np.array([[math.sin(angle), math.cos(angle)], [math.cos(angle), -math.sin(angle)]])
    return lattice_columns(crystals.projection(*view), np.array([1.3, -0.4]), frame, (0, 0, size, size))


@settings(max_examples=25, deadline=None)
@given(views, st.floats(-20, 20), st.floats(0.5, 30))
def test_filling_takes_every_site_between_two_depths(
    view: tuple[str, tuple[int, int, int]], top: float, thickness: float
) -> None:
    empty = field_of(view)
    n = len(empty)
    bottom = top + thickness
    columns = empty.filled(np.full(n, top), np.full(n, bottom))
    c = np.arange(n)
    held = columns.last >= columns.first
    assert (columns.site_depth(c, columns.first)[held] >= top).all()
    assert (columns.site_depth(c, columns.last)[held] <= bottom).all()
    assert (columns.site_depth(c, columns.first - 1) < top).all()
    assert (columns.site_depth(c, columns.last + 1) > bottom).all()


@settings(max_examples=25, deadline=None)
@given(views, st.integers(-9, 9), st.integers(-2, 12), st.integers(0, 999))
def test_atoms_counts_and_depths_agree(
    view: tuple[str, tuple[int, int, int]], first: int, number: int, seed: int
) -> None:
    empty = field_of(view)
    rng = np.random.default_rng(seed)
    start = first + rng.integers(-2, 3, len(empty))
    columns = empty.with_ends(start, start + number + rng.integers(-2, 3, len(empty)) - 1)
    held = np.maximum(columns.last - columns.first + 1, 0)
    atoms = columns.atoms()
    assert (np.bincount(atoms.column, minlength=len(columns)) == held).all()
    assert (columns.element_counts().sum(1) == held).all()
    assert np.allclose(atoms.z, columns.site_depth(atoms.column, atoms.site))
    p = columns.projection
    middle = p.origin + atoms.slice * p.plane
    assert (np.abs(atoms.z - middle) <= p.plane / 2 + 1e-5).all()
    for i in rng.integers(0, max(len(atoms.z), 1), 5 if len(atoms.z) else 0):
        kind = columns.kind_of(int(atoms.column[i]))
        site = kind.sites[atoms.site[i] % len(kind.sites)]
        assert atoms.group[i] == site.group
        assert columns.species[atoms.species[i]] == kind.groups[site.group]
    thickness = held * p.period / np.array([len(columns.kind_of(c).sites) for c in range(len(columns))])
    assert np.allclose(columns.thickness(), thickness)


@given(views, st.integers(-30, 30))
def test_depths_repeat_with_the_period_and_rise_with_the_site(
    view: tuple[str, tuple[int, int, int]], site: int
) -> None:
    columns = field_of(view, size=8.0)
    c = np.arange(len(columns))
    s = np.full(len(c), site)
    m = np.array([len(columns.kind_of(i).sites) for i in c])
    repeat = columns.site_depth(c, s + m) - columns.site_depth(c, s)
    assert np.allclose(repeat, columns.projection.period)
    assert (columns.site_depth(c, s + 1) > columns.site_depth(c, s)).all()
    zero = columns.site_depth(c, np.zeros_like(s)) - columns.rise
    assert ((zero >= 0) & (zero < columns.projection.period)).all()


def test_surfaces_lie_midway_to_the_next_site() -> None:
    columns = field_of(VIEWS[0])
    n = len(columns)
    columns = columns.filled(np.zeros(n), np.full(n, 20.0))
    top, bottom = columns.surfaces()
    assert (np.abs(top) <= columns.projection.period / 2).all()
    assert (np.abs(bottom - 20) <= columns.projection.period / 2).all()
    c = np.arange(n)
    assert np.allclose(
        top - columns.site_depth(c, columns.first - 1), columns.site_depth(c, columns.first) - top
    )
    # Removing the first atom lowers the entrance surface by the site spacing and leaves the exit alone.
    less = columns.with_ends(columns.first + 1, columns.last)
    assert np.allclose(less.surfaces()[1], bottom) and (less.surfaces()[0] > top + 0.5).all()


@settings(max_examples=20, deadline=None)
@given(views, st.floats(0, 2 * math.pi))
def test_lattice_columns_fill_the_box_and_nothing_else(
    view: tuple[str, tuple[int, int, int]], angle: float
) -> None:
    size = 25.0
    columns = field_of(view, angle, size)
    assert ((columns.anchor >= 0) & (columns.anchor <= size)).all()
    assert (columns.last < columns.first).all()
    p = columns.projection
    density = len(columns) / size**2
    expected = len(p.kinds) / np.linalg.det(p.vectors)
    assert density == pytest.approx(expected, rel=0.15)
    d = np.linalg.norm(columns.anchor[:, None] - columns.anchor[None], axis=-1) + 9 * np.eye(len(columns))
    assert d.min() > 0.6
    # Equal columns stand apart by whole lattice vectors, and rise with them.
    same = columns.kind == columns.kind[0]
    step = columns.cell[same] - columns.cell[0]
    assert np.allclose(columns.anchor[same] - columns.anchor[0], step @ p.vectors @ columns.frame)
    rise = columns.rise[same] - columns.rise[0] - step @ np.array(p.depth)
    assert np.allclose(rise / p.period, np.round(rise / p.period), atol=1e-6)
    assert ((columns.rise >= 0) & (columns.rise < p.period)).all()


def test_group_positions_carry_offset_and_shift() -> None:
    columns = field_of(VIEWS[0], angle=0.0)
    bao = np.flatnonzero(columns.kind == [k.name for k in columns.projection.kinds].index("BaO"))
    ti = np.flatnonzero(columns.kind == [k.name for k in columns.projection.kinds].index("Ti"))
    position = columns.group_position()
    offset = (0.9756 - 1) * 4.036  # oxygen against barium along crystal y = field rows
    assert np.allclose(position[bao, 1] - position[bao, 0], [offset, 0], atol=1e-6)
    assert np.isnan(position[ti, 1]).all()
    columns.shift[bao[0], 1] = [0.05, -0.02]
    moved = columns.group_position()
    assert np.allclose(moved[bao[0], 1] - position[bao[0], 1], [0.05, -0.02])
    assert np.allclose(moved[bao[1]], position[bao[1]])


def test_species_are_listed_once() -> None:
    species = distinct_species(crystals.projection("BaTiO3", (1, 1, 0)))
    assert sorted(s.element for s in species) == ["Ba", "O", "Ti"]
    assert atomic_number("Ba") == 56
