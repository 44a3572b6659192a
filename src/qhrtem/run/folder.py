"""RunFolder: where one fit leaves its files, whole or not at all.

Results are written into a staging folder inside the run and moved to their places only when all of them
exist. A fit that fails leaves nothing; one that is stopped leaves its plan and its journal.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qhrtem.errors import PlanError, ResourceError

PLAN, JOURNAL, STAGING = "plan.toml", "journal.jsonl", ".partial"
RESULTS = (
    "columns.csv",
    "structure.cif",
    "structure.extxyz",
    "structure.cel",
    "microscope.json",
    "result.h5",
    "report.html",
    "figures",
)


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run."""

    path: Path

    @property
    def journal(self) -> Path:
        """The append-only record of the run."""
        return self.path / JOURNAL

    def write_plan(self, text: str) -> None:
        """Write the resolved plan."""
        write_atomic(self.path / PLAN, text)

    @contextmanager
    def publishing(self) -> Iterator[Path]:
        """Give an empty staging folder and, if the block ends well, move what is in it into the run.

        Older results go first, also those that are not replaced, so that no two fits ever mix. If the block
        raises, the staging folder goes and the run stays as it was.
        """
        staging = self.path / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with _explained(self.path):
                staging.mkdir()
                yield staging
                self._remove(RESULTS)
                for entry in sorted(staging.iterdir()):
                    os.replace(entry, self.path / entry.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def discard(self) -> None:
        """Remove every file of the run, and its folder if nothing else is in it."""
        self._remove((*RESULTS, PLAN, JOURNAL, STAGING))
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _remove(self, names: tuple[str, ...]) -> None:
        for name in names:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def check_free(path: str | Path, force: bool = False) -> None:
    """Raise PlanError where a run must not be written: a file, someone else's folder, a run unless forced."""
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise PlanError(
            f"{path}: the run folder is a link that leads nowhere; remove it or choose another --out"
        )
    if path.exists() and not path.is_dir():
        raise PlanError(f"{path}: the run folder must be a folder, but it is a file; choose another --out")
    if not path.exists() or not any(path.iterdir()):
        return
    ours = any((path / name).exists() for name in (PLAN, JOURNAL))
    if not ours:
        raise PlanError(f"{path}: the folder holds other files, not a run; choose another or an empty --out")
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
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)
        folder._remove((*RESULTS, PLAN, JOURNAL, STAGING))
    return folder


def open_run(path: str | Path) -> RunFolder:
    """Return the folder of an earlier run; raises PlanError where there is none."""
    path = Path(path)
    if not path.is_dir() or not any((path / name).exists() for name in (PLAN, "result.h5")):
        raise PlanError(f"{path}: is not a run folder; give the --out folder of an earlier `qhrtem fit`")
    return RunFolder(path)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that at any moment, also after a power cut, it is wholly the old or the new one."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _explained(path):
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system lets a folder be synchronised."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a refusal of the file system into a ResourceError with its remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the disk quota is used up; free some space",
        errno.EACCES: "no permission to write there; choose another --out",
        errno.EPERM: "no permission to write there; choose another --out",
        errno.EROFS: "the disk is read-only; choose another --out",
        errno.ENOTDIR: "a part of the path is a file; choose another --out",
        errno.EEXIST: "a part of the path is a file; choose another --out",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise ResourceError(f"{path}: cannot be written, {remedies[error.errno]}") from error
