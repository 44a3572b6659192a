"""What each address answers: files of the run alone, foreign text inert, events whole and in order."""

from __future__ import annotations

import json
import os
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the live page needs starlette and uvicorn")

from liverun import COLS, ROWS, begin, history, images, part, step, under_way
from pageserver import HOSTILE, Served, serving
from qhrtem.report.page import _hash, _template
from qhrtem.web.app import STREAMS_MOST, report_policy
from twins import make_twin


class Tags(HTMLParser):
    """Tags with their attributes, and all text outside them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def everything(page: Served) -> list[dict]:
    """Return all messages up to the status that follows them."""
    out = []
    with page.events() as following:
        while True:
            kind, _, content = following()
            if kind == "status":
                return [*out, content]
            if kind == "message":
                out.append(content)


def test_the_page_is_made_of_shipped_parts(shared: Served) -> None:
    page = Tags(shared.ask("/").text)
    scripts = [a for t, a in page.tags if t == "script"]
    sheets = [a for t, a in page.tags if t == "link"]
    assert len(scripts) == 3 and len(sheets) == 2
    for where in [a["src"] for a in scripts] + [a["href"] for a in sheets]:
        assert where and where.startswith("/assets/")
        answer = shared.ask(where)
        assert answer.status == 200 and b"http://" not in answer.body.replace(
            b"http://www.w3.org/2000/svg", b""
        )
        assert b"https://" not in answer.body
        assert b"innerHTML" not in answer.body and b"eval(" not in answer.body
    for _, attributes in page.tags:
        assert "style" not in attributes and not any(n.startswith("on") for n in attributes)
    assert f"qhrtem resume {shared.folder.path}" in page.words
    assert "--fork CHILD" in page.words


def test_a_path_that_is_a_script_stays_a_path(tmp_path: Path) -> None:
    name = "<script>document.title='owned'<" + "&\"'{{7*7}}"
    with under_way(tmp_path / name.replace("/", "")) as parts, serving(*parts) as page:
        tags = Tags(page.ask("/").text)
    assert [t for t, _ in tags.tags].count("script") == 3
    assert name in tags.words and "{{7*7}}" in tags.words


def test_foreign_text_travels_as_json_and_nothing_else(shared: Served) -> None:
    messages = everything(shared)
    notes = [m["note"] for m in messages if m.get("kind") == "step"]
    assert HOSTILE in notes
    with shared.events() as following:
        following()
    assert shared.ask("/events", host="evil.example").status == 403


OUT = """
    ../secret figures/../../secret %2e%2e/secret %2e%2e%2fsecret ..%2fsecret ..%5csecret %252e%252e%252fsecret
    figures/%2e%2e/%2e%2e/secret /etc/passwd %2fetc%2fpasswd //etc/passwd ..;/secret secret
    %c0%ae%c0%ae/secret plan.toml%00.png ./plan.toml figures//match.png . .. figures figures/
    figures/%2e%2e/plan.toml journal.jsonl unfinished .partial/columns.csv link.csv figures/link.png
""".split()


def test_paths_lead_nowhere_but_to_results(served: Served) -> None:
    run = served.folder.path
    secret = run.parent / "secret"
    secret.write_text("SECRET")
    (run / "figures").mkdir()
    (run / "figures" / "match.png").write_bytes(b"drawn")
    for link in (run / "link.csv", run / "figures" / "link.png", run / "columns.csv"):
        link.symlink_to(secret)
    assert served.ask("/files/plan.toml").status == 200
    assert served.ask("/files/figures/match.png").status == 200
    assert served.ask("/files/columns.csv").status == 404  # by its right name, but it leads out
    for asked in [*OUT, ""]:
        answer = served.ask(f"/files/{asked}")
        assert answer.status == 404, asked
        assert b"SECRET" not in answer.body and b"root:" not in answer.body


@pytest.mark.parametrize(
    "asked", ["/../secret", "/assets/../live.py", "/assets/%2e%2e/app.py", "/assets/live.py"]
)
def test_assets_lead_nowhere_else_either(shared: Served, asked: str) -> None:
    assert shared.ask(asked).status == 404


def test_a_link_to_the_whole_run_is_the_run(tmp_path: Path) -> None:
    with under_way(tmp_path / "run") as (_, journal, store):
        os.symlink(tmp_path / "run", tmp_path / "link")
        from qhrtem.run.folder import RunFolder

        with serving(RunFolder(tmp_path / "link"), journal, store) as page:
            assert page.ask("/files/plan.toml").status == 200


def test_files_of_the_run_are_in_a_sandbox_that_runs_the_scripts_of_the_report_alone(served: Served) -> None:
    (served.folder.path / "report.html").write_text("<script>fetch('/stop')</script>")
    answer = served.ask("/files/report.html")
    policy = dict(
        (r.strip() + " ").split(" ", 1) for r in answer.headers["content-security-policy"].split(";")
    )
    assert policy["sandbox"].strip() == "allow-scripts"  # its origin is no one's: it cannot ask this server
    assert "unsafe" not in policy["script-src"] and "connect-src" not in policy
    assert _hash(_template("report.js")) in policy["script-src"]
    assert _hash("fetch('/stop')") not in policy["script-src"]
    assert served.ask("/files/plan.toml").headers["content-type"].startswith("text/plain")
    assert report_policy() == answer.headers["content-security-policy"]


def test_events_come_whole_in_order_and_go_on_where_a_stream_broke(served: Served) -> None:
    first = everything(served)
    kinds = [m.get("kind", "status") for m in first]
    assert kinds.count("step") == 9 and kinds.count("trial") == 5 and kinds.count("part") == 3
    assert first[0]["plan"] == HOSTILE and first[-1]["standing"] == "running"
    with served.events() as following:
        seen = [following() for _ in range(6)]
        assert seen[0][0] == "reset"
    name = seen[-1][1]
    with served.events(after=name) as following:
        kind, _, content = following()
        assert kind == "message" and content == first[5]
    with served.events(after="another-journal/3") as following:
        assert following()[0] == "reset"


def test_what_the_run_writes_arrives(served: Served) -> None:
    with served.events() as following:
        while following()[0] != "status":
            pass
        step(served.journal, "joint", 1.01, 30.0, "the last", 0.9)
        kind, _, content = following()
        assert (kind, content["stage"], content["done"]) == ("message", "joint", 0.9)
        served.journal.append({"event": "stopped", "reason": "enough"})
        served.journal.close()
        last = [following()]
        while last[-1][2].get("standing") != "stopped":
            last.append(following())
        assert {"kind": "stopped", "reason": "enough"} in [content for _, _, content in last]


def test_parts_tell_parameters_rules_and_pictures(shared: Served) -> None:
    parts = [m for m in everything(shared) if m.get("kind") == "part"]
    assert parts[-1]["rejected"] == {HOSTILE: 14} and parts[-1]["undecided"] == 3
    assert parts[-1]["lens"][0] == ["c1_nm", "C1", "nm", 5.2, 0.02]
    assert "generator" not in json.dumps(parts) and "arrays" not in json.dumps(parts)


def read_png(data: bytes) -> tuple[np.ndarray, bytes]:
    """Return the pixels of an 8-bit PNG and its palette, by the standard rather than by our writer."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    place, chunks = 8, {}
    while place < len(data):
        size, name = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + size]
        assert struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0] == zlib.crc32(name + body)
        chunks[name] = body
        place += 12 + size
    cols, rows = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, cols + 1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:], chunks.get(b"PLTE", b"")


def test_pictures_are_those_of_the_state(shared: Served) -> None:
    name = [m for m in everything(shared) if m.get("picture")][-1]["picture"]
    held = images(2)
    measured, _ = read_png(shared.ask(f"/image/{name}/measured.png").body)
    assert measured.shape == (ROWS, COLS)
    order = np.corrcoef(measured.ravel(), held["measured"].ravel())[0, 1]
    assert order > 0.99
    difference, palette = read_png(shared.ask(f"/image/{name}/difference.png").body)
    assert len(palette) == 3 * 256
    assert (difference[~held["used"]] == 255).all() and (difference[held["used"]] < 255).all()
    level = (difference[held["used"]].astype(float) - 127) / 127 * 4
    # 0.05 of noise drawn, sqrt(intensity / 400) expected: one standard deviation.
    assert abs(level.std() - 1) < 0.1
    assert "immutable" in shared.ask(f"/image/{name}/measured.png").headers["cache-control"]


@pytest.mark.parametrize(
    "asked", ["nothing/measured", "{}/columns", "final/measured", "../measured", "%2e%2e/x"]
)
def test_no_other_pictures(shared: Served, asked: str) -> None:
    name = [m for m in everything(shared) if m.get("picture")][-1]["picture"]
    assert shared.ask(f"/image/{asked.format(name)}.png").status == 404


def test_a_finished_run_shows_its_result(tmp_path: Path) -> None:
    from qhrtem.io.twin import write_results

    twin = make_twin(2, 3)
    folder, journal, store = begin(tmp_path / "run")
    history(journal, store)
    write_results(twin, folder.path)
    (folder.path / "report.html").write_text("<p>report</p>")
    journal.append({"event": "finished", "passed": True, "result": "0"})
    folder.close()
    journal.close()
    with serving(folder, journal, store) as page:
        messages = everything(page)
        assert messages[-1]["standing"] == "finished" and messages[-1]["report"]
        assert messages[-2]["kind"] == "finished" and messages[-2]["passed"]
        measured, _ = read_png(page.ask("/image/final/measured.png").body)
        assert measured.shape == twin.match.measured.shape
        # The states are gone; what a page had of them is not asked for again.
        name = [m for m in messages if m.get("picture")][0]["picture"]
        assert page.ask(f"/image/{name}/measured.png").status == 404
        assert page.ask("/stop", "POST", **page.own()).status == 409


def test_a_child_tells_the_steps_that_it_has_from_its_parent(tmp_path: Path) -> None:
    folder, journal, store = begin(tmp_path / "child")
    part(store, "counts 0", 1, 1.2, 17.0, "inherited")
    step(journal, "counts", 1.1, 18.0, "its own", 0.6)
    part(store, "counts 1", 2, 1.1, 18.0, "its own")
    with serving(folder, journal, store) as page:
        steps = [m for m in everything(page) if m.get("kind") == "step"]
    assert [(s["note"], s["seconds"], s["done"]) for s in steps] == [
        ("inherited", 17.0, 0.5),
        ("its own", 18.0, 0.6),
    ]
    journal.close()


def test_pages_that_come_and_go_leave_no_streams_behind(shared: Served) -> None:
    for _ in range(STREAMS_MOST + 20):
        with shared.events() as following:
            following()
    assert everything(shared)


def test_a_damaged_journal_is_shown_as_far_as_it_is_sound(tmp_path: Path) -> None:
    folder, journal, store = begin(tmp_path / "run")
    history(journal, store)
    part(store, "counts 3", 3, 1.1, 20.0)
    journal.close()
    data = folder.journal.read_bytes()
    place = data.index(b"trial 3")
    folder.journal.write_bytes(data[:place] + b"Trial 3" + data[place + 7 :])
    with serving(folder, journal, store) as page:
        status = everything(page)[-1]
    assert "damaged" in status["problem"]


def test_looking_leaves_the_run_as_it_is(served: Served) -> None:
    def state() -> dict[str, tuple[int, int]]:
        every = [served.folder.path, *served.folder.path.rglob("*")]
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in every}

    before = state()
    for message in everything(served):
        if message.get("picture"):
            for layer in ("measured", "simulated", "difference"):
                assert served.ask(f"/image/{message['picture']}/{layer}.png").status == 200
    for path in ("/", "/files/plan.toml", "/files/nothing", "/assets/live.css"):
        served.ask(path)
    assert state() == before
