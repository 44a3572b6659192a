"""What the sampling of the waves costs: images, moves and derivatives against waves of 0.0525 Å.

    python benchmarks/sampling.py [--out FILE]

A full field of each crystal of `unseen/suite.py`, 3 nm thick, atoms smeared by their Debye-Waller factors, in
a lens at 5 nm defocus; image pixels of 0.105 Å. "Chosen": the sampling that a fit takes for the crystal
(`model/sampling.py`); the other line of a crystal, where there is one, is on waves that serve light atoms.
"Image": rms difference in % of the vacuum intensity. "Atom", "slide" and "position": what an atom more at the
exit, a column one site deeper, and a displacement do to the image, on the waves for changes; difference in %
of the change, the worst of the kinds of column.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tables import table
from unseen.phantoms import Cell
from unseen.suite import BATIO3, CEO2, GOLD, LAALO3, MGO, PBTIO3, SILICON, SRTIO3

from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.model.sampling import COARSEST, Sampling, sampling_of
from qhrtem.model.window import Move, SiteChange, Tangent, WindowModel
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import Projection, project, read_cif

ENERGY = 300e3
PIXEL_A, PIXELS = 0.105, 240  # of the image
REFERENCE_A = 0.0525
RIM_A = 3.0  # left out where the crystal does not repeat
THICKNESS_A = 30.0
WINDOW_A = 12.0
VIEWS = (
    *((BATIO3, (1, 1, 0)), (SRTIO3, (0, 0, 1)), (PBTIO3, (1, 1, 0)), (LAALO3, (1, 1, 0))),
    *((MGO, (1, 1, 0)), (CEO2, (1, 1, 0)), (SILICON, (1, 1, 0)), (GOLD, (1, 1, 0)), (GOLD, (1, 0, 0))),
)
HEAD = ("crystal", "zone", "", "waves of images / changes (Å)", "image", "atom", "slide", "position")


def projected(cell: Cell, zone: tuple[int, int, int]) -> Projection:
    """Return the columns of a crystal along a zone axis."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{cell.name}.cif"
        path.write_text(cell.cif(), "utf-8")
        return project(read_cif(path), zone)


def model_on(sampling: Sampling) -> ForwardModel:
    """Return the model of the field on waves of some sampling."""
    shape = (PIXELS, PIXELS)
    return ForwardModel(make_field(shape, PIXEL_A, THICKNESS_A / 2, margin=0.0, sampling=sampling), ENERGY)


def specimen(projection: Projection) -> tuple[ColumnModel, Microscope]:
    """Return a field full of crystal, and the lens."""
    middle = np.full(2, PIXELS * PIXEL_A / 2)
    low, high = RIM_A / 2, PIXELS * PIXEL_A - RIM_A / 2
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    columns = lattice_columns(projection, middle, frame, (low, low, high, high))
    n = len(columns)
    columns = columns.filled(np.full(n, 0.0), np.full(n, THICKNESS_A))
    return columns, nominal(ENERGY).with_values(c1=50.0)


def changes_of(columns: ColumnModel, c: int) -> dict[str, list[Move | Tangent]]:
    """Return the changes of a column that are compared."""
    first, last = int(columns.first[c]), int(columns.last[c])
    atom = Move((SiteChange((last + 1,), 1),))
    slide = Move((SiteChange((first,), -1), SiteChange((last + 1,), 1)))
    groups = range(len(columns.kind_of(c).groups))
    return {"atom": [atom], "slide": [slide], "position": [Tangent(g, a) for g in groups for a in (0, 1)]}


def apart(
    coarse: ForwardModel, fine: ForwardModel, columns: ColumnModel, lens: Microscope
) -> dict[str, float]:
    """Return the largest relative difference of each sort of change, % of its norm, over kinds of column."""
    middle = fine.field.middle()
    distance = np.linalg.norm(columns.anchor - middle, axis=1)
    windows = [WindowModel(m, columns, lens, WINDOW_A) for m in (coarse, fine)]
    worst: dict[str, float] = {}
    for kind in range(len(columns.projection.kinds)):
        c = int(np.argmin(np.where(columns.kind == kind, distance, np.inf)))
        for sort, changes in changes_of(columns, c).items():
            a, b = (placed(w, c, changes, fine.field.image_grid.shape) for w in windows)
            off = np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2))
            worst[sort] = max(worst.get(sort, 0.0), 100 * float(off.max()))
    return worst


def placed(
    window: WindowModel, c: int, changes: list[Move | Tangent], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the changes (K, rows, columns) of a column on the image grid."""
    found = window.respond(c, changes)
    out = np.zeros((len(changes), *shape))
    n = found.change.shape[-1]
    rows, cols = ((np.arange(n) + at) % size for at, size in zip((found.row, found.col), shape, strict=True))
    out[:, rows[:, None], cols] = found.change
    return out


def measure(cell: Cell, zone: tuple[int, int, int]) -> list[tuple[str, ...]]:
    """Return the lines of a crystal: on the waves that it takes, and on those for light atoms if coarser."""
    projection = projected(cell, zone)
    columns, lens = specimen(projection)
    fine = model_on(Sampling(REFERENCE_A, REFERENCE_A))
    rim = round(2 * RIM_A / PIXEL_A)
    truth = fine.image(columns, lens)
    lines = []
    for sampling in dict.fromkeys((sampling_of(projection, ENERGY), COARSEST)):
        model = model_on(sampling)
        off = 100 * float((model.image(columns, lens) - truth)[rim:-rim, rim:-rim].square().mean().sqrt())
        worst = apart(model.coarse, fine, columns, lens)
        pitch = f"{model.field.grid.pixel[0]:.3f} / {model.coarse.field.grid.pixel[0]:.3f}"
        changes = (f"{worst[sort]:.1f}" for sort in ("atom", "slide", "position"))
        chosen = "" if lines else "chosen"
        lines.append((cell.name, "[" + " ".join(map(str, zone)) + "]", chosen, pitch, f"{off:.2f}", *changes))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    prepare()
    lines = []
    for cell, zone in VIEWS:
        for line in measure(cell, zone):
            lines.append(line)
            print(" ".join(line), flush=True)
    head = (__doc__ or "").split("\n\n", 2)[-1].strip()
    given.out.write_text(
        f"# Sampling of the waves\n\nWritten by `sampling.py`.\n{head}\n\n{table(HEAD, lines)}\n", "utf-8"
    )


if __name__ == "__main__":
    main()
