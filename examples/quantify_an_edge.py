"""Quantify an edge: how off-centring and polarisation change towards the vacuum, from a finished run.

    python examples/quantify_an_edge.py RUN [--out FOLDER]

Prints the profile with its error bars, tests it against a constant and leaves the figures as PDF and PNG.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import qhrtem


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("edge"))
    options = parser.parse_args()

    twin = qhrtem.read(options.run)
    if not twin.passed:
        raise SystemExit(f"{options.run}: a quality gate failed, nothing is claimed; see its report.html")

    found = qhrtem.off_centring(twin)
    direction = found.principal_direction()
    along = found.along(direction)
    distance = qhrtem.distance_to_edge(twin, found.xy_A)
    course = qhrtem.profile(distance, along, "distance to the edge (Å)")

    print(f"{found.name}, {len(found.column)} cells, {found.note}")
    print(f"component along x, y = {direction[0]:+.3f}, {direction[1]:+.3f}")
    print("distance (Å)   mean (pm)   σ (pm)   of it common   cells")
    estimate = course.estimate
    for n, cells in enumerate(course.cells):
        value, sigma, common = (100 * v[n] for v in (estimate.value, estimate.sigma, estimate.common_sigma))
        print(f"{course.centre[n]:12.1f} {value:11.2f} {sigma:8.2f} {common:14.2f} {cells:7d}")
    chi2, chance = along.flatness()
    print(f"a constant over the field: χ²/dof = {chi2:.2f}, probability {chance:.2g}")

    inner, outer = distance > np.median(distance), distance <= np.median(distance)
    weight = inner / inner.sum() - outer / outer.sum()
    step = along.combined(weight[None])
    print(f"inner half minus outer half: {100 * step.value[0]:.2f} ± {100 * step.sigma[0]:.2f} pm")

    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("polarisation_figure", "profile_figure", "relief_figure"):
        figure = getattr(qhrtem.figures, name)(twin)
        for kind in ("pdf", "png"):
            figure.savefig(options.out / f"{name.removesuffix('_figure')}.{kind}", dpi=200)
    print(f"figures: {options.out}")


if __name__ == "__main__":
    main()
