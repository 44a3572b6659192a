"""The package from Python: fit an image, read a run, draw its figures, ask its physics.

    import qhrtem
    twin = qhrtem.fit("image.dm4", structure="crystal.cif", zone_axis=(1, 1, 0), high_tension_kV=300.0)
    qhrtem.figures.polarisation_figure(twin)
    qhrtem.polarisation(twin).along((0, 1)).mean()

Everything here is also reachable where it is defined; this module only gathers it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qhrtem.errors import PlanError
from qhrtem.io.masks import read_planned
from qhrtem.io.series_file import read_series
from qhrtem.io.structure_files import ase_atoms
from qhrtem.io.twin import read_twin, write_results
from qhrtem.model.twin import Step, Twin
from qhrtem.plan import (
    ImagePlan,
    MicroscopePlan,
    Plan,
    RunPlan,
    StructurePlan,
    dump_plan,
    load_plan,
    plan_from_tables,
)
from qhrtem.report import figures
from qhrtem.report.page import write_report
from qhrtem.run.folder import check_free, create_run
from qhrtem.science.bonds import composition, valence_sums
from qhrtem.science.charges import own_charges
from qhrtem.science.polarisation import off_centring, polarisation
from qhrtem.science.profiles import distance_to_edge, profile, thickness_at
from qhrtem.science.strain import strain_map
from qhrtem.specimen.crystal import read_cif
from qhrtem.stages.pipeline import fit_image

__all__ = [
    "Twin",
    "ase_atoms",
    "composition",
    "distance_to_edge",
    "figures",
    "fit",
    "off_centring",
    "own_charges",
    "polarisation",
    "profile",
    "read",
    "read_series",
    "strain_map",
    "thickness_at",
    "valence_sums",
    "write_report",
]

TABLES: dict[str, type[BaseModel]] = {
    "image": ImagePlan,
    "microscope": MicroscopePlan,
    "structure": StructurePlan,
    "run": RunPlan,
}


def fit(
    source: str | Path,
    *,
    out: str | Path | None = None,
    force: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
    **options: Any,
) -> Twin:
    """Return the digital twin of one image.

    source: a PLAN.toml, or the image itself; options: keys of a plan, e.g. `pixel_size_A`, `c3_um`, `seed`,
    and `structure` for the path of the CIF; they override the plan. out: folder for the files of the run;
    force: replace a run it holds. progress: told every step.

    Raises PlanError for a wrong plan, InputError for an unusable file, QualityError where no model of the
    crystal describes the image at all. Look at `twin.passed` before using counts or positions.
    """
    plan = _plan(Path(source), options)
    if out is not None:
        check_free(out, force)
    raw = read_planned(plan.image)
    twin = fit_image(plan, raw, read_cif(plan.structure.path), progress)
    if out is not None:
        folder = create_run(out, force)
        folder.write_plan(dump_plan(plan))
        with folder.publishing() as staging:
            drawn = figures.figures_of(twin)
            write_results(twin, staging)
            figures.save_figures(twin, staging / "figures", drawn)
            write_report(twin, staging, drawn)
    return twin


def read(run: str | Path) -> Twin:
    """Return the twin of a finished run; raises InputError where the folder holds none."""
    return read_twin(Path(run))


def _plan(source: Path, options: dict[str, Any]) -> Plan:
    """Sort options into the tables of a plan by the names of its keys."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in TABLES}
    for key, value in options.items():
        if key == "structure":
            tables["structure"]["path"] = Path(value)
            continue
        homes = [t for t, kind in TABLES.items() if key in kind.model_fields and key != "path"]
        if not homes:
            raise PlanError(
                f"fit: unknown option '{key}'; options are the keys of a plan, see the plan reference"
            )
        tables[homes[0]][key] = list(value) if isinstance(value, tuple) else value
    if source.suffix.lower() == ".toml":
        return load_plan(source, tables)
    tables["image"]["path"] = source
    return plan_from_tables(tables, "fit")
