"""`qhrtem fit`, `demo` and `resume`: one run, from the plan to the report, shown on the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qhrtem.errors import InputError, Interrupted, PlanError, QualityError, ResourceError
from qhrtem.terminal import Progress, print_warning

LONGEST_S = 12 * 3600.0  # a fit that would take longer is refused: it is a mistake more often than a wish

if TYPE_CHECKING:
    from qhrtem.model.micrograph import RawImage
    from qhrtem.model.twin import Step, Twin
    from qhrtem.plan import Plan
    from qhrtem.run.session import Session
    from qhrtem.run.spread import Spread
    from qhrtem.specimen.crystal import Crystal
    from qhrtem.stages.tasks import Executor


def fit_plan(plan: Plan, out: Path, force: bool = False, spread: Spread | None = None) -> Twin:
    """Fit what a plan asks for and leave a run folder; the terminal shows how it goes.

    spread: over which workers, if not over this process alone.

    Inputs are read and the folder is checked before anything is written. A failure removes what was begun; an
    interruption, and a disk that is full, leave a run that can be resumed. Raises QualityError, after the
    report, where no numbers are claimed.
    """
    from qhrtem.run.folder import check_free

    if plan.series is not None:
        raise PlanError("the plan has [series]: fit it with commands.series.fit_series")
    check_free(out, force)
    raw, crystal = _read(plan)

    # The numerics take seconds to import: after the inputs are known to be good, before anything is written.
    from qhrtem.run.execution import check_spread
    from qhrtem.run.session import begin

    announce(plan, raw, crystal)
    check_spread(spread)

    with begin(plan, out, force) as session:
        try:
            return _work(session, raw, crystal, spread)
        except (InputError, QualityError):
            if not session.folder.finished:
                session.folder.discard()
            raise


def resume_run(
    path: Path, child: Path | None = None, force: bool = False, spread: Spread | None = None
) -> None:
    """Go on with an unfinished run, or with a child of it, to the same results as without the interruption.

    Raises PlanError where there is no such run, or where it was begun with other inputs or another program
    and `child` does not say where to go on with these. A finished run is left as it is.
    """
    from qhrtem.run.execution import check_spread
    from qhrtem.run.session import fork, resume, settle

    console = Console(stderr=True)
    if child is None and settle(path):
        print_warning(console, f"{path}: the run is finished; nothing was left to do")
        _conclude_again(path)
        return
    check_spread(spread)
    with told(console):
        if child is None:
            session = resume(path)
        else:
            session, differences = fork(path, child, force)
            print_warning(
                console, f"{child}: child of {path}, {'; '.join(differences) or 'with nothing changed'}"
            )
    with session:
        if session.plan.series is not None:
            from qhrtem.commands.series import work

            work(session, spread)
            return
        raw, crystal = _read(session.plan)
        _work(session, raw, crystal, spread)


def _work(session: Session, raw: RawImage, crystal: Crystal, spread: Spread | None) -> Twin:
    """Compute what a run lacks, write its results and say what came out."""
    from qhrtem.stages.pipeline import fit_image

    with at_work(session):
        with workers_of(session, spread) as executor, shown(session, Console()) as report:
            twin = fit_image(session.plan, raw, crystal, report, session.store, executor)
        session.finish(twin, write_run)
    _conclude(twin, session.folder.path)
    return twin


@contextmanager
def at_work(session: Session) -> Iterator[None]:
    """Let signals stop a run where it can go on; what stops it is noted in it, and the error says how to."""
    from qhrtem.run.process import prepare
    from qhrtem.run.stopping import stoppable

    prepare(session.threads)
    remedy = f"go on with `qhrtem resume {session.folder.path}`"
    try:
        with stoppable(remedy), told(Console(stderr=True)):
            yield
    except Interrupted as error:
        session.stopped(str(error))
        if remedy in str(error):
            raise
        raise type(error)(f"{error}; then {remedy}") from error
    except ResourceError as error:
        raise ResourceError(f"{error}; then {remedy}") from error


@contextmanager
def shown(session: Session, console: Console) -> Iterator[Callable[[Step], None]]:
    """Give what keeps each step of a run and shows it, those of earlier sessions first."""
    with Progress(console) as progress:
        for step in session.past:
            progress(step)

        def report(step: Step) -> None:
            session.step(step)
            progress(step)

        yield report


@contextmanager
def workers_of(session: Session, spread: Spread | None) -> Iterator[Executor | None]:
    """Give what does the tasks of a run, None for nobody else; what has been done is kept in the run."""
    if spread is None:
        yield None
        return
    from qhrtem.run.dispatch import warn
    from qhrtem.run.execution import Kept, executor_of

    def tell(record: dict[str, Any]) -> None:
        session.journal.append(record, sync=False)
        warn(record)

    with executor_of(replace(spread, algebra=session.threads or 1), tell) as executor:
        yield Kept(executor, session.store)


def announce(plan: Plan, raw: RawImage, crystal: Crystal) -> None:
    """Say what the fit will need, and raise ResourceError where this machine does not have it."""
    from qhrtem.calibrate.intensity import mean_pitch
    from qhrtem.machine import cores, free_memory, in_words
    from qhrtem.run.process import prepare
    from qhrtem.specimen.crystal import project
    from qhrtem.stages.estimate import estimate, transform_seconds
    from qhrtem.stages.start import stated_pixel

    prepare()
    shape = (raw.counts.shape[0], raw.counts.shape[1])
    projection = project(crystal, plan.structure.zone_axis)
    stated = stated_pixel(plan, raw)
    if stated is None:
        return  # nothing is known of the size of the field before the lattice is found
    needs = estimate(shape, mean_pitch(stated), projection, transform_seconds())
    # The first rounds see the first image alone; the others cost what it costs.
    seconds = needs.on(cores()) * (1 + len(raw.also))
    free, minutes = free_memory(), seconds / 60
    words = f"at most {needs.columns} columns with the margin, {in_words(needs.memory)} of memory"
    if needs.memory > free:
        raise ResourceError(
            f"{raw.path}: this fit needs more memory than there is: {words}, and {in_words(free)} are free; "
            "cut out a smaller part of the image"
        )
    if seconds > LONGEST_S:
        raise ResourceError(
            f"{raw.path}: this fit of {needs.columns} columns would take about "
            f"{seconds / 3600:.0f} h on {cores()} cores; cut out a smaller part of the image"
        )
    time = f"about {max(1, round(minutes))} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
    Console().print(f"needs {words} and {time} on {cores()} cores", soft_wrap=True, highlight=False)


def write_run(twin: Twin, folder: Path) -> None:
    """Write every file of a result into a folder."""
    from qhrtem.io.twin import write_results

    write_results(twin, folder)
    write_pages(twin, folder)


def write_pages(twin: Twin, folder: Path) -> None:
    """Draw the figures once, for their own files and for the page."""
    from qhrtem.report.figures import figures_of, save_figures
    from qhrtem.report.page import write_report

    figures = figures_of(twin)
    save_figures(twin, folder / "figures", figures)
    write_report(twin, folder, figures)


def _read(plan: Plan) -> tuple[RawImage, Crystal]:
    """Return image and crystal. Raises InputError where the image is of a kind that cannot be fitted."""
    from qhrtem.calibrate.claims import require_fittable
    from qhrtem.calibrate.intensity import planned_pitch
    from qhrtem.io.masks import read_planned
    from qhrtem.specimen.crystal import read_cif

    raw = read_planned(plan.image)
    for image in (raw, *raw.also):
        require_fittable(replace(image, pixel_size_A=planned_pitch(plan.image, image)))
    return raw, read_cif(plan.structure.path)


@contextmanager
def told(console: Console) -> Iterator[None]:
    """Print warnings about journal, checkpoints and workers as yellow lines; others go their usual way."""
    from qhrtem.run.dispatch import ExecutionWarning
    from qhrtem.run.journal import JournalWarning
    from qhrtem.run.store import CheckpointWarning

    usual, ours = warnings.showwarning, (JournalWarning, CheckpointWarning, ExecutionWarning)

    def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
        if issubclass(category, ours):
            print_warning(console, str(message))
        else:
            usual(message, category, *rest)  # type: ignore[arg-type]

    with warnings.catch_warnings():
        for category in ours:
            warnings.simplefilter("always", category)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _conclude_again(folder: Path) -> None:
    """Say once more what came out of a finished run."""
    if (folder / "series.h5").is_file():
        from qhrtem.commands.series import conclude
        from qhrtem.io.series_file import read_series

        conclude(read_series(folder), folder)
        return
    from qhrtem.io.twin import read_twin

    _conclude(read_twin(folder), folder)


def _conclude(twin: Twin, folder: Path) -> None:
    _summary(Console(), twin, folder)
    require_passed(twin, folder)


def _summary(console: Console, twin: Twin, folder: Path) -> None:
    """Say in a few lines what came out and where it is."""
    table = Table(show_header=False, box=None, pad_edge=False)
    inside = twin.columns.inside
    table.add_row("χ² crystal", f"{twin.chi2_crystal:.3f}")
    if twin.passed:
        atoms = ", ".join(
            f"{int(n)} {e}"
            for e, n in zip(twin.columns.elements, twin.columns.counts[inside].sum(0), strict=True)
        )
        table.add_row("columns", f"{int(inside.sum())} ({atoms})")
    for gate in twin.gates:
        mark = "[green]held[/]" if gate.passed else "[red]failed[/]"
        table.add_row(f"gate {gate.name}", f"{mark}  {gate.value:.4g} (limit {gate.limit:.4g})")
    table.add_row("report", str(folder / "report.html"))
    console.print(table)


def require_passed(twin: Twin, folder: Path) -> None:
    """Raise QualityError where a gate failed."""
    if not twin.passed:
        failed = "; ".join(
            f"{g.name} {g.value:.4g} (limit {g.limit:.4g})" for g in twin.gates if not g.passed
        )
        raise QualityError(
            f"{folder}: the model does not describe the image well enough, no atoms are claimed: {failed}; "
            "report.html shows where it fails"
        )
