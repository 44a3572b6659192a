"""The report page: verdict first, nothing from outside, foreign text inert, refused means no numbers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from qhrtem.model.twin import Twin
from qhrtem.report.evidence import convergence_figure
from qhrtem.report.page import page_text, write_report
from twins import make_twin, with_text

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=http://evil.example/x onerror=\"document.title"
    "='owned'\"> {{ 7*7 }} ]]>--> & '\""
)
LIBRARY = (files("qhrtem.report") / "assets" / "3Dmol-min.js").read_text("utf-8")
OUTSIDE = ("src", "href", "srcset", "action", "data", "poster", "style")


class Page(HTMLParser):
    """Tags with their attributes, and the text of each element kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text.setdefault(tag, []).append("")
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self._open:
            self.text[tag][-1] += data


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(2, 3)


@pytest.fixture(scope="module")
def figures(twin: Twin) -> dict[str, Figure]:
    """One figure, to keep most tests fast; drawing has tests of its own."""
    return {"convergence": convergence_figure(twin)}


@pytest.fixture(scope="module")
def text(twin: Twin, figures: dict[str, Figure]) -> str:
    return page_text(twin, figures)


@pytest.fixture(scope="module")
def hostile(twin: Twin, figures: dict[str, Figure]) -> str:
    return page_text(with_text(twin, HOSTILE), figures)


def test_nothing_is_fetched(text: str, hostile: str) -> None:
    for page in (Page(text), Page(hostile)):
        for tag, attributes in page.tags:
            assert tag not in ("link", "iframe", "object", "embed", "base", "form", "a")
            for name in OUTSIDE:
                value = attributes.get(name)
                assert value is None or value.startswith("data:image/png;base64,"), (tag, name)
        assert not re.search(r"url\(|@import", page.text["style"][0])
    # The library for the model can load structures from the network; the policy forbids it and nothing asks.
    own = text.replace(LIBRARY, "")
    assert len(own) < len(text)
    reachable = re.findall(r"https?://[^\s\"'<]+", own)
    assert set(reachable) <= {"http://www.w3.org/2000/svg"}  # a name of a vocabulary, not an address


def test_policy_allows_only_the_embedded_sheet_and_script(text: str) -> None:
    page = Page(text)
    policies = [a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert (rules["default-src"], rules["img-src"], rules["base-uri"]) == ("'none'", "data:", "'none'")
    for tag, rule, number in (("style", "style-src", 1), ("script", "script-src", 2)):
        found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        assert len(found) == number
        digests = [base64.b64encode(hashlib.sha256(f.encode()).digest()).decode() for f in found]
        assert rules[rule] == " ".join(f"'sha256-{d}'" for d in digests)


def test_foreign_text_stays_text(text: str, hostile: str) -> None:
    page = Page(hostile)
    assert [t for t, _ in page.tags].count("script") == 3  # the data, the library and the program, none added
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7*7 }}" in "".join(page.text["main"])  # shown as it came, not evaluated
    assert json.loads(page.text["script"][0])["columns"][0]["kind"].startswith("</script>")
    assert HOSTILE not in hostile


def test_verdict_comes_first_and_names_what_to_distrust(twin: Twin, text: str) -> None:
    page = Page(text)
    assert "every quality gate holds" in page.text["h1"][0]
    first = page.text["section"][0]
    inner = twin.columns.inside
    assert f"{inner.sum()} columns in the fitted region" in first
    for element, n in zip(twin.columns.elements, twin.columns.counts[inner].sum(axis=0), strict=True):
        assert f"{n} {element}" in first
    assert "O columns: only" in first
    assert all(note in first for note in twin.notes)
    assert text.index("every quality gate holds") < text.index("<figure")


def test_tables_hold_parameters_gates_rules_and_origin(twin: Twin, text: str) -> None:
    cells = Page(text).text["td"] + Page(text).text["th"]
    assert {"C1", "5.520 ± 0.080", "overfocus", "held fixed", "refined", "µm"} <= set(cells)
    assert all(g.name in cells and g.meaning in cells for g in twin.gates)
    assert {"support", "143", "image sha256", "4d5f" * 16} <= set(cells)


def test_hover_data_are_the_columns(twin: Twin, text: str) -> None:
    data = json.loads(Page(text).text["script"][0])
    assert (data["rows"], data["cols"]) == twin.match.measured.shape
    for record, counts, place in zip(
        data["columns"], twin.columns.counts.tolist(), twin.columns.position_px, strict=True
    ):
        assert record["n"] == counts
        assert (record["row"], record["col"]) == pytest.approx(tuple(place), abs=1e-3)


def test_refused_page_says_why_and_claims_nothing(tmp_path: Path) -> None:
    refused = make_twin(2, 3, passed=False)
    text = write_report(refused, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.text["h1"][0].startswith("REFUSED")
    assert "crystal misfit" in page.text["section"][0]
    assert "inspect" in page.text["section"][0]
    assert "script" not in page.text
    names = {a["id"] for t, a in page.tags if t == "figure"}
    assert names == {"figure-match", "figure-residual", "figure-convergence", "figure-lens"}
    words = "".join(page.text["main"])
    assert not re.search(r"\d+ (Ba|Ti|O|BaO)\b|columns in the fitted|expected to have", words)
    assert "For diagnosis only" in words
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_page_of_a_twin_without_extras(twin: Twin, figures: dict[str, Figure]) -> None:
    bare = dataclasses.replace(
        twin, microscope=(), gates=(), history=(), rules={}, notes=(), provenance={}, chi2_vacuum=float("nan")
    )
    page = Page(page_text(bare, figures))
    assert "No vacuum in the image" in page.text["section"][0]
    assert "No gate was evaluated." in page.text["td"][0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser without a network, drawing three-dimensional graphics in software."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium found; install chromium to run the page in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    flags = [
        "--no-sandbox",
        "--enable-unsafe-swiftshader",
        "--use-angle=swiftshader",
        "--ignore-gpu-blocklist",
    ]
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=flags)
        yield running
        running.close()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_browser_runs_the_page_and_nothing_else(
    twin: Twin, figures: dict[str, Figure], tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    path = write_report(with_text(twin, HOSTILE), tmp_path, figures)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.context.set_offline(True)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: requests.append(r.url) if not r.url.startswith("data:") else None)
    page.goto(path.as_uri())
    page.wait_for_function("document.getElementById('model').dataset.atoms !== undefined")
    assert page.title() == "qhrtem report"
    assert page.locator("circle").count() == len(twin.columns.kind)
    assert page.get_attribute("#model", "data-atoms") == str(len(twin.atoms.element))
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing runs off a phone
    # Every column answers to the pointer with its own numbers.
    stage = page.locator("#stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    rows, cols = twin.match.measured.shape
    row, col = twin.columns.position_px[0]
    page.mouse.move(
        box["x"] + box["width"] * (col + 0.5) / cols, box["y"] + box["height"] * (row + 0.5) / rows
    )
    assert page.locator("#readout dd").first.inner_text().startswith("0 (</script>")
    # And so do the atoms of the model.
    page.locator("#model").scroll_into_view_if_needed()
    answers = set()
    model = page.locator("#model").bounding_box()
    for share in (0.35, 0.42, 0.46, 0.5, 0.54, 0.58, 0.65):
        page.mouse.move(model["x"] + share * model["width"], model["y"] + 0.5 * model["height"])
        page.wait_for_timeout(200)
        answers.add(page.locator("#readout dd").first.inner_text())
    assert len(answers) > 1
    assert complaints == []
    assert requests == [path.as_uri()]
    page.close()
