"""What many workers bring: two against one measured, hundreds expected; written to benchmarks/cluster.md.

    PYTHONPATH=tests python benchmarks/cluster.py                 all of it
    PYTHONPATH=tests python benchmarks/cluster.py --record RUN... take times of parts from finished runs

Measured: tiles of a simulated field on one and two worker processes, and what a task costs besides its work.
Expected: the fit of a 100 x 100 nm field on 16, 256 and 4096 workers, by walking through its graph of tasks
with recorded times. benchmarks/cluster_graph.json holds these; --record writes it anew.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
GRAPH = HERE / "cluster_graph.json"
FIELD_A, PIXEL_A = 1000.0, 0.1
RIM_A = 9.5  # around the core of a tile: halo, border of the misfit and delocalisation of a tuned lens
EDGES_A = (60.0, 40.0, 30.0)  # of the core of a tile
WORKERS = (16, 256, 4096)
BEFORE = ("calibrate", "orientations", "imaging")  # parts that the whole field needs once
AFTER = ("thermal last", "counts 4")  # about what a tile still does once the lens is agreed on
NETWORK = 1e9  # bytes/s, of the machine that gives the work
TILES, REPEATS, TIMES = 4, 3, 12  # tiles along an edge; repeats of each measurement; work in a task


@dataclass(frozen=True)
class Costs:
    """What a task costs the one who gives it, seconds."""

    giving: float  # to begin a task and take its result, small ones
    byte: float  # for each byte of task and result besides


def main() -> None:
    """Measure, walk through the graph and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, nargs="+", metavar="RUN")
    asked = parser.parse_args()
    if asked.record:
        runs = ",\n".join(json.dumps(recorded(r)) for r in asked.record)
        GRAPH.write_text(f"[{runs}]\n", "utf-8")
        return
    from qhrtem.run.process import prepare

    prepare()
    lines = [*HEAD, *speed(), ""]
    costs, measured = overhead()
    lines += [*measured, "", *expected(json.loads(GRAPH.read_text("utf-8")), costs), ""]
    (HERE / "cluster.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


HEAD = ["# Many workers", "", "Written by `benchmarks/cluster.py`.", ""]


# Two workers against one


def speed() -> list[str]:
    """Return the table of tiles done by one and by two processes, in turn, and in this process alone."""
    import work
    from qhrtem.run.dispatch import Dispatch
    from qhrtem.run.handshake import Terms
    from qhrtem.run.identity import result_hash
    from qhrtem.run.processes import Processes
    from qhrtem.stages.serial import Serial
    from qhrtem.stages.tasks import gather

    quiet: Any = lambda record: None  # noqa: E731
    spent: dict[int, list[float]] = {0: [], 1: [], 2: []}
    hashes, loads = set(), []
    executors = {n: Dispatch(Processes(n), Terms.of_this_process(), quiet) for n in (1, 2)}
    with closing(executors[1]), closing(executors[2]):
        for n, executor in executors.items():  # until all are there
            while executor.width < n:
                gather(executor, [work.misbehaving(work.nothing, k) for k in range(8)])
        for seed in range(REPEATS):
            tasks = work.tile_tasks(TILES, edge=24.0, pixel=0.12, seed=seed, times=TIMES)
            for n in (0, 1, 2):
                loads.append(os.getloadavg()[0])
                begin = time.perf_counter()
                results = gather(executors[n] if n else Serial(tell=quiet), tasks)
                spent[n].append(time.perf_counter() - begin)
                hashes.add((seed, result_hash([results[t.key] for t in tasks])))
    middle = {n: statistics.median(s) for n, s in spent.items()}
    assert len(hashes) == REPEATS, "results differ"
    words = {0: "this process alone", 1: "1 worker process", 2: "2 worker processes"}
    rows = [
        f"| {words[n]} | {middle[n]:.2f} | {min(spent[n]):.2f} to {max(spent[n]):.2f} | "
        f"{middle[1] / middle[n]:.2f} |"
        for n in spent
    ]
    return [
        "## Two workers against one",
        "",
        f"{TILES * TILES} tiles of BaTiO3 [110], 24 Å and halo, each simulated {TIMES} times; medians of "
        f"{REPEATS}, in turn; {os.cpu_count()} cores, load before each {min(loads):.1f} to {max(loads):.1f}.",
        "The result hashes are the same in every row.",
        "",
        "| | s | range | against 1 worker |",
        "|---|---|---|---|",
        *rows,
    ]


def overhead(count: int = 200) -> tuple[Costs, list[str]]:
    """Return what a task costs besides its work, by tasks that do nothing, through Dask and processes."""
    from qhrtem.run.execution import executor_of
    from qhrtem.run.spread import Spread

    rows, found = [], {}
    for name, spread in (
        ("2 processes", Spread(workers=2)),
        ("Dask, 2 workers, scheduler in this process", Spread(workers=2, scheduler="local")),
    ):
        with executor_of(spread, lambda record: None) as executor:
            _idle(executor, 8, 10, 7)
            for size in (10, 5_000_000):
                number = count if size < 100 else count // 10
                cpu, wall = _idle(executor, number, size, 11)
                found[name[:4], size] = cpu
                rows.append(f"| {name} | {size:,} | {1e3 * cpu:.2f} | {1e3 * wall:.2f} |")
    giving = found["Dask", 10]
    costs = Costs(giving, max(found["Dask", 5_000_000] - giving, 0.0) / 10e6)
    return costs, [
        "## What a task costs besides its work",
        "",
        f"Tasks that return what they were given, {count} small and {count // 10} large. What matters is the",
        "processor time of the process that gives the work: it is spent one task after another.",
        "",
        "| | bytes to and fro, each | ms of its processor | ms between results |",
        "|---|---|---|---|",
        *rows,
    ]


def _idle(executor: Any, number: int, size: int, seed: int) -> tuple[float, float]:
    """Return seconds of processor and wall a task, for tasks of some bytes that do nothing."""
    import work
    from qhrtem.stages.tasks import Task, gather

    blank = np.random.default_rng(seed).integers(0, 255, size, np.uint8)
    tasks = (Task.of(work.nothing, {"n": n, "of": number}, {"a": blank}) for n in range(number))
    cpu, wall = time.process_time(), time.perf_counter()
    gather(executor, tasks)
    return (time.process_time() - cpu) / number, (time.perf_counter() - wall) / number


# A large field


def recorded(run: Path) -> dict[str, Any]:
    """Return the size of a finished run and the seconds of each of its parts."""
    from qhrtem.io.twin import read_twin
    from qhrtem.plan import load_plan
    from qhrtem.run.journal import read_journal

    twin = read_twin(run)
    rows, cols = twin.match.measured.shape
    parts, before = [], 0.0
    for record in read_journal(run / "journal.jsonl"):
        if record["event"] == "part":
            now = [s[3] for s in record["facts"]["steps"] if s[3] is not None]
            if now:
                parts.append([record["part"], round(now[-1] - before, 1)])
                before = now[-1]
    area = rows * cols * twin.pixel_size_A**2
    return {
        "run": load_plan(run / "plan.toml").image.path.stem,
        "area_A2": round(area),
        "columns": int(twin.columns.inside.sum()),
        "parts": parts,
    }


@dataclass(frozen=True)
class Field:
    """Times of the parts of a large field, seconds."""

    before: float  # what the whole field needs before the first tile
    tile: float  # a tile until its lens is known, on average
    after: float  # from the agreed lens to the end of a tile
    scatter: float  # relative, from tile to tile
    tiles: int
    sent: float  # bytes of a task and its result


def field_of(graph: list[dict[str, Any]], edge: float) -> Field:
    """Return the times of a field whose tiles have cores of some edge (Å), scaled by area from records."""
    seen = (edge + 2 * RIM_A) ** 2
    tile, after, once = [], [], []
    for run in graph:
        scale = seen / run["area_A2"]
        own = [(n, s) for n, s in run["parts"] if not n.startswith(BEFORE)]
        tile.append(scale * sum(s for n, s in own if n not in AFTER))
        after.append(scale * sum(s for n, s in own if n in AFTER))
        # Cell averages take the same time for any field; the lattice is found on all of it.
        once.append(
            sum(
                s * (FIELD_A**2 / run["area_A2"] if n == "calibrate" else 1)
                for n, s in run["parts"]
                if n.startswith(BEFORE)
            )
        )
    per_tile = [t + a for t, a in zip(tile, after, strict=True)]
    scatter = statistics.stdev(per_tile) / statistics.mean(per_tile)
    side = round(FIELD_A / edge)
    pixels = seen / PIXEL_A**2
    sent = 9 * pixels + 600 * seen / 10.0  # image and mask there; back some 600 bytes a column of 10 Å²
    return Field(
        statistics.mean(once), statistics.mean(tile), statistics.mean(after), scatter, side * side, sent
    )


def walk(field: Field, workers: int, costs: Costs, seed: int = 0) -> list[float]:
    """Return when each phase ends on so many workers, s: before, first tile, other tiles, ends of all."""
    rng = np.random.default_rng(seed)
    factor = np.maximum(rng.normal(1.0, field.scatter, field.tiles), 0.3)
    times = [field.before, field.before + field.tile * factor[0]]
    for mean, some in ((field.tile, factor[1:]), (field.after, factor)):
        times.append(_spread(times[-1], mean * some, workers, costs, field.sent))
    return times


def _spread(begin: float, seconds: Any, workers: int, costs: Costs, sent: float) -> float:
    """Return when the last task ends; one process gives them in turn, each to whoever is free first."""
    free = [begin] * min(workers, len(seconds))
    giver = last = begin
    for spent in seconds:
        giver = max(giver, heapq.heappop(free)) + _given(costs, sent)
        heapq.heappush(free, giver + spent)
        last = max(last, giver + spent)
    return last


def _given(costs: Costs, sent: float) -> float:
    return costs.giving + (costs.byte + 1 / NETWORK) * sent


def expected(graph: list[dict[str, Any]], costs: Costs) -> list[str]:
    """Return the tables of the large field."""
    rows, phases = [], []
    for edge in EDGES_A:
        field = field_of(graph, edge)
        one = walk(field, 1, costs)[-1]
        for workers in WORKERS:
            times = walk(field, workers, costs)
            speed_up = one / times[-1]
            rows.append(
                f"| {edge:.0f} | {field.tiles} | {workers} | {times[-1] / 3600:.2f} | {speed_up:.1f} | "
                f"{100 * speed_up / workers:.0f} % |"
            )
        spent = np.diff([0.0, *times])
        given = 2 * field.tiles * _given(costs, field.sent)
        phases.append(f"| {edge:.0f} | " + " | ".join(f"{s:.0f}" for s in [*spent, given]) + " |")
    runs = ", ".join(f"{r['run']} ({r['columns']} columns)" for r in graph)
    growth = ", ".join(f"{(e + 2 * RIM_A) ** 2 / e**2:.2f}" for e in EDGES_A)
    return [
        "## A field of 100 x 100 nm",
        "",
        "Expected, not measured: a walk through the graph of tasks (the lattice of the whole field;",
        "imaging on cell averages; the first tile; the others; one lens for all; the ends of all tiles),",
        "one tile for each worker at a time. The times of the parts are those in `cluster_graph.json`, of",
        f"{runs},",
        "two threads each on a machine busy with other work, scaled by area; the lattice by the area of the",
        f"field. Tiles scatter as the seconds per area of these runs do ({100 * field.scatter:.0f} %).",
        f"What a task costs is measured above; the network carries {NETWORK / 1e9:.0f} GB/s. Efficiency is",
        "the speed-up over one worker with the same tiles, divided by the number of workers.",
        "",
        "| core (Å) | tiles | workers | hours | speed-up | efficiency |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"A tile sees {RIM_A:g} Å beyond its core, so the work is {growth} times that of the field itself",
        "for the cores above. With 4096 workers the seconds are these:",
        "",
        "| core (Å) | lattice and imaging | first tile | other tiles | ends of all | giving tasks |",
        "|---|---|---|---|---|---|",
        *phases,
        "",
        "What limits is the number of tiles, since workers beyond it have nothing to do, and then the",
        "slowest tile of each phase and the first tile, which all others wait for. The lattice, which one",
        "machine finds, and giving the tasks come far behind. Smaller cores use more workers for more work.",
    ]


if __name__ == "__main__":
    main()
