"""CIFs as they come: every fault is told with its remedy, every choice is noted, nothing is evaluated."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crystals
from qhrtem.errors import InputError
from qhrtem.specimen import cif as rules
from qhrtem.specimen.crystal import Crystal, project, read_cif

GOOD = crystals.STRUCTURES["MgO"]  # eight atoms by F m -3 m
GROUP = "_symmetry_space_group_name_H-M 'F m -3 m'"
SITES = "loop_\n_atom_site_label"
OXYGEN = "0.500000 0.500000 0.500000 1 0.34"


def read(text: str | bytes, folder: Path) -> Crystal:
    path = folder / "x.cif"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_cif(path)


def operations(*rows: str, group: str = "") -> str:
    """The structure with a list of symmetry operations in place of its space group, or beside it."""
    quoted = "\n".join(f'"{r}"' for r in rows)
    return GOOD.replace(GROUP, group).replace(
        SITES, f"loop_\n_symmetry_equiv_pos_as_xyz\n{quoted}\n{SITES}", 1
    )


def anisotropic(letter: str, *rows: str) -> str:
    """The structure with anisotropic displacement factors alone."""
    plain = GOOD.replace("_atom_site_B_iso_or_equiv\n", "").replace(" 0.31\n", "\n").replace(" 0.34\n", "\n")
    tags = "\n".join(f"_atom_site_aniso_{letter}_{ij}" for ij in ("11", "22", "33", "12", "13", "23"))
    return f"{plain}loop_\n_atom_site_aniso_label\n{tags}\n" + "\n".join(rows) + "\n"


EVAL = "__import__('os').system('touch pwned')"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace(GROUP, ""), "states no symmetry, and its 2 atoms are too few"),
        (GOOD.replace("F m -3 m", "Q q q q"), "unknown space group 'Q q q q'"),
        (GOOD.replace("F m -3 m", "F d -3 m"), "two choices of origin.*state 'F d -3 m:1' or 'F d -3 m:2'"),
        (operations("x,y,z", EVAL), 'symmetry operation "__import__.* cannot be read'),
        (operations("x,y,z", "x,y"), "symmetry operation 'x,y' cannot be read"),
        (operations("x,y,z", group=GROUP), "operations are those of P 1, not of the stated F m -3 m"),
        (GOOD.replace("_cell_length_a 4.212", "_cell_length_a 5.2"), "does not have the symmetry F m -3 m"),
        (GOOD.replace(OXYGEN, "? 0.5 0.5 1 0.3"), "fract_x must be a number.*got '\\?'"),
        (GOOD.replace(OXYGEN, "0.5 nan 0.5 1 0.3"), "fract_y must be a number.*got 'nan'"),
        (GOOD.replace(OXYGEN, "0.5 0.5 1/2 1 0.3"), "fract_z must be a number.*got '1/2'.*decimal"),
        (GOOD.replace(OXYGEN, "1e30 0.5 0.5 1 0.3"), "fract_x must be a number within"),
        (GOOD.replace(OXYGEN, f'"{EVAL}" 0.5 0.5 1 0.3'), "fract_x must be a number"),
        (GOOD.replace("fract", "Cartn"), "no fractional coordinates"),
        ("\n".join(x for x in GOOD.splitlines() if "_cell" not in x), "_cell_length_a.*it is missing"),
        (GOOD.replace("_cell_angle_gamma 90", ""), "_cell_angle_gamma.*it is missing"),
        (GOOD.replace("4.212", "nan"), "_cell_length_a must be a number, got 'nan'"),
        (GOOD.replace("4.212", "-4.212"), "no usable unit cell"),
        (GOOD.replace("4.212", "0.4212"), "no usable unit cell.*in nm"),
        (GOOD.replace("4.212", "4212"), "at most 1000 Å may be.*in pm"),
        (GOOD.replace("gamma 90", "gamma 0"), "_cell_angle_gamma must be 10 to 170°, got 0"),
        (GOOD.replace("alpha 90", "alpha 30").replace("beta 90", "beta 30"), "volume nan"),
        (GOOD.replace(OXYGEN, "0.5 0.5 0.5 1.5 0.3"), "occupancy of 'O2' must be within 0 to 1, got 1.5"),
        (GOOD.replace(OXYGEN, "0.5 0.5 0.5 -1 0.3"), "occupancy of 'O2' must be within 0 to 1, got -1"),
        (GOOD.replace(OXYGEN, "0.5 0.5 0.5 most 0.3"), "occupancy must be a number, got 'most'"),
        (GOOD.replace(OXYGEN, "0.01 0 0 1 0.3"), "0.04 Å apart, and the occupancies there add up to 2"),
        (GOOD + "".join(f"N{i} N .5 .5 .5 .5 .3\n" for i in (3, 4)), "occupancies there add up to 2"),
        (GOOD.replace("0.34", "340"), "B of 'O2' must be at most 30 Å², got 340"),
        (GOOD.replace("O2 O ", "O2 Qq "), "'O2' has an unknown element"),
        (GOOD + GOOD, "not a readable CIF.*duplicate block name"),
        (GOOD[:-12], "not a readable CIF.*[Ww]rong number"),
        (GOOD.encode() + bytes(99), "not a readable CIF"),
        (bytes(range(256)) * 9, "not a readable CIF"),
        (b"", "no atom sites"),
    ],
)
def test_every_fault_is_told(text: str | bytes, words: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        read(text, tmp_path)
    assert str(tmp_path / "x.cif") in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.cif"]  # nothing was evaluated


def test_files_and_cells_too_large_are_refused_early(tmp_path: Path, monkeypatch) -> None:
    many = "".join(f"Mg{i} Mg {i % 40 / 40} {i // 40 / 40} 0.25 1 0.3\n" for i in range(1, 1200))
    with pytest.raises(InputError, match="1201 atoms in its cell, at most 1000.*not a supercell"):
        read(GOOD.replace("F m -3 m", "P 1").replace("4.212", "99") + many, tmp_path)
    monkeypatch.setattr(rules, "LARGEST_FILE", 100)
    with pytest.raises(InputError, match="MB may be"):
        read(GOOD, tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (anisotropic("U", "Mg1 .004 .004 .004 0 0 0", "O2 .004 .004 .004 0 0 0"), "isotropic equivalents"),
        (GOOD.replace("0.34", "-0.34"), "B = 0.5 Å² was assumed"),
        (GOOD + GOOD.replace("data_MgO", "data_x").replace("4.212", "5"), "holds 2 structures; the first"),
        (GOOD.replace("O2 O ", "D2 D "), "Deuterium was taken as hydrogen"),
    ],
)
def test_every_choice_is_noted(text: str, words: str, tmp_path: Path) -> None:
    found = read(text, tmp_path)
    assert len(found.species) == 8 and found.cell[0, 0] == pytest.approx(4.212)
    assert len(found.notes) == 1 and words in found.notes[0]


def test_a_whole_cell_needs_no_symmetry(tmp_path: Path) -> None:
    known = crystals.crystal("MgO")
    atoms = "".join(
        f"{s.element}{n} {s.element} {x:.4f} {y:.4f} {z:.4f} 1 {s.b_iso}\n"
        for n, (s, (x, y, z)) in enumerate(zip(known.species, known.fractional, strict=True))
    )
    head = GOOD[: GOOD.index("Mg1 Mg")].replace(GROUP, "")
    found = read(head + atoms, tmp_path)
    assert len(found.species) == 8 and "states no symmetry" in found.notes[0]


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("data_MgO\n", "data_MgO\n_publ_author_name 'Müller'\n").encode("latin-1"),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(GROUP, "_space_group_IT_number 225"),
        GOOD.replace("O2 O ", "O2 O2- "),
        GOOD.replace(OXYGEN, "0.5 0.5000(3) 0.5 ? 0.34(2)"),
    ],
)
def test_the_same_crystal_however_it_is_written(text: str | bytes, tmp_path: Path) -> None:
    found, known = read(text, tmp_path), crystals.crystal("MgO")
    assert found.species == known.species and np.allclose(found.fractional, known.fractional)
    assert np.allclose(found.centring, known.centring) and found.notes == ()


def test_operations_of_no_tabulated_setting_are_followed(tmp_path: Path) -> None:
    """A centre of symmetry at 1/16 0 0 is in no table; its images are atoms all the same."""
    found = read(operations("x,y,z", "-x+1/8,-y,-z"), tmp_path)
    assert sorted(round(float(f[0]), 4) for f in found.fractional) == [0.0, 0.125, 0.5, 0.625]
    centred = operations("x,y,z", "-x+1/8,-y,-z", "x+1/2,y+1/2,z", "-x+5/8,-y+1/2,-z")
    assert len(read(centred, tmp_path).centring) == 2


def test_shared_sites_are_kept(tmp_path: Path) -> None:
    text = GOOD.replace(OXYGEN, "0.5 0.5 0.5 0.6 0.34") + "F3 F 0.5 0.5 0.5 0.4 0.34\n"
    assert sum(s.occupancy for s in read(text, tmp_path).species) == pytest.approx(8)


@pytest.mark.parametrize("letter", ["U", "B"])
def test_equivalent_displacements_are_those_of_the_cell(letter: str, tmp_path: Path) -> None:
    """U_eq is a third of the trace in Cartesian axes: in a hexagonal cell not that of the numbers written."""
    text = crystals.cif(
        "x", (3.0, 3.0, 5.0), "P 1", [("Ti", 0, 0, 0, 1, 0), ("O", 0.5, 0.5, 0.5, 1, 0)], (90, 90, 120)
    ).replace("_atom_site_B_iso_or_equiv\n", "")
    text = text.replace(" 1 0\n", " 1\n")
    tags = "".join(f"_atom_site_aniso_{letter}_{ij}\n" for ij in ("11", "22", "33", "12", "13", "23"))
    factor = 8 * math.pi**2 if letter == "B" else 1.0
    rows = "".join(
        f"{a} {' '.join(f'{v * factor:.6f}' for v in (0.01, 0.01, 0.02, 0.005, 0, 0))}\n"
        for a in ("Ti1", "O2")
    )
    found = read(f"{text}loop_\n_atom_site_aniso_label\n{tags}{rows}", tmp_path)
    # With U12 = U11/2 the displacement is the same in all directions of the plane.
    assert found.species[0].b_iso == pytest.approx(8 * math.pi**2 * (0.01 + 0.01 + 0.02) / 3, rel=1e-3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 1), new=st.binary(min_size=0, max_size=3))
def test_damage_ends_in_a_crystal_or_in_one_sentence(place: int, new: bytes, tmp_path: Path) -> None:
    data = GOOD.encode()
    try:
        found = read(data[:place] + new + data[place + 1 :], tmp_path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(found.fractional).all() and np.isfinite(found.cell).all()
        assert all(0 < s.occupancy <= 1 and 0 < s.b_iso <= 30 for s in found.species)
        project(found, (0, 0, 1))
