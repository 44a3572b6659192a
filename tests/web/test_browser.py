"""The page in a real browser: it follows the run, runs nothing foreign, and many tabs share one stream."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the live page needs starlette and uvicorn")

from liverun import part, step, under_way
from pageserver import HOSTILE, Served, serving

pytestmark = pytest.mark.browser
TABS = 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium found; install chromium to run the page in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser profile of its own that notes every complaint and every request."""
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    made.complaints, made.asked = [], []
    made.on("console", lambda message: made.complaints.append(message.text))
    made.on("weberror", lambda error: made.complaints.append(str(error.error)))
    made.on("request", lambda request: made.asked.append(request.url))
    yield made
    made.close()


def opened(context: Any, page: Served) -> Any:
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{page.port}/")
    until(tab, "document.getElementById('headline').textContent.startsWith('Running')")
    return tab


def until(tab: Any, expression: str) -> None:
    """Wait for an expression to hold; asked from outside, since the page evaluates nothing."""
    begun = time.monotonic()
    while not tab.evaluate(expression):
        assert time.monotonic() - begun < 15, expression
        time.sleep(0.1)


def test_the_page_follows_the_run_and_runs_nothing_foreign(served: Served, context: Any) -> None:
    tab = opened(context, served)
    assert tab.title().startswith("Running: counts") and tab.evaluate("document.title") != "owned"
    assert tab.inner_text("#explanation") == HOSTILE.replace("  ", " ")
    assert tab.inner_text("#rejected td").startswith("</script>")
    assert tab.locator("script").count() == 3 and tab.locator("img[src=x]").count() == 0
    assert tab.locator(".trace").count() == 1 and "5.200 ± 0.020 nm" in tab.inner_text(".trace")
    until(tab, "document.getElementById('image-difference').naturalWidth === 60")
    begun = time.monotonic()
    step(served.journal, "joint", 1.0123, 40.0, "what just happened", 0.95)
    tab.wait_for_selector("text=what just happened", timeout=5000)
    assert time.monotonic() - begun < 4
    assert "95 %" in tab.inner_text("#clock") and "1.0123" in tab.inner_text("#numbers")
    before = tab.get_attribute("#image-measured", "src")
    part(served.store, "counts 3", 3, 1.01, 41.0)
    until(tab, f"!document.getElementById('image-measured').src.endsWith('{before}')")
    assert not context.complaints
    assert all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in context.asked)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_nothing_runs_off_the_page(shared: Served, browser: Any, width: int, scheme: str) -> None:
    made = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = opened(made, shared)
    tab.wait_for_timeout(900)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    made.close()


def test_stopping_is_asked_twice_and_says_what_came_of_it(served: Served, context: Any) -> None:
    sent: list[str] = []
    context.on("request", lambda r: sent.append(r.method) if r.url.endswith("/stop") else None)
    tab = opened(context, served)
    context.route("**/stop", lambda route: route.fulfill(status=200, body='{"said": "It was asked."}'))
    assert "75" in tab.inner_text("#stopping")
    tab.click("#stop")
    tab.click("#keep")
    assert not sent and tab.is_visible("#stop")
    tab.click("#stop")
    tab.click("#confirm")
    tab.wait_for_selector("text=It was asked.")
    assert sent == ["POST"]


def test_twenty_tabs_share_one_stream_and_all_follow(served: Served, context: Any) -> None:
    tabs = [opened(context, served) for _ in range(TABS)]
    step(served.journal, "joint", 1.0, 50.0, "for all of them", 0.97)
    for tab in tabs:
        tab.wait_for_selector("text=for all of them", timeout=8000)
    assert not context.complaints
    # Only the worker holds a stream; a browser gives no server more than six connections.
    established = Path("/proc/net/tcp")
    if established.exists():
        server = f"0100007F:{served.port:04X}"
        rows = [line.split() for line in established.read_text().splitlines()[1:]]
        assert sum(r[1] == server and r[3] == "01" for r in rows) <= 6
    for tab in tabs[1:]:
        tab.close()
    step(served.journal, "joint", 1.0, 51.0, "for the last one", 0.98)
    tabs[0].wait_for_selector("text=for the last one", timeout=8000)


def test_a_page_whose_server_is_gone_says_so_and_finds_the_next_one(tmp_path: Path, context: Any) -> None:
    from qhrtem.web import server

    with under_way(tmp_path / "run") as parts:
        with serving(*parts) as first:
            tab = opened(context, first)
            assert tab.is_hidden("#lost")
        tab.wait_for_selector("#lost:not([hidden])", timeout=8000)
        assert tab.is_disabled("#stop") and tab.locator("#history tbody tr").count() == 9
        step(parts[1], "joint", 1.0, 60.0, "meanwhile", 0.98)
        listen = server.listen
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pageserver.listen", lambda host, port: listen(host, first.port))
            with serving(*parts):
                tab.wait_for_selector("text=meanwhile", timeout=15000)
                tab.wait_for_selector("#lost", state="hidden", timeout=8000)
        assert tab.locator("#history tbody tr").count() == 10  # nothing twice


def test_a_page_elsewhere_can_neither_read_nor_stop_the_run(served: Served, context: Any) -> None:
    evil = context.new_page()
    context.route(
        "http://evil.example/", lambda r: r.fulfill(body="<title>evil</title>", content_type="text/html")
    )
    evil.goto("http://evil.example/")
    address = f"http://127.0.0.1:{served.port}"
    attempt = """async ([where, method]) => {
        try { const a = await fetch(where, { method, mode: "no-cors" }); return `${a.type} ${a.status}`; }
        catch (error) { return "refused"; } }"""
    for where, method in (("/", "GET"), ("/events", "GET"), ("/files/plan.toml", "GET"), ("/stop", "POST")):
        assert evil.evaluate(attempt, [address + where, method]) in ("refused", "opaque 0")
    read = (
        "async (w) => { try { return await (await fetch(w)).text(); } catch (error) { return 'refused'; } }"
    )
    assert evil.evaluate(read, address + "/files/plan.toml") == "refused"
    framed = """(w) => new Promise((done) => { const f = document.createElement("iframe"); f.src = w;
        f.onload = () => done(f.contentDocument ? "own" : "foreign");
        document.body.append(f); setTimeout(() => done("nothing"), 3000); })"""
    assert evil.evaluate(framed, address + "/") in ("foreign", "nothing")
    assert not served.store._journal.path.read_bytes().count(b"stopped")


def test_the_report_of_a_run_opens_in_its_sandbox(tmp_path: Path, context: Any) -> None:
    from qhrtem.report.evidence import convergence_figure
    from qhrtem.report.page import write_report
    from twins import make_twin

    twin = make_twin(2, 3)
    with under_way(tmp_path / "run") as parts, serving(*parts) as page:
        write_report(twin, page.folder.path, {"convergence": convergence_figure(twin)})
        tab = context.new_page()
        tab.goto(f"http://127.0.0.1:{page.port}/files/report.html")
        assert tab.title() == "qhrtem report"
        assert tab.locator("circle").count() == len(twin.columns.kind)  # its own script runs
        reached = (
            "async () => { try { return (await fetch('/')).status; } catch (error) { return 'refused'; } }"
        )
        assert tab.evaluate(reached) == "refused"
