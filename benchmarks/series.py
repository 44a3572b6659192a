"""A series of frames whose specimen is known: pace, accuracy, events, drift, and a kill in the middle.

    python benchmarks/series.py [--frames 60] [--nm 3.0] [--keep FOLDER [--reuse]] [--kill] [--out FILE]

BaTiO3 along [110], 2.5 nm thick, 1·10⁴ e/Å² a frame, drifting by 3 Å from frame to frame. Its edge retreats
by 0.15 Å a frame, a step one period high crosses its exit surface at 0.35 Å a frame, and half way the Ti of a
domain jump by 20 pm. Columns and events are scored 6 Å inside the image. An event counts as found where one
of its kind stands at its column within one frame; recall is the share of true events that are found,
precision the share of those listed that are true. "Lasting": those that the next frame agrees with.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.io.series_file import read_series
from qhrtem.model.series import Frame, Series
from qhrtem.plan import Plan, dump_plan, plan_from_tables
from qhrtem.run.journal import read_journal
from qhrtem.run.process import prepare
from qhrtem.simulate.evolution import (
    Answer,
    Evolution,
    make_evolution,
    moving_step,
    retreating_edge,
    switching,
    together,
)
from qhrtem.specimen.crystal import read_cif

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "src/qhrtem/data"
PIXEL_A, MARGIN_A, SAME_A = 0.12, 6.0, 0.7
STEP_A, REACH_A = 3.0, 9.0  # drift from frame to frame, and at most from the first
JUMP_A = 0.05  # change of a position against the lattice that is an event
Site = tuple[int, int, int]
Happening = tuple[int, str, Site]


def asked(nm: float, image: Path) -> Plan:
    """Return the plan of the series, [simulate] included."""
    return plan_from_tables(
        {
            "image": {"path": image, "pixel_size_A": PIXEL_A, "offset_counts": 0.0}
            | {"gain_counts_per_electron": 12.0},
            "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
            "structure": {"path": DATA / "BaTiO3.cif", "zone_axis": [1, 1, 0]},
            "series": {"interval_s": 0.5},
            "simulate": {"shape": "edge", "field_nm": [nm, nm], "vacuum_nm": 0.7, "thickness_nm": 2.5}
            | {"rotation_deg": 4.0, "dose_e_per_A2": 1e4, "seed": 3, "c1_nm": 5.0}
            | {"vibration_pm": [24.0, 26.0]},
        }
    )


def walk(frames: int) -> NDArray[np.float64]:
    """Return a drift (frames, 2) in Å: steps of one length in random directions, within a square."""
    rng = np.random.default_rng(5)
    drift = np.zeros((frames, 2))
    for n in range(1, frames):
        while True:
            angle = rng.uniform(0, 2 * np.pi)
            drift[n] = drift[n - 1] + STEP_A * np.array([np.sin(angle), np.cos(angle)])
            if np.abs(drift[n]).max() < REACH_A:
                break
    return drift


def made(plan: Plan, frames: int, nm: float) -> tuple[Evolution, list[Answer]]:
    """Return the specimen and the answers of its frames; the stack is written unless it is there already."""
    middle = 5.0 * nm
    script = together(
        retreating_edge(5.0, 0.15),
        moving_step(2.0, 0.35),
        switching("Ti", (0.0, 0.10), (middle + 3, middle + 5), 6.0, frames // 2),
    )
    it = make_evolution(plan, read_cif(plan.structure.path), script, walk(frames), pairs=2)
    if not plan.image.path.is_file():
        stack = np.stack([it.frame(n, 2).counts for n in range(frames)])
        tifffile.imwrite(plan.image.path, stack, photometric="minisblack")
    truth = [it.answer(n) for n in range(frames)]
    return it, truth


def sites_of(frame: Frame | Answer) -> dict[Site, int]:
    """Return the row of each site."""
    return {(int(k), int(i), int(j)): n for n, (k, i, j) in enumerate(frame.site)}


@dataclass(frozen=True)
class Score:
    """How well one frame came out."""

    found: float
    exact: float
    invented: int
    error_pm: NDArray[np.float64]  # (N, 2)
    z: NDArray[np.float64]  # (N, 2)
    kept: float  # share of columns whose name is the one it had in the first frame
    right: NDArray[np.bool_]  # (N,) counts exact
    claimed: NDArray[np.float64]  # (N,) probability of that


def score(frame: Frame, true: Answer, elements: tuple[str, ...], offset: NDArray[np.int64] | None) -> Any:
    """Return the score of a frame, and by how much its cell numbers differ from the true ones."""
    table, shape = true.columns, np.array(true.shape)
    order = [table.elements.index(e) for e in elements]
    tree = cKDTree(frame.position_px)
    shift = np.zeros(2)
    for _ in range(3):
        distance, index = tree.query(table.position_px - shift)
        near = distance * PIXEL_A < SAME_A
        shift = np.median(table.position_px[near] - frame.position_px[index[near]], axis=0)
    well = ((table.position_px > MARGIN_A / PIXEL_A) & (table.position_px < shape - MARGIN_A / PIXEL_A)).all(
        1
    )
    hit = well & near
    pair = index[hit]
    exact = (frame.counts[pair] == table.counts[hit][:, order]).all(1)
    error = (frame.position_px[pair] + shift - table.position_px[hit]) * PIXEL_A * 100
    error -= error.mean(0)
    apart = frame.site[pair][:, 1:] - true.site[hit][:, 1:]
    if offset is None:
        offset = np.median(apart, axis=0).astype(np.int64)
    inner = (
        (frame.position_px + shift > MARGIN_A / PIXEL_A)
        & (frame.position_px + shift < shape - MARGIN_A / PIXEL_A)
    ).all(1)
    invented = int((inner & ~np.isin(np.arange(len(inner)), index[near])).sum())
    kept = float((apart == offset).all(1).mean())
    z = error / (frame.sigma_px[pair] * PIXEL_A * 100)
    share = (hit.sum() / well.sum(), exact.sum() / well.sum())
    return Score(*share, invented, error, z, kept, exact, frame.p_exact[pair]), offset


def true_events(it: Evolution, truth: list[Answer]) -> tuple[set[Happening], list[set[Site]]]:
    """Return what happened, and which sites each frame can be asked about together with the one before."""
    out: set[Happening] = set()
    asked_of: list[set[Site]] = [set()]
    for n in range(1, len(truth)):
        before, now = (sites_of(truth[k]) for k in (n - 1, n))
        columns = it.whole
        names = list(zip(columns.kind.tolist(), *columns.cell.T.tolist(), strict=True))
        open_: set[Site] = set()
        for c, site in enumerate(names):
            places = [it.field.to_detector(columns.anchor[c] + it.drift[k]) for k in (n - 1, n)]
            limit = np.array(truth[n].shape) - MARGIN_A / PIXEL_A
            if all(((p > MARGIN_A / PIXEL_A) & (p < limit)).all() for p in places):
                open_.add(site)
        asked_of.append(open_)
        for site in open_:
            a, b = before.get(site), now.get(site)
            if a is None and b is None:
                continue
            if a is None or b is None:
                out.add((n, "appears" if a is None else "leaves", site))
                continue
            was, is_ = truth[n - 1].columns.counts[a], truth[n].columns.counts[b]
            if (was != is_).any():
                out.add((n, "gains atoms" if is_.sum() > was.sum() else "loses atoms", site))
            moved = (truth[n].columns.position_px[b] - truth[n - 1].columns.position_px[a]) * PIXEL_A
            if np.hypot(*(moved - (it.drift[n] - it.drift[n - 1]))) > JUMP_A:
                out.add((n, "moves", site))
    return out, asked_of


def listed_events(
    series: Series, asked_of: list[set[Site]], offset: NDArray[np.int64], lasting: bool
) -> set[Happening]:
    """Return the events of the series that can be judged, by the true names of their columns."""
    out = set()
    for e in series.events:
        site = (e.site[0], e.site[1] - int(offset[0]), e.site[2] - int(offset[1]))
        last = e.frame == len(series.frames) - 1
        if site in asked_of[e.frame] and (e.lasted or last or not lasting):
            out.add((e.frame, e.kind, site))
    return out


def judged(true: set[Happening], listed: set[Happening]) -> tuple[int, int]:
    """Return how many true events are listed, and how many listed ones are true, within a frame."""

    def has(these: set[Happening], one: Happening) -> bool:
        return any((one[0] + d, one[1], one[2]) in these for d in (0, 1, -1))

    return sum(has(listed, e) for e in true), sum(has(true, e) for e in listed)


def event_rows(it: Evolution, truth: list[Answer], series: Series, offset: NDArray[np.int64]) -> list[str]:
    """Return the table of events by kind."""
    true, asked_of = true_events(it, truth)
    rows = [
        "| event | true | listed | recall | precision | precision, lasting |",
        "|---|---|---|---|---|---|",
    ]
    kinds = ["appears", "leaves", "gains atoms", "loses atoms", "moves"]
    for kind in [*kinds, "all"]:
        some = {e for e in true if kind in (e[1], "all")}
        said = [
            {e for e in listed_events(series, asked_of, offset, lasting) if kind in (e[1], "all")}
            for lasting in (False, True)
        ]
        if not some and not said[0]:
            continue
        found = judged(some, said[0])[0]
        precise = [f"{judged(some, s)[1]} of {len(s)}" for s in said]
        rows.append(
            f"| {kind} | {len(some)} | {len(said[0])} | {found} of {len(some)} | {' | '.join(precise)} |"
        )
    return rows


def report(it: Evolution, truth: list[Answer], series: Series) -> list[str]:
    """Return the page of a series."""
    scores, offset = [], None
    for frame, true in zip(series.frames, truth, strict=True):
        if frame.refused:
            continue
        one, offset = score(frame, true, series.elements, offset)
        scores.append(one)
    assert offset is not None
    later = [f.seconds for f in series.frames[1:]]
    drift = np.array([f.drift_A[::-1] for f in series.frames]) - it.drift
    rows = ["| | first frame | later frames: median | worst |", "|---|---|---|---|"]

    def row(name: str, values: list[float], worst: Any, form: str) -> None:
        rest = values[1:]
        rows.append(
            f"| {name} | {values[0]:{form}} | {statistics.median(rest):{form}} | {worst(rest):{form}} |"
        )

    row("time (s)", [f.seconds for f in series.frames], max, ".1f")
    row("columns on the image", [float(len(f.site)) for f in series.frames if not f.refused], min, ".0f")
    row("found", [s.found for s in scores], min, ".3f")
    row("invented", [float(s.invented) for s in scores], max, ".0f")
    row("exact counts, all elements", [s.exact for s in scores], min, ".3f")
    row("claimed probability of that, mean", [float(s.claimed.mean()) for s in scores], min, ".3f")
    row("position rms (pm)", [float(np.sqrt((s.error_pm**2).mean())) for s in scores], max, ".2f")
    row("rms of error over error bar", [float(np.sqrt((s.z**2).mean())) for s in scores], max, ".2f")
    row("columns that keep their name", [s.kept for s in scores], min, ".3f")
    row("drift error (pm)", [float(100 * np.hypot(*d)) for d in drift], max, ".2f")
    pace = series.frames[0].seconds / statistics.median(later)
    least = series.frames[0].seconds / max(later)
    return [
        f"{len(series.frames)} frames, {sum(bool(f.refused) for f in series.frames)} of them refused. Later "
        f"frames are {pace:.1f} times faster than the first (median; the slowest {least:.1f} times).",
        "",
        *rows,
        "",
        claimed_and_true(scores),
        "",
        *event_rows(it, truth, series, offset),
    ]


def claimed_and_true(scores: list[Score]) -> str:
    """Return how often counts are exact where that is claimed with some probability, all frames together."""
    right = np.concatenate([s.right for s in scores])
    claimed = np.concatenate([s.claimed for s in scores])
    words, gap = [], 0.0
    for low, high in ((0.0, 0.6), (0.6, 0.9), (0.9, 0.99), (0.99, 1.01)):
        these = (claimed >= low) & (claimed < high)
        if these.any():
            mean, true = claimed[these].mean(), right[these].mean()
            gap += these.mean() * abs(mean - true)
            words.append(f"{these.sum()} columns with {mean:.3f}: {true:.3f}")
    return f"Counts exact, claimed and found: {'; '.join(words)}. Calibration error {gap:.3f}."


def fit(plan: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Begin a fit of a series, or go on with one."""
    command = [sys.executable, "-m", "qhrtem", "fit", str(plan), "--out", str(out), "--force"]
    return subprocess.Popen(command if not more else [sys.executable, "-m", "qhrtem", *more])


def result_of(run: Path) -> str:
    """Return the hash of a finished run's result."""
    return str(read_journal(run / "journal.jsonl")[-1]["result"])


def killed(folder: Path) -> list[str]:
    """Return what a kill -9 in the middle of a short series changes."""
    plan = asked(1.8, folder / "short.tif")
    made(plan, 4, 1.8)
    path = folder / "short.toml"
    path.write_text(dump_plan(plan), "utf-8")
    assert fit(path, folder / "whole").wait() == 0
    process = fit(path, folder / "killed")
    journal = folder / "killed" / "journal.jsonl"
    while not (journal.is_file() and '"part":"frame 2"' in journal.read_text("utf-8")):
        time.sleep(0.2)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert fit(path, folder / "killed", "resume", str(folder / "killed")).wait() == 0
    same = result_of(folder / "whole") == result_of(folder / "killed")
    said = "the same" if same else "ANOTHER"
    return [f"Killed after its third frame of four and resumed: {said} result hash."]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--nm", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="where frames and runs are kept")
    parser.add_argument("--reuse", action="store_true", help="score the run that is there")
    parser.add_argument("--kill", action="store_true", help="kill and resume a short series too")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    a = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (a.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        plan = asked(a.nm, folder / "series.tif")
        it, truth = made(plan, a.frames, a.nm)
        (folder / "series.toml").write_text(dump_plan(plan), "utf-8")
        if not (a.reuse and (folder / "run" / "series.h5").is_file()):
            assert fit(folder / "series.toml", folder / "run").wait() == 0
        lines = report(it, truth, read_series(folder / "run"))
        lines += ["", *killed(folder)] if a.kill else []
    about = "\n".join((__doc__ or "").split("\n\n")[2].splitlines())
    a.out.write_text(
        f"# A series of frames\n\nWritten by `series.py`, two cores. {about}\n\n" + "\n".join(lines) + "\n",
        "utf-8",
    )
    print(a.out.read_text("utf-8"))


if __name__ == "__main__":
    main()
