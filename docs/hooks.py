"""Parts of the documentation made from the code when the site is built, so that they do not drift."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAN = ROOT / "src" / "qhrtem" / "plan.py"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks `<!-- make: NAME -->` by what is made from the code."""
    makers = {"plan": plan_reference, "python": python_reference}
    return re.sub(r"<!-- make: (\w+) -->", lambda m: makers[m[1]](), markdown)


def plan_reference() -> str:
    """Return one table of keys for each table of a plan: key, range, meaning, as `plan.py` states them."""
    source = PLAN.read_text(encoding="utf-8")
    lines = source.splitlines()
    ranges = _ranges(source)
    classes = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    tables = {"image": "ImagePlan", "[image.also]": "FurtherPlan", "microscope": "MicroscopePlan",
              "structure": "StructurePlan", "run": "RunPlan", "series": "SeriesPlan",
              "simulate": "SimulatePlan"}  # fmt: skip
    out = []
    for table, name in tables.items():
        node = classes[name]
        out += [f"## [{table}]", "", ast.get_docstring(node) or "", ""]
        out += ["| key | value | default | meaning |", "|---|---|---|---|"]
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            comment = lines[(item.end_lineno or item.lineno) - 1].partition("  # ")[2]
            kind = ast.unparse(item.annotation)
            default = (
                "required"
                if item.value is None
                else ast.unparse(item.value).replace("None", "found or assumed")
            )
            out.append(f"| `{item.target.id}` | {_kind(kind, ranges)} | {default} | {comment} |")
        out.append("")
    return "\n".join(out)


def _ranges(source: str) -> dict[str, str]:
    """Return the range and unit of each named number of plan.py."""
    found = {}
    for name, low, high, unit in re.findall(
        r'^(_\w+) = Annotated\[\s*_Number, _within\(([-\d.e]+), ([-\d.e]+), "([^"]*)"', source, re.M
    ):
        found[name] = f"{float(low):g} to {float(high):g} {unit}"
    return found


def _kind(annotation: str, ranges: dict[str, str]) -> str:
    names = re.findall(r"_[A-Z]\w+", annotation)
    if names:
        text = ranges.get(names[0], "number")
        return f"pair [x, y], each {text}" if len(names) > 1 else text
    for known, text in (
        ("Path", "path"),
        ("Literal", ""),
        ("str", "text"),
        ("tuple[int", "three integers"),
        ("int", "whole number"),
        ("Mtf", "table or path"),
    ):
        if known in annotation:
            choices = re.findall(r"'(\w+)'", annotation)
            return " or ".join(f"`{c}`" for c in choices) if known == "Literal" else text
    return "number"


def python_reference() -> str:
    """Return name, signature and docstring of everything `qhrtem` offers."""
    package = importlib.import_module("qhrtem")
    out = []
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.ismodule(thing):
            drawn = [n for n, f in vars(thing).items() if n.endswith("_figure") and callable(f)]
            out += [
                f"## {name}",
                "",
                "Figures as functions; each takes a twin and returns a matplotlib figure.",
                "",
            ]
            out += [f"- `figures.{n}(twin)`: {_first(getattr(thing, n))}" for n in sorted(drawn)]
            out += [f"- `figures.figures_of(twin)`: {_first(thing.figures_of)}", ""]
            continue
        signature = str(inspect.signature(thing)) if inspect.isfunction(thing) else ""
        text = inspect.getdoc(thing) or ""
        out += [f"## {name}", "", "```python", f"qhrtem.{name}{_short(signature)}", "```", "", text, ""]
    return "\n".join(out)


def _first(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def _short(signature: str) -> str:
    return re.sub(r"'|qhrtem\.[a-z_.]+\.", "", signature)
