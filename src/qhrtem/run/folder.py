"""RunFolder: where one fit leaves its files.

While a fit goes on, the folder holds the plan, the journal and `unfinished/` with the checkpoints. Results
are written into a staging folder and moved to their places only when all of them exist; then the journal says
so, and `unfinished/` goes, last of all. So a folder without it is a finished run, whatever happened on the
way.
A fit that fails leaves nothing; one that is stopped leaves what it takes to go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qhrtem.errors import PlanError
from qhrtem.run import durable
from qhrtem.run.durable import explained, is_temporary, write_atomic
from qhrtem.run.lock import check_unclaimed

PLAN, JOURNAL, STAGING, UNFINISHED = "plan.toml", "journal.jsonl", ".partial", "unfinished"
RESULTS = (
    "columns.csv",
    "structure.cif",
    "structure.extxyz",
    "structure.cel",
    "microscope.json",
    "result.h5",
    "report.html",
    "figures",
    "series.h5",
    "events.csv",
    "series.gif",
    "series.mp4",
)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path

    @property
    def journal(self) -> Path:
        """The append-only record of the run."""
        return self.path / JOURNAL

    @property
    def plan(self) -> Path:
        """The plan as resolved."""
        return self.path / PLAN

    @property
    def checkpoints(self) -> Path:
        """Where the arrays of an unfinished run are."""
        return self.path / UNFINISHED

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end and all its results are in place."""
        return not self.checkpoints.exists()

    def write_plan(self, text: str) -> None:
        """Write the resolved plan."""
        write_atomic(self.plan, text)

    @contextmanager
    def publishing(self) -> Iterator[Path]:
        """Give an empty staging folder and, if the block ends well, move what is in it into the run.

        Older results go first, also those that are not replaced, so that no two fits ever mix. If the block
        raises, the staging folder goes and the run stays as it was.
        """
        staging = self.path / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with explained(self.path):
                staging.mkdir()
                yield staging
                durable.sync_tree(staging)
                self._remove(RESULTS)
                for entry in sorted(staging.iterdir()):
                    durable.move(entry, self.path / entry.name)
                durable.sync_folder(self.path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def close(self) -> None:
        """Remove the checkpoints: the run is finished."""
        with explained(self.path):
            if self.checkpoints.exists():
                # By one rename, so that a run never keeps a part of its checkpoints.
                shutil.rmtree(self.path / STAGING, ignore_errors=True)
                durable.move(self.checkpoints, self.path / STAGING)
                durable.sync_folder(self.path)
            shutil.rmtree(self.path / STAGING, ignore_errors=True)

    def discard(self) -> None:
        """Remove every file of the run, and its folder if nothing else is in it."""
        self._clear()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _clear(self) -> None:
        """Remove the run so that at no moment it looks like a finished one, or like one to be resumed."""
        if any((self.path / name).exists() for name in (PLAN, JOURNAL, *RESULTS)):
            self.checkpoints.mkdir(exist_ok=True)
        self._remove((PLAN, JOURNAL, *RESULTS, STAGING, UNFINISHED))
        for entry in self.path.iterdir():
            if is_temporary(entry):
                entry.unlink(missing_ok=True)

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def check_free(path: str | Path, force: bool = False) -> None:
    """Raise PlanError where a run must not be written.

    That is a file, someone else's folder, a run unless forced, and a run that another process is writing.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise PlanError(
            f"{path}: the run folder is a link that leads nowhere; remove it or choose another --out"
        )
    if path.exists() and not path.is_dir():
        raise PlanError(f"{path}: the run folder must be a folder, but it is a file; choose another --out")
    if not path.exists() or all(is_temporary(p) for p in path.iterdir()):
        return
    if not any((path / name).exists() for name in (PLAN, JOURNAL, UNFINISHED)):
        raise PlanError(f"{path}: the folder holds other files, not a run; choose another or an empty --out")
    check_unclaimed(path / JOURNAL)
    if not (path / PLAN).exists() and not RunFolder(path).finished:
        return  # a run was being made or removed here when its process was stopped
    if not force and not RunFolder(path).finished:
        raise PlanError(
            f"{path}: the folder holds an unfinished run; go on with `qhrtem resume {path}`, choose another "
            "--out, or --force to replace it"
        )
    if not force:
        raise PlanError(
            f"{path}: the folder already holds a run; choose another --out, or --force to replace it"
        )


def create_run(path: str | Path, force: bool = False) -> RunFolder:
    """Return a new, empty run folder; with `force` an earlier run's files are removed, nothing else ever is.

    Raises PlanError where the folder is taken, ResourceError where it cannot be made.
    """
    path = Path(path)
    check_free(path, force)
    folder = RunFolder(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            folder._clear()
            folder.checkpoints.mkdir()
            durable.sync_folder(path)
            durable.sync_folder(path.resolve().parent)
        except OSError:
            folder.discard()
            raise
    return folder


def open_run(path: str | Path) -> RunFolder:
    """Return the folder of a finished run; raises PlanError where there is none or it has not ended."""
    folder = find_run(path)
    if not folder.finished:
        raise PlanError(f"{path}: the run has not ended; go on with `qhrtem resume {path}`")
    return folder


def find_run(path: str | Path) -> RunFolder:
    """Return the folder of a run, finished or not; raises PlanError where there is none."""
    path = Path(path)
    if not path.is_dir() or not any((path / name).exists() for name in (PLAN, "result.h5")):
        raise PlanError(f"{path}: is not a run folder; give the --out folder of an earlier `qhrtem fit`")
    return RunFolder(path)
