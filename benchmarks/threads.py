"""Whether the number of threads, or where a run lies, shows in its result; written to benchmarks/threads.md.

    python benchmarks/threads.py [--threads 1 8] [--folder FOLDER]

The phantom of `qhrtem doctor --validate` is fitted with each number of threads (over columns, and offered to
transforms and matrix algebra). Another fit is stopped half way, moved with its files, resumed there with yet
another number, moved again and reported on. What is compared is the result hash in the journal: every number
that the run claims, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = 8  # finished parts after which the run to be moved is stopped


def main() -> None:
    """Fit, move, resume, report, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--folder", type=Path, help="where to work, default a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qhrtem-threads-") as name:
        folder = (asked.folder or Path(name)).resolve()
        lines = compare(folder, asked.threads)
    text = "\n".join([*HEAD, *lines, ""])
    print(text)
    (HERE / "threads.md").write_text(text, "utf-8")


HEAD = [
    "# Threads, and runs that are moved",
    "",
    "Written by `benchmarks/threads.py`: the phantom of `qhrtem doctor --validate`, fitted anew in each row.",
    "Threads are those over columns, and as many are offered to transforms and matrix algebra by",
    "OMP_NUM_THREADS; a fit takes one for each of the latter: sums are split between them.",
    "The hash covers every number that a run claims, bit by bit.",
    "",
    "| run | threads | exit | result hash | same | wall |",
    "|---|---|---|---|---|---|",
]


def compare(folder: Path, threads: list[int]) -> list[str]:
    """Return the rows of the table."""
    plan = make_phantom(folder)
    rows, hashes = [], []

    def add(what: str, number: int, code: int, run: Path, seconds: float) -> None:
        result = result_of(run)
        hashes.append(result)
        same = "reference" if len(hashes) == 1 else "yes" if result == hashes[0] else "**no**"
        rows.append(f"| {what} | {number} | {code} | {result[:12]} | {same} | {seconds:.0f} s |")
        print(rows[-1], flush=True)

    for number in threads:
        run = folder / f"run{number}"
        begin = time.monotonic()
        code = start(number, "fit", plan, "--out", run).wait()
        add("fit", number, code, run, time.monotonic() - begin)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    for file in (plan, plan.with_name("phantom.tif"), plan.with_name("SrTiO3.cif")):
        shutil.copy(file, home)
    begin = time.monotonic()
    stopped = stop_half_way(home / plan.name, home / "run", threads[0])
    shutil.move(home, folder / "abroad")
    run = folder / "abroad" / "run"
    code = start(threads[-1], "resume", run).wait()
    add(
        f"stopped (exit {stopped}), moved with its files, resumed",
        threads[-1],
        code,
        run,
        time.monotonic() - begin,
    )
    begin = time.monotonic()
    shutil.move(run, folder / "elsewhere")
    (folder / "elsewhere" / "report.html").unlink()
    code = start(1, "report", folder / "elsewhere").wait()
    there = (folder / "elsewhere" / "report.html").is_file()
    add(
        f"that run moved alone, `report`: report.html {'written anew' if there else 'MISSING'}",
        1, code, folder / "elsewhere", time.monotonic() - begin,
    )  # fmt: skip
    return [*rows, "", f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} at the end."]


def make_phantom(folder: Path) -> Path:
    """Make the image of the self-test and return a plan that fits it."""
    from qhrtem.commands.doctor import PHANTOM
    from qhrtem.engines.protocol import engine_named
    from qhrtem.plan import dump_plan, plan_from_tables
    from qhrtem.simulate.files import write_simulation
    from qhrtem.simulate.phantom import make_phantom as make
    from qhrtem.specimen.crystal import read_cif

    folder.mkdir(parents=True, exist_ok=True)
    crystal = folder / "SrTiO3.cif"
    shutil.copy(str(PHANTOM["structure"]["path"]), crystal)
    image = folder / "phantom.tif"
    tables: dict[str, dict[str, Any]] = {
        **PHANTOM,
        "image": {**PHANTOM["image"], "path": image},
        "structure": {**PHANTOM["structure"], "path": crystal},
    }
    plan = plan_from_tables(tables, "threads")
    made = make(plan, read_cif(crystal), engine_named("qhrtem"))
    write_simulation(image, made.counts, made.pixel_size_A, made.facts, made.columns)
    path = folder / "plan.toml"
    # Relative paths, so that a copy of the plan fits the copies of its files.
    path.write_text(dump_plan(plan).replace(f"{folder}{os.sep}", ""), "utf-8")
    return path


def start(threads: int, *words: str | Path) -> subprocess.Popen[bytes]:
    """Start `qhrtem words` on a machine that seems to have so many cores."""
    program = f"import os, sys; os.cpu_count = lambda: {threads}; from qhrtem.cli import main; main()"
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, **dict.fromkeys(names, str(threads))},
        stdout=subprocess.DEVNULL,
    )


def stop_half_way(plan: Path, run: Path, threads: int) -> int:
    """Begin a fit, stop it by SIGTERM after some parts and return its exit code."""
    process = start(threads, "fit", plan, "--out", run)
    while process.poll() is None:
        journal = run / "journal.jsonl"
        if journal.is_file() and journal.read_bytes().count(b'"event":"part"') >= PARTS:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.2)
    return process.wait()


def result_of(run: Path) -> str:
    """Return the result hash of a finished run, "none" where it did not finish."""
    from qhrtem.run.journal import read_journal

    records = read_journal(run / "journal.jsonl") if (run / "journal.jsonl").is_file() else []
    return str(records[-1]["result"]) if records and records[-1]["event"] == "finished" else "none"


if __name__ == "__main__":
    main()
