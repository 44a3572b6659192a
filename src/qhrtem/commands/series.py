"""`qhrtem fit` of a plan with [series], and `qhrtem watch`: frame after frame, from the plan to the movie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qhrtem.commands.fit import announce, at_work, shown, workers_of, write_run
from qhrtem.errors import InputError, PlanError, QualityError
from qhrtem.terminal import print_warning

if TYPE_CHECKING:
    from qhrtem.model.micrograph import RawImage
    from qhrtem.model.series import Event, Frame, Series
    from qhrtem.plan import Plan, SeriesPlan
    from qhrtem.run.session import Session
    from qhrtem.run.spread import Spread
    from qhrtem.stages.series import Exposure


def fit_series(plan: Plan, out: Path, force: bool = False, spread: Spread | None = None) -> Series:
    """Fit all frames that a plan asks for and leave a run folder; raises as `commands.fit.fit_plan`."""
    from qhrtem.run.execution import check_spread
    from qhrtem.run.folder import check_free
    from qhrtem.run.session import begin
    from qhrtem.specimen.crystal import read_cif

    check_free(out, force)
    announce(plan, _first_of(plan), read_cif(plan.structure.path))
    check_spread(spread)
    with begin(plan, out, force) as session:
        try:
            return work(session, spread)
        except (InputError, QualityError):
            if not session.folder.finished:
                session.folder.discard()
            raise


def _first_of(plan: Plan) -> RawImage:
    """Return the first frame. Raises InputError where it is of a kind that cannot be fitted."""
    from qhrtem.calibrate.claims import require_fittable
    from qhrtem.calibrate.intensity import planned_pitch
    from qhrtem.io.frames import file_frames, stack_frames

    asked = _series(plan)
    one = (
        stack_frames(plan.image, asked)
        if asked.folder is None
        else file_frames(plan.image, [plan.image.path])
    )
    raw = next(one).raw
    require_fittable(replace(raw, pixel_size_A=planned_pitch(plan.image, raw)))
    return raw


def watch_folder(plan: Plan, out: Path, force: bool = False, spread: Spread | None = None) -> Series:
    """Wait for the first file of a plan's folder, then fit files as they come; raises as `fit_series`."""
    from qhrtem.io.micrograph import READERS
    from qhrtem.run.folder import check_free
    from qhrtem.run.watch import FolderWatch

    check_free(out, force)
    asked = _series(plan)
    if asked.folder is None or not asked.folder.is_dir():
        raise PlanError(f"{asked.folder}: is no folder; give the one that the microscope writes to")
    console = Console()
    console.print(f"waiting for files in {asked.folder}", soft_wrap=True, highlight=False)
    first = FolderWatch(asked.folder, asked.pattern, tuple(READERS), math.inf, "keep", lambda record: None)
    path = next(iter(first))
    plan = plan.model_copy(update={"image": plan.image.model_copy(update={"path": path})})
    return fit_series(plan, out, force, spread)


def work(session: Session, spread: Spread | None) -> Series:
    """Fit the frames that a run lacks, write its results and say what came out."""
    from qhrtem.specimen.crystal import read_cif
    from qhrtem.stages.series import begin_series

    plan, console = session.plan, Console()
    with at_work(session):
        crystal, frames = read_cif(plan.structure.path), _exposures(session)
        with workers_of(session, spread) as executor, shown(session, console) as report:
            following = begin_series(plan, next(frames), crystal, report, session.store, executor)
        for exposure in frames:
            frame, events = following.add(exposure)
            _say(console, frame, events)
        series = following.result(_series(plan).interval_s or math.nan, _dropped(session))

        def write(result: Any, where: Path) -> None:
            write_run(following.first, where)
            write_results(result, where)

        session.finish(series, write)
    conclude(series, session.folder.path)
    return series


def write_results(series: Series, folder: Path) -> None:
    """Write every file of a series into a folder."""
    from qhrtem.io.series_file import write_series
    from qhrtem.report.figures import save_drawn
    from qhrtem.report.series import course_figure, write_movie

    write_series(series, folder)
    save_drawn({"series": course_figure(series)}, folder / "figures")
    write_movie(series, folder)


def _exposures(session: Session) -> Iterator[Exposure]:
    """Yield the frames of a run in their order, those of earlier sessions first."""
    from qhrtem.io.frames import file_frames, stack_frames
    from qhrtem.io.micrograph import READERS
    from qhrtem.run.watch import FolderWatch

    plan, asked = session.plan, _series(session.plan)
    if asked.folder is None:
        yield from stack_frames(plan.image, asked)
        return
    past = tuple(r["file"] for r in session.journal.records if r.get("event") == "frame")
    watch = FolderWatch(
        asked.folder,
        asked.pattern,
        tuple(READERS),
        asked.idle_s,
        asked.behind,
        lambda record: _note(session, record),
        past,
        list(_dropped(session)),
    )
    yield from file_frames(plan.image, iter(watch))


def _note(session: Session, record: dict[str, Any]) -> None:
    """Put a file that was taken or left out into the journal, and say where the fit falls behind."""
    session.journal.append(record)
    session.journal.records.append(record)
    console = Console(stderr=True)
    if record["event"] == "dropped":
        print_warning(
            console, f"{record['file']}: left out, a newer frame was there ([series] behind = drop)"
        )
    elif record.get("waiting", 0) > 1:
        print_warning(console, f"the fit is behind: {record['waiting']} more frames are waiting")


def _dropped(session: Session) -> tuple[str, ...]:
    return tuple(r["file"] for r in session.journal.records if r.get("event") == "dropped")


def _series(plan: Plan) -> SeriesPlan:
    if plan.series is None:
        raise PlanError("a series needs [series] in the plan, e.g. interval_s = 0.5")
    return plan.series


def _say(console: Console, frame: Frame, events: tuple[Event, ...]) -> None:
    """Print a line for a frame."""
    if frame.refused:
        words = f"nothing claimed: {frame.refused}"
    else:
        kinds = sorted({e.kind for e in events})
        what = ", ".join(f"{sum(e.kind == k for e in events)} {k}" for k in kinds) or "no events"
        x, y = frame.drift_A
        words = f"χ² {frame.chi2_crystal:.3f}, drift ({x:+.2f}, {y:+.2f}) Å, {what}"
    console.print(
        f"frame {frame.number:>4}  {frame.seconds:5.1f} s  {words}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def conclude(series: Series, folder: Path) -> None:
    """Say in a few lines what came out; raises QualityError where too few frames claim anything."""
    console = Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    held = [f for f in series.frames if not f.refused]
    table.add_row("frames", f"{len(series.frames)}, {len(held)} of them claim columns")
    later = [f.seconds for f in series.frames[1:]]
    if later:
        pace = f"first {series.frames[0].seconds:.0f} s, then {sum(later) / len(later):.1f} s a frame"
        table.add_row("pace", pace)
    for kind in sorted({e.kind for e in series.events}):
        mine = [e for e in series.events if e.kind == kind]
        table.add_row(
            f"columns: {kind}", f"{len(mine)}, {sum(e.lasted for e in mine)} seen in the next frame too"
        )
    for note in series.notes:
        table.add_row("note", note)
    table.add_row("results", str(folder / "series.h5"))
    console.print(table)
    if not series.passed:
        raise QualityError(
            f"{folder}: {len(series.frames) - len(held)} of {len(series.frames)} frames claim nothing; "
            "series.h5 says why for each"
        )
