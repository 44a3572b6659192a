"""The command line: `qhrtem fit`, `watch`, `demo`, `resume`, `inspect`, `simulate`, `report`, …

Commands import what they need when they run, so that help comes at once. Every expected failure ends with one
red line on standard error and the exit code of its kind; see `qhrtem.errors`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qhrtem.errors import PlanError, QhrtemError
from qhrtem.terminal import print_error, print_warning

if TYPE_CHECKING:
    from qhrtem.model.micrograph import RawImage
    from qhrtem.plan import Plan
    from qhrtem.run.spread import Spread

P = ParamSpec("P")
R = TypeVar("R")

EXIT_USER = 130  # interrupted from the keyboard
DEMO_PLAN = Path(__file__).parent / "data" / "bto_edge_small.toml"

app = typer.Typer(
    help="Quantitative HRTEM: from one image of a crystal to its three-dimensional atomic model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Out = Annotated[Path, typer.Option("--out", help="Folder for the results; it must not hold a run yet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that --out already holds.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Structure = Annotated[Path | None, typer.Option("--structure", help="CIF of the ideal crystal.")]
Zone = Annotated[str | None, typer.Option("--zone", help="Zone axis, e.g. 1,1,0.")]
HighTension = Annotated[float | None, typer.Option("--high-tension", help="kV")]
PixelSize = Annotated[float | None, typer.Option("--pixel-size", help="Å, the file's own where left out.")]
Workers = Annotated[
    int, typer.Option("--workers", help="Processes on this machine that share tiles of a large field.")
]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Address of a Dask scheduler whose workers share them, or 'local'."),
]
Dataset = Annotated[str | None, typer.Option(help="Which image, where the file holds several.")]
Frame = Annotated[int | None, typer.Option(help="Which frame of a series, from 0.")]


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command end with one red line and the exit code of its error instead of a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        console = Console(stderr=True)
        try:
            return command(*args, **kwargs)
        except QhrtemError as error:
            print_error(console, str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            print_error(console, "stopped from the keyboard")
            raise typer.Exit(EXIT_USER) from error

    return run


@app.command()
@explained
def fit(
    source: Annotated[Path, typer.Argument(help="PLAN.toml, or the image itself.", metavar="PLAN|IMAGE")],
    out: Out,
    force: Force = False,
    seed: Seed = None,
    device: Device = None,
    structure: Structure = None,
    zone: Zone = None,
    high_tension: HighTension = None,
    pixel_size: PixelSize = None,
    offset: Annotated[float | None, typer.Option(help="Counts without electrons.")] = None,
    vacuum: Annotated[float | None, typer.Option(help="Mean vacuum level, counts.")] = None,
    gain: Annotated[float | None, typer.Option(help="Counts per electron.")] = None,
    c3: Annotated[float | None, typer.Option(help="µm, negative for negative-C3 imaging.")] = None,
    dataset: Dataset = None,
    frame: Frame = None,
    series: Annotated[
        bool, typer.Option("--series", help="Fit all frames of the file, each from those before it.")
    ] = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
) -> None:
    """Fit a three-dimensional model to one image, or to each frame of a series. Options override the plan."""
    asked: dict[str, dict[str, Any]] = {
        "image": {
            "pixel_size_A": pixel_size,
            "offset_counts": offset,
            "vacuum_counts": vacuum,
            "gain_counts_per_electron": gain,
            "dataset": dataset,
            "frame": frame,
        },
        "microscope": {"high_tension_kV": high_tension, "c3_um": c3},
        "structure": {"path": structure, "zone_axis": _direction(zone)},
        "run": {"seed": seed, "device": device},
    }
    if series:
        asked["series"] = {}
    plan, spread = _plan(source, asked), _spread(workers, scheduler)
    if plan.series is not None:
        from qhrtem.commands.series import fit_series

        fit_series(plan, out, force, spread)
        return

    from qhrtem.commands.fit import fit_plan

    fit_plan(plan, out, force, spread)


@app.command()
@explained
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that the microscope writes its frames to.")],
    plan: Annotated[Path, typer.Option("--plan", help="PLAN.toml; its [image] path is not needed.")],
    out: Out,
    force: Force = False,
    pattern: Annotated[str | None, typer.Option(help="Names of the frames, by wildcards.")] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out all but the newest where several frames wait.")
    ] = False,
    idle: Annotated[
        float | None, typer.Option(help="Seconds without a new frame before the series is complete.", min=0)
    ] = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
) -> None:
    """Fit frames as they appear in a folder, each from those before it."""
    if not folder.is_dir():
        raise PlanError(f"{folder}: is no folder; give the one that the microscope writes its frames to")
    asked = {"folder": folder, "pattern": pattern, "idle_s": idle, "behind": "drop" if drop else None}
    # Until the first file is there, the folder stands for it.
    given = _plan(plan, {"image": {"path": folder}, "series": asked})

    from qhrtem.commands.series import watch_folder

    watch_folder(given, out, force, _spread(workers, scheduler))


@app.command()
@explained
def demo(out: Out = Path("demo_run"), force: Force = False, seed: Seed = None, device: Device = None) -> None:
    """Fit the bundled example: a calculated image of BaTiO3 along [110]."""
    from qhrtem.commands.fit import fit_plan

    fit_plan(_plan(DEMO_PLAN, {"run": {"seed": seed, "device": device}}), out, force)


@app.command()
@explained
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of an unfinished run.")],
    fork: Annotated[
        Path | None,
        typer.Option(
            "--fork", help="Go on as a new run in this folder, with plan, files and program as now."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the run that --fork already holds.")
    ] = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
) -> None:
    """Go on with a run that was stopped, killed or ran out of disk; the result is the same."""
    spread = _spread(workers, scheduler)

    from qhrtem.commands.fit import resume_run

    resume_run(run, fork, force, spread)


@app.command()
@explained
def inspect(
    image: Annotated[Path, typer.Argument(help="The image, or a PLAN.toml that names it.")],
    structure: Structure = None,
    zone: Zone = None,
    high_tension: HighTension = None,
    pixel_size: PixelSize = None,
    dataset: Dataset = None,
    frame: Frame = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here as well.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the recommended PLAN.toml here.")] = None,
) -> None:
    """Show what a file holds before fitting, what would be refused, and a plan ready to run."""
    from qhrtem.inspect import inspect_image, print_account, write_inspection

    found, said = inspect_image(
        image,
        {"pixel_size_A": pixel_size, "dataset": dataset, "frame": frame},
        {"path": structure, "zone_axis": _direction(zone)},
        high_tension,
    )
    print_account(Console(), said)
    write_inspection(found, said, html, plan)


@app.command()
@explained
def simulate(
    source: Annotated[
        Path, typer.Argument(help="PLAN.toml, or the folder of a finished run.", metavar="PLAN|RUN")
    ],
    out: Annotated[Path, typer.Option("--out", help="TIFF file; parameters and columns go beside it.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier --out.")] = False,
    engine: Annotated[str | None, typer.Option(help="qhrtem, abtem or drprobe.")] = None,
    seed: Seed = None,
    dose: Annotated[float | None, typer.Option(help="Electrons per Å², 0 for no noise.", min=0)] = None,
    phonons: Annotated[
        int | None, typer.Option(help="Frozen-phonon configurations, 0 for one damped wave.", min=0)
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="focal: sum over focus; full: over source angle too, the default for frozen phonons."
        ),
    ] = None,
) -> None:
    """Make the image of a known specimen from a plan, or that of a fitted run again.

    A run is reproduced exactly by the model of its fit; with --engine, --phonons or --mode its atoms and lens
    are simulated anew and compared.
    """
    from qhrtem.simulate.files import check_out

    check_out(out, force)
    if source.is_dir():
        _simulate_run(source, out, engine, seed or 0, dose or 0.0, phonons, mode)
        return
    if not _is_plan(source):
        raise PlanError(f"{source}: give a PLAN.toml, or the folder of a finished run")
    asked = {"engine": engine, "seed": seed, "dose_e_per_A2": dose, "mode": mode}
    asked |= {"phonon_configurations": phonons}
    given = {k: v for k, v in asked.items() if v is not None}
    _simulate_plan(_plan(source, {"image": {"path": out}, "simulate": given}), out, frozenset(given))


@app.command()
@explained
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report and the figures of a finished run anew."""
    from qhrtem.commands.fit import require_passed, write_pages
    from qhrtem.io.twin import read_twin
    from qhrtem.run.folder import open_run

    folder = open_run(run)
    twin = read_twin(folder.path)
    write_pages(twin, folder.path)
    Console().print(f"{folder.path / 'report.html'}", soft_wrap=True, highlight=False)
    require_passed(twin, folder.path)


@app.command()
@explained
def serve(
    run: Annotated[Path, typer.Argument(help="Folder of a run, also of one under way.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.", min=0, max=65535)] = 8765,
    host: Annotated[
        str, typer.Option(help="Address of this machine; any but its own loopback needs the printed token.")
    ] = "127.0.0.1",
) -> None:
    """Show a run in a browser while it goes on; nothing of it is changed."""
    from qhrtem.commands.serve import serve_run

    serve_run(run, host, port)


@app.command()
@explained
def doctor(
    validate: Annotated[
        bool, typer.Option("--validate", help="Fit a small phantom too and judge the numbers (a minute).")
    ] = False,
) -> None:
    """Show whether installation and machine are fit for use."""
    from qhrtem.commands import doctor as it
    from qhrtem.commands.fit import fit_plan

    it.show(it.examine())
    if validate:
        it.validate(fit_plan)


def _simulate_plan(plan: Plan, out: Path, options: frozenset[str]) -> None:
    from qhrtem.plan import SimulatePlan
    from qhrtem.specimen.crystal import read_cif

    asked = plan.simulate or SimulatePlan()
    crystal = read_cif(plan.structure.path)

    from qhrtem.engines.protocol import engine_named
    from qhrtem.run.process import prepare
    from qhrtem.simulate.files import write_simulation
    from qhrtem.simulate.phantom import make_phantom

    prepare()
    console = Console()
    with _counting(asked.phonon_configurations) as progress:
        made = make_phantom(plan, crystal, engine_named(asked.engine), options, progress)
    write_simulation(out, made.counts, made.pixel_size_A, made.facts, made.columns)
    for note in made.facts["notes"]:
        print_warning(console, note)
    rows, cols = made.counts.shape
    _print_rows(
        console,
        ("image", f"{out}, {rows} × {cols} pixels of {made.pixel_size_A:.5g} Å"),
        ("columns", f"{len(made.columns.kind)}, {made.facts['atoms']} atoms in the simulated area"),
        ("vacuum", f"{made.facts['vacuum_counts']:.6g} counts"),
        ("beside it", f"{out.with_suffix('.json').name}, {out.with_suffix('.columns.csv').name}"),
    )


def _simulate_run(
    run: Path, out: Path, engine: str | None, seed: int, dose: float, phonons: int | None, mode: str | None
) -> None:
    from qhrtem.run.folder import open_run

    folder = open_run(run)
    name = engine or "qhrtem"

    from qhrtem.engines.protocol import engine_named
    from qhrtem.plan import SimulatePlan
    from qhrtem.run.process import prepare
    from qhrtem.simulate.again import PHONONS, counts_of, reproduced, simulate_again
    from qhrtem.simulate.files import write_simulation

    prepare()
    count = PHONONS if phonons is None else phonons
    # The mode is checked with the job.
    asked = SimulatePlan.model_construct(engine=name, mode=mode, phonon_configurations=count)
    reference = None if name == "qhrtem" else engine_named("qhrtem")
    with _counting(count) as progress:
        if engine is phonons is mode is None:
            again = reproduced(folder.path)
        else:
            again = simulate_again(
                folder.path, engine_named(name), count, asked.coherence, seed, progress, reference
            )
    counts, facts = counts_of(again, dose, seed)
    write_simulation(out, counts, again.twin.pixel_size_A, facts, again.twin.columns)
    differences = [(f"differs {k}", f"{100 * v:.3g} % of vacuum") for k, v in again.differences.items()]
    _print_rows(Console(), ("image", str(out)), *differences)


@contextmanager
def _counting(configurations: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a simulation is; give what is to be told the configurations done."""
    with Console(stderr=True).status("simulating") as status:
        yield lambda done: status.update(f"simulating, {done} of {configurations} configurations")


def _print_rows(console: Console, *rows: tuple[str, str]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(text) for text in row))
    console.print(table)


def _fittable(plan: Plan) -> RawImage:
    """Return the image of a plan. Raises InputError where it is of a kind that cannot be fitted."""
    from qhrtem.calibrate.claims import require_fittable
    from qhrtem.calibrate.intensity import planned_pitch
    from qhrtem.io.masks import read_planned

    raw = read_planned(plan.image)
    require_fittable(replace(raw, pixel_size_A=planned_pitch(plan.image, raw)))
    return raw


def _is_plan(source: Path) -> bool:
    return source.suffix.lower() == ".toml"


def _plan(source: Path, asked: dict[str, dict[str, Any]]) -> Plan:
    """Return the plan in a file, or of an image, with the options that were given laid over it."""
    from qhrtem.plan import load_plan, plan_from_tables

    given = {name: {k: v for k, v in table.items() if v is not None} for name, table in asked.items()}
    if _is_plan(source):
        return load_plan(source, given)
    missing = [
        option
        for option, table, key in (
            ("--structure X.cif", "structure", "path"),
            ("--zone 1,1,0", "structure", "zone_axis"),
            ("--high-tension 300", "microscope", "high_tension_kV"),
        )
        if key not in given[table]
    ]
    if missing:
        raise PlanError(f"{source}: to fit an image without a plan, give also {' and '.join(missing)}")
    given["image"]["path"] = source
    return plan_from_tables(given)


def _spread(workers: int, scheduler: str | None) -> Spread | None:
    """Return how tasks are spread, None for this process alone."""
    if workers == 1 and scheduler is None:
        return None
    from qhrtem.run.spread import Spread

    return Spread(workers, scheduler)


def _direction(text: str | None) -> list[int] | None:
    """Return a zone axis written as 1,1,0 or 1 1 0."""
    if text is None:
        return None
    try:
        indices = [int(part) for part in text.strip("[]() ").replace(",", " ").split()]
    except ValueError:
        indices = []
    if len(indices) != 3:
        raise PlanError(f"--zone must be three integers such as 1,1,0 or 1,-1,0, got '{text}'")
    return indices


def main() -> None:
    """Run the command line; the process ends with the exit codes of `qhrtem.errors`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_USER)
