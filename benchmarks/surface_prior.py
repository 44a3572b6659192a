"""What known specimens say a step of a surface should cost: pseudo-likelihood over bond and height.

    python benchmarks/surface_prior.py RUN TRUTH.npz [RUN TRUTH.npz …] [--out FILE]

Of each column and surface, the probability of its end among those within two sites, given its neighbours, is
the Boltzmann factor of the surface energy (Besag 1975). The mean of its logarithm over a specimen is laid out
over the bond (χ² units a pair) and the most that height adds; the best pair, and what the program's own
learned energy reaches, are listed for the true ends of each run and for the fitted ones. RUN and TRUTH as for
oracle.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from oracle import matched, runs_and_answers, table, truth_ends

from qhrtem.io.twin import read_twin
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import Neighbours, SurfaceEnergy, unavoidable_step
from qhrtem.stages.structure import terrace_radius

BONDS, HEIGHTS = np.arange(0.2, 6.1, 0.2), (0.45, 0.9, 1.8, 3.6, 6.0)
SITES = np.array([0, -2, -1, 1, 2])  # by which an end may differ, the present one first
HEAD = ("specimen", "stepped pairs", "best bond", "best height", "log likelihood", "learned bond", "its own")


def pseudo_likelihood(columns: ColumnModel, energy: SurfaceEnergy, seen: NDArray[np.bool_]) -> float:
    """Return the mean log probability of the ends of the seen columns, each given its neighbours."""
    ends = np.stack(columns.surfaces(), axis=1)
    total, number = 0.0, 0
    for c in np.flatnonzero(seen):
        near = energy.neighbours.of(int(c))
        near = near[seen[near]]
        if len(near) < 3:
            continue
        allowed = unavoidable_step(columns, np.full(len(near), c), near)
        same = np.full(len(SITES), c)
        for side, (end, out) in enumerate(((columns.first[c], -1), (columns.last[c], 1))):
            site = end + SITES
            surface = (columns.site_depth(same, site) + columns.site_depth(same, site + out)) / 2
            cost = energy.pair_cost(surface[:, None] - ends[near, side], allowed).sum(1) / 2
            total -= cost[0] + np.log(np.exp(-cost).sum())
            number += 1
    return total / number


def row(name: str, columns: ColumnModel, seen: NDArray[np.bool_]) -> list[str]:
    """Return the line of one specimen."""
    energy = SurfaceEnergy(Neighbours.within(columns, terrace_radius(columns.projection)))
    learned = energy.learned(columns, seen)
    a, b = energy.neighbours.pairs[seen[energy.neighbours.pairs].all(1)].T
    allowed = unavoidable_step(columns, a, b)
    stepped = np.mean([np.abs(s[a] - s[b]) > allowed for s in columns.surfaces()])
    tried = [
        (pseudo_likelihood(columns, replace(energy, bond=float(bond), cap=height), seen), bond, height)
        for height in HEIGHTS
        for bond in BONDS
    ]
    best = max(tried)
    own = pseudo_likelihood(columns, learned, seen)
    words = [f"{stepped:.3f}", f"{best[1]:.1f}", f"{best[2]:.1f}", f"{best[0]:.3f}", f"{learned.bond:.2f}"]
    return [name, *words, f"{own:.3f}"]


def rows(run: Path, answer: Path) -> list[list[str]]:
    """Return the lines of the true and the fitted ends of one run."""
    fitted: Any = read_twin(run).fitted
    truth: Any = dict(np.load(answer))
    index = matched(fitted.columns, fitted, truth)
    seen = np.zeros(len(fitted.columns), dtype=bool)
    seen[fitted.claimed] = True
    seen &= index >= 0
    true = truth_ends(fitted.columns, index, truth)
    return [row(f"{answer.stem}, true", true, seen), row(f"{answer.stem}, fitted", fitted.columns, seen)]


def main() -> None:
    pairs, out = runs_and_answers(__doc__, __file__)
    text = table(HEAD, [line for run, answer in pairs for line in rows(run, answer)])
    about = (__doc__ or "").split("\n\n")[2].strip()
    out.write_text(f"# What a step costs\n\nWritten by `surface_prior.py`. {about}\n\n{text}\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
