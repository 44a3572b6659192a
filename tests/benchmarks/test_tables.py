"""Tables: a partial run leaves the other rows, in the order of all."""

from __future__ import annotations

from pathlib import Path

from tables import known, table, updated

HEAD = ("name", "value", "found")
ORDER = [("dose", "1"), ("dose", "2"), ("tilt", "1")]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    lines = [["dose", "1", "0.5 / 0.9"], ["dose", "2", "refused"]]
    path = tmp_path / "table.md"
    path.write_text(f"# Title\n\n| other |\n| --- |\n| 1 |\n\n{table(HEAD, lines)}\n\nAfter.\n", "utf-8")
    assert known(path, HEAD) == lines
    assert known(path, ("another", "head")) == known(tmp_path / "none.md", HEAD) == []


def test_rows_measured_anew_replace_those_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text(table(HEAD, [["tilt", "1", "old"], ["dose", "1", "old"], ["gone", "1", "old"]]), "utf-8")
    new = updated(path, HEAD, [["dose", "2"], ["dose", "1", "new"]], ORDER)
    assert new == table(HEAD, [["dose", "1", "new"], ["dose", "2", ""], ["tilt", "1", "old"]])
