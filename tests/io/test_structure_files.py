"""Structure files read back by gemmi and ASE hold the atoms that were written."""

from __future__ import annotations

import dataclasses
import io

import ase.io
import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.errors import InputError
from qhrtem.io.structure_files import (
    MARGIN_A,
    RESOLUTION_A,
    box_around,
    cel_text,
    cif_text,
    extxyz_text,
    with_uncertainty,
)
from qhrtem.model.twin import Twin
from twins import make_twin

TOLERANCE_A = 1e-4


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(3, 4)


def shifted(twin: Twin, offset: tuple[float, float, float]) -> Twin:
    """The twin with all atoms moved, so that some leave the imaged field."""
    atoms = dataclasses.replace(twin.atoms, position_A=twin.atoms.position_A + np.array(offset))
    return dataclasses.replace(twin, atoms=atoms)


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (-9.0, 0.3, -1.0), (40.0, -20.0, 3.0)])
def test_box_holds_every_atom_clear_of_its_image(twin: Twin, offset: tuple[float, float, float]) -> None:
    moved = shifted(twin, offset)
    box = box_around(moved)
    inside = moved.atoms.position_A - box.origin_A
    assert (inside.min(axis=0) >= MARGIN_A - 1e-9).all()
    assert (box.length_A - inside.max(axis=0) >= MARGIN_A - 1e-9).all()
    assert (box.length_A >= [twin.match.measured.shape[1] * twin.pixel_size_A, 0.0, twin.thickness_A]).all()


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (-9.0, 0.3, -1.0)])
def test_cif_through_gemmi(twin: Twin, offset: tuple[float, float, float]) -> None:
    moved = shifted(twin, offset)
    small = gemmi.make_small_structure_from_block(gemmi.cif.read_string(cif_text(moved)).sole_block())
    got = np.array([small.cell.orthogonalize(s.fract).tolist() for s in small.sites])
    assert small.spacegroup.number == 1
    np.testing.assert_allclose(got + box_around(moved).origin_A, moved.atoms.position_A, atol=TOLERANCE_A)
    assert [s.element.name for s in small.sites] == list(moved.atoms.element)
    np.testing.assert_allclose([s.occ for s in small.sites], moved.atoms.occupancy, atol=1e-4)
    u_iso = np.array([s.u_iso for s in small.sites])
    np.testing.assert_allclose(8 * np.pi**2 * u_iso, moved.atoms.b_iso_A2, atol=1e-4)


def test_cif_through_ase(twin: Twin) -> None:
    moved = shifted(twin, (-9.0, 0.3, -1.0))
    read = ase.io.read(io.StringIO(cif_text(moved)), format="cif")
    expected = moved.atoms.position_A - box_around(moved).origin_A
    assert read.get_chemical_symbols() == list(moved.atoms.element)
    np.testing.assert_allclose(read.positions, expected, atol=TOLERANCE_A)


def test_cif_uncertainties_are_those_of_the_atoms(twin: Twin) -> None:
    block = gemmi.cif.read_string(cif_text(twin)).sole_block()
    length = float(block.find_value("_cell_length_a"))
    for text, sigma in zip(block.find_values("_atom_site_fract_x"), twin.atoms.sigma_A[:, 0], strict=True):
        value, digits = text.rstrip(")").split("(")
        got = int(digits) * 10.0 ** -len(value.split(".")[1]) * length
        assert got == pytest.approx(sigma, rel=0.05, abs=RESOLUTION_A)
    assert not any("(" in text for text in block.find_values("_atom_site_fract_z"))  # sigma unknown


@given(st.floats(-0.5, 1.5), st.floats(1e-9, 0.5))
def test_uncertainty_notation_states_value_and_sigma(value: float, sigma: float) -> None:
    text = with_uncertainty(value, sigma, 6)
    number, digits = text.rstrip(")").split("(")
    step = 10.0 ** -len(number.split(".")[1])
    assert float(number) == pytest.approx(value, abs=0.51 * step)
    assert int(digits) * step == pytest.approx(sigma, rel=0.06)
    assert gemmi.cif.as_number(text) == pytest.approx(value, abs=0.51 * step)


@pytest.mark.parametrize("sigma", [np.nan, np.inf, 0.0, -1.0, 1e-30])
def test_no_uncertainty_is_invented(sigma: float) -> None:
    assert "(" not in with_uncertainty(0.25, sigma, 6)


def test_extxyz_keeps_frame_and_every_column(twin: Twin) -> None:
    moved = shifted(twin, (-9.0, 0.3, -1.0))
    read = ase.io.read(io.StringIO(extxyz_text(moved)), format="extxyz")
    atoms = moved.atoms
    assert read.get_chemical_symbols() == list(atoms.element)
    assert not read.pbc.any()
    np.testing.assert_allclose(read.positions, atoms.position_A, atol=1e-7)
    for name in ("occupancy", "b_iso_A2", "sigma_A", "column"):
        np.testing.assert_allclose(read.arrays[name], getattr(atoms, name), atol=1e-7)
    np.testing.assert_allclose(read.info["box_origin_A"], box_around(moved).origin_A, atol=1e-9)


def test_cel_lists_every_atom_in_nanometres(twin: Twin) -> None:
    lines = cel_text(twin).splitlines()
    assert lines[-1] == "*"
    edges = np.array(lines[1].split()[1:4], dtype=float) * 10.0
    sites = [line.split() for line in lines[2:-1]]
    assert [s[0] for s in sites] == list(twin.atoms.element)
    got = np.array([s[1:4] for s in sites], dtype=float) * edges + box_around(twin).origin_A
    np.testing.assert_allclose(got, twin.atoms.position_A, atol=TOLERANCE_A)
    np.testing.assert_allclose([float(s[5]) * 100 for s in sites], twin.atoms.b_iso_A2, atol=1e-3)


def test_nothing_is_written_about_no_or_lost_atoms(twin: Twin) -> None:
    with pytest.raises(InputError, match="finite"):
        cif_text(shifted(twin, (np.nan, 0.0, 0.0)))
    empty = dataclasses.replace(
        twin.atoms, element=(), position_A=np.zeros((0, 3)), occupancy=np.zeros(0), b_iso_A2=np.zeros(0),
        sigma_A=np.zeros((0, 3)), column=np.zeros(0, dtype=np.int64),
    )  # fmt: skip
    with pytest.raises(InputError, match="at least 1 atom"):
        extxyz_text(dataclasses.replace(twin, atoms=empty))
