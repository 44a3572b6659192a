"""What looking at a run costs it: alone, under 20 event streams, and under 20 tabs of a browser.

    python benchmarks/live_page.py [--pieces 60] [--fits 0] [--no-browser] [--write benchmarks/live_page.md]

Pieces: one process with a run under way does the same piece of work again and again, as a fit does it: images
of a slab by the forward model, then the records of five trials, five steps and a state with its images, which
is more to tell than a fit has in that time. Before every second piece the server of the page is halted
(SIGSTOP), so that pieces alone and pieces looked at take turns and the load of shared cores falls on both
alike. Halfway the server is killed (SIGKILL) and another one started.

Fits (`--fits N`, for a quiet machine): the first minute of the fit of a small phantom, alone and watched in
turn, the server killed halfway too.

The honest figure is the processor time of the run's own process: wall time on shared cores tells of the
neighbours too. The browser is left out where there is none.
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qhrtem.cli import DEMO_PLAN
from qhrtem.commands.doctor import PHANTOM
from qhrtem.engines.protocol import engine_named
from qhrtem.errors import Interrupted
from qhrtem.io.micrograph import read_image
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import INDEX, NAMES, nominal, watched_rows
from qhrtem.model.twin import Step
from qhrtem.plan import dump_plan, load_plan, plan_from_tables
from qhrtem.run.folder import create_run
from qhrtem.run.journal import Journal, read_journal
from qhrtem.run.lock import owner
from qhrtem.run.process import prepare
from qhrtem.run.session import begin
from qhrtem.run.store import Store
from qhrtem.simulate.files import write_simulation
from qhrtem.simulate.phantom import make_phantom
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.pipeline import fit_image

WATCHERS = 20
LIMIT = 1.03  # of processor time
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
IMAGES = 4  # of a piece of work
RECORDS = 5  # trials and steps of a piece of work


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


Watching = Callable[[int, Measured], AbstractContextManager[None]]


class Server:
    """`qhrtem serve` on one port, to be halted, killed and started again."""

    def __init__(self, run: Path) -> None:
        self.run, self.port, self.processor_s = run, 0, 0.0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "qhrtem", "serve", str(self.run), "--port", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        address = self._process.stdout.readline()
        self.port = int(address.split(":")[2].split("/")[0])

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        _, _, usage = os.wait4(self._process.pid, 0)
        self.processor_s += usage.ru_utime + usage.ru_stime


def work(run: Path) -> None:
    """Do a piece of work for each line that comes in, and answer with its processor and wall time."""
    prepare()
    projection = project(read_cif(DEMO_PLAN.parent / "BaTiO3.cif"), (1, 1, 0))
    shape = (180, 180)
    grid = make_field(shape, 0.112, 100.0)
    low, high = grid.to_field(np.zeros(2)), grid.to_field(np.array(shape))
    empty = lattice_columns(projection, low, np.array([[0.0, 1], [1, 0]]), (*low, *high))
    columns = empty.filled(np.full(len(empty), 60.0), np.full(len(empty), 100.0))
    model, lens, rng = ForwardModel(grid, 3e5), nominal(3e5), np.random.default_rng(0)
    measured = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    free = [INDEX[n] for n in NAMES]
    folder = create_run(run)
    folder.write_plan("")
    with Journal(folder.journal) as journal:
        journal.append({"event": "begin", "owner": owner(), "plan": "", "versions": {}})
        store = Store(folder.checkpoints, journal)
        model.image(columns, lens)
        print("ready", flush=True)
        for n, _ in enumerate(sys.stdin):
            processor, wall = time.process_time(), time.monotonic()
            for _ in range(IMAGES):
                image = grid.crop(model.image(columns, lens)).numpy()
            rows = watched_rows(free, lens.values + 1e-3 * n, lens.sigma)
            for k in range(RECORDS):
                number = n * RECORDS + k
                store.note(
                    "imaging 0", number, {"chi2": 9.0, "step": 0.1, "origin": "refined", "lens": rows[:8]}
                )
                step = {"event": "step", "stage": "counts", "iteration": number, "chi2": 1 + 1 / (1 + number)}
                step |= {"seconds": wall, "note": "a piece of work", "done": 0.5}
                journal.append(step, sync=False)
            view = {"lens": rows, "electrons": 300.0, "readout_variance": 0.0, "field_A": [20.0, 20.0]}
            facts = {
                "view": {**view, "columns": len(columns)},
                "steps": [],
                "rejected": {"neighbour step": n},
            }
            arrays = {"image": image + np.float32(1e-4 * n), "measured": measured, "used": measured > 0}
            store.keep(f"counts {n}", Snapshot(facts, arrays))
            print(json.dumps([time.process_time() - processor, time.monotonic() - wall]), flush=True)
        journal.append({"event": "stopped", "reason": "measured"})


def pieces(folder: Path, count: int, way: str, watching: Watching) -> tuple[Measured, list[list[float]]]:
    """Return what looking cost: rows of processor and wall time alone, then looked at, of each pair."""
    measured, pairs = Measured(way), []
    shutil.rmtree(folder, ignore_errors=True)
    words = [sys.executable, __file__, "--work", str(folder)]
    begun = time.monotonic()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def one() -> list[float]:
            process.stdin.write("go\n")
            process.stdin.flush()
            took: list[float] = json.loads(process.stdout.readline())
            return took

        process.stdout.readline()
        server = Server(folder)
        with watching(server.port, measured):
            one()
            for n in range(count):
                server.send(signal.SIGSTOP)
                alone = one()
                server.send(signal.SIGCONT)
                pairs.append([*alone, *one()])
                if n == count // 2:
                    server.kill()
                    one()
                    server.start()
                    time.sleep(3.0)
            process.stdin.close()
            process.wait()
        server.kill()
    measured.wall_s, measured.server_s = time.monotonic() - begun, server.processor_s
    return measured, pairs


def pieces_table(done: list[tuple[Measured, list[list[float]]]]) -> list[str]:
    """Return lines of a table: median ratio of looked-at to alone, with its standard error."""
    lines = [
        "## Pieces",
        "",
        f"The same piece of work ({IMAGES} images of a BaTiO₃ slab of 180² pixels, records of {RECORDS}",
        "trials and steps, one state with its images), alone and looked at in turn. Ratio: median over the",
        "pairs, ± its standard error (1.25 s/√n from the quartiles). Server: its processor time as a share",
        "of one core.",
        "",
        "| looked at by | pairs | processor, s | ratio | wall, s | ratio | server | received | saw the end |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for m, pairs in done:
        rows = np.array(pairs)
        cells = [m.way, str(len(rows))]
        for column in (0, 1):
            ratio = rows[:, 2 + column] / rows[:, column]
            spread = float(np.subtract(*np.percentile(ratio, (75, 25)))) / 1.349
            error = 1.25 * spread / np.sqrt(len(ratio))
            cells += [f"{np.median(rows[:, column]):.3f}", f"{np.median(ratio):.3f} ± {error:.3f}"]
        cells += [f"{m.server_s / m.wall_s:.1%}", str(m.events), f"{m.reached} of {WATCHERS}"]
        lines.append(f"| {' | '.join(cells)} |")
    errors = sum(len(m.complaints) for m, _ in done)
    return [*lines, "", f"Errors in the tabs: {errors}.", ""]


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


def fit(plan: Path, out: Path, measured: Measured, watching: Watching | None) -> Measured:
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


def fits_table(done: list[Measured], count: int) -> list[str]:
    """Return lines of a table of whole fits."""
    ways = list(dict.fromkeys(m.way for m in done))
    lines = [
        "## Fits",
        "",
        f"The first minute of a fit of a small SrTiO₃ phantom, alone and watched in turn, {count} times",
        "each; medians, range in brackets; ratios of each watched run to the one alone before it.",
        "",
        "| run | processor, s | ratio | wall, s | ratio | server | received | saw the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        mine, watched = [m for m in done if m.way == way], way != ways[0]
        cells = [way]
        for key in ("processor_s", "wall_s"):
            values = [getattr(m, key) for m in mine]
            ratio = f"{statistics.median(ratios(done, way, key)):.3f}" if watched else ""
            cells += [f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]", ratio]
        cells.append(f"{statistics.median(m.server_s / m.wall_s for m in mine):.1%}" if watched else "")
        cells.append(f"{statistics.median(m.events for m in mine):.0f}" if watched else "")
        cells.append(f"{min(m.reached for m in mine)} of {WATCHERS}" if watched else "")
        lines.append(f"| {' | '.join(cells)} |")
    same = len({m.result for m in done}) == 1
    return [*lines, "", f"Last states: {'all the same, bit by bit' if same else 'NOT THE SAME'}.", ""]


def main() -> int:
    """Return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pieces", type=int, default=60, help="pairs of pieces of work")
    parser.add_argument("--fits", type=int, default=0, help="how often each way is fitted")
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fit", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    if options.fit:
        first_minute(*options.fit)
        return 0
    ways: dict[str, Watching] = {f"{WATCHERS} event streams": streams}
    if any(map(shutil.which, BROWSERS)) and not options.no_browser:
        ways[f"{WATCHERS} tabs in Chromium"] = tabs
    lines = [
        "# What looking at a run costs it",
        "",
        "Written by `benchmarks/live_page.py`, which says how. The goal is a ratio of at most "
        f"{LIMIT} of the processor time of the run's own process.",
        "",
    ]
    worst, fits = [1.0], []
    with tempfile.TemporaryDirectory(prefix="qhrtem-live-") as name:
        run = Path(name) / "run"
        done = []
        for way, watching in ways.items():
            done.append(pieces(run, options.pieces, way, watching))
            rows = np.array(done[-1][1])
            worst.append(float(np.median(rows[:, 2] / rows[:, 0])))
            print(f"{way}: ratio {worst[-1]:.4f}, {done[-1][0]}", flush=True)
        lines += pieces_table(done)
        if options.fits:
            plan = phantom(Path(name))
        for _ in range(options.fits):
            for way, watching in {"alone": None, **ways}.items():
                fits.append(fit(plan, run, Measured(way), watching))
                print(fits[-1], flush=True)
        if fits:
            worst += [statistics.median(ratios(fits, way, "processor_s")) for way in ways]
            lines += fits_table(fits, options.fits)
    busy = os.getloadavg()[2] if hasattr(os, "getloadavg") else float("nan")
    lines += [
        f"{platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores; {busy:.1f}",
        "processes on average wanted one of them in the last 15 minutes.",
        "",
    ]
    print("\n".join(lines))
    if options.write:
        options.write.write_text("\n".join(lines), "utf-8")
    return int(max(worst) > LIMIT or len({m.result for m in fits}) > 1)


if __name__ == "__main__":
    sys.exit(main())
