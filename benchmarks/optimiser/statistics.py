"""Running times, success rates and distributions of runs that may fail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from optimiser.problem import Floats

Axis = Literal["simulations", "seconds", "ffts", "passes"]
COLUMN: dict[str, int] = {"simulations": 0, "seconds": 1, "ffts": 3, "passes": 4}  # of a trajectory
Record = dict[str, Any]
Z95 = 1.959963984540054  # normal quantile of a 95 % interval


def wilson(successes: int, runs: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate (Wilson, J. Am. Stat. Assoc. 22, 209, 1927)."""
    if runs == 0:
        return 0.0, 1.0
    p, z2 = successes / runs, z * z
    centre = (p + z2 / (2 * runs)) / (1 + z2 / runs)
    half = z / (1 + z2 / runs) * math.sqrt(p * (1 - p) / runs + z2 / (4 * runs * runs))
    return max(0.0, centre - half), min(1.0, centre + half)


def cost_to(record: Record, target: float, axis: Axis) -> float:
    """Return what a run had spent when it first reached a value; inf where it never did."""
    column = COLUMN[axis]
    for point in record.get("trajectory", ()):
        if point[2] <= target:
            return float(point[column])
    return math.inf


def spent(record: Record, axis: Axis) -> float:
    """Return what a run spent in all; a run that crashed counts with its whole budget where that is known."""
    if "error" in record:
        return float(record["task"].get(axis, math.nan))
    return float(record.get(axis, math.nan))


def running_time(costs: Sequence[float], spendings: Sequence[float]) -> float:
    """Return the expected running time with restarts: all that was spent over the number of successes.

    costs: to the target, inf for failures; spendings: of the whole run (Hansen et al., Optim. Methods Softw.
    36, 114, 2021, section 4.1). inf without any success.
    """
    solved = sum(math.isfinite(c) for c in costs)
    total = sum(c if math.isfinite(c) else s for c, s in zip(costs, spendings, strict=True))
    return total / solved if solved else math.inf


def target_of(record: Record, depth: int) -> float:
    """Return a run's own target; its noise has its own oracle. nan for a run that crashed."""
    return float(record["targets"][depth]) if "targets" in record else math.nan


def expected(records: Sequence[Record], depth: int, axis: Axis) -> float:
    """Return the expected running time of some runs to one of the three targets."""
    costs = [cost_to(r, target_of(r, depth), axis) for r in records]
    return running_time(costs, [spent(r, axis) for r in records])


def distribution(
    records: Sequence[Record], axis: Axis, depths: Sequence[int] = (0, 1, 2)
) -> tuple[Floats, Floats]:
    """Return the sorted costs of solved (run, target) pairs and the share of all pairs solved by then."""
    costs = np.sort([cost_to(r, target_of(r, d), axis) for r in records for d in depths])
    solved = costs[np.isfinite(costs)]
    return solved, np.arange(1, len(solved) + 1) / max(len(costs), 1)


@dataclass(frozen=True)
class Summary:
    """What the table says of one method on one problem."""

    runs: int
    crashed: int
    solved: int
    interval: tuple[float, float]
    simulations: tuple[float, float, float]  # expected, to each target
    seconds: tuple[float, float, float]
    ffts: float  # expected to the last target, transforms of the whole wave grid
    passes: float  # and waves carried through the specimen
    excess: float  # median of final value above the easiest run-independent scale, see `excess`
    simulator_share: float
    exact: float | None
    within_one: float | None
    errors: dict[str, float]
    rejected: float
    duplicates: float
    violations: float
    memory: float  # MB, median peak


def excess(record: Record) -> float:
    """Return the final value above the last target, reduced by the pixels where it is a χ²."""
    if "error" in record:
        return math.inf
    return max(0.0, float(record["value"]) - target_of(record, 2)) / max(int(record["pixels"]), 1)


def summary(records: Sequence[Record]) -> Summary:
    """Return the summary of all runs of one method on one problem; medians leave crashed runs out."""
    good = [r for r in records if "error" not in r]
    solved = sum(math.isfinite(cost_to(r, target_of(r, 2), "seconds")) for r in records)

    def median(key: str) -> float | None:
        values = [r[key] for r in good if r[key] is not None]
        return float(np.median(values)) if values else None

    def mean(key: str) -> float | None:
        values = [r[key] for r in good if r[key] is not None]
        return float(np.mean(values)) if values else None

    names = dict.fromkeys(n for r in good for n in r["errors"])
    total = sum(r["seconds"] for r in good)
    sims = [expected(records, d, "simulations") for d in range(3)]
    secs = [expected(records, d, "seconds") for d in range(3)]
    return Summary(
        len(records),
        len(records) - len(good),
        solved,
        wilson(solved, len(records)),
        (sims[0], sims[1], sims[2]),
        (secs[0], secs[1], secs[2]),
        expected(records, 2, "ffts"),
        expected(records, 2, "passes"),
        float(np.median([excess(r) for r in records])),
        sum(r["simulator_seconds"] for r in good) / total if total else math.nan,
        mean("exact"),
        mean("within_one"),
        {n: float(np.median([r["errors"][n] for r in good if n in r["errors"]])) for n in names},
        float(np.median([sum(r["rejected"].values()) for r in good])) if good else math.nan,
        median("duplicates") or 0.0,
        median("violations") or 0.0,
        median("peak_rss_MB") or math.nan,
    )


# Least cost that counts, by axis.
LEAST: dict[Axis, float] = {"simulations": 1.0, "seconds": 1e-4, "ffts": 1.0, "passes": 0.01}


@dataclass(frozen=True)
class Advantage:
    """How much less one method needs than another to reach the other's final value, over paired seeds."""

    pairs: int
    reached: int
    simulations: float  # median ratio, failures counted as 0
    seconds: float
    ffts: float = math.nan
    passes: float = math.nan


def advantage(ours: Sequence[Record], other: Sequence[Record]) -> Advantage:
    """Return the median over seeds of what `other` needed for its own final value over what `ours` needed.

    A first value that is already good enough costs at least one simulation and 0.1 ms.
    """
    by_seed = {r["task"]["seed"]: r for r in ours}
    ratios: dict[Axis, list[float]] = {axis: [] for axis in LEAST}
    reached = 0
    for r in other:
        mine = by_seed.get(r["task"]["seed"])
        if mine is None or "error" in r or not r["trajectory"]:
            continue
        value = max(r["value"], target_of(r, 2))  # runs end at the last target
        reached += math.isfinite(cost_to(mine, value, "simulations"))
        for axis, floor in LEAST.items():
            if len(r["trajectory"][0]) <= COLUMN[axis]:
                continue
            cost, theirs = cost_to(mine, value, axis), cost_to(r, value, axis)
            ratios[axis].append(theirs / max(cost, floor) if math.isfinite(cost) else 0.0)
    n = len(ratios["seconds"])
    middle = {axis: float(np.median(v)) if v else math.nan for axis, v in ratios.items()}
    return Advantage(n, reached, *(middle[axis] for axis in LEAST))
