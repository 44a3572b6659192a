"""The generated parts of the documentation name everything there is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import qhrtem
from qhrtem.plan import FurtherPlan, ImagePlan, MicroscopePlan, RunPlan, SimulatePlan, StructurePlan

DOCS = Path(__file__).parents[2] / "docs"


def hooks():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plan_reference_lists_every_key_with_its_range() -> None:
    text = hooks().plan_reference()
    for table in (ImagePlan, FurtherPlan, MicroscopePlan, StructurePlan, RunPlan, SimulatePlan):
        for key in table.model_fields:
            assert f"| `{key}` |" in text, key
    assert "| `high_tension_kV` | 20 to 1500 kV | required |" in text
    assert "each -5000 to 5000 nm" in text


def test_python_reference_documents_every_name() -> None:
    text = hooks().python_reference()
    for name in qhrtem.__all__:
        assert f"## {name}\n" in text
    assert "figures.polarisation_figure" in text


def test_links_between_pages_lead_somewhere() -> None:
    pages = {p.name for p in DOCS.glob("*.md")}
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([\w-]+\.md)", page.read_text("utf-8")):
            assert target in pages, (page.name, target)
