"""What looking at a run costs it: alone, under 20 event streams, and under 20 tabs of a browser.

    python benchmarks/live_page.py [--pairs 3] [--write benchmarks/live_page.md]

The first minute of a fit of a small phantom (to the thermal correction after the first count round) is
computed again and again, the ways in turn. Halfway through each watched run the server of its page is killed
(SIGKILL) and another one started. The honest figure is the processor time of the run's own process: wall time
on shared cores tells of the neighbours too. The browser is left out where there is none.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qhrtem.commands.doctor import PHANTOM
from qhrtem.engines.protocol import engine_named
from qhrtem.errors import Interrupted
from qhrtem.io.micrograph import read_image
from qhrtem.model.twin import Step
from qhrtem.plan import dump_plan, load_plan, plan_from_tables
from qhrtem.run.journal import read_journal
from qhrtem.run.process import prepare
from qhrtem.run.session import begin
from qhrtem.simulate.files import write_simulation
from qhrtem.simulate.phantom import make_phantom
from qhrtem.specimen.crystal import read_cif
from qhrtem.stages.pipeline import fit_image

WATCHERS = 20
LIMIT = 1.03  # of processor time
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Measured:
    """One run and those who looked at it."""

    way: str
    result: str = ""  # checksums of the last state
    processor_s: float = 0.0  # of the run's process
    wall_s: float = 0.0
    server_s: float = 0.0  # processor time of the servers of the page, both
    events: int = 0  # that the watchers received, all together
    reached: int = 0  # watchers that knew within 5 s that the run had stopped
    complaints: list[str] = field(default_factory=list)


class Server:
    """`qhrtem serve` on one port, to be killed and started again."""

    def __init__(self, run: Path) -> None:
        self.run, self.port, self.processor_s = run, 0, 0.0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "qhrtem", "serve", str(self.run), "--port", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        address = self._process.stdout.readline()
        self.port = int(address.split(":")[2].split("/")[0])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        _, _, usage = os.wait4(self._process.pid, 0)
        self.processor_s += usage.ru_utime + usage.ru_stime


def phantom(folder: Path) -> Path:
    """Return the plan of a small phantom with its image beside it."""
    image = folder / "phantom.tif"
    tables = {**PHANTOM, "image": {**PHANTOM["image"], "path": image}}
    plan = plan_from_tables(tables, "phantom")
    made = make_phantom(plan, read_cif(plan.structure.path), engine_named("qhrtem"))
    write_simulation(image, made.counts, made.pixel_size_A, made.facts, made.columns)
    path = folder / "plan.toml"
    path.write_text(dump_plan(plan), "utf-8")
    return path


@contextmanager
def streams(port: int, measured: Measured) -> Iterator[None]:
    """Hold event streams open, as pages do, and take each up again where it broke."""
    over = threading.Event()

    def hold() -> None:
        seen, last = "", None
        while not over.is_set():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/events", headers={"Last-Event-ID": seen} if seen else {})
                stream = connection.getresponse()
                while not over.is_set():
                    line = stream.readline()
                    if not line:
                        break
                    if line.startswith(b"id: "):
                        seen = line[4:].strip().decode()
                        measured.events += 1
                    elif line.startswith(b"data: "):
                        last = json.loads(line[6:])
                        if last.get("standing") == "stopped":
                            measured.reached += 1
                            return
            except OSError:
                time.sleep(1.0)

    every = [threading.Thread(target=hold, daemon=True) for _ in range(WATCHERS)]
    for thread in every:
        thread.start()
    try:
        yield
        time.sleep(5.0)
    finally:
        over.set()


@contextmanager
def tabs(port: int, measured: Measured) -> Iterator[None]:
    """Hold tabs of one browser open; each counts the changes of what it shows."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)))
    count = "new MutationObserver(() => { window.changes = (window.changes || 0) + 1; })"
    count += ".observe(document.getElementById('numbers'), { childList: true })"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context()
        pages = []
        for _ in range(WATCHERS):
            page = context.new_page()
            page.on("pageerror", lambda error: measured.complaints.append(str(error)))
            page.goto(f"http://127.0.0.1:{port}/")
            page.evaluate(count)
            pages.append(page)
        yield
        time.sleep(5.0)
        for page in pages:
            measured.events += page.evaluate("window.changes || 0")
            measured.reached += page.inner_text("#headline").startswith("Stopped")
        browser.close()


def fit(plan: Path, out: Path, measured: Measured, watching: Callable | None) -> Measured:
    """Fit the phantom, watched or not, and measure it."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, __file__, "--fit", str(plan), str(out)]
    begin = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end: dict[str, float] = {}

        def wait() -> None:
            _, status, usage = os.wait4(process.pid, 0)
            end.update(code=os.waitstatus_to_exitcode(status), wall=time.monotonic() - begin)
            end.update(processor=usage.ru_utime + usage.ru_stime)

        waiting = threading.Thread(target=wait)
        waiting.start()
        if watching is not None:
            while not (out / "plan.toml").exists():
                time.sleep(0.1)
            server = Server(out)
            with watching(server.port, measured):
                while waiting.is_alive() and not _at_field(out):
                    time.sleep(1.0)
                server.kill()
                time.sleep(2.0)
                server.start()
                waiting.join()
            server.kill()
            measured.server_s = server.processor_s
        waiting.join()
        process.returncode = int(end["code"])
    if end["code"]:
        raise SystemExit(f"the fit ended with {end['code']}")
    measured.processor_s, measured.wall_s = end["processor"], end["wall"]
    measured.result = [str(r["arrays"]) for r in read_journal(out / "journal.jsonl") if r["event"] == "part"][
        -1
    ]
    return measured


def first_minute(plan_path: Path, out: Path) -> None:
    """Do what `qhrtem fit` does, up to the same step each time."""
    plan = load_plan(plan_path)
    raw, crystal = read_image(plan.image.path), read_cif(plan.structure.path)
    with begin(plan, out, force=True) as session:
        prepare(session.threads)

        def on_step(step: Step) -> None:
            session.step(step)
            if step.stage == "counts" and step.iteration == 1:
                raise Interrupted("far enough to be measured")

        try:
            fit_image(plan, raw, crystal, on_step, session.store)
        except Interrupted as end:
            session.stopped(str(end))


def _at_field(run: Path) -> bool:
    return b'"lens 0"' in (run / "journal.jsonl").read_bytes()


def ratios(done: list[Measured], way: str, key: str) -> list[float]:
    """Return a figure of each run watched in one way over that of the run alone before it."""
    out, alone = [], float("nan")
    for m in done:
        if m.way == done[0].way:
            alone = getattr(m, key)
        elif m.way == way:
            out.append(getattr(m, key) / alone)
    return out


def table(done: list[Measured], pairs: int) -> str:
    """Return what was measured as a table."""
    ways = list(dict.fromkeys(m.way for m in done))
    lines = [
        "# What looking at a run costs it",
        "",
        "Written by `benchmarks/live_page.py`: the first minute of a fit of a small SrTiO₃ phantom, by",
        f"itself and watched, in turn, {pairs} times each; medians, range in brackets. In each watched run",
        "the server of the page was killed halfway (SIGKILL) and started again. Processor time is that of",
        f"the run's own process; the goal is a ratio of at most {LIMIT}, of each watched run to the one",
        "alone before it. Wall time is shared with the watchers, the browser and whatever else the cores",
        "do; so, less, is processor time.",
        "",
        "| run | processor, s | ratio | wall, s | ratio | server, s (of a core) | received | saw the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        mine = [m for m in done if m.way == way]
        cells = [way]
        for key in ("processor_s", "wall_s"):
            values = [getattr(m, key) for m in mine]
            middle = statistics.median(values)
            ratio = f"{statistics.median(ratios(done, way, key)):.3f}" if way != ways[0] else ""
            cells += [f"{middle:.1f} [{min(values):.1f}, {max(values):.1f}]", ratio]
        watched = way != ways[0]
        share = statistics.median(m.server_s / m.wall_s for m in mine)
        cells.append(f"{statistics.median(m.server_s for m in mine):.1f} ({share:.1%})" if watched else "")
        cells.append(f"{statistics.median(m.events for m in mine):.0f}" if watched else "")
        cells.append(f"{min(m.reached for m in mine)} of {WATCHERS}" if watched else "")
        lines.append(f"| {' | '.join(cells)} |")
    results = {m.result for m in done}
    complaints = sum(len(m.complaints) for m in done)
    system = f"{platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    lines += [
        "",
        "Received: messages over all streams, or changes of the row of numbers over all tabs. "
        + f"Last states: {'all the same, bit by bit' if len(results) == 1 else f'{len(results)} DIFFERENT'}. "
        + f"Errors in the tabs: {complaints}. {system}.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--fit", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        first_minute(*options.fit)
        return 0
    ways: dict[str, Callable | None] = {"alone": None, f"{WATCHERS} event streams": streams}
    if any(map(shutil.which, BROWSERS)) and not options.no_browser:
        ways[f"{WATCHERS} tabs in Chromium"] = tabs
    done: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="qhrtem-live-") as name:
        plan = phantom(Path(name))
        for _ in range(options.pairs):
            for way, watching in ways.items():
                done.append(fit(plan, Path(name) / "run", Measured(way), watching))
                m = done[-1]
                print(
                    f"{way}: processor {m.processor_s:.2f} s, wall {m.wall_s:.1f} s, "
                    f"server {m.server_s:.2f} s, received {m.events}, "
                    f"saw the end {m.reached}, {m.complaints}",
                    flush=True,
                )
    text = table(done, options.pairs)
    print(text)
    if options.write:
        options.write.write_text(text, "utf-8")
    worst = max(statistics.median(ratios(done, way, "processor_s")) for way in list(ways)[1:])
    return int(worst > LIMIT or len({m.result for m in done}) > 1)


if __name__ == "__main__":
    sys.exit(main())
