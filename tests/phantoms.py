"""Small phantoms for tests: the bundled crystal, seconds to simulate."""

from __future__ import annotations

from typing import Any

from qhrtem.cli import DEMO_PLAN
from qhrtem.engines.ours import Ours
from qhrtem.plan import Plan, plan_from_tables
from qhrtem.simulate.phantom import Phantom, make_phantom
from qhrtem.specimen.crystal import read_cif

CIF = DEMO_PLAN.parent / "BaTiO3.cif"


def small_plan(image: dict[str, Any] | None = None, **simulate: Any) -> Plan:
    """Return the plan of an edge 2.4 x 1.6 nm wide and eight layers thick, with changes to [simulate]."""
    tables = {
        "image": {"path": "phantom.tif", "pixel_size_A": 0.15, **(image or {})},
        "microscope": {"high_tension_kV": 300.0, "c3_um": -14.0},
        "structure": {"path": str(CIF), "zone_axis": [1, 1, 0]},
        "simulate": {"field_nm": [2.4, 1.6], "thickness_slices": 8, "c1_nm": 6.0, **simulate},
    }
    if {"thickness_nm"} & set(simulate):
        del tables["simulate"]["thickness_slices"]
    return plan_from_tables(tables)


def small_phantom(image: dict[str, Any] | None = None, **simulate: Any) -> Phantom:
    """Return the phantom of `small_plan` by our engine."""
    plan = small_plan(image, **simulate)
    return make_phantom(plan, read_cif(plan.structure.path), Ours())
