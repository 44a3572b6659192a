"""The package from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qhrtem
from qhrtem import api
from qhrtem.errors import InputError, PlanError
from qhrtem.io.twin import write_results
from specimens import twin_of_crystal
from twins import make_twin, with_text

DATA = Path(qhrtem.__file__).parent / "data"


def test_names_are_found_late_and_alike() -> None:
    assert set(qhrtem.__all__) == set(api.__all__)
    assert qhrtem.fit is api.fit
    assert "polarisation" in dir(qhrtem)
    with pytest.raises(AttributeError, match="no attribute 'polarization'"):
        qhrtem.polarization  # noqa: B018
    code = "import sys, qhrtem; dir(qhrtem); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_are_keys_of_a_plan() -> None:
    given = {"structure": DATA / "BaTiO3.cif", "zone_axis": (1, 1, 0), "high_tension_kV": 300.0, "seed": 4}
    plan = api._plan(Path("image.tif"), {**given, "pixel_size_A": 0.1})
    assert (plan.image.pixel_size_A, plan.run.seed, plan.structure.zone_axis) == (0.1, 4, (1, 1, 0))
    assert api._plan(DATA / "bto_edge_small.toml", {"seed": 9}).run.seed == 9
    with pytest.raises(PlanError, match="unknown option 'pixel'"):
        api._plan(Path("image.tif"), {**given, "pixel": 0.1})
    with pytest.raises(InputError):
        qhrtem.fit("no such image.tif", **given)


def test_a_run_is_read_and_asked(tmp_path: Path) -> None:
    write_results(twin_of_crystal(), tmp_path)
    twin = qhrtem.read(tmp_path)
    mean = qhrtem.polarisation(twin).along((0, 1)).mean()
    assert 30 < abs(mean.value[0]) < 40
    atoms = qhrtem.ase_atoms(twin)
    assert len(atoms) == len(twin.atoms.element)
    assert np.allclose(atoms.positions, twin.atoms.position_A)


def test_notebook_view_is_inert_and_claims_only_what_holds() -> None:
    text = with_text(make_twin(2, 3), "<script>x</script>")._repr_html_()
    assert "<script>" not in text and "atoms in them" in text
    assert "atoms in them" not in make_twin(2, 3, passed=False)._repr_html_()
