"""A session: one process at work on one run, from the first record it writes to the last.

A run is begun once and resumed as often as need be. What it depends on stands in the first record; a session
that would go on with anything else is refused, unless it goes on as a child in a folder of its own.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qhrtem.errors import PlanError
from qhrtem.model.twin import Step
from qhrtem.plan import Plan, dump_plan, load_plan
from qhrtem.run import durable
from qhrtem.run.folder import RunFolder, check_free, create_run, find_run
from qhrtem.run.identity import Identity, result_hash
from qhrtem.run.journal import Journal, JournalWarning, read_journal, torn_message
from qhrtem.run.lock import owner
from qhrtem.run.process import algebra_threads
from qhrtem.run.store import Store
from qhrtem.stages.checkpoint import step_of


class Result(Protocol):
    """What a run comes to: a twin, or a series of frames."""

    @property
    def passed(self) -> bool:
        """Whether anything is claimed."""
        ...


Write = Callable[[Any, Path], None]  # writes the files of a result into a folder


@dataclass
class Session:
    """A run that this process may write; use it as a context manager."""

    folder: RunFolder
    plan: Plan
    journal: Journal
    store: Store
    past: list[Step] = field(default_factory=list)  # history that needs no computing again
    threads: int | None = None  # of matrix algebra when the run was begun

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    def step(self, step: Step) -> None:
        """Put one line of the history into the journal; a χ² that does not exist yet is null."""
        record = {
            "event": "step",
            "stage": step.stage,
            "iteration": step.iteration,
            "chi2": float(step.chi2) if math.isfinite(step.chi2) else None,
            "seconds": round(float(step.seconds), 3),
            "note": step.note,
            "done": round(float(step.done), 4) if math.isfinite(step.done) else None,
        }
        # What counts is in the checkpoints; a step tells of them and need not be waited for.
        self.journal.append(record, sync=False)

    def stopped(self, reason: str) -> None:
        """Note why the run stops here."""
        self.journal.append({"event": "stopped", "reason": reason})

    def finish(self, result: Result, write: Write) -> None:
        """Write the results, move them to their places and close the run."""
        with self.folder.publishing() as staging:
            write(result, staging)
        self.journal.append({"event": "finished", "passed": result.passed, "result": result_hash(result)})
        self.folder.close()


def begin(plan: Plan, out: Path, force: bool = False) -> Session:
    """Return the first session of a new run.

    Raises PlanError where the folder is taken, InputError where a file cannot be read, ResourceError where
    the folder cannot be written; then nothing is left behind.
    """
    check_free(out, force)
    identity = Identity.of(plan)
    folder = create_run(out, force)
    try:
        folder.write_plan(dump_plan(plan))
        return _first(folder, plan, identity, {})
    except BaseException:
        folder.discard()
        raise


def _first(folder: RunFolder, plan: Plan, identity: Identity, more: dict[str, Any]) -> Session:
    journal = Journal(folder.journal)
    try:
        journal.append(
            {
                "event": "begin",
                "owner": owner(),
                **identity.record(),
                "files": _relative_files(plan, folder.path),
                "threads": algebra_threads(),
                **more,
            }
        )
        return Session(folder, plan, journal, Store(folder.checkpoints, journal))
    except BaseException:
        journal.close()
        raise


def settle(path: Path) -> bool:
    """Return whether a run is finished, after completing what a crash left of its very end."""
    folder = find_run(path)
    if not folder.finished and folder.journal.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JournalWarning)  # of a torn end the one who goes on is told
            records = read_journal(folder.journal)
        if records and records[-1].get("event") == "finished":
            with Journal(folder.journal):
                folder.close()
    return folder.finished


def resume(path: Path) -> Session:
    """Return the next session of an unfinished run.

    Warns (JournalWarning, CheckpointWarning) of what a crash or a fault of the disk took. Raises PlanError
    where there is no run, another process is at work on it, or plan, files or program are others than those
    it was begun with; InputError where its journal is damaged.
    """
    folder = find_run(path)
    if folder.finished:
        raise PlanError(f"{path}: the run is finished; there is nothing to resume")
    if not folder.plan.is_file():
        raise PlanError(f"{path}: a run was being removed here; finish that with `qhrtem fit ... --force`")
    journal = Journal(folder.journal)
    try:
        if journal.torn:
            warnings.warn(torn_message(folder.journal), JournalWarning, stacklevel=2)
        if not journal.records:  # stopped before anything was recorded
            journal.close()
            plan = load_plan(folder.plan)
            folder.checkpoints.mkdir(exist_ok=True)
            return _first(folder, plan, Identity.of(plan), {})
        first = journal.records[0]
        plan = _located(load_plan(folder.plan), first.get("files", {}), folder.path)
        differences = Identity.from_record(first).differences(Identity.of(plan))
        if differences:
            raise PlanError(
                f"{path}: the run was begun otherwise ({'; '.join(differences)}); undo that, or go on as a "
                f"new run with `qhrtem resume {path} --fork CHILD`"
            )
        store = Store(folder.checkpoints, journal)
        journal.append({"event": "resume", "owner": owner(), "finished_parts": len(store.finished)})
        past = [step_of(s) for s in store.steps()]
        return Session(folder, plan, journal, store, past, first.get("threads"))
    except BaseException:
        journal.close()
        raise


def fork(path: Path, child: Path, force: bool = False) -> tuple[Session, list[str]]:
    """Return the first session of a child of a run, and in what the child differs from its parent.

    The child takes plan, files and program as they are now. It takes the parent's checkpoints too where only
    the program differs: those of another question would answer the wrong one. The parent is left as it is.
    """
    parent = find_run(path)
    if child.resolve() == parent.path.resolve():
        raise PlanError(f"{child}: a child needs a folder of its own; choose another --fork")
    check_free(child, force)
    records = read_journal(parent.journal) if parent.journal.is_file() else []
    first = records[0] if records else None
    plan = _located(load_plan(parent.plan), (first or {}).get("files", {}), parent.path)
    identity = Identity.of(plan)
    before = identity if first is None else Identity.from_record(first)
    differences = before.differences(identity)
    inherits = before.same_question(identity) and not parent.finished
    folder = create_run(child, force)
    try:
        folder.write_plan(dump_plan(plan))
        more = {"parent": str(parent.path.resolve()), "differences": differences}
        session = _first(folder, plan, identity, more)
        if inherits:
            with durable.explained(folder.path):
                shutil.copytree(parent.checkpoints, folder.checkpoints, dirs_exist_ok=True)
                durable.sync_tree(folder.checkpoints)
            for record in records:
                if record.get("event") in ("part", "ask", "tell", "note", "result"):
                    session.journal.append(record)
                    session.journal.records.append(record)
            session.store = Store(folder.checkpoints, session.journal)
            session.past = [step_of(s) for s in session.store.steps()]
        return session, differences
    except BaseException:
        folder.discard()
        raise


def _relative_files(plan: Plan, folder: Path) -> dict[str, str]:
    """Return where the plan's files lie as seen from the run, so that all may move together."""
    files = {"image": plan.image.path, "structure": plan.structure.path, **_further_files(plan)}
    return {k: os.path.relpath(p, folder.resolve()) for k, p in files.items()}


def _located(plan: Plan, relative: dict[str, str], folder: Path) -> Plan:
    """Return the plan with files that are gone from their places looked for beside the moved run."""
    changes = {}
    for name, table in (("image", plan.image), ("structure", plan.structure)):
        if name in relative and not table.path.is_file():
            moved = (folder.resolve() / relative[name]).resolve()
            if moved.is_file():
                changes[name] = table.model_copy(update={"path": moved})
    plan = plan.model_copy(update=changes) if changes else plan
    also = list(plan.image.also or ())
    for name, path in _further_files(plan).items():
        moved = (folder.resolve() / relative.get(name, "")).resolve()
        if not path.is_file() and moved.is_file():
            number = int(name.split()[1]) - 1
            also[number] = also[number].model_copy(update={"path": moved})
    if tuple(also) == (plan.image.also or ()):
        return plan
    return plan.model_copy(update={"image": plan.image.model_copy(update={"also": tuple(also)})})


def _further_files(plan: Plan) -> dict[str, Path]:
    """Return the files of further images by the role that the identity gives them."""
    also = plan.image.also or ()
    return {f"also {n}": e.path for n, e in enumerate(also, 1) if e.path is not None}
