"""Strangers get no answer, and every answer carries the headers that keep strangers out."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the live page needs starlette and uvicorn")

from liverun import under_way
from pageserver import Served, serving
from qhrtem.web.guard import HEADERS, Access

EVERYTHING = ("/", "/assets/live.js", "/events", "/image/final/measured.png", "/files/plan.toml", "/nothing")


@pytest.mark.parametrize("path", EVERYTHING)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[::1]",
        "",
    ],
)
def test_a_foreign_host_is_refused(shared: Served, path: str, host: str) -> None:
    answer = shared.ask(path, host=host)
    assert answer.status == 403 or (host == "" and answer.status == 400)  # without one it is no request
    assert b"<html" not in answer.body


@pytest.mark.parametrize("path", EVERYTHING)
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "",
    ],
)
def test_a_foreign_origin_is_refused(shared: Served, path: str, origin: str) -> None:
    assert shared.ask(path, Origin=origin.format(port=shared.port)).status == 403


def test_names_of_this_machine_are_known_at_any_port(shared: Served) -> None:
    for host in ("127.0.0.1", f"localhost:{shared.port}", "localhost:9", "LOCALHOST"):  # 9: through a tunnel
        assert shared.ask("/", host=host).status == 200
        assert shared.ask("/", host=host, Origin=f"http://{host}".lower()).status == 200


def test_every_answer_carries_the_headers(shared: Served) -> None:
    answers = [shared.ask(p) for p in EVERYTHING if p != "/events"]
    answers.append(shared.ask("/", host="evil.example"))
    for answer in answers:
        for name in set(HEADERS) - {"content-security-policy", "cache-control"}:
            assert answer.headers[name] == HEADERS[name]
        policy = dict(r.strip().split(" ", 1) for r in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in policy["script-src"] and "*" not in policy["script-src"]
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


@pytest.mark.parametrize("missing", ["Origin", "X_Qhrtem_Token"])
def test_stopping_needs_origin_and_token(shared: Served, missing: str) -> None:
    headers = shared.own()
    assert shared.ask("/stop", "POST", **{k: v for k, v in headers.items() if k != missing}).status == 403
    assert shared.ask("/stop", "POST", **{**headers, missing: "http://evil.example"}).status == 403


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
def test_nothing_else_can_be_asked(shared: Served, method: str) -> None:
    assert shared.ask("/files/plan.toml", method).status == 403
    assert shared.ask("/files/plan.toml", method, **shared.own()).status == 405


def test_a_server_that_others_reach_wants_the_token_from_all(tmp_path: Path) -> None:
    access = Access("127.0.0.2")  # an address that the page does not take for its own machine's
    assert access.guarded
    with under_way(tmp_path / "run") as parts, serving(*parts, access=access) as page:
        for path in EVERYTHING:
            assert page.ask(path, host="127.0.0.2").status == 403
            assert page.ask(path, host="127.0.0.2", Cookie="qhrtem=guess").status == 403
            assert page.ask(f"{path}?token=guess", host="127.0.0.2").status == 403
        arrival = page.ask(f"/?token={access.token}", host="127.0.0.2")
        assert arrival.status == 303 and arrival.headers["location"] == "/"  # the address bar forgets it
        cookie = arrival.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        kept = arrival.headers["set-cookie"].split(";")[0]
        assert page.ask("/", host="127.0.0.2", Cookie=kept).status == 200
        assert page.ask("/", host="127.0.0.2", Authorization=f"Bearer {access.token}").status == 200
        assert page.ask("/", host="127.0.0.1", Cookie=kept).status == 403


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {Access("127.0.0.1").token for _ in range(50)}
    assert len(tokens) == 50 and min(map(len, tokens)) >= 40
    assert tokens.isdisjoint(repr(Access("127.0.0.1")).split("'"))
