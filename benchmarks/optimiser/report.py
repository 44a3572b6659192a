"""The table and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tables import table

from optimiser import plots
from optimiser.statistics import Advantage, Record, Summary, advantage, expected, summary
from optimiser.suite import BASELINES, BY_VALUES, INTEGERS, MAIN, OURS, PROBLEMS

Groups = dict[str, dict[str, list[Record]]]  # problem → method → runs
LEAST_SUCCESS = 0.95
FEWER_SIMULATIONS, LESS_TIME = 10.0, 100.0
TIMES_FASTER = 2.0
# Figures that other scripts write beside the table.
MEASURED = (
    ("basins.txt", "Where single descents of imaging-22 end", "python -m optimiser.basins"),
    ("surrogate_fit.txt", "Surrogate", "benchmarks/surrogate_fit.py"),
)
HOW = """\
Written by `python -m optimiser` (`make bench-optimiser-full`). Every seed has a truth of its own (another
lens, thickness or island), bounds that are not centred on it, its own noise, and one starting point that
all methods are told before their first question; seeds are paired. A run ends when the last target is
reached or its budget of simulations or seconds is spent, whatever it was doing.

- A *simulation* is one image: a Jacobian of d columns counts d more, a sweep of all thicknesses 60.
- *Passes* are waves carried through the whole specimen and *FFTs* transforms of the whole wave grid,
  smaller ones by their share of the operations: what was physically computed, since lens derivatives and
  thicknesses reuse one exit wave and columns work in windows.
- *Seconds* are CPU time of one thread, simulator and optimiser together. What optimisers are told is
  nominal (FFTs times a constant), so that runs repeat.
- Expected running time (ERT) is all that was spent by all runs over the number that succeeded; "–": no
  run did.

Methods race: all meet seeds 0 to 2; those that never reached the rough target stop there, those that
never reached the good one after five, the others meet 20, the default more. "Success" says how many runs
there were, with the Wilson interval: 20 of 20 means only that the rate is above 84 %, 60 of 60 that it is
above 94 %. Optimisers were developed on seeds from 1000 on, none of which is reported.

Rough, fair and good targets of our problems: χ² of the *oracle* (least squares from the truth with its
integers held) plus 0.1 and 0.03 per pixel and plus d, the expected statistical fluctuation of d
parameters. "Over": median of what the final value lies above the good target, reduced χ² for our
problems.

The model has Lobato's form factors and seven foci. `imaging22` sees Dr. Probe's own exit waves
(Weickenmeier-Kohl form factors, 16, 32 or 48 slices) through 25 foci; islands come from our simulator
with Dr. Probe's form factors, pixels three quarters as large and 15 foci, which agrees with Dr. Probe's
images of its own island to 0.5 % of the contrast. Names that end in `_tilt` have Kirkland's form factors
and 3 mrad in a random direction (known bounds in imaging, unknown to the model in counts), those in
`_dwf` a model with Debye-Waller parameters 1.5 times too large. Shot noise is that of 10⁴ e/Å².
"""


def grouped(records: Sequence[Record]) -> Groups:
    """Return the runs by problem and method, problems and methods in the order of the suite."""
    order = (*OURS, *BASELINES)
    out: Groups = {}
    for name in PROBLEMS:
        mine = [r for r in records if r["task"]["problem"] == name]
        methods = sorted(
            {r["task"]["method"] for r in mine},
            key=lambda m: (":" in m, order.index(m.split(":")[0]) if m.split(":")[0] in order else 99, m),
        )
        if mine:
            out[name] = {m: [r for r in mine if r["task"]["method"] == m] for m in methods}
    return out


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for the table, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """Return a share in percent."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


HEADER = (
    "method", "success (95 % interval)", "ERT simulations", "ERT seconds", "ERT passes", "ERT FFTs", "over",
    "simulator", "exact", "±1",
    "errors, median", "rejected", "duplicates", "violations", "MB",
)  # fmt: skip


def row(method: str, s: Summary) -> list[str]:
    """Return one line of a problem's table."""
    low, high = s.interval
    crashed = f", {s.crashed} crashed" if s.crashed else ""
    return [
        f"**{method}**" if method == MAIN else method,
        f"{s.solved}/{s.runs} ({100 * low:.0f}–{100 * high:.0f} %){crashed}",
        " / ".join(number(v) for v in s.simulations),
        " / ".join(number(v) for v in s.seconds),
        number(s.passes),
        number(s.ffts),
        number(s.excess),
        share(s.simulator_share),
        share(s.exact),
        share(s.within_one),
        "; ".join(f"{n} {number(v, 2)}" for n, v in s.errors.items()),
        number(s.rejected),
        number(s.duplicates),
        number(s.violations),
        number(s.memory),
    ]


def verdict(ok: bool | None) -> str:
    """Return a word for a goal; None where there are no runs to judge by."""
    return "not measured" if ok is None else ("met" if ok else "NOT met")


def success_goal(groups: Groups) -> list[list[str]]:
    """Rows of the first goal: success of the default method on every problem of ours."""
    rows = []
    for name, entry in PROBLEMS.items():
        if not entry.ours or MAIN not in groups.get(name, {}):
            continue
        s = summary(groups[name][MAIN])
        rate = s.solved / s.runs
        low, high = s.interval
        rows.append(
            [
                f"success ≥ 95 % on {name}",
                f"{s.solved}/{s.runs} ({100 * low:.0f}–{100 * high:.0f} %)",
                verdict(rate >= LEAST_SUCCESS),
            ]
        )
    return rows


def published_goal(groups: Groups) -> list[list[str]]:
    """Rows of the second goal: cost of the published recipe's own final loss."""
    rows = []
    for name, methods in groups.items():
        if not PROBLEMS[name].ours or "published" not in methods or MAIN not in methods:
            continue
        a: Advantage = advantage(methods[MAIN], methods["published"])
        ok = a.simulations >= FEWER_SIMULATIONS and a.seconds >= LESS_TIME if a.pairs else None
        text = (
            f"{number(a.simulations)} × fewer simulations ({number(a.passes)} × passes, {number(a.ffts)} × "
            f"FFTs), {number(a.seconds)} × less time (medians; "
            f"its final loss reached in {a.reached} of {a.pairs})"
        )
        rows.append([f"published recipe on {name}: ≥ 10 × and ≥ 100 ×", text, verdict(ok)])
    return rows


def baseline_goal(groups: Groups) -> list[list[str]]:
    """Rows of the third goal: time against the best baseline where there are atoms to count."""
    rows = []
    for name in INTEGERS:
        methods = groups.get(name, {})
        if MAIN not in methods or not any(b in methods for b in BASELINES):
            continue
        times = {m: expected(methods[m], 2, "seconds") for m in BASELINES if m in methods}
        best = min(times, key=lambda m: times[m])
        mine = expected(methods[MAIN], 2, "seconds")
        ratio = times[best] / mine if math.isfinite(mine) else 0.0
        text = f"{MAIN} {number(mine)} s, best baseline {best} {number(times[best])} s: ratio {number(ratio)}"
        if math.isinf(times[best]):
            text = f"{MAIN} {number(mine)} s, no baseline ever succeeded"
        rows.append([f"best baseline on {name}: ≥ 2 × less time", text, verdict(ratio >= TIMES_FASTER)])
    return rows


ABLATION_HEADER = (
    "problem",
    "method",
    "success",
    "ERT simulations",
    "ERT seconds",
    "times more",
    "over",
    "violations",
)


def ablation_rows(groups: Groups) -> list[list[str]]:
    """Rows of the default method without one part, and of the ways to treat integers in one acquisition.

    All rows of a group are over the seeds that its first and the row itself have in common.
    """
    rows = []
    for name, methods in groups.items():
        parts = [m for m in methods if ":" in m]
        values = [m for m in parts if m.startswith(f"{BY_VALUES},")]
        for reference, others in (
            (MAIN, [m for m in parts if m not in values]),
            (BY_VALUES, values),
            ("rounding", [m for m in ("reparameterisation", "alternating") if m in methods]),
        ):
            if reference not in methods or not others:
                continue
            for m in (reference, *others):
                rows.append([name, m, *against(methods[m], methods[reference])])
    return rows


def against(runs: Sequence[Record], reference: Sequence[Record]) -> list[str]:
    """Return success, cost and their ratios to a reference over common seeds, as cells of a table."""
    common = {r["task"]["seed"] for r in runs} & {r["task"]["seed"] for r in reference}
    mine, base = ([r for r in g if r["task"]["seed"] in common] for g in (runs, reference))
    s, t = summary(mine), summary(base)
    more = [
        a / b if math.isfinite(b) else math.nan
        for a, b in ((s.simulations[2], t.simulations[2]), (s.seconds[2], t.seconds[2]))
    ]
    cells = [f"{s.solved}/{s.runs} (of {t.solved}/{t.runs})", number(s.simulations[2]), number(s.seconds[2])]
    return [*cells, " / ".join(number(v) for v in more), number(s.excess), number(s.violations)]


def losses(groups: Groups) -> list[str]:
    """Return a sentence for every problem and axis on which another method beats the default one."""
    out = []
    for name, methods in groups.items():
        if MAIN not in methods:
            continue
        for axis in ("simulations", "ffts", "seconds"):
            mine = expected(methods[MAIN], 2, axis)
            for other, runs in methods.items():
                theirs = expected(runs, 2, axis)
                if other != MAIN and theirs < mine:
                    out.append(f"- {name}: {other} needs {number(theirs)} {axis}, {MAIN} {number(mine)}.")
    return out


def write(records: Sequence[Record], folder: Path) -> Path:
    """Write results.md and the figures; return the path of results.md."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = grouped(records)
    figures = plots.draw(groups, folder / "figures")
    goals = [*success_goal(groups), *published_goal(groups), *baseline_goal(groups)]
    text = ["# Optimisers compared", "", HOW]
    if goals:
        text += ["## Goals", "", table(("goal", "measured", "verdict"), goals), ""]
    notes = folder / "notes.md"
    if notes.exists():
        text += [notes.read_text("utf-8").strip(), ""]
    beaten = losses(groups)
    text += [
        f"## Where another method beats `{MAIN}` to the good target",
        "",
        *(beaten or ["- nowhere."]),
        "",
    ]
    parts = ablation_rows(groups)
    if parts:
        said = (
            "ERT to the good target, over the seeds that a row shares with the first of its group (whose "
            "success on them is in brackets); times more: simulations / seconds against that one. With "
            "derivatives the hybrid never asks its surrogate on these problems: simulations are so cheap "
            "that a model costs more than it saves. So region, priors and rules are also taken away where "
            "only values are told."
        )
        text += ["## Ablations", "", said, "", table(ABLATION_HEADER, parts), ""]
        pictures = [f for n, f in figures.items() if n.endswith(" ablations")]
        text += [*(f"![without one part](figures/{f})" for f in pictures), ""]
    if "ours" in figures:
        text += ["## All problems of ours", "", f"![distribution of costs](figures/{figures['ours']})", ""]
    for name, methods in groups.items():
        entry = PROBLEMS[name]
        first = next((r for runs in methods.values() for r in runs), None)
        text += [f"## {name}", "", f"{entry.note}.", ""]
        if first is not None:
            budgets = sorted(
                {(r["task"]["simulations"], r["task"]["seconds"]) for m in methods.values() for r in m}
            )
            said = "; ".join(f"{n} simulations, {s:g} s" for n, s in budgets)
            text += [f"Budget of a run: {said}. ERT to the rough / fair / good target.", ""]
        text += [table(HEADER, [row(m, summary(runs)) for m, runs in methods.items()]), ""]
        if name in figures:
            text += [f"![costs on {name}](figures/{figures[name]})", ""]
        broken = {r["error"] for runs in methods.values() for r in runs if "error" in r}
        text += [*(f"- crashed: {e}" for e in sorted(broken)), ""] if broken else []
    for name, title, script in MEASURED:
        extra = folder / name
        if extra.exists():
            text += [f"## {title}", "", f"{extra.read_text('utf-8').strip()} (`{script}`)", ""]
    path = folder / "results.md"
    path.write_text("\n".join(text).rstrip() + "\n", "utf-8")
    return path
