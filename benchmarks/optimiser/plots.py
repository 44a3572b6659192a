"""Distributions of running times: which share of runs and targets is solved by which cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optimiser.statistics import Record, distribution, spent
from optimiser.suite import MAIN, PROBLEMS

# Colours that stay apart for colour-blind readers (Okabe and Ito 2008), reused with another line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)))
FIXED = (
    "trust_region", "multistart_least_squares", "coordinate_descent", "cma_es", "published",
    "differential_evolution", "nelder_mead", "tpe", "logei", "turbo1", "sobol", "trust_region_qlogei",
    "trust_region_m", "rounding", "reparameterisation", "alternating",
)  # fmt: skip
PANELS = (("simulations", "simulations"), ("seconds", "CPU seconds"))


def look(method: str, place: int) -> dict[str, Any]:
    """Return the line of a method, the same in every figure; of a part left out, by its place in this one."""
    if method == MAIN:
        return {"color": "black", "linewidth": 2.2, "zorder": 5}
    i = FIXED.index(method) if method in FIXED else place
    return {"color": COLOURS[i % 7], "linestyle": STYLES[min(i // 7, 2)], "linewidth": 1.3, "zorder": 3}


def label(method: str) -> str:
    """Return how a legend names a method."""
    plain = method.replace("cma_es", "CMA-ES").replace("tpe", "TPE").replace("logei", "LogEI")
    return plain.replace("_", " ").replace(":", ", ")


def curve(records: Sequence[Record], axis: Any, last: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a step curve that ends at `last`."""
    cost, solved = distribution(records, axis)
    end = solved[-1] if len(solved) else 0.0
    start = [cost[0]] if len(cost) else []
    return np.concatenate([start, cost, [last]]), np.concatenate([[0.0] * len(start), solved, [end]])


def figure(methods: Mapping[str, Sequence[Record]], title: str, path: Path) -> None:
    """Draw the distributions of some methods over simulations and over seconds.

    A cross marks the largest budget of a method that left something unsolved.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    chart = Figure(figsize=(9.2, 3.9), layout="constrained", dpi=160)
    FigureCanvasAgg(chart)
    axes = chart.subplots(1, 2, sharey=True)
    for panel, (axis, name) in zip(axes, PANELS, strict=True):
        last = 1.15 * max(spent(r, axis) for runs in methods.values() for r in runs)  # type: ignore[arg-type]
        first = last / 20
        for place, (method, runs) in enumerate(methods.items()):
            x, y = curve(runs, axis, last)
            first = min(first, x[0])
            budget = max(spent(r, axis) for r in runs)  # type: ignore[arg-type]
            line = look(method, place)
            within = x <= max(budget, x[-2] if len(x) > 1 else 0)
            stop = np.append(x[within], budget) if y[-1] < 1 else x
            panel.step(stop, np.append(y, y[-1])[: len(stop)], where="post", label=label(method), **line)
            if y[-1] < 1:
                panel.plot(budget, y[-1], "x", color=line["color"], markersize=5, zorder=6, clip_on=False)
        panel.set_xscale("log")
        panel.set_xlim(first / 1.3, last)
        wide = last / first > 30
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        if not wide:
            panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(name)
        panel.set_ylim(-0.015, 1.02)
        panel.grid(True, which="major", color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    axes[0].set_ylabel("share of runs × targets solved")
    chart.suptitle(title, x=0.01, ha="left", fontsize=10)
    handles, names = axes[0].get_legend_handles_labels()
    chart.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, handlelength=2.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(path, metadata={"Software": None})


def paired(groups: Mapping[str, Mapping[str, Sequence[Record]]]) -> dict[str, list[Record]]:
    """Return the runs of each method over all problems: the same seeds for all, as many of each problem."""
    shared = {
        n: sorted(set.intersection(*({r["task"]["seed"] for r in runs} for runs in methods.values())))
        for n, methods in groups.items()
    }
    least = min(len(s) for s in shared.values())
    out: dict[str, list[Record]] = {}
    for name, methods in groups.items():
        for method, runs in methods.items():
            kept = [r for r in runs if r["task"]["seed"] in shared[name][:least]]
            out.setdefault(method, []).extend(kept)
    return out


def draw(groups: Mapping[str, Mapping[str, Sequence[Record]]], folder: Path) -> dict[str, str]:
    """Draw a figure a problem and one over all of ours; return file names by problem, "ours" for the last."""
    out = {}
    for name, methods in groups.items():
        plain = {m: r for m, r in methods.items() if ":" not in m}
        if plain:
            out[name] = f"{name}.png"
            figure(plain, f"{name}: {PROBLEMS[name].note}", folder / out[name])
        parts = {m: r for m, r in methods.items() if ":" in m or m == MAIN}
        if len(parts) > 1:
            out[f"{name} ablations"] = f"{name}_ablations.png"
            figure(parts, f"{name}: {MAIN} without one part", folder / out[f"{name} ablations"])
    base = [n for n in groups if PROBLEMS[n].ours]
    # Only methods that ran on every problem can be averaged over them.
    common = [
        m for m in dict.fromkeys(m for n in base for m in groups[n]) if all(m in groups[n] for n in base)
    ]
    if len(base) > 1 and common:
        merged = paired({n: {m: groups[n][m] for m in common if ":" not in m} for n in base})
        out["ours"] = "ours.png"
        count = min(len(runs) for runs in merged.values()) // len(base)
        title = f"all {len(base)} problems of ours, the {count} seeds that all of these methods met"
        figure(merged, title, folder / out["ours"])
    return out
