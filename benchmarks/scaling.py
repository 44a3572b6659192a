"""Cost of one count round against the number of columns, written to benchmarks/scaling.md.

    python benchmarks/scaling.py [--columns 100 300 1000 3000]

Each size runs in a process of its own, with one thread: a slab of BaTiO3 [110] whose image the same model
made, all columns free to move and to change. Times are of the processor, memory is the largest ever resident.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tables import table

HERE = Path(__file__).resolve().parent
CIF = HERE.parent / "src/qhrtem/data/BaTiO3.cif"
PIXEL_A = 0.12
THICKNESS_A = 22.0
PARTS = ("linearise", "eliminate", "descend", "together", "sample")
HEAD = ("columns", "unknowns", "field (nm)", *(f"{p} (s)" for p in PARTS), "all (ms a column)", "memory (GB)")


def measure(wanted: int) -> dict[str, float]:
    """Return the cost of one round over about `wanted` columns."""
    from qhrtem.model.forward import ForwardModel, make_field
    from qhrtem.model.microscope import INDEX, nominal
    from qhrtem.run.process import prepare
    from qhrtem.specimen.columns import lattice_columns
    from qhrtem.specimen.crystal import project, read_cif
    from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
    from qhrtem.stages.counts import TILTS, collective_moves
    from qhrtem.stages.descent import Descent
    from qhrtem.stages.linearise import linearise, possible_moves
    from qhrtem.stages.move_model import profile
    from qhrtem.stages.objective import Bench, Misfit, State
    from qhrtem.stages.posterior import sample
    from qhrtem.stages.structure import LENS, neighbour_radius
    from qhrtem.stages.walks import anneal

    prepare()
    projection = project(read_cif(CIF), (1, 1, 0))
    density = len(projection.kinds) / abs(float(np.linalg.det(projection.vectors)))
    side = float(np.sqrt(wanted / density))
    n = round(side / PIXEL_A)
    field = make_field((n, n), PIXEL_A, 40.0)
    low, high = field.to_field(np.zeros(2)), field.to_field(np.full(2, n - 1.0))
    columns = lattice_columns(projection, low, np.array([[0.0, 1.0], [1.0, 0.0]]), (*low, *high))
    count = len(columns)
    columns = columns.filled(np.full(count, 20.0), np.full(count, 20.0 + THICKNESS_A))
    microscope = nominal(300e3).with_values(c1=55.0)
    model = ForwardModel(field, 300e3)
    with torch.inference_mode():
        image = model.image(columns, microscope)
        generator = torch.Generator().manual_seed(0)
        noisy = image + 0.06 * torch.randn(image.shape, generator=generator)
        used = torch.as_tensor(field.embed(np.ones((n, n), bool), False))
        bench = Bench(model, Misfit(noisy, used, 280.0, 0.0), 1)
        state = State(columns, microscope)
        every = state.occupied()
        neighbours = Neighbours.within(columns, neighbour_radius(projection))
        marks = [time.process_time()]
        quadratic = linearise(
            bench, state, [INDEX[p] for p in LENS], every, {c: possible_moves(columns, c) for c in every}
        )
        marks.append(time.process_time())
        moves = profile(state, quadratic)
        marks.append(time.process_time())
        descent = Descent(columns, moves, SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0))
        descent.run()
        marks.append(time.process_time())
        leant = collective_moves(descent, [LENS.index(t) for t in TILTS])
        anneal(leant, np.random.default_rng(1))
        marks.append(time.process_time())
        sample(descent, 1.0, np.random.default_rng(0), 2, 10)
        marks.append(time.process_time())
    spent = np.diff(marks)
    spent[-1] *= 180 / 12  # of the sweeps that a fit makes
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "columns": count,
        "unknowns": len(quadratic.gradient),
        "side": side / 10,
        **{f"t{i}": float(t) for i, t in enumerate(spent)},
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, nargs="+", default=[100, 300, 1000, 3000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(measure(a.one)))
        return
    rows, sizes = [], []
    for wanted in a.columns:
        command = [sys.executable, __file__, "--one", str(wanted)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        m = json.loads(done.stdout.strip().splitlines()[-1])
        total = sum(m[f"t{i}"] for i in range(len(PARTS)))
        sizes.append((m["columns"], total, m["memory"]))
        cells = [str(m["columns"]), str(m["unknowns"]), f"{m['side']:.1f}"]
        cells += [f"{m[f't{i}']:.2f}" for i in range(len(PARTS))]
        rows.append([*cells, f"{1e3 * total / m['columns']:.0f}", f"{m['memory']:.2f}"])
        print(" | ".join(rows[-1]), flush=True)
    n, t, memory = (np.array(v, dtype=float) for v in zip(*sizes, strict=True))
    slope = np.polyfit(np.log(n), np.log(t), 1)[0] if len(n) > 1 else float("nan")
    (HERE / "scaling.md").write_text(
        f"""# Cost against the number of columns

Written by `python benchmarks/scaling.py`: one count round in which every column may move and change, one
thread. Together: moves of many columns at once, from other mistilts and by annealed walks. Sampling is that
of the last round alone; its time is scaled from 12 to the 180 sweeps of a fit.

{table(HEAD, rows)}

Time grows as the number of columns to the power {slope:.2f}; {memory[-1]:.1f} GB at {int(n[-1])} columns.
""",
        "utf-8",
    )


if __name__ == "__main__":
    main()
