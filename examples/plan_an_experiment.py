"""Plan an experiment: which C1 and dose make counts certain, before going to the microscope.

    python examples/plan_an_experiment.py [--structure X.cif --zone 1,1,0] [--thickness 4.0] [--out FOLDER]

For one column of each kind in the middle of a slab, simulates the image without its last atom, without that
of each neighbouring column, and with the column moved along x and y. The information on the count is what
is left when the neighbours and the position are unknown too (Schur complement): with N electrons per Å²,
Δχ² is N times it, and a count is right with probability 1/(1 + 2 exp(−Δχ²/2)) against one atom more and one
less. The lens is taken as known, so these numbers are what the dose allows at best. Far overfocus carries
as much information as the maximum of contrast, but spreads it over neighbours and the image border: prefer
the least good C1.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

import qhrtem
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import nominal
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import project, read_cif

BUNDLED = Path(qhrtem.__file__).parent / "data" / "BaTiO3.cif"
PIXEL_A, FIELD_A = 0.11, 24.0
DOSES = (2e3, 5e3, 1e4, 2e4, 5e4)
CERTAIN = 0.95
NEIGHBOURS = 8  # columns whose counts are taken as unknown too


def slab(structure: Path, zone: tuple[int, int, int], thickness: float) -> tuple[ForwardModel, ColumnModel]:
    """Return the model of a slab without edges that fills the field, C1 counted from its exit plane."""
    projection = project(read_cif(structure), zone)
    pixels = round(FIELD_A / PIXEL_A)
    field = make_field((pixels, pixels), PIXEL_A, 0.0)
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    extent = field.grid.extent
    columns = lattice_columns(projection, np.array(extent) / 2, frame, (0.0, 0.0, *extent))
    n = len(columns)
    columns = columns.filled(np.full(n, 10.0), np.full(n, 10.0 + thickness))
    lowest = columns.slice_of(columns.site_depth(np.arange(n), columns.last)).max()
    exit_z = projection.origin + (lowest + 0.5) * projection.plane
    return ForwardModel(replace(field, reference_z=float(exit_z)), 300e3), columns


def middle_column(model: ForwardModel, columns: ColumnModel, kind: int) -> int:
    """Return the column of a kind nearest to the middle of the field."""
    middle = np.array(model.field.grid.extent) / 2
    distance = np.linalg.norm(columns.anchor - middle, axis=1)
    return int(np.argmin(np.where(columns.kind == kind, distance, np.inf)))


def changed(columns: ColumnModel, c: int) -> list[ColumnModel]:
    """Return a column without its last atom, moved by 1 pm along x and y, and its neighbours shortened."""

    def shorter(which: int) -> ColumnModel:
        last = columns.last.copy()
        last[which] -= 1
        return columns.with_ends(columns.first, last)

    def moved(axis: int) -> ColumnModel:
        shift = columns.shift.copy()
        shift[c, :, axis] += 0.01
        return replace(columns, shift=shift)

    distance = np.linalg.norm(columns.anchor - columns.anchor[c], axis=1)
    neighbours = np.argsort(distance)[1 : NEIGHBOURS + 1]
    return [shorter(c), moved(1), moved(0), *(shorter(int(n)) for n in neighbours)]


def left_over(fisher: np.ndarray, target: int) -> float:
    """Return the information on one unknown when all others are unknown."""
    others = [i for i in range(len(fisher)) if i != target]
    block = fisher[np.ix_(others, others)] + 1e-12 * np.trace(fisher) * np.eye(len(others))
    cross = fisher[target, others]
    return float(fisher[target, target] - cross @ np.linalg.solve(block, cross))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--structure", type=Path, default=BUNDLED)
    parser.add_argument("--zone", default="1,1,0")
    parser.add_argument("--thickness", type=float, default=4.0, help="nm")
    parser.add_argument("--c3", type=float, default=-15.0, help="µm")
    parser.add_argument("--out", type=Path, default=Path("plan"))
    options = parser.parse_args()

    u, v, w = (int(i) for i in options.zone.split(","))
    model, columns = slab(options.structure, (u, v, w), 10 * options.thickness)
    kinds = [k.name for k in columns.projection.kinds]
    focus = np.arange(0.0, 16.1, 1.0)  # nm, positive = overfocus
    changes = [changed(columns, middle_column(model, columns, k)) for k in range(len(kinds))]
    base = nominal(300e3).with_values(c3=1e4 * options.c3)
    count, place = np.zeros((len(focus), len(kinds))), np.zeros((len(focus), len(kinds)))
    with torch.inference_mode():
        waves = [[model.exit_spectrum(m, base) for m in (columns, *group)] for group in changes]
        for n, c1 in enumerate(focus):
            lens = base.with_values(c1=10 * c1)
            for k, group in enumerate(waves):
                images = torch.stack([model.image_of(*wave, lens) for wave in group]).double()
                change = ((images[1:] - images[0]) / images[0].clamp(min=0.02).sqrt()).flatten(1)
                fisher = PIXEL_A**2 * (change @ change.T).numpy()
                count[n, k], place[n, k] = left_over(fisher, 0), left_over(fisher, 1)

    print(f"{options.structure.stem} [{u} {v} {w}], {options.thickness:g} nm, C3 = {options.c3:g} µm")
    print("kind     good C1 (nm)   dose for a certain count (e/Å²)   position σ at 10⁴ e/Å² (pm)")
    needed = 2 * np.log(2 * CERTAIN / (1 - CERTAIN))
    for k, name in enumerate(kinds):
        best = count[:, k].max()
        enough = focus[count[:, k] >= 0.8 * best]
        least = int(np.flatnonzero(focus == enough[0])[0])
        sigma = 1 / np.sqrt(1e4 * place[least, k])
        span = f"{enough[0]:g} to {enough[-1]:g}"
        print(f"{name:6s} {span:>16s} {needed / count[least, k]:22.0f} {sigma:32.2f}")

    options.out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3.6 * len(kinds), 3.4), layout="constrained")
    for k, (ax, name) in enumerate(zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True)):
        shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(DOSES)))
        for dose, shade in zip(DOSES, shades, strict=True):
            certain = 1 / (1 + 2 * np.exp(-0.5 * dose * count[:, k]))
            ax.plot(focus, certain, color=shade, label=f"{dose:g} e/Å²")
        ax.axhline(CERTAIN, color="0.6", linestyle="dotted")
        ax.set(title=f"{name} columns", xlabel="C1 (nm, positive = overfocus)", ylim=(0.3, 1.02))
        ax.set_ylabel("probability of a right count (1)" if k == 0 else "")
    ax.legend(fontsize=7, loc="lower right")
    figure.savefig(options.out / "certainty.png", dpi=150)
    figure.savefig(options.out / "certainty.pdf")
    print(f"figure: {options.out / 'certainty.pdf'}")


if __name__ == "__main__":
    main()
