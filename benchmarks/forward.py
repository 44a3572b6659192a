"""Time and memory of the forward model against its own FFTs, whole fields and abTEM; writes forward.md.

python benchmarks/forward.py [--out benchmarks/forward.md] [--repeats 7] [--threads 1]

The specimen is BaTiO3 [110], 4 x 4 nm at 0.1 Å (432 x 432) and 36 slices (5.1 nm). Every comparison is made
within one run, its two sides in turn, so that other load on the machine meets both; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qhrtem.engines.protocol import Job, engine_named
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.model.forward import Field, ForwardModel, thermal_of
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.model.tiles import tiled_image
from qhrtem.model.window import Move, SiteChange, WindowModel
from qhrtem.physics.potential import Thermal
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.specimen.supercell import Slicing, Supercell

STRUCTURE = Path(__file__).parents[1] / "src/qhrtem/data/BaTiO3.cif"
ENERGY = 300e3
SLICES = 36
FOCI = 5
PIXEL_A = 0.1
GOALS = {
    "forward / FFTs": ("at most", 2.5),
    "abTEM / forward": ("at least", 3.0),
    "abTEM / forward, both cores": ("at least", 3.0),
    "gradient / forward": ("at most", 3.5),
    "whole fields / windows, 64 candidates": ("at least", 20.0),
    "windows one by one / in a batch": ("at least", 1.0),
    "peak memory at 10 x 10 nm with gradients (GB)": ("at most", 6.0),
    "window error, largest (% of vacuum)": ("at most", 0.1),
    "tile error, largest (% of vacuum)": ("at most", 0.1),
}


def specimen(width_A: float) -> tuple[ForwardModel, ColumnModel, Microscope]:
    """Return a field of about width_A squared, filled with crystal, and a lens with some of everything."""
    n = round(width_A / PIXEL_A)
    grid = Grid((n, n), (PIXEL_A, PIXEL_A))
    field = Field(grid, grid, (n, n), (0, 0), (1, 1), 50.0, FOCI)
    projection = project(read_cif(STRUCTURE), (1, 1, 0))
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    edge = n * PIXEL_A - 0.05
    columns = lattice_columns(projection, np.array([0.3, 0.4]), frame, (0.0, 0.0, edge, edge))
    depth = (SLICES - 0.5) * projection.plane
    columns = columns.filled(np.full(len(columns), -0.2), np.full(len(columns), depth))
    lens = nominal(ENERGY).with_values(
        c1=55.0, a1_x=12.0, a1_y=-8.0, b2_x=120.0, a2_y=150.0, s3_x=800.0, a3_y=900.0, tilt_x=1e-3
    )
    return ForwardModel(field, ENERGY), columns, lens


def in_turn(repeats: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Return seconds of each side, the sides run in turn after one unmeasured round."""
    spent: list[list[float]] = [[] for _ in sides]
    for i in range(repeats + 1):
        for seconds, side in zip(spent, sides, strict=True):
            began = time.perf_counter()
            side()
            if i:
                seconds.append(time.perf_counter() - began)
    return spent


def medians(spent: list[list[float]]) -> list[float]:
    return [statistics.median(s) for s in spent]


def bare_transforms(grid: Grid, slices: int) -> Callable[[], None]:
    """Return the transforms of a multislice pass and its foci, alone."""
    wave = torch.randn(grid.shape, dtype=grid.complex_dtype)

    def run() -> None:
        for _ in range(slices):
            spectrum = fft2(wave)
            ifft2(spectrum)
        for _ in range(FOCI):
            ifft2(spectrum)

    return run


def gradient_of(model: ForwardModel, columns: ColumnModel, lens: Microscope) -> Callable[[], float]:
    """Return χ² and its gradient by positions, end occupancies and all imaging parameters."""
    target = model.image(columns, lens) + 0.02

    def run() -> float:
        values = lens.differentiable()
        shift = torch.tensor(columns.shift, requires_grad=True)
        ends = torch.ones((len(columns), 2), dtype=torch.float64, requires_grad=True)
        chi2 = ((model.image(columns, values, shift, ends) - target) ** 2).sum()
        chi2.backward()
        for leaf in (values.values, shift, ends):
            assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
        return float(chi2.detach())

    return run


def forward_of(model: ForwardModel, columns: ColumnModel, lens: Microscope) -> Callable[[], float]:
    """Return χ² alone, by the same path as `gradient_of` (ends as separate atoms)."""
    target = model.image(columns, lens) + 0.02
    shift = torch.tensor(columns.shift)
    ends = torch.ones((len(columns), 2), dtype=torch.float64)
    return lambda: float(((model.image(columns, lens, shift, ends) - target) ** 2).sum())


def candidates(columns: ColumnModel, count: int) -> list[tuple[int, tuple[Move, ...]]]:
    """Return columns near the middle with the four moves of one atom at either end each."""
    middle = columns.anchor.mean(0)
    near = np.argsort(((columns.anchor - middle) ** 2).sum(1), kind="stable")[: count // 4]
    out = []
    for c in map(int, near):
        first, last = int(columns.first[c]), int(columns.last[c])
        ends = ((first, -1), (first - 1, 1), (last, -1), (last + 1, 1))
        out.append((c, tuple(Move((SiteChange((site,), sign),)) for site, sign in ends)))
    return out


def moved(columns: ColumnModel, c: int, move: Move) -> ColumnModel:
    """Return the model after a move of one end of column c."""
    first, last = columns.first.copy(), columns.last.copy()
    (change,) = move.changes
    (site,) = change.sites
    if site <= first[c]:
        first[c] = site + (change.sign < 0)
    else:
        last[c] = site - (change.sign < 0)
    return columns.with_ends(first, last)


def window_rows(repeats: int, count: int = 64) -> tuple[dict[str, float], dict[str, float]]:
    """Return times (s) of candidates by windows and whole fields, and the largest window errors."""
    model, columns, lens = specimen(43.2)
    lens = lens.with_values(tilt_x=0.0)
    windows = WindowModel(model, columns, lens)
    chosen = candidates(columns, count)
    base = model.image(columns, lens)

    def batch() -> None:
        for c, moves in chosen:
            windows.respond(c, moves)

    def one_by_one() -> None:
        for c, moves in chosen:
            for move in moves:
                windows.respond(c, (move,))

    def whole() -> None:  # a sixteenth of the candidates; they cost the same each
        for c, moves in chosen[: max(1, count // 64)]:
            for move in moves:
                model.image(moved(columns, c, move), lens)

    together, single, field = medians(in_turn(repeats, batch, one_by_one, whole))
    worst, rms = 0.0, 0.0
    for c, moves in chosen[:: max(1, len(chosen) // 4)]:
        response = windows.respond(c, moves)
        n = response.change.shape[-1]
        rows = np.arange(response.row, response.row + n) % base.shape[0]
        cols = np.arange(response.col, response.col + n) % base.shape[1]
        used = windows.mask.numpy() > 0.999
        for change, move in zip(response.change, moves, strict=True):
            exact = (model.image(moved(columns, c, move), lens) - base).numpy()[np.ix_(rows, cols)]
            error = (change - exact)[used]
            worst, rms = max(worst, float(np.abs(error).max())), max(rms, float(error.std()))
    share = len(chosen[: max(1, count // 64)]) * 4 / count
    return (
        {"batch": together, "single": single, "whole": field / share},
        {"largest": worst, "rms": rms, "pixels": windows.wave_size},
    )


def tile_error() -> float:
    """Return the largest difference between tiles and the whole field, away from its border."""
    model, columns, lens = specimen(86.4)
    whole = model.image(columns, lens)
    tiled = tiled_image(ENERGY, model.field, columns, lens, edge=43.2)
    rim = round(20.0 / PIXEL_A)
    return float((tiled - whole)[rim:-rim, rim:-rim].abs().max())


def peak_memory(width_nm: float, checkpoint: int) -> float:
    """Return the peak memory (GB) of a fresh process that computes one gradient of a field."""
    command = [sys.executable, __file__, "--memory", str(width_nm), "--checkpoint", str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["gigabytes"])


def report_memory(width_nm: float, checkpoint: int) -> None:
    """Print the peak memory of one gradient of a field of width_nm squared."""
    model, columns, lens = specimen(width_nm * 10 if width_nm != 4 else 43.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if checkpoint:
        values = lens.differentiable()
        shift = torch.tensor(columns.shift, requires_grad=True)
        model.image(columns, values, shift, checkpoint_every=checkpoint).square().sum().backward()
    else:
        gradient_of(model, columns, lens)()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"gigabytes": peak / 1e6, "before": before / 1e6}))


def abtem_image(model: ForwardModel, columns: ColumnModel, lens: Microscope) -> Callable[[], object] | None:
    """Return abTEM's wave and image with the same sampling, slices, form factors, foci; None without it."""
    abtem = engine_named("abtem")
    if abtem.available() is not None:
        return None
    grid, plane, atoms = model.field.grid, columns.projection.plane, columns.atoms()
    low = int(atoms.slice.min())
    z = (atoms.slice - low + 0.5) * plane
    extent = np.array([*grid.extent, SLICES * plane])
    rigid = tuple(replace(s, b_iso=0.0) for s in columns.species)
    cell = Supercell(rigid, atoms.species, np.column_stack([atoms.position, z]), extent)
    slicing = Slicing(atoms.slice - low, np.full(SLICES, plane))
    job = Job(cell, slicing, grid, lens.lens(), thermal=Thermal(rigid=True), foci=FOCI)
    return lambda: abtem.image(abtem.exit_wave(job), job)


def work(side: str, images: int) -> None:
    """Print the seconds of an image by one side, ours or abTEM, after one unmeasured."""
    model, columns, lens = specimen(43.2)
    peer = abtem_image(model, columns, lens) if side == "abtem" else lambda: model.image(columns, lens)
    assert peer is not None
    peer()
    began = time.perf_counter()
    for _ in range(images):
        peer()
    print(json.dumps((time.perf_counter() - began) / images))


def both_cores(side: str, images: int = 7) -> float:
    """Return seconds an image with both cores in use: half of what one of two processes at a time takes."""
    command = [sys.executable, __file__, "--worker", side, "--repeats", str(images)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return statistics.mean(json.loads(p.communicate()[0].splitlines()[-1]) for p in pair) / 2


def rows(repeats: int) -> list[tuple[str, str, float | None]]:
    """Return (name, detail, figure) of every comparison."""
    model, columns, lens = specimen(43.2)
    stack = model.stack(columns, thermal_of(lens))
    sides = [bare_transforms(model.field.grid, len(stack.order)), lambda: model.image(columns, lens)]
    peer = abtem_image(model, columns, lens)
    spent = medians(in_turn(repeats, *sides, *([peer] if peer else [])))
    floor, ours = spent[:2]
    out: list[tuple[str, str, float | None]] = [
        ("bare FFTs (ms)", f"{len(stack.order)} pairs and {FOCI}, 432 x 432", 1e3 * floor),
        ("forward (ms)", "potentials, exit wave, image", 1e3 * ours),
        ("forward / FFTs", "", ours / floor),
        (
            "abTEM / forward",
            "abTEM 1.0.11" if peer else "abTEM is not installed",
            spent[2] / ours if peer else None,
        ),
    ]
    if peer:
        ours_two, abtem_two = both_cores("ours"), both_cores("abtem")
        out.append(("abTEM / forward, both cores", "two processes of each", abtem_two / ours_two))
    forward, gradient = medians(
        in_turn(repeats, forward_of(model, columns, lens), gradient_of(model, columns, lens))
    )
    count = 2 * columns.shift.shape[1] * len(columns) + 2 * len(columns) + len(lens.values)
    out.append(("forward, ends apart (ms)", "", 1e3 * forward))
    out.append(("gradient (ms)", f"χ² by {count} parameters", 1e3 * gradient))
    out.append(("gradient / forward", "", gradient / forward))
    times, errors = window_rows(repeats)
    pixels = int(errors["pixels"])
    out.append(
        ("64 candidates by windows (ms)", f"{pixels} x {pixels}, four to a batch", 1e3 * times["batch"])
    )
    out.append(("64 candidates by whole fields (ms)", "", 1e3 * times["whole"]))
    out.append(("whole fields / windows, 64 candidates", "", times["whole"] / times["batch"]))
    out.append(("windows one by one / in a batch", "", times["single"] / times["batch"]))
    out.append(
        ("window error, largest (% of vacuum)", "part of the window that is used", 100 * errors["largest"])
    )
    out.append(("window error, rms (% of vacuum)", "", 100 * errors["rms"]))
    out.append(("tile error, largest (% of vacuum)", "four tiles of 4.3 nm", 100 * tile_error()))
    for width in (4.0, 7.2, 10.0):
        out.append(
            (f"peak memory at {width:g} x {width:g} nm with gradients (GB)", "", peak_memory(width, 0))
        )
    out.append(("peak memory at 10 x 10 nm, checkpoint every 6 slices (GB)", "", peak_memory(10.0, 6)))
    return out


def verdict(name: str, figure: float | None) -> str:
    """Return how a figure compares with its goal."""
    if name not in GOALS:
        return ""
    sense, goal = GOALS[name]
    if figure is None:
        return f"{sense} {goal:g}: not measured"
    met = figure <= goal if sense == "at most" else figure >= goal
    return f"{sense} {goal:g}: {'met' if met else 'missed'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("forward.md"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("ours", "abtem"), help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=int, default=0)
    given = parser.parse_args()
    prepare()
    torch.set_num_threads(given.threads)
    if given.worker:
        work(given.worker, given.repeats)
        return
    if given.memory:
        report_memory(given.memory, given.checkpoint)
        return
    lines = ["| what | figure | goal | detail |", "|---|---|---|---|"]
    for name, detail, figure in rows(given.repeats):
        value = "" if figure is None else f"{figure:.3g}"
        lines.append(f"| {name} | {value} | {verdict(name, figure)} | {detail} |")
        print(lines[-1], flush=True)
    head = __doc__.split("\n\n")[-1].strip() if __doc__ else ""
    given.out.write_text(
        f"# The forward model's cost\n\n{head}\n\nThreads for each transform: {given.threads}.\n\n"
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
