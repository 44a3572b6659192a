"""From a CIF and a zone axis to columns: known projections, density, environments, handedness, refusals."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import crystals
from qhrtem.errors import InputError, PlanError
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import Crystal, Projection, atomic_number, project, read_cif

ROOT = math.sqrt(2)
UPRIGHT = np.array([[0.0, 1.0], [1.0, 0.0]])  # crystal x to columns, crystal y to rows

VIEWS = [
    ("BaTiO3", (1, 1, 0)),
    ("BaTiO3", (1, -1, 0)),
    ("BaTiO3", (0, 0, 1)),
    ("BaTiO3", (1, 0, 0)),
    ("SrTiO3", (1, 1, 0)),
    ("SrTiO3", (1, 1, 1)),
    ("MgO", (0, 0, 1)),
    ("MgO", (1, 1, 0)),
    ("CeO2", (1, 1, 0)),
    ("Si", (1, 1, 0)),
    ("Si", (1, 1, 2)),
    ("Mg", (0, 0, 1)),
    ("Mg", (1, 0, 0)),
    ("Ti", (1, 1, 1)),
    ("distorted", (1, 1, 1)),
    ("distorted", (-1, -1, -1)),
]


def contents(p: Projection) -> dict[str, tuple[int, ...]]:
    """Column name to the numbers of atoms of its element groups in one period; equal names are added up."""
    out: dict[str, Counter[int]] = {}
    for kind in p.kinds:
        out.setdefault(kind.name, Counter()).update(s.group for s in kind.sites)
    return {name: tuple(c[g] for g in sorted(c)) for name, c in out.items()}


@pytest.mark.parametrize(
    ("name", "zone", "cell", "period", "expected"),
    [
        ("BaTiO3", (1, 1, 0), (3.994 / ROOT, 4.036), 3.994 * ROOT, {"BaO": (1, 1), "Ti": (1,), "O": (2,)}),
        ("BaTiO3", (0, 0, 1), (3.994, 3.994), 4.036, {"Ba": (1,), "TiO": (1, 1), "O": (2,)}),
        ("SrTiO3", (1, 1, 0), (3.905 / ROOT, 3.905), 3.905 * ROOT, {"SrO": (1, 1), "Ti": (1,), "O": (2,)}),
        ("SrTiO3", (1, 1, 1), (3.905 * ROOT / 3**0.5,) * 2, 3.905 * 3**0.5, {"SrTi": (1, 1), "O": (3,)}),
        ("MgO", (0, 0, 1), (2.106, 2.106), 4.212, {"MgO": (1, 1)}),
        ("MgO", (1, 1, 0), (4.212 * math.sqrt(3 / 8),) * 2, 4.212 / math.sqrt(2), {"Mg": (1,), "O": (1,)}),
        ("CeO2", (1, 1, 0), (5.411 * math.sqrt(3 / 8),) * 2, 5.411 / math.sqrt(2), {"Ce": (1,), "O": (2,)}),
    ],
)  # fmt: skip
def test_known_projections(
    name: str,
    zone: tuple[int, int, int],
    cell: tuple[float, float],
    period: float,
    expected: dict[str, tuple[int, ...]],
) -> None:
    p = crystals.projection(name, zone)
    assert sorted(np.linalg.norm(p.vectors, axis=1)) == pytest.approx(sorted(cell))
    assert p.period == pytest.approx(period)
    assert contents(p) == expected


def test_batio3_110_in_detail() -> None:
    """y runs along [001], so Ti and O keep their polar offsets with sign."""
    p = crystals.projection("BaTiO3", (1, 1, 0))
    kinds = {k.name: k for k in p.kinds}
    assert kinds["Ti"].fractional == pytest.approx((0, 0.5224), abs=1e-6)
    assert kinds["O"].fractional == pytest.approx((0.5, 0.4895), abs=1e-6)
    assert [g.element for g in kinds["BaO"].groups] == ["Ba", "O"]
    assert kinds["BaO"].offset[1] == pytest.approx([0, (0.9756 - 1) * 4.036], abs=1e-6)
    assert kinds["Ti"].groups[0].b_iso == pytest.approx(0.6)
    assert p.slices == 4 and p.elements == ("Ba", "O", "Ti")
    # Ba and Ti share a plane in one lattice row and alternate between neighbouring rows.
    assert p.depth[0] % p.period == pytest.approx(p.period / 2)
    assert abs(kinds["BaO"].sites[0].z - kinds["Ti"].sites[0].z) == pytest.approx(p.period / 2)
    # Seen from behind ([-1,-1,0] or, equivalent here, [1,-1,0]) the polar axis points the other way.
    back = {k.name: k for k in crystals.projection("BaTiO3", (1, -1, 0)).kinds}
    assert back["Ti"].fractional[1] == pytest.approx(1 - 0.5224, abs=1e-6)


@pytest.mark.parametrize(("name", "zone"), VIEWS)
def test_a_projected_cell_holds_what_the_unit_cell_holds(name: str, zone: tuple[int, int, int]) -> None:
    p, c = crystals.projection(name, zone), crystals.crystal(name)
    ratio = np.linalg.det(p.vectors) * p.period / abs(np.linalg.det(c.cell))
    assert ratio > 0  # right-handed
    mine = Counter(k.groups[s.group].element for k in p.kinds for s in k.sites)
    whole = Counter(s.element for s in c.species)
    assert {e: n / ratio for e, n in mine.items()} == pytest.approx(dict(whole))
    for kind in p.kinds:
        assert all(0 <= s.z < p.period for s in kind.sites)
        assert [s.z for s in kind.sites] == sorted(s.z for s in kind.sites)
        weights = [atomic_number(g.element) for g in kind.groups]
        assert weights == sorted(weights, reverse=True)
        assert np.linalg.norm(kind.offset, axis=1).max() < 0.6


def environments(
    points: NDArray[np.float64], elements: list[str], centres: list[int]
) -> list[tuple[object, ...]]:
    """For each centre: its element and the sorted (distance, element) of its neighbours within 4.5 Å."""
    out: list[tuple[object, ...]] = []
    for i in centres:
        d = np.linalg.norm(points - points[i], axis=1)
        near = np.flatnonzero((d > 0.1) & (d < 4.5))
        shell = sorted((round(float(d[j]), 2), elements[j]) for j in near)
        out.append((elements[i], tuple(shell)))
    return out


def crystal_environments(c: Crystal) -> list[tuple[object, ...]]:
    """Environments of the atoms of one unit cell, from a block of cells."""
    shifts = np.array([(i, j, k) for i in range(-3, 4) for j in range(-3, 4) for k in range(-3, 4)])
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]
    points = ((c.fractional[None] + shifts[:, None]) @ c.cell).reshape(-1, 3)
    elements = [s.element for s in c.species] * len(shifts)
    return environments(points, elements, list(range(len(c.fractional))))


@pytest.mark.parametrize(("name", "zone"), VIEWS)
def test_atoms_of_columns_have_the_neighbours_they_have_in_the_crystal(
    name: str, zone: tuple[int, int, int]
) -> None:
    p, c = crystals.projection(name, zone), crystals.crystal(name)
    columns = lattice_columns(p, np.zeros(2), UPRIGHT, (-8, -8, 8, 8))
    n = len(columns)
    columns = columns.filled(np.full(n, -8.0), np.full(n, 8.0))
    atoms = columns.atoms()
    points = np.column_stack([atoms.position[:, ::-1], atoms.z])
    elements = [columns.species[s].element for s in atoms.species]
    inner = np.flatnonzero((np.abs(points) < 3.2).all(1))
    found = set(environments(points, elements, list(inner)))
    expected = set(crystal_environments(c))
    assert len(inner) > 4

    def close(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
        (ea, sa), (eb, sb) = a, b
        assert isinstance(sa, tuple) and isinstance(sb, tuple)
        if ea != eb or len(sa) != len(sb):
            return False
        by_element = [sorted(s, key=lambda v: (v[1], v[0])) for s in (sa, sb)]
        return all(x[1] == y[1] and abs(x[0] - y[0]) < 0.02 for x, y in zip(*by_element, strict=True))

    assert all(any(close(f, e) for e in expected) for f in found)


def signed_volume(points: dict[str, NDArray[np.float64]]) -> float:
    """Volume of the tetrahedron Ba, Ti, Mg, O, with the sign of its handedness."""
    return float(np.linalg.det([points[e] - points["Ba"] for e in ("Ti", "Mg", "O")])) / 6


@pytest.mark.parametrize("zone", [(0, 0, 1), (1, 0, 0), (1, 1, 0), (1, -1, 1)])
def test_projection_keeps_handedness(zone: tuple[int, int, int]) -> None:
    """A chiral group of four elements stays itself and does not become its mirror image."""
    place = {"Ba": (0.5, 0.5, 0.5), "Ti": (0.75, 0.5, 0.5), "Mg": (0.5, 0.72, 0.5), "O": (0.53, 0.56, 0.7)}
    chiral = crystals.crystal_of(
        crystals.cif("chiral", (8, 8.6, 9.3), "P 1", [(e, *v, 1, 0.5) for e, v in place.items()])
    )
    p = project(chiral, zone)
    columns = lattice_columns(p, np.zeros(2), UPRIGHT, (-9, -9, 9, 9))
    atoms = columns.filled(np.full(len(columns), -12.0), np.full(len(columns), 12.0)).atoms()
    points = np.column_stack([atoms.position[:, ::-1], atoms.z])  # right-handed x, y, z
    names = np.array([columns.species[s].element for s in atoms.species])
    ba = points[names == "Ba"]
    centre = ba[np.argmin(np.linalg.norm(ba, axis=1))]
    group = {"Ba": centre}
    for e in ("Ti", "Mg", "O"):
        mine = points[names == e]
        group[e] = mine[np.argmin(np.linalg.norm(mine - centre, axis=1))]
    original = {e: np.array(v) * [8, 8.6, 9.3] for e, v in place.items()}
    assert signed_volume(original) > 0.5
    assert signed_volume(group) == pytest.approx(signed_volume(original), rel=1e-3)


def test_parallel_zone_axes_are_the_same() -> None:
    once, twice = (project(crystals.crystal("SrTiO3"), z) for z in ((1, 1, 0), (2, 2, 0)))
    assert twice.period == pytest.approx(once.period) and contents(once) == contents(twice)


def test_slices_are_atomic_planes() -> None:
    """Every atom lies near the middle of its slice where the planes are evenly spaced."""
    for name, zone in (
        ("BaTiO3", (1, 1, 0)),
        ("BaTiO3", (0, 0, 1)),
        ("MgO", (1, 1, 0)),
        ("SrTiO3", (1, 1, 1)),
    ):
        p = crystals.projection(name, zone)
        columns = lattice_columns(p, np.zeros(2), UPRIGHT, (-6, -6, 6, 6))
        atoms = columns.filled(np.zeros(len(columns)), np.full(len(columns), 12.0)).atoms()
        assert np.abs(atoms.z - p.origin - atoms.slice * p.plane).max() < 0.12


def test_occupancies_and_displacements_are_kept() -> None:
    text = crystals.cif(
        "mixed", (3.9, 3.9, 3.9), "P m -3 m", [("Ba", 0, 0, 0, 0.6, 0.4), ("Sr", 0, 0, 0, 0.4, 0.7)]
    )
    crystal = crystals.crystal_of(text)
    assert [(s.element, s.occupancy, s.b_iso) for s in crystal.species] == [
        ("Ba", 0.6, 0.4),
        ("Sr", 0.4, 0.7),
    ]


def test_what_the_cif_leaves_out_is_noted() -> None:
    text = crystals.STRUCTURES["MgO"].replace("_atom_site_B_iso_or_equiv\n", "").replace(" 0.31\n", "\n")
    text = text.replace(" 0.34\n", "\n")
    crystal = crystals.crystal_of(text)
    assert {s.b_iso for s in crystal.species} == {0.5}
    assert any("displacement" in n for n in crystal.notes)
    two = crystals.crystal_of(
        crystals.STRUCTURES["MgO"] + crystals.STRUCTURES["Ti"].replace("data_Ti", "data_x")
    )
    assert any("2 structures" in n for n in two.notes)
    assert crystals.crystal("MgO").notes == ()


def test_bad_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    def refuse(text: str, message: str) -> None:
        path = tmp_path / "bad.cif"
        path.write_text(text, "utf-8")
        with pytest.raises(InputError, match=message):
            read_cif(path)

    good = crystals.STRUCTURES["MgO"]
    refuse("this is no CIF at all", "not a readable CIF")
    refuse("data_empty\n_cell_length_a 4\n", "no atom sites")
    refuse(good.replace("O2 O ", "O2 Qq "), "unknown element")
    refuse(good.replace("0.500000 0.500000 0.500000 1", "0.500000 0.500000 0.500000 1.5"), "0 to 1, got 1.5")
    refuse(
        good.replace("0.500000 0.500000 0.500000", "0.010000 0.000000 0.000000"),
        "Å apart, and the occupancies there add up to 2",
    )
    refuse(good.replace("4.212", "0.4212"), "no usable unit cell")
    with pytest.raises(InputError, match="does not exist"):
        read_cif(tmp_path / "missing.cif")
    with pytest.raises(InputError):
        read_cif(tmp_path)


def test_impossible_zone_axes_are_refused() -> None:
    with pytest.raises(PlanError, match="must not be"):
        project(crystals.crystal("MgO"), (0, 0, 0))
    with pytest.raises(PlanError, match="high-indexed"):
        project(crystals.crystal("MgO"), (13, 17, 19))
