"""Crystals from ASE and gemmi are those of the CIF: same projected lattice, columns and sites."""

from __future__ import annotations

import ase
import ase.build
import gemmi
import numpy as np
import pytest

from crystals import STRUCTURES, projection
from qhrtem.errors import InputError
from qhrtem.specimen.crystal import project
from qhrtem.specimen.interop import crystal_from_ase, crystal_from_gemmi


@pytest.mark.parametrize("zone", [(0, 0, 1), (1, 1, 0)])
def test_ase_and_cif_give_one_projection(zone):
    atoms = ase.build.bulk("MgO", "rocksalt", a=4.212, cubic=True)
    b = {"Mg": 0.31, "O": 0.34}
    atoms.set_array("b_iso", np.array([b[s] for s in atoms.get_chemical_symbols()]))
    made, known = project(crystal_from_ase(atoms), zone), projection("MgO", zone)
    assert abs(np.linalg.det(made.vectors)) == pytest.approx(abs(np.linalg.det(known.vectors)))
    assert made.period == pytest.approx(known.period) and made.plane == pytest.approx(known.plane)
    assert sorted(k.name for k in made.kinds) == sorted(k.name for k in known.kinds)
    assert sorted(len(k.sites) for k in made.kinds) == sorted(len(k.sites) for k in known.kinds)


def test_gemmi_and_cif_give_one_crystal():
    block = gemmi.cif.read_string(STRUCTURES["CeO2"]).sole_block()
    made = crystal_from_gemmi(gemmi.make_small_structure_from_block(block), "ceria")
    assert made.name == "ceria" and len(made.species) == 12
    assert abs(np.linalg.det(project(made, (1, 1, 0)).vectors)) == pytest.approx(
        abs(np.linalg.det(projection("CeO2", (1, 1, 0)).vectors))
    )


def test_what_is_no_crystal_is_refused():
    with pytest.raises(InputError, match="cell of three vectors"):
        crystal_from_ase(ase.Atoms("MgO", positions=[[0, 0, 0], [2, 0, 0]]))
    with pytest.raises(InputError, match="apart"):
        crystal_from_ase(ase.Atoms("MgO", positions=[[0, 0, 0], [0.1, 0, 0]], cell=[4, 4, 4], pbc=True))
    assert "B = 0.5" in crystal_from_ase(ase.build.bulk("Si")).notes[0]
