"""A field fitted in tiles: time, memory, what is found, and whether the seams show.

    python benchmarks/large_field.py [--nm 10 20] [--phonons 8] [--workers N]
                                     [--keep FOLDER [--reuse]] [--out FILE]

Sizes that the file holds and that are not asked for stay as they are.

A wedge of BaTiO3 along [110], 2.5 nm thick and rising, tilted by 1 mrad, 2·10⁴ e/Å², made by the own
simulator with some frozen-phonon configurations. Columns are scored 6 Å inside the image; "at seams":
those within 3 Å of the border between two tiles. Memory is the largest that any process of the fit ever
held. Times include other work on the machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tables import known, table

from qhrtem.commands.doctor import matched
from qhrtem.engines.protocol import Job, engine_named
from qhrtem.io.twin import read_twin
from qhrtem.plan import dump_plan, plan_from_tables
from qhrtem.run.process import prepare
from qhrtem.simulate.files import write_simulation
from qhrtem.simulate.phantom import make_phantom
from qhrtem.specimen.crystal import read_cif
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.tiling import HALO_A, cut

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "src/qhrtem/data"
PIXEL_A = 0.12
MARGIN_A, SEAM_A = 6.0, 3.0
HEAD = (
    *("field (nm)", "phonons", "columns", "tiles", "exact", "exact at seams", "within one", "invented"),
    *("position rms (pm)", "at seams", "said", "coverage 68 / 95 %", "χ² crystal"),
    *("time (min)", "memory (GB)"),
)


def plan_tables(size: float, phonons: int, image: Path) -> dict[str, Any]:
    """Return the plan of a field of some nm, [simulate] included."""
    return {
        "image": {"path": image, "pixel_size_A": PIXEL_A, "gain_counts_per_electron": 12.0},
        "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
        "structure": {"path": DATA / "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        "simulate": {
            "shape": "wedge",
            "wedge_mrad": 60.0,
            "field_nm": [size, size],
            "vacuum_nm": 1.0,
            "thickness_nm": 2.5,
            "rotation_deg": 4.0,
            "dose_e_per_A2": 2e4,
            "phonon_configurations": phonons,
            "seed": 3,
            "c1_nm": 5.0,
            "a1_nm": [0.6, -0.4],
            "b2_nm": [12.0, -8.0],
            "vibration_pm": [24.0, 26.0],
            "mistilt_mrad": [0.8, -0.6],
        },
    }


def at_seams(place: NDArray[np.float64], shape: tuple[int, int], spread: float) -> NDArray[np.bool_]:
    """Return which places (C, 2) row, col lie near a border between tiles."""
    out = np.zeros(len(place), dtype=bool)
    for tile in cut(shape, PIXEL_A, HALO_A + BORDER_A + spread):
        for axis, size in enumerate(shape):
            for edge in tile.core[2 * axis : 2 * axis + 2]:
                if 0 < edge < size:
                    out |= np.abs(place[:, axis] - edge) * PIXEL_A < SEAM_A
    return out


class Vacuum:
    """An engine that simulates nothing, where the columns of a phantom are wanted and not its image."""

    name = "vacuum"

    def available(self) -> str | None:
        """Return None: it is always there."""
        return None

    def check(self, job: Job) -> None:
        """Accept any sampling."""

    def exit_wave(self, job: Job) -> torch.Tensor:
        """Return the wave of vacuum."""
        return torch.ones(job.grid.shape)

    def image(self, wave: torch.Tensor, job: Job) -> torch.Tensor:
        """Return the image of vacuum."""
        return wave


def measure(
    size: float, phonons: int, workers: int, folder: Path, reuse: bool
) -> tuple[list[str], tuple[str, ...]]:
    """Return a line of the table, and what the run says of its tiles."""
    image, out = folder / f"field_{size:g}.tif", folder / f"run_{size:g}"
    plan = plan_from_tables(plan_tables(size, phonons, image), "large field")
    torch.set_num_threads(os.cpu_count() or 1)  # transforms of a whole field are worth it
    fitted = reuse and (out / "columns.csv").is_file()
    engine = Vacuum() if fitted else engine_named("qhrtem")
    phantom = make_phantom(plan, read_cif(plan.structure.path), engine)
    if not fitted:
        write_simulation(image, phantom.counts, phantom.pixel_size_A, phantom.facts, phantom.columns)
        asked = folder / f"field_{size:g}.toml"
        asked.write_text(dump_plan(plan.model_copy(update={"simulate": None})), "utf-8")
        command = [sys.executable, "-m", "qhrtem", "fit", str(asked), "--out", str(out), "--force"]
        command += ["--workers", str(workers)] if workers > 1 else []
        begin = time.monotonic()
        subprocess.run(command, check=True)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        (out.parent / f"spent_{size:g}.txt").write_text(f"{(time.monotonic() - begin) / 60:.1f} {memory:.1f}")
    minutes, gigabytes = (out.parent / f"spent_{size:g}.txt").read_text().split()
    twin = read_twin(out)
    rows, cols = phantom.counts.shape
    found, true = twin.columns, phantom.columns
    pairs, asked_for, invented = matched(found, true, twin.pixel_size_A, (rows, cols), MARGIN_A)
    f, t = np.array(pairs).T
    order = [true.elements.index(e) for e in found.elements]
    wrong = np.abs(found.counts[f] - true.counts[t][:, order])
    error = (found.position_px[f] - true.position_px[t]) * twin.pixel_size_A
    error -= error.mean(0)
    z = np.abs(error / (found.sigma_px[f] * twin.pixel_size_A))
    exact = (wrong == 0).all(1)
    assert twin.fitted is not None
    seam = at_seams(true.position_px[t], (rows, cols), twin.fitted.microscope.delocalisation())
    number = len(cut((rows, cols), PIXEL_A, HALO_A)) if twin.fitted.bend is not None else 1
    rms = [100 * np.sqrt((e**2).mean()) for e in (error, error[seam])]
    cells = [
        *(f"{size:g}", str(phonons), str(asked_for), str(number), f"{exact.sum() / asked_for:.3f}"),
        *(f"{exact[seam].mean():.3f} of {seam.sum()}", f"{(wrong <= 1).all(1).mean():.3f}", str(invented)),
        *(f"{rms[0]:.2f}", f"{rms[1]:.2f}", f"{found.p_exact[f].mean():.2f}"),
        *(f"{(z < 1).mean():.2f} / {(z < 1.96).mean():.2f}", f"{twin.chi2_crystal:.3f}", minutes, gigabytes),
    ]
    return cells, tuple(n for n in twin.notes if "tiles" in n)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nm", type=float, nargs="+", default=[10.0])
    parser.add_argument("--phonons", type=int, default=8, help="configurations that an image averages")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where images and runs are kept")
    parser.add_argument("--reuse", action="store_true", help="score runs that are there")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    a = parser.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (a.keep or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        done = [measure(size, a.phonons, a.workers, folder, a.reuse) for size in a.nm]
    new = {cells[0]: cells for cells, _ in done}
    rows = {row[0]: row for row in known(a.out, HEAD)} | new
    body = table(HEAD, [rows[size] for size in sorted(rows, key=float)])
    notes = [f"- {cells[0]} nm: {note}" for cells, notes in done for note in notes]
    kept = a.out.read_text("utf-8").splitlines() if a.out.is_file() else []
    kept = [line for line in kept if line.startswith("- ") and line[2:].split()[0] not in new]
    said = "\n".join(sorted([*kept, *notes], key=lambda line: float(line[2:].split()[0])))
    about = (__doc__ or "").split("\n\n")[3].strip()
    a.out.write_text(
        f"# Fields in tiles\n\nWritten by `large_field.py`, two cores.\n{about}\n\n{body}\n\n{said}\n",
        "utf-8",
    )
    print(a.out.read_text("utf-8"))


if __name__ == "__main__":
    main()
