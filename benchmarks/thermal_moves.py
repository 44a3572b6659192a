"""How well the coherent image answers one atom more, and other Debye–Waller factors; writes thermal_moves.md.

python benchmarks/thermal_moves.py [--pairs 12] [--out benchmarks/thermal_moves.md]

A move of a fit is judged by the coherent image alone: its thermal correction stays what it was. So the
coherent image should change by one atom more as the average over frozen phonons does. Errors are in % of the
rms of that change within 3 Å of the columns that got an atom at their exit, the average before and after
under the same displacements; for several shares of the absorptive form factor. The last lines are for
Debye–Waller factors a tenth larger, over the whole field; "slope" is with the slope that a thermal correction
carries. Tuned lens, C1 = 5.5 nm, no MTF.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from tables import table
from torch import Tensor
from unseen.suite import CEO2, GOLD, LAALO3, MGO

from qhrtem.grid import Grid
from qhrtem.model.diffuse import diffuse_around, frozen_phonon_image
from qhrtem.model.forward import Field, ForwardModel
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.stages.objective import EFFECTIVE_ABSORPTION

DATA = Path(__file__).parents[1] / "src/qhrtem/data"
ENERGY, PIXELS, PIXEL_A = 300e3, 192, 0.09
NEAR_A, APART_A = 3.0, 6.5  # what counts around a column; columns that get an atom stand so far apart
RIM_A = 4.0
SHARES = (0.0, 0.35, 0.5, 0.65, 0.8, 1.0)
CASES = (
    *(("BaTiO3", (1, 1, 0), t) for t in (20.0, 40.0, 60.0)),
    ("SrTiO3", (0, 0, 1), 40.0),
    *((cell, (1, 1, 0), t) for cell, t in ((LAALO3, 45.0), (CEO2, 32.0), (MGO, 28.0), (GOLD, 24.0))),
)
HEAD = (*("crystal", "thickness (nm)", "one more of"), *(f"share {s:g}" for s in SHARES), "slope")


def specimen(
    structure: object, zone: tuple[int, int, int], thickness: float
) -> tuple[ForwardModel, ColumnModel]:
    """Return a field full of crystal."""
    grid = Grid((PIXELS, PIXELS), (PIXEL_A, PIXEL_A))
    field = Field(grid, grid, grid.shape, (0, 0), (1, 1), 70.0)
    if isinstance(structure, str):
        crystal = read_cif(DATA / f"{structure}.cif")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "crystal.cif"
            path.write_text(structure.cif(), "utf-8")  # type: ignore[attr-defined]
            crystal = read_cif(path)
    edge = PIXELS * PIXEL_A - 0.3
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    columns = lattice_columns(project(crystal, zone), np.array([0.4, 0.3]), frame, (0.0, 0.0, edge, edge))
    columns = columns.filled(np.full(len(columns), -0.2), np.full(len(columns), thickness))
    return ForwardModel(field, ENERGY), columns


def chosen(columns: ColumnModel, name: str) -> list[int]:
    """Return columns of a kind well inside the field and far apart."""
    place, edge = columns.anchor, PIXELS * PIXEL_A
    out: list[int] = []
    for c in range(len(columns)):
        inside = bool(((place[c] > RIM_A) & (place[c] < edge - RIM_A)).all())
        apart = all(np.hypot(*(place[c] - place[o])) > APART_A for o in out)
        if columns.kind_of(c).name == name and inside and apart:
            out.append(c)
    return out


def around(place: np.ndarray) -> Tensor:
    """Return which pixels lie near any of some places (N, 2) y, x in Å."""
    y, x = np.mgrid[:PIXELS, :PIXELS] * PIXEL_A
    near = [np.hypot(y - p, x - q) < NEAR_A for p, q in place]
    return torch.as_tensor(np.any(near, axis=0))


def average(model: ForwardModel, columns: ColumnModel, lens: Microscope, pairs: int) -> Tensor:
    """Return the frozen-phonon image; atoms that two specimens share are displaced alike."""
    return frozen_phonon_image(model, columns, lens, pairs, np.random.default_rng(3), 2)


def errors(true: Tensor, found: list[Tensor], where: Tensor) -> list[str]:
    """Return how far changes are from the true one, % of its rms."""
    size = true[where].double().square().mean().sqrt()
    return [f"{100 * float((f - true)[where].double().square().mean().sqrt() / size):.1f}" for f in found]


def lines(structure: object, zone: tuple[int, int, int], thickness: float, pairs: int) -> list[list[str]]:
    """Return the lines of one crystal."""
    model, columns = specimen(structure, zone, thickness)
    lens = nominal(ENERGY).with_values(c1=55.0)
    shares = [lens.with_values(absorption=s) for s in SHARES]
    label = f"{structure if isinstance(structure, str) else structure.name} {list(zone)}"  # type: ignore[attr-defined]
    before = average(model, columns, lens, pairs)
    plain = [model.image(columns, m) for m in shares]
    out = []
    for kind in columns.projection.kinds:
        if any(row[2] == kind.name for row in out):
            continue
        picked = chosen(columns, kind.name)
        last = columns.last.copy()
        last[picked] += 1
        more = columns.with_ends(columns.first, last)
        true = average(model, more, lens, pairs) - before
        found = [model.image(more, m) - p for m, p in zip(shares, plain, strict=True)]
        where = around(columns.anchor[picked])
        out.append([label, f"{thickness / 10:.1f}", kind.name, *errors(true, found, where), ""])
    warm = lens.with_values(b_scale=1.1)
    true = average(model, columns, warm, pairs) - before
    found = [model.image(columns, m.with_values(b_scale=1.1)) - p for m, p in zip(shares, plain, strict=True)]
    own = lens.with_values(absorption=EFFECTIVE_ABSORPTION)
    extra = diffuse_around(model, columns, own, 1, np.random.default_rng(4), 2)
    now = own.with_values(b_scale=1.1)
    answer = model.image(columns, now) + extra.at(now) - model.image(columns, own) - extra.at(own)
    where = torch.zeros(true.shape, dtype=torch.bool)
    rim = round(RIM_A / PIXEL_A)
    where[rim:-rim, rim:-rim] = True
    out.append([label, f"{thickness / 10:.1f}", "Debye–Waller", *errors(true, [*found, answer], where)])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("thermal_moves.md"))
    given = parser.parse_args()
    prepare()
    rows: list[list[str]] = []
    with torch.inference_mode():
        for case in CASES:
            rows += lines(*case, given.pairs)
            print("\n".join(" | ".join(row) for row in rows if row[:2] == rows[-1][:2]), flush=True)
    about = (__doc__ or "").split("\n\n")[2]
    text = f"# What one atom more does\n\nWritten by `thermal_moves.py`. {about}\n\n{table(HEAD, rows)}\n"
    given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
