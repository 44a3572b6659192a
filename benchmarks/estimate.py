"""Peak memory of one round of count moves, and its time, against `stages.estimate`, for growing images.

python benchmarks/estimate.py            # each size in a process of its own
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

SIZES = (100, 180, 268)  # pixels of 0.112 Å along an edge


def one(size: int) -> str:
    """Return a line of the table: what was estimated and what was used."""
    import numpy as np

    from qhrtem.cli import DEMO_PLAN
    from qhrtem.model.forward import ForwardModel, make_field
    from qhrtem.model.micrograph import Micrograph
    from qhrtem.model.microscope import nominal
    from qhrtem.run.process import prepare
    from qhrtem.specimen.columns import lattice_columns
    from qhrtem.specimen.crystal import project, read_cif
    from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
    from qhrtem.stages.counts import count_round
    from qhrtem.stages.estimate import estimate, transform_seconds
    from qhrtem.stages.objective import Bench, State, make_misfit
    from qhrtem.stages.structure import neighbour_radius

    prepare()
    pixel, thick = 0.112, 40.0
    projection = project(read_cif(DEMO_PLAN.parent / "BaTiO3.cif"), (1, 1, 0))
    asked = estimate((size, size), pixel, projection, transform_seconds())
    field = make_field((size, size), pixel, 100.0)
    high = field.to_field(np.array([size - 1, size - 1])) + 6.0
    low = field.to_field(np.zeros(2)) - 6.0
    empty = lattice_columns(projection, low, np.array([[0.0, 1], [1, 0]]), (*low, *high))
    n = len(empty)
    columns = empty.filled(np.full(n, 80.0 - thick / 2), np.full(n, 80.0 + thick / 2))
    model = ForwardModel(field, 3e5)
    state = State(columns, nominal(3e5))
    image = field.crop(model.image(columns, state.microscope)).numpy()
    noisy = image + np.random.default_rng(0).normal(0, 0.06, image.shape)
    micrograph = Micrograph(noisy, np.ones(image.shape, bool), pixel, 250.0, 0.0, 0.001)
    bench = Bench(model, make_misfit(micrograph, field), 1)
    near = Neighbours.within(columns, neighbour_radius(projection))
    begin = time.process_time()
    everyone = state.occupied()
    count_round(
        bench,
        state,
        state.microscope.free(),
        everyone,
        everyone,
        SurfaceEnergy(near),
        NeighbourStep(near, 6.0),
        {},
    )
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        f"| {size}² | {asked.columns} | {n} | {asked.memory / 1e9:.2f} | {used / 1e9:.2f} | "
        f"{asked.seconds:.0f} | {time.process_time() - begin:.0f} |"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(one(int(sys.argv[1])))
    else:
        print("| image | columns estimated | there | GB estimated | used | s of a fit | of one round |")
        print("|---|---|---|---|---|---|---|")
        for size in SIZES:
            words = [sys.executable, str(Path(__file__)), str(size)]
            print(
                subprocess.run(words, capture_output=True, text=True, check=True).stdout, end="", flush=True
            )
