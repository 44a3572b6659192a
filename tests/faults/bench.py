"""A bench for fault tests: processes that fit by the scripted pipeline, forked so that each costs little."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tifffile

import qhrtem.report.figures as figures
import qhrtem.report.page as page
import qhrtem.stages.pipeline as pipeline
from faults.disk import KILLED, Disk
from faults.scripted import Scripted
from qhrtem.cli import DEMO_PLAN, main
from qhrtem.io.micrograph import read_image
from qhrtem.io.twin import read_twin
from qhrtem.plan import load_plan
from qhrtem.run import durable, session  # noqa: F401
from qhrtem.run.identity import result_hash
from qhrtem.run.journal import read_journal


@dataclass(frozen=True)
class End:
    """How a process ended."""

    code: int
    words: str  # both its outputs
    seconds: float


class Bench:
    """A folder with a plan, its image and its crystal, and runs of it."""

    def __init__(self, folder: Path) -> None:
        """folder: empty, for everything the tests write."""
        self.folder = folder
        shutil.copy(DEMO_PLAN.parent / "BaTiO3.cif", folder)
        counts = tifffile.imread(DEMO_PLAN.parent / "bto_edge_small.tif")[100:164, 100:164]
        tifffile.imwrite(folder / "bto_edge_small.tif", counts)  # a part of the image costs less to store
        self.plan = folder / "plan.toml"
        self.plan.write_text(DEMO_PLAN.read_text("utf-8"), "utf-8")
        self.notes = folder / "evaluations.txt"
        plan = load_plan(self.plan)
        read_image(plan.image.path)  # imports the reader

    def start(
        self,
        *words: str,
        disk: Disk | None = None,
        pause: float = 0.0,
        hook: Callable[[str], None] = lambda what: None,
        before: Callable[[], None] = lambda: None,
    ) -> int:
        """Fork a process that runs `qhrtem words`; return its number."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        code = 99
        try:
            output = os.open(self.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            before()
            pipeline.fit_image = Scripted(self.notes, pause, hook)  # type: ignore[assignment]
            figures.figures_of = lambda twin: None  # type: ignore[assignment]
            figures.save_figures = _save_figures  # type: ignore[assignment]
            page.write_report = _write_report  # type: ignore[assignment]
            if disk is not None:
                durable.os = disk  # type: ignore[assignment]
            sys.argv = ["qhrtem", *words]
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            if disk is not None and disk.mode == "count":
                (self.folder / "operations.json").write_text(json.dumps(disk.operations))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, child: int, begin: float | None = None) -> End:
        """Return how a process ended."""
        begin = time.monotonic() if begin is None else begin
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        words = (self.folder / "output.txt").read_text("utf-8", "replace")
        return End(128 - code if code < 0 else code, words, time.monotonic() - begin)

    def do(self, *words: str, disk: Disk | None = None, pause: float = 0.0) -> End:
        """Run `qhrtem words` to its end."""
        return self.wait(self.start(*words, disk=disk, pause=pause))

    def fit(self, run: Path, disk: Disk | None = None, pause: float = 0.0) -> End:
        """Begin a run anew, with an empty list of evaluations."""
        shutil.rmtree(run, ignore_errors=True)
        self.notes.unlink(missing_ok=True)
        return self.do("fit", str(self.plan), "--out", str(run), disk=disk, pause=pause)

    def operations(self, run: Path) -> list[str]:
        """Return the writes, fsyncs and renames of an undisturbed fit, in order."""
        end = self.fit(run, Disk())
        assert end.code == 0, end.words
        operations: list[str] = json.loads((self.folder / "operations.json").read_text())
        return operations

    def go_on(self, run: Path) -> End:
        """Do what a user does after a crash: resume, or begin anew where nothing had begun."""
        if not (run / "plan.toml").is_file():
            return self.do("fit", str(self.plan), "--out", str(run))
        return self.do("resume", str(run))

    def fault(self, run: Path, reference: str, crashes: int) -> str:
        """Return what is wrong with a run that has ended after some crashes, nothing if all is well."""
        if (run / "unfinished").exists():
            return "still unfinished"
        records = read_journal(run / "journal.jsonl")
        if records[-1].get("event") != "finished":
            return "the journal does not end with the end"
        if records[-1]["result"] != reference:
            return "another result"
        for kind, keys in (("part", ("part",)), ("tell", ("part", "trial"))):
            told = Counter(tuple(r[k] for k in keys) for r in records if r["event"] == kind)
            doubled = [k for k, n in told.items() if n > 1]
            if doubled:
                return f"{kind} {doubled[0]} is in the journal twice"
        if not {"columns.csv", "result.h5", "report.html", "figures"} <= {p.name for p in run.iterdir()}:
            return "results are missing"
        if result_hash(read_twin(run)) != reference:
            return "another result in the files"
        if [p.name for p in run.iterdir() if p.name.startswith(".") and p.name != ".partial"]:
            return "left over: " + ", ".join(p.name for p in run.iterdir())
        evaluated = Counter(self.notes.read_text().split("\n")[:-1])
        redone = sum(evaluated.values()) - len(evaluated)
        if redone > crashes:
            return f"{redone} evaluations redone after {crashes} crashes"
        if len(evaluated) != 8 + 4 + 1:
            return f"evaluated: {sorted(evaluated)}"
        return ""


def result_of(run: Path) -> str:
    """Return the result hash of a finished run."""
    return str(read_journal(run / "journal.jsonl")[-1]["result"])


def killed(end: End) -> bool:
    """Return whether a process ended by the kill that its disk prepared."""
    return end.code == KILLED


def _save_figures(twin: object, folder: Path, drawn: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "match.png").write_bytes(b"drawn")


def _write_report(twin: object, folder: Path, drawn: object) -> None:
    (folder / "report.html").write_text("<p>report</p>")
