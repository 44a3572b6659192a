"""Which files of a run a page may fetch, and nothing beside them."""

from __future__ import annotations

import re
from pathlib import Path

from qhrtem.run.folder import PLAN, RESULTS

# What a browser may show itself; anything else is offered for saving.
SHOWN = {".html": "text/html; charset=utf-8", ".png": "image/png", ".svg": "image/svg+xml"}
SHOWN |= dict.fromkeys((".csv", ".json", ".toml", ".cif", ".extxyz", ".cel"), "text/plain; charset=utf-8")
OFFERED = "application/octet-stream"
FIGURES = "figures"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def run_file(run: Path, asked: str) -> Path | None:
    """Return the file of a run that a path names, None where there is none that may be fetched.

    A result, the plan or a figure, under its own name, in the run's own folder also after every link.
    """
    parts = asked.split("/")
    if not all(PLAIN_NAME.fullmatch(p) for p in parts):
        return None
    single = len(parts) == 1 and parts[0] in (*RESULTS, PLAN)
    if not (single or (len(parts) == 2 and parts[0] == FIGURES)):
        return None
    try:
        root = run.resolve(strict=True)
        found = (root / asked).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


def media_type(path: Path) -> str:
    """Return as what a file is sent."""
    return SHOWN.get(path.suffix.lower(), OFFERED)
