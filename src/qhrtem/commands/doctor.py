"""`qhrtem doctor`: is the installation sound, what has the machine, and does a known answer come out?"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qhrtem.errors import QualityError, ResourceError
from qhrtem.machine import cores, free_memory, in_words, total_memory

if TYPE_CHECKING:
    from qhrtem.model.twin import ColumnTable, Twin
    from qhrtem.plan import Plan

DATA = Path(__file__).parents[1] / "data"
LEAST_MEMORY = 2e9  # bytes; the bundled example takes about half of it
LEAST_DISK = 1e9  # bytes
OPTIONAL = {"abtem": "a second opinion by abTEM", "distributed": "clusters"}
# Errors of one forward and one backward transform, relative; a sound library stays well below.
ROUND_TRIP = {"complex64": 3e-6, "complex128": 3e-15}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    text: str
    sound: bool = True
    remedy: str = ""  # what to do where it is not


def examine() -> Iterator[Finding]:
    """Yield what there is to say about installation, machine, threads, devices and precision."""
    yield Finding("qhrtem", f"{version('qhrtem')} in {DATA.parent}")
    yield Finding("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    yield from _libraries()
    yield _data()
    yield from _machine()
    yield from _threads()
    yield from _devices()
    yield _writing(Path.cwd())


def _libraries() -> Iterator[Finding]:
    found, missing = [], []
    for words in requires("qhrtem") or ():
        if "extra ==" in words:
            continue
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*(?:>=\s*([0-9.]+))?", words)
        assert match is not None
        name, least = match[1], match[2] or "0"
        try:
            held = version(name)
        except PackageNotFoundError:
            missing.append(f"{name} is missing")
            continue
        found.append(f"{name} {held}")
        if _release(held) < _release(least):
            missing.append(f"{name} must be at least {least}, got {held}")
    remedy = "install the package anew, e.g. `pip install --upgrade qhrtem`"
    yield Finding("libraries", "; ".join(missing) or ", ".join(found), not missing, remedy)
    have = [f"{n} {version(n)} ({why})" for n, why in OPTIONAL.items() if find_spec(n) is not None]
    lack = [f"no {n} ({why})" for n, why in OPTIONAL.items() if find_spec(n) is None]
    yield Finding("optional", ", ".join(have + lack))


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3])


def _data() -> Finding:
    lost = [
        n for n in ("bto_edge_small.tif", "bto_edge_small.toml", "BaTiO3.cif") if not (DATA / n).is_file()
    ]
    text = f"missing: {', '.join(lost)}" if lost else "the bundled example is there"
    return Finding("data", text, not lost, "install the package anew")


def _machine() -> Iterator[Finding]:
    free, total = free_memory(), total_memory()
    text = f"{in_words(free)} free of {in_words(total)}"
    yield Finding(
        "memory", text, free > LEAST_MEMORY, f"end other programs; {in_words(LEAST_MEMORY)} are needed"
    )
    disk = shutil.disk_usage(Path.cwd()).free
    yield Finding("disk", f"{in_words(disk)} free here", disk > LEAST_DISK, "free some space")


def _threads() -> Iterator[Finding]:
    import torch

    asked = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        "threads",
        f"{cores()} of {os.cpu_count()} cores may be used; a transform takes 1, columns are spread over all"
        + (f"; OMP_NUM_THREADS={asked}" if asked else ""),
    )
    kinds = [
        line.strip(" -") for line in torch.__config__.show().splitlines() if "MKL" in line or "OpenMP" in line
    ]
    yield Finding("processor", f"{torch.backends.cpu.get_cpu_capability()}; {'; '.join(kinds[:2])}")


def _devices() -> Iterator[Finding]:
    import torch

    from qhrtem.run.process import prepare
    from qhrtem.stages.estimate import transform_seconds

    prepare()
    yield from _precision("cpu")
    yield Finding("speed", f"an FFT pair on 512² complex64 takes {1e3 * transform_seconds():.2f} ms")
    if not torch.cuda.is_available():
        yield Finding("CUDA", "no device")
        return
    for n in range(torch.cuda.device_count()):
        it = torch.cuda.get_device_properties(n)
        yield Finding(f"cuda:{n}", f"{it.name}, {in_words(it.total_memory)}")
        yield from _precision(f"cuda:{n}")


def _precision(device: str) -> Iterator[Finding]:
    import torch

    wave = torch.randn((256, 240), dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    words, sound = [], True
    for name, limit in ROUND_TRIP.items():
        x = wave.to(device=device, dtype=getattr(torch, name))
        back = torch.fft.ifft2(torch.fft.fft2(x))
        error = float((back - x).abs().max() / x.abs().max())
        words.append(f"{name} {error:.1e}")
        sound &= error < limit
    text = f"a transform and its inverse differ by {', '.join(words)}"
    yield Finding(f"precision {device}", text, sound, "the transforms of torch are faulty: install it anew")


def _writing(folder: Path) -> Finding:
    """Try what a run needs of the disk here: a lock, and a rename that is certain."""
    from qhrtem.run.journal import Journal, read_journal

    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".qhrtem-doctor-") as name:
            path = Path(name) / "journal.jsonl"
            begin = time.perf_counter()
            with Journal(path) as journal:
                for n in range(5):
                    journal.append({"n": n})
            each = (time.perf_counter() - begin) / 5
            sound = len(read_journal(path)) == 5
    except (OSError, ResourceError) as error:
        return Finding("writing", f"{folder}: {error}", False, "run from a folder that you may write")
    return Finding("writing", f"journal and lock work in {folder}, {1e3 * each:.1f} ms a record", sound)


def show(findings: Iterator[Finding]) -> None:
    """Print findings as they come; raises ResourceError where one is not sound."""
    console, wrong = Console(), []
    for finding in findings:
        mark = "[green]ok  [/]" if finding.sound else "[red]bad [/]"
        console.print(
            f"{mark} {escape(finding.name)}: {escape(finding.text)}", soft_wrap=True, highlight=False
        )
        if not finding.sound:
            wrong.append(f"{finding.name}: {finding.text}; {finding.remedy}")
    if wrong:
        raise ResourceError("; ".join(wrong))


# A phantom that takes a minute or two: the edge of a crystal with three kinds of column, and noise.
PHANTOM: dict[str, dict[str, object]] = {
    "image": {"pixel_size_A": 0.13, "gain_counts_per_electron": 12.0, "offset_counts": 100.0},
    "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
    "structure": {"path": DATA / "SrTiO3.cif", "zone_axis": [0, 0, 1]},
    "simulate": {
        "field_nm": [1.8, 1.8],
        "vacuum_nm": 0.5,
        "thickness_nm": 3.2,
        "rotation_deg": 2.0,
        "dose_e_per_A2": 2e4,
        "seed": 1,
        "c1_nm": 5.5,
        "a1_nm": [0.8, -0.5],
        "vibration_pm": [22.0, 25.0],
    },
}
NEAR_A = 0.5  # a column this near to a true one is that column
RIM_A = 2.0  # true columns nearer to the border of the image are not asked for


@dataclass(frozen=True)
class Judged:
    """How a fit compares with the known answer, over the columns well inside the image."""

    found: float  # share of the true columns
    invented: int
    within_one: float  # share of the found ones with every count right to one atom
    rms_pm: float  # error of a coordinate, less the shift of all columns that a mistilt makes

    def wrong(self) -> list[str]:
        """Return what is worse than a sound installation gives, with room for other processors."""
        out = []
        if self.found < 1 or self.invented:
            out.append(f"{self.found:.0%} of the columns found and {self.invented} invented (all and none)")
        if self.within_one < 0.9:
            out.append(f"{self.within_one:.0%} of the counts within one atom (at least 90 %)")
        if self.rms_pm > 5.0:
            out.append(f"positions wrong by {self.rms_pm:.1f} pm (at most 5 pm)")
        return out


def judge(found: ColumnTable, truth: ColumnTable, pixel: float, shape: tuple[int, int]) -> Judged:
    """Return how a column table compares with the true one; pixel in Å, shape of the image in pixels."""
    pairs, asked, invented = matched(found, truth, pixel, shape)
    apart = np.array([found.position_px[f] - truth.position_px[t] for f, t in pairs]) * pixel * 100
    order = [truth.elements.index(e) for e in found.elements]
    counts = [np.abs(found.counts[f] - truth.counts[t][order]).max() <= 1 for f, t in pairs]
    return Judged(
        len(pairs) / asked if asked else float("nan"),
        invented,
        float(np.mean(counts)) if pairs else 0.0,
        float(np.sqrt(((apart - apart.mean(0)) ** 2).mean())) if pairs else float("inf"),
    )


def matched(
    found: ColumnTable, truth: ColumnTable, pixel: float, shape: tuple[int, int], rim_A: float = RIM_A
) -> tuple[list[tuple[int, int]], int, int]:
    """Return pairs (found, true) of columns, how many true ones were asked for, and how many were invented.

    pixel: Å; shape of the image in pixels; rim_A: true columns nearer to the border are not asked for, Å.
    """
    rim, p = rim_A / pixel, truth.position_px
    well_inside = truth.inside & ((p > rim) & (p < np.array(shape) - 1 - rim)).all(1)
    mine, real = np.flatnonzero(found.inside), np.flatnonzero(well_inside)
    every = _distances(found.position_px, truth.position_px) * pixel
    seen = every[:, real].min(0) < NEAR_A
    pairs = [(int(every[:, t].argmin()), int(t)) for t in real[seen]]
    return pairs, len(real), int((every[mine].min(1) >= NEAR_A).sum())


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(a[:, None] - b[None], axis=-1))


def validate(fit: Callable[[Plan, Path], Twin]) -> None:
    """Make a phantom, let `fit` fit it, judge the result; raises QualityError where it is poor."""
    from qhrtem.engines.protocol import engine_named
    from qhrtem.plan import plan_from_tables
    from qhrtem.simulate.files import write_simulation
    from qhrtem.simulate.phantom import make_phantom
    from qhrtem.specimen.crystal import read_cif

    console = Console()
    with tempfile.TemporaryDirectory(prefix="qhrtem-doctor-") as name:
        image = Path(name) / "phantom.tif"
        tables = {**PHANTOM, "image": {**PHANTOM["image"], "path": image}}
        plan = plan_from_tables(tables, "doctor")
        made = make_phantom(plan, read_cif(plan.structure.path), engine_named("qhrtem"))
        write_simulation(image, made.counts, made.pixel_size_A, made.facts, made.columns)
        begin = time.monotonic()
        twin = fit(plan, Path(name) / "run")
    judged = judge(twin.columns, made.columns, made.pixel_size_A, made.counts.shape)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("columns found", f"{judged.found:.0%}, {judged.invented} invented")
    table.add_row("counts within one", f"{judged.within_one:.0%}")
    table.add_row("positions", f"{judged.rms_pm:.2f} pm rms")
    table.add_row("time", f"{time.monotonic() - begin:.0f} s")
    console.print(table)
    if judged.wrong():
        raise QualityError(
            f"the fit of a known phantom is poorer than it must be: {'; '.join(judged.wrong())}; "
            f"install the package anew, and report it with the output of `{Path(sys.argv[0]).name} doctor`"
        )
    console.print("[green]the known answer came out[/]")
