"""Off-centring and polarisation of finished runs against the truth of their phantoms.

    python benchmarks/polarisation.py RUN... --truth FOLDER [--write]

RUN: folders of finished runs named as their phantoms; FOLDER: NAME.npz of the phantoms. For each quantity the
generalised χ² of all cells with the claimed covariance, that of the profile towards the edge, the error in
units of the claimed deviation, and the χ² of a constant (is it flat?). --write: benchmarks/polarisation.md.
Truth is read here, for scoring, and nowhere in the package.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from qhrtem.io.twin import read_twin
from qhrtem.model.twin import Twin
from qhrtem.science.polarisation import CellMap, off_centring, polarisation
from qhrtem.science.profiles import distance_to_edge, profile

RESULTS = Path(__file__).with_suffix(".md")
MATCH_A = 0.7
HEAD = (
    "| run | quantity | cells | mean σ | rms error | χ²/N cells | bins | χ²/N profile | "
    "flat: χ²/dof, found | flat, true |\n|---|---|---|---|---|---|---|---|---|---|\n"
)


def true_twin(twin: Twin, file: Path) -> Twin:
    """Return the twin with the true place of every element it found, on the twin's own pixel scale."""
    truth = np.load(file)
    table = twin.columns
    elements = [str(e) for e in truth["elements"]]
    places = np.full_like(table.element_position_px, np.nan)
    centre = np.nanmean(np.where(truth["counts"][..., None] > 0, truth["positions"], np.nan), axis=1)
    own = np.nanmean(table.element_position_px, axis=1)
    distance, match = cKDTree(centre).query(own)
    for c in np.flatnonzero(distance * twin.pixel_size_A < MATCH_A):
        for k, e in enumerate(table.elements):
            if e in elements:
                places[c, k] = truth["positions"][match[c], elements.index(e)]
    return dataclasses.replace(twin, columns=dataclasses.replace(table, element_position_px=places))


def compare(name: str, found: CellMap, true: CellMap, twin: Twin) -> str:
    """Return one line of the table."""
    both = np.isin(found.column, true.column) & np.isfinite(true.value).all(1)[: len(found.column)]
    direction = true.principal_direction()
    if np.abs(true.value).max() < 1e-6 * np.abs(found.value).max():
        direction = twin.lattice_px[1, ::-1]  # nothing is polar: along the second projected lattice vector
    got, want = found.along(direction).take(both), true.along(direction).value[both]
    factor, unit = (100.0, "pm") if found.vectors.unit == "Å" else (1.0, found.vectors.unit)
    n = int(both.sum())
    distance = distance_to_edge(twin, found.xy_A[both])
    course = profile(distance, got, "distance to the edge (Å)")
    bins = len(course.cells)
    rms = float(np.sqrt(((got.value - want) ** 2).mean()))
    true_course = course.weight @ want
    flat, p = got.flatness()
    exact = dataclasses.replace(got, value=want)
    print(name, found.name, "along", np.round(direction, 3))
    for d, v, s, c, t, k in zip(
        course.centre,
        course.estimate.value,
        course.estimate.sigma,
        course.estimate.common_sigma,
        true_course,
        course.cells,
        strict=True,
    ):
        print(f"  {d:6.1f} Å  {factor * v:7.2f} ± {factor * s:5.2f} (common {factor * c:4.2f})  "
              f"true {factor * t:7.2f} {unit}  {k} cells")  # fmt: skip
    return (
        f"| {name} | {found.name} ({found.note.split('; ')[-1]}) | {n} | "
        f"{factor * got.sigma.mean():.2f} {unit} | {factor * rms:.2f} {unit} | {got.chi2(want) / n:.2f} "
        f"| {bins} | {course.estimate.chi2(true_course) / bins:.2f} | {flat:.2f}, p {p:.2g} "
        f"| {exact.flatness()[0]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = []
    for run in options.runs:
        twin = read_twin(run)
        true = true_twin(twin, options.truth / f"{run.name}.npz")
        actual = polarisation(true, shared="fitted")
        rows.append(compare(run.name, off_centring(twin), off_centring(true), twin))
        rows.append(compare(run.name, polarisation(twin), actual, twin))
        rows.append(compare(run.name, polarisation(twin, shared="fitted"), actual, twin))
    text = HEAD + "\n".join(rows) + "\n"
    print(text)
    if options.write:
        intro = (__doc__ or "").split("\n\n")[0]
        head = (
            f"# {intro}\n\nWritten by `benchmarks/polarisation.py`. Component along the true mean "
            "displacement, where there is none along the second lattice vector; χ² with the claimed "
            "covariance, common errors included.\n\n"
        )
        RESULTS.write_text(head + text, "utf-8")


if __name__ == "__main__":
    main()
