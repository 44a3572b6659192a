"""Tables in Markdown that benchmarks write, and the rows of them that a partial run leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Line = Sequence[str]


def table(head: Line, lines: Sequence[Line]) -> str:
    """Return a table in Markdown; short lines are filled up."""
    filled = [[*line, *[""] * (len(head) - len(line))] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *filled])


def known(path: Path, head: Line) -> list[list[str]]:
    """Return the rows of the table with this head that a file holds; none without such a file or table."""
    text = path.read_text("utf-8") if path.is_file() else ""
    _, found, rest = text.partition("| " + " | ".join(head) + " |\n")
    rows = []
    for line in rest.splitlines()[1:] if found else []:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows


def updated(path: Path, head: Line, lines: Sequence[Line], order: Sequence[tuple[str, ...]]) -> str:
    """Return the table of a file with some of its rows measured anew.

    order: what the first cells of all rows may be, in their order; rows of anything else are dropped.
    """
    width = len(order[0])
    rows = {tuple(row[:width]): row for row in (*known(path, head), *lines)}
    return table(head, [rows[name] for name in order if name in rows])
