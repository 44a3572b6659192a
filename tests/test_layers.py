"""The architecture: imports point from edges to foundations, and starting the program stays light."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "qhrtem"
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["qhrtem"]["layers"]
ORDER = {name: level for level, names in enumerate(LAYERS["order"]) for name in names}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """Return the part a module is in: "physics" for qhrtem.physics.electron, "" for the package."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    parts = ["qhrtem", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool) -> set[str]:
    """Return the qhrtem modules that a source imports, anywhere in it, relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            # "from qhrtem import x" imports the part x; deeper, the part is in the base already.
            found |= {f"{base}.{alias.name}" if base == "qhrtem" else base for alias in node.names}
    return {name for name in found if name == "qhrtem" or name.startswith("qhrtem.")}


def edges() -> dict[str, set[str]]:
    """Return part → parts that it imports, over the whole package."""
    out: dict[str, set[str]] = {}
    for path in SOURCES:
        module = module_of(path)
        targets = {part_of(name) for name in imports_of(path.read_text(), module, path.name == "__init__.py")}
        out.setdefault(part_of(module), set()).update(targets - {part_of(module), ""})
    return out


def test_every_part_has_a_layer():
    parts = {part_of(module_of(path)) for path in SOURCES} - {""}
    assert parts <= set(ORDER), f"add to [tool.qhrtem.layers]: {sorted(parts - set(ORDER))}"


def test_imports_point_down():
    wrong = [
        f"{a} imports {b}" for a, targets in edges().items() for b in targets if a and ORDER[b] > ORDER[a]
    ]
    assert not wrong, wrong


def test_parts_of_one_layer_use_each_other_one_way_only():
    graph = edges()

    def reaches(start, goal):
        seen, front = set(), [start]
        while front:
            part = front.pop()
            front += [t for t in graph.get(part, ()) if t not in seen]
            seen |= graph.get(part, set())
        return goal in seen

    assert not [part for part in graph if reaches(part, part)]


def test_narrow_parts_import_only_what_they_may():
    graph = edges()
    wrong = {part: sorted(graph.get(part, set()) - set(may)) for part, may in LAYERS["only"].items()}
    assert not {part: extra for part, extra in wrong.items() if extra}


def test_package_itself_imports_no_part():
    assert not edges()[""]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import qhrtem.cli", {"qhrtem.cli"}),
        ("from qhrtem import cli, plan", {"qhrtem.cli", "qhrtem.plan"}),
        ("from qhrtem.io.twin import x", {"qhrtem.io.twin"}),
        ("from ..io import twin", {"qhrtem.io"}),
        ("from . import b", {"qhrtem.physics"}),
        ("def f():\n    from qhrtem.cli import main", {"qhrtem.cli"}),
        ("import numpy", set()),
    ],
)
def test_the_finder_of_imports_finds_them(source, expected):
    assert imports_of(source, "qhrtem.physics.a", is_package=False) == expected


@pytest.mark.parametrize("module", ["qhrtem", "qhrtem.cli", "qhrtem.plan", "qhrtem.run.journal"])
def test_importing_is_light(module):
    code = f"import {module}, sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    heavy = {"torch", "matplotlib", "botorch", "gpytorch", "dask", "rsciio", "scipy", "starlette", "uvicorn"}
    assert not loaded & heavy
    assert done.stderr == ""


def test_no_code_of_the_package_knows_the_truth():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_prose(node.value):
                assert "truth" not in node.value.lower(), f"{path}:{node.lineno}"
    assert not [
        p for p in PACKAGE.rglob("*") if "truth" in p.name.lower() or p.suffix == ".npz" and "bto" in p.name
    ]


def _is_prose(text: str) -> bool:
    """A sentence may speak of truth; a path or a key may not."""
    return " " in text.strip()


def test_answer_lies_outside_the_package():
    assert (ROOT / "examples" / "truth" / "bto_edge_small.npz").is_file()
    assert not (ROOT / "examples").is_relative_to(PACKAGE)
