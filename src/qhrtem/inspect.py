"""The command `qhrtem inspect`: reads an image, surveys it, prints and writes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qhrtem.calibrate.survey import Survey, survey
from qhrtem.errors import PlanError
from qhrtem.io.masks import read_planned
from qhrtem.plan import ImagePlan, Plan, load_plan, plan_from_tables
from qhrtem.report.inspection import Account, account
from qhrtem.specimen.crystal import read_cif


def inspect_image(
    source: Path,
    image: dict[str, Any],
    structure: dict[str, Any],
    high_tension_kV: float | None = None,
) -> tuple[Survey, Account]:
    """Return the survey of an image, or of the one that a PLAN.toml names, and its account.

    image, structure: keys of these tables of a plan that override it; None leaves a key as it is. Raises
    InputError where a file holds no usable image or crystal, PlanError for a plan or option that is wrong.
    """
    image = {k: v for k, v in image.items() if v is not None}
    structure = {k: v for k, v in structure.items() if v is not None}
    cif, zone = structure.get("path"), structure.get("zone_axis")
    if source.suffix.lower() == ".toml":
        over: dict[str, dict[str, Any]] = {"image": image, "structure": structure}
        if high_tension_kV is not None:
            over["microscope"] = {"high_tension_kV": high_tension_kV}
        plan = load_plan(source, over)
        asked, cif, zone = plan.image, plan.structure.path, plan.structure.zone_axis
        high_tension_kV = plan.microscope.high_tension_kV
    else:
        asked = _checked(source, image, zone, high_tension_kV)
    raw = read_planned(asked)
    crystal = None if cif is None else read_cif(cif)
    found = survey(raw, asked, crystal, None if zone is None else tuple(zone))
    return found, account(found, None if cif is None else Path(cif), high_tension_kV)


def _checked(source: Path, image: dict[str, Any], zone: Any, tension: float | None) -> ImagePlan:
    """Return the [image] table of options, checked as those of a plan are."""
    tables = {
        "image": {**image, "path": source},
        "microscope": {"high_tension_kV": 300.0 if tension is None else tension},
        "structure": {"path": "STRUCTURE.cif", "zone_axis": [0, 0, 1] if zone is None else zone},
    }
    plan: Plan = plan_from_tables(tables)
    return plan.image


def print_account(console: Console, said: Account) -> None:
    """Print an account."""
    colour = "red" if said.refusals else "green"
    console.print(f"[bold]{escape(said.title)}[/]", soft_wrap=True, highlight=False)
    console.print(f"[bold {colour}]{escape(said.verdict)}[/]", soft_wrap=True, highlight=False)
    for sentence in said.refusals:
        console.print(f"[red]  refused: {escape(sentence)}[/]", soft_wrap=True, highlight=False)
    for title, rows in (
        ("What the file says", said.file),
        ("What the image says", said.image),
        ("Zone axes, best first", said.zones),
    ):
        if rows:
            table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
            for row in rows:
                table.add_row(*(escape(text) for text in row))
            console.print(table)
    for title, sentences in (("odd", said.contradictions), ("note", said.cautions)):
        for sentence in sentences:
            console.print(f"[yellow]{title}: {escape(sentence)}[/]", soft_wrap=True, highlight=False)
    console.print(said.plan_title, style="bold")
    console.print(said.plan, markup=False, soft_wrap=True, highlight=False)


def write_inspection(found: Survey, said: Account, html: Path | None, plan: Path | None) -> None:
    """Write page and plan where they were asked for. Raises PlanError where a plan is there already."""
    if plan is not None and plan.exists():
        raise PlanError(f"{plan}: exists already; choose another name for --plan, or remove it")
    if html is not None:
        from qhrtem.report.inspection_page import write_page

        write_page(found, said, html)
    if plan is not None:
        from qhrtem.io.twin import write_text

        write_text(plan, said.plan)
