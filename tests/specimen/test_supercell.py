"""Supercells: reading with refusals before any work, repetition, tilt, thermal displacement, slicing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.errors import InputError, PlanError
from qhrtem.physics.potential import Species
from qhrtem.specimen.supercell import (
    Supercell,
    atomic_planes,
    displaced,
    equal_slices,
    fixed_thickness,
    make_supercell,
    read_supercell,
    repeat,
    sheared,
    slices_of,
)

ATOMS = (  # element, x, y, z in Å, occupancy, B
    ("Ba", 0.0, 0.0, 0.5, 0.9, 0.5),
    ("Sr", 0.0, 0.0, 0.5, 0.1, 0.6),
    ("Ti", 2.0, 2.1, 2.5, 1.0, 0.45),
    ("O", 2.0, 0.1, 2.6, 1.0, 0.75),
)
EDGES = (4.0, 4.2, 4.4)  # x, y, z


def extxyz(atoms: Any = ATOMS, lattice: str = "4.0 0 0 0 4.2 0 0 0 4.4") -> str:
    head = "Properties=species:S:1:pos:R:3:occupancy:R:1:B_iso:R:1"
    lines = [f"{e} {x} {y} {z} {o} {b}" for e, x, y, z, o, b in atoms]
    return "\n".join([str(len(atoms)), f'Lattice="{lattice}" {head} pbc="T T T"', *lines]) + "\n"


def cif(atoms: Any = ATOMS, gamma: float = 90.0, b: str = "_atom_site_B_iso_or_equiv") -> str:
    a, bb, c = EDGES
    head = f"data_x\n_cell_length_a {a}\n_cell_length_b {bb}\n_cell_length_c {c}\n_cell_angle_alpha 90\n"
    head += f"_cell_angle_beta 90\n_cell_angle_gamma {gamma}\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n"
    names = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"]
    tags = "".join(f"_atom_site_{n}\n" for n in names) + (f"{b}\n" if b else "")
    rows = [
        f"{e}{i} {e} {x / a} {y / bb} {z / c} {o} {t if b else ''}"
        for i, (e, x, y, z, o, t) in enumerate(atoms)
    ]
    return head + tags + "\n".join(rows) + "\n"


def written(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("text", "name"), [(extxyz(), "a.extxyz"), (cif(), "a.cif")])
def test_both_formats_keep_occupancy_and_displacement(tmp_path: Path, text: str, name: str) -> None:
    cell = read_supercell(written(tmp_path, text, name))
    assert [cell.species[k] for k in cell.kind] == [Species(e, b, o) for e, *_, o, b in ATOMS]
    assert cell.position == pytest.approx(np.array([[y, x, z] for _, x, y, z, *_ in ATOMS]), abs=1e-9)
    assert cell.extent == pytest.approx([4.2, 4.0, 4.4])


def test_anisotropic_displacement_becomes_its_mean(tmp_path: Path) -> None:
    loop = "loop_\n_atom_site_aniso_label\n" + "".join(
        f"_atom_site_aniso_U_{ij}\n" for ij in ("11", "22", "33", "12", "13", "23")
    )
    one = cif([("Ti", 1.0, 1.0, 1.0, 1.0, 0.5)], b="")
    cell = read_supercell(written(tmp_path, one + loop + "Ti0 0.01 0.02 0.03 0 0 0\n", "a.cif"))
    assert cell.species[0].b_iso == pytest.approx(8 * math.pi**2 * 0.02)


def test_a_missing_displacement_factor_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, cif(b=""), "a.cif")
    with pytest.raises(InputError, match=r"a\.cif: some atoms have no displacement factor"):
        read_supercell(path)
    assert {s.b_iso for s in read_supercell(path, b_iso=0.4).species} == {0.4}


def changed(index: int, **change: Any) -> list[tuple[Any, ...]]:
    """The atoms with one value of one atom replaced."""
    names = ("element", "x", "y", "z", "occupancy", "b")
    atoms = [list(a) for a in ATOMS]
    for name, value in change.items():
        atoms[index][names.index(name)] = value
    return [tuple(a) for a in atoms]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (extxyz(changed(1, occupancy=0.3)), "a.extxyz", r"atoms 1 \(Ba\) and 2 \(Sr\) .* summing to 1.2"),
        (
            extxyz(changed(3, x=2.0, y=2.1, z=2.75)),
            "a.extxyz",
            r"atoms 3 \(Ti\) and 4 \(O\) lie within 0.3 Å",
        ),
        (extxyz(changed(3, x=0.0, y=0.0, z=4.8)), "a.extxyz", "summing to 2"),  # through the face of the box
        (extxyz(changed(2, x="nan")), "a.extxyz", "atom 3: coordinates must be a finite number"),
        (extxyz(changed(2, b=-1.0)), "a.extxyz", "atom 3: B_iso must be at least 0"),
        (extxyz(changed(2, occupancy=0.0)), "a.extxyz", "atom 3: occupancy must be within 0 to 1"),
        (
            extxyz(lattice="4 0 0 0.5 4.2 0 0 0 4.4"),
            "a.extxyz",
            r"box must be orthogonal .*\(beam along z\), got",
        ),
        (extxyz(lattice="0 0 4 0 4.2 0 4.4 0 0"), "a.extxyz", "edges along x, y and z"),
        (cif(gamma=95), "a.cif", "right angles, got 90, 90, 95"),
        (cif(changed(2, element="Xq")), "a.cif", "unknown element"),
        (cif([]), "a.cif", "at least 1 atom"),
        ("data_x\nloop_\n_a", "a.cif", "not a readable CIF"),
        ("3\nhello\n", "a.extxyz", "not a readable extended XYZ"),
        (extxyz(), "a.pdb", "read from .cif or .extxyz, got a.pdb"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_supercell(written(tmp_path, text, name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.cif does not exist"):
        read_supercell(tmp_path / "none.cif")


def small(z: list[float], depth: float = 4.0) -> Supercell:
    """Atoms above each other's neighbours, far apart across the beam."""
    n = len(z)
    position = np.array([[0.5, 1.0 + 2 * i, v] for i, v in enumerate(z)])
    return make_supercell(
        ["Ti"] * n, position, np.array([3.0, 2.0 * n + 2, depth]), np.full(n, 0.5), np.ones(n)
    )


def test_atoms_outside_are_moved_into_the_box() -> None:
    cell = small([-0.5, 4.25, 4.0, -1e-9])
    assert cell.position[:, 2] == pytest.approx([3.5, 0.25, 0.0, 0.0], abs=1e-6)


def test_repetition_puts_copies_one_edge_apart() -> None:
    cell = small([0.5, 2.5])
    big = repeat(cell, 2, 3, 4)
    assert len(big.kind) == 2 * 24 and big.extent == pytest.approx(cell.extent * [2, 3, 4])
    folded = np.unique(np.round(np.mod(big.position, cell.extent), 6), axis=0)
    assert folded == pytest.approx(np.unique(cell.position, axis=0))
    assert len(np.unique(np.round(big.position, 6), axis=0)) == 48
    with pytest.raises(PlanError, match="at least once"):
        repeat(cell, 0, 1)


@given(st.floats(-0.03, 0.03), st.floats(-0.03, 0.03), st.floats(0, 4))
def test_shearing_keeps_the_reference_plane(x: float, y: float, z: float) -> None:
    cell = small([0.0, 1.0, 2.0])
    moved = sheared(cell, (x, y), z).position - cell.position
    depth = cell.position[:, 2] - z
    assert moved[:, 1] == pytest.approx(depth * math.tan(x)) and moved[:, 2] == pytest.approx(0)
    assert moved[:, 0] == pytest.approx(depth * math.tan(y))


def test_displacements_have_the_variance_of_b() -> None:
    """⟨u²⟩ = B/8π² along each axis."""
    cell = repeat(small([0.0, 2.0]), 20, 20, 5)
    u = displaced(cell, np.random.default_rng(0)).position - cell.position
    assert u.std(0) == pytest.approx(math.sqrt(0.5 / (8 * math.pi**2)), rel=0.03)
    assert abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.06
    again = displaced(cell, np.random.default_rng(0)).position - cell.position
    flat = displaced(cell, np.random.default_rng(0), along_beam=False).position - cell.position
    assert np.array_equal(u, again) and np.array_equal(flat[:, :2], u[:, :2]) and not flat[:, 2].any()


def test_equal_slices_with_atoms_on_faces_and_in_the_middle() -> None:
    cell = small([0.0, 1.0, 2.0, 3.0, 3.999999999])
    assert equal_slices(cell, 4).index.tolist() == [0, 1, 2, 3, 0]
    centred = equal_slices(cell, 4, offset=-0.5)
    assert centred.index.tolist() == [0, 1, 2, 3, 0] and centred.thickness == pytest.approx(np.ones(4))
    assert equal_slices(small([0.49, 0.51, 3.49, 3.51]), 4, offset=-0.5).index.tolist() == [0, 1, 3, 0]
    assert [a.tolist() for a in slices_of(equal_slices(cell, 2))] == [[0, 1, 4], [2, 3]]
    with pytest.raises(PlanError, match="at least one slice"):
        equal_slices(cell, 0)


def test_fixed_thickness_leaves_the_rest_to_the_last_slice() -> None:
    slicing = fixed_thickness(small([0.0, 1.6, 3.3]), 1.5)
    assert slicing.thickness == pytest.approx([1.5, 1.5, 1.0]) and slicing.index.tolist() == [0, 1, 2]
    assert fixed_thickness(small([0.0]), 2.0).thickness == pytest.approx([2, 2])
    for thickness in (4.2, 0.0, math.nan):
        with pytest.raises(PlanError, match="within 0 to the 4 Å of the supercell"):
            fixed_thickness(small([0.0]), thickness)


@given(st.lists(st.floats(0, 3.999), min_size=1, max_size=8), st.floats(0.01, 0.6))
def test_atomic_planes_keep_their_distances(z: list[float], tolerance: float) -> None:
    cell = small(z)
    slicing = atomic_planes(cell, tolerance)
    assert slicing.thickness.sum() == pytest.approx(4.0) and (slicing.thickness > 0).all()
    assert sorted(set(slicing.index.tolist())) == list(range(len(slicing.thickness)))
    planes = np.concatenate([[0], np.cumsum(slicing.thickness)[:-1]])[slicing.index]
    depth = cell.position[:, 2] - planes  # within a tolerance of one constant, modulo the cell
    spread = np.angle(np.exp(2j * np.pi * (depth - depth[0]) / 4.0)) / (2 * np.pi) * 4.0
    assert np.ptp(spread) <= 2 * tolerance + 1e-9


def test_a_plane_on_the_face_is_one_plane() -> None:
    slicing = atomic_planes(small([0.02, 2.0, 3.98]), 0.1)
    assert slicing.index.tolist() == [0, 1, 0] and slicing.thickness == pytest.approx([2.0, 2.0])
    with pytest.raises(PlanError, match="plane tolerance"):
        atomic_planes(small([0.0]), 5.0)
