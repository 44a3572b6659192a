"""How near a blind fit came to what the image can tell: the same last stages, started at the truth.

    python benchmarks/oracle.py RUN TRUTH.npz [RUN TRUTH.npz …] [--out FILE]

RUN is a finished run folder, TRUTH.npz its answer. Columns get the true counts and the true end surfaces, the
rest starts as fitted; then lens, positions and thermal correction are refined and counts may move again.
The blind result goes through the same stages, so that both are compared under the same thermal displacements
and are equally refined. Costs are minus twice the log posterior: a truth that costs more than the blind
result says that the model, and not the search, decides what is left.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from tables import table

from qhrtem.io.micrograph import read_image
from qhrtem.io.twin import read_twin
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.forward import ForwardModel
from qhrtem.plan import load_plan
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.checkpoint import Forgetful, Log, Parts
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.counts import count_round
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State, make_misfit
from qhrtem.stages.structure import (
    LENS,
    STEEPEST_A,
    free_lens,
    neighbour_radius,
    terrace_radius,
)
from qhrtem.stages.thermal import PHONON_PAIRS, corrected
from qhrtem.stages.thickness import basin_cost

NEAR_A = 0.7  # a column of the fit and one of the truth are the same within this
HEAD = (
    *("run", "columns", "exact, blind", "exact, oracle", "blind / oracle", "exact, blind, same last stages"),
    *("exact by element, oracle", "cost of truth − blind", "cost of oracle − blind, both after these"),
)


def bench_of(run: Path) -> tuple[Bench, State, Any]:
    """Return the bench and the fitted state of a run."""
    plan, twin = load_plan(run / "plan.toml"), read_twin(run)
    assert twin.fitted is not None
    raw = read_image(plan.image.path, plan.image.dataset, plan.image.frame)
    projection = project(read_cif(plan.structure.path), plan.structure.zone_axis)
    micrograph, _ = calibrate(plan, raw, projection, Parts(Forgetful(), Log(lambda step: None)))
    f = twin.fitted
    border = BORDER_A + f.microscope.delocalisation()
    bench = Bench(ForwardModel(f.field, f.microscope.energy), make_misfit(micrograph, f.field, border), 2)
    return bench, State(f.columns, f.microscope, Diffuse.without_slope(f.diffuse, f.microscope)), f


def matched(columns: ColumnModel, fitted: Any, truth: Any) -> NDArray[np.int64]:
    """Return the column of the truth (C,) that each column of the fit is, -1 where there is none."""
    found = fitted.field.to_detector(columns.group_position()[:, 0])
    true = np.stack([truth["row"], truth["col"]], axis=1)
    shift = np.zeros(2)
    pixel = fitted.field.detector_pixel
    for _ in range(3):  # a rigid shift between fit and truth is a matter of convention
        distance, index = cKDTree(true).query(found - shift)
        near = (distance < NEAR_A / pixel) & columns.occupied
        shift = np.median(found[near] - true[index[near]], axis=0)
    return np.where(distance < NEAR_A / pixel, index, -1)


def truth_ends(columns: ColumnModel, index: NDArray[np.int64], truth: Any) -> ColumnModel:
    """Return the columns with true counts; of the ends that give them, those nearest to the true surfaces."""
    elements = [str(e) for e in truth["elements"]]
    mine = [elements.index(e) for e in columns.projection.elements]
    top = truth["top_A"] if "top_A" in truth else truth["top_plane"] * columns.projection.plane
    every = np.arange(len(columns))
    known = (index >= 0) & columns.occupied
    offset = np.median((columns.site_depth(every, columns.first) - top[index])[known])
    first, last = columns.first.copy(), columns.last.copy()
    for c in np.flatnonzero(known):
        counts, kind = truth["counts"][index[c]][mine], columns.kind_of(int(c))
        number, sites = int(counts.sum()), len(kind.sites)
        options = []
        for start in range(int(first[c]) - 2 * sites - 2, int(first[c]) + 2 * sites + 3):
            held = [kind.groups[kind.sites[s % sites].group].element for s in range(start, start + number)]
            if [held.count(e) for e in columns.projection.elements] == counts.tolist():
                depth = float(columns.site_depth(np.array([c]), np.array([start]))[0])
                options.append((abs(depth - offset - top[index[c]]), start))
        if options:
            first[c] = min(options)[1]
            last[c] = first[c] + number - 1
    return columns.with_ends(first, last)


def exact(columns: ColumnModel, index: NDArray[np.int64], truth: Any, scored: NDArray[np.bool_]) -> Any:
    """Return the share of scored columns with exact counts, and by element."""
    elements = [str(e) for e in truth["elements"]]
    mine = [elements.index(e) for e in columns.projection.elements]
    use = np.flatnonzero((index >= 0) & columns.occupied & scored[index])
    found, true = columns.element_counts()[use], truth["counts"][index[use]][:, mine]
    same = found == true
    by = {e: float(same[true[:, k] > 0, k].mean()) for k, e in enumerate(columns.projection.elements)}
    return float(same.all(1).sum() / max(scored.sum(), 1)), by


def compare(run: Path, answer: Path) -> list[str]:
    """Return the line of one run."""
    truth: Any = dict(np.load(answer))
    pixel = json.loads(answer.with_suffix(".json").read_text("utf-8"))["spec"]["pixel_A"]
    shape, margin = np.array(truth["clean"].shape), 6.0 / pixel
    place = np.stack([truth["row"], truth["col"]], axis=1)
    scored = ((place > margin) & (place < shape - 1 - margin)).all(1)
    with torch.inference_mode():
        bench, state, fitted = bench_of(run)
        index = matched(state.columns, fitted, truth)
        lens = free_lens(state, LENS)
        neighbours = Neighbours.within(state.columns, neighbour_radius(state.columns.projection))
        seen = np.zeros(len(state.columns), dtype=bool)
        seen[np.asarray(fitted.claimed)] = True
        near = Neighbours.within(state.columns, terrace_radius(state.columns.projection))
        surface = SurfaceEnergy(near).learned(state.columns, seen)  # as rough as the blind result
        support = NeighbourStep(neighbours, STEEPEST_A)

        def last_stages(begin: State) -> tuple[float, State, float]:
            """Return the cost before counts move again, where they lead, and the cost there."""
            now = refine(bench, begin, lens, begin.occupied(), 3).state
            now = corrected(bench, now, PHONON_PAIRS[2], np.random.default_rng(1))
            now = refine(bench, now, lens, now.occupied(), 2).state
            before, moving = basin_cost(bench, now, lens, surface), now.occupied()
            for _ in range(3):
                done = count_round(bench, now, lens, now.occupied(), moving, surface, support, {})
                now, moving = done.state, sorted(done.undecided)
                if done.gain < 6:
                    break
            return before, now, basin_cost(bench, now, lens, surface)

        # Both under the same thermal displacements, or their draw would decide.
        blind_cost, again, again_cost = last_stages(state)
        truth_cost, oracle, oracle_cost = last_stages(
            replace(state, columns=truth_ends(state.columns, index, truth))
        )
    share, _ = exact(state.columns, index, truth, scored)
    best, by = exact(oracle.columns, index, truth, scored)
    more, _ = exact(again.columns, index, truth, scored)
    return [
        run.name,
        str(int(scored.sum())),
        f"{share:.3f}",
        f"{best:.3f}",
        f"{share / max(best, 1e-9):.3f}",
        f"{more:.3f}",
        ", ".join(f"{e} {v:.2f}" for e, v in by.items()),
        f"{truth_cost - blind_cost:+.0f}",
        f"{oracle_cost - again_cost:+.0f}",
    ]


def runs_and_answers(about: str | None, script: str) -> tuple[list[tuple[Path, Path]], Path]:
    """Return the pairs of run and answer of the command line, and where the table goes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path(script).with_suffix(".md"))
    a = parser.parse_args()
    return list(zip(a.pairs[::2], a.pairs[1::2], strict=True)), a.out


def main() -> None:
    pairs, out = runs_and_answers(__doc__, __file__)
    prepare()
    text = table(HEAD, [compare(run, answer) for run, answer in pairs])
    out.write_text(
        f"# Started at the truth\n\n{(__doc__ or '').split('RUN is')[0].splitlines()[0]}\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    main()
