"""Own phantoms over dose, thickness and mistilt: what is found, how far off it is, and what is claimed.

    python benchmarks/sweep.py [--folder FOLDER [--reuse]] [--only NAME …] [--out FILE]

A wedge of BaTiO3 along [110] in a field of 1.8 nm, one quantity varied at a time; thermal motion by 32
frozen phonons, focus and source angle summed. The last lines make the image from waves of abTEM with
Kirkland's scattering factors, or without phonons. Columns are scored 2.5 Å inside the image. "Said": what
the run says of its counts by itself, the mean claimed probability that all counts of a column are exact.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tables import updated
from torch import Tensor

from qhrtem.commands.doctor import matched
from qhrtem.engines.abtem import AbTem
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import Job
from qhrtem.errors import InputError, QualityError
from qhrtem.model.twin import ColumnTable, Twin
from qhrtem.plan import plan_from_tables
from qhrtem.run.process import prepare

DATA = Path(__file__).resolve().parents[1] / "src/qhrtem/data"
MARGIN_A = 2.5
DOSE, THICKNESS, TILT = 2e4, 4.0, 1.0  # e/Å², nm, mrad: what stays while another varies
HEAD = (
    *("varied", "value", "columns", "found", "invented", "exact", "within one", "bias of counts"),
    *("said", "position rms (pm)", "coverage 68 / 95 %", "mistilt error (σ)", "time (min)"),
)


@dataclass(frozen=True)
class Point:
    """One phantom of the sweep."""

    varied: str
    value: str
    simulate: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.varied}_{self.value}".replace(" ", "_")


class Remembering(Ours):
    """Our engine, which images a wave that it has imaged before at no cost: images of one specimen differ in
    dose alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def exit_wave(self, job: Job) -> Tensor:
        """Return the wave behind the last slice, nothing where its image is known."""
        return torch.empty(0) if _key(job) in self.seen else super().exit_wave(job)

    def image(self, wave: Tensor, job: Job) -> Tensor:
        """Return the image of a wave."""
        if _key(job) not in self.seen:
            self.seen[_key(job)] = super().image(wave, job)
        return self.seen[_key(job)]


def _key(job: Job) -> int:
    return hash((job.cell.position.tobytes(), job.grid.shape, job.mistilt, job.thermal, str(job.lens)))


class Kirkland(Ours):
    """Waves of abTEM with Kirkland's scattering factors, imaged with every source angle."""

    waves = AbTem("kirkland")

    def check(self, job: Job) -> None:
        """Raise `PlanError` for a specimen that abTEM does not take."""
        self.waves.check(replace(job, mode="focal"))

    def exit_wave(self, job: Job) -> Tensor:
        """Return abTEM's wave behind the last slice."""
        return self.waves.exit_wave(job)


POINTS = (
    *(Point("dose", f"{d:g}", {"dose_e_per_A2": d}) for d in (100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)),
    *(Point("thickness", f"{t:g}", {"thickness_nm": t}) for t in (1.0, 2.0, 4.0, 6.0, 8.0)),
    *(Point("mistilt", f"{t:g}", {"mistilt_mrad": [0.8 * t, -0.6 * t]}) for t in (0.0, 2.0, 4.0, 8.0)),
    Point("physics", "Kirkland by abTEM", {"engine": "abtem"}),
    Point("physics", "no phonons", {"phonon_configurations": 0}),
)


def plan_tables(point: Point, image: Path) -> dict[str, Any]:
    """Return the plan of a point, [simulate] included."""
    simulate = {
        "shape": "wedge",
        "wedge_mrad": 250.0,
        "field_nm": [1.8, 1.8],
        "vacuum_nm": 0.4,
        "thickness_nm": THICKNESS,
        "rotation_deg": 4.0,
        "dose_e_per_A2": DOSE,
        "phonon_configurations": 32,
        "mode": "full",
        "seed": 5,
        "c1_nm": 5.0,
        "a1_nm": [0.6, -0.4],
        "b2_nm": [12.0, -8.0],
        "vibration_pm": [24.0, 26.0],
        "mistilt_mrad": [0.8 * TILT, -0.6 * TILT],
    }
    return {
        "image": {
            "path": image,
            "pixel_size_A": 0.12,
            "gain_counts_per_electron": 12.0,
            "offset_counts": 100.0,
        },
        "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
        "structure": {"path": DATA / "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        "simulate": {**simulate, **point.simulate},
    }


def made(point: Point, folder: Path, ours: Ours) -> tuple[Any, ColumnTable, tuple[int, int]]:
    """Make the image of a point and return its plan, without [simulate], its columns and its shape."""
    from qhrtem.simulate.files import write_simulation
    from qhrtem.simulate.phantom import make_phantom
    from qhrtem.specimen.crystal import read_cif

    image = folder / f"{point.name}.tif"
    given = plan_tables(point, image)
    plan = plan_from_tables(given, point.name)
    engine = Kirkland() if "engine" in point.simulate else ours
    phantom = make_phantom(plan, read_cif(plan.structure.path), engine)
    write_simulation(image, phantom.counts, phantom.pixel_size_A, phantom.facts, phantom.columns)
    given.pop("simulate")
    rows, cols = phantom.counts.shape
    return plan_from_tables(given, point.name), phantom.columns, (rows, cols)


def line(point: Point, folder: Path, reuse: bool, ours: Ours) -> list[str]:
    """Return the scores of a point, fitted now or before."""
    from qhrtem.commands.fit import fit_plan
    from qhrtem.io.twin import read_twin

    plan, truth, shape = made(point, folder, ours)
    out = folder / "runs" / point.name
    try:
        done = reuse and (out / "columns.csv").is_file()
        twin = read_twin(out) if done else fit_plan(plan, out, force=True)
    except (InputError, QualityError) as error:
        return [point.varied, point.value, f"refused: {str(error).rpartition('.tif: ')[2]}"]
    return [point.varied, point.value, *scores(point, twin, truth, shape)]


def scores(point: Point, twin: Twin, truth: ColumnTable, shape: tuple[int, int]) -> list[str]:
    """Return the cells of a finished run."""
    pixel, found = twin.pixel_size_A, twin.columns
    pairs, asked, invented = matched(found, truth, pixel, shape, MARGIN_A)
    f, t = np.array(pairs).T
    order = [truth.elements.index(e) for e in found.elements]
    wrong = found.counts[f] - truth.counts[t][:, order]
    error = (found.position_px[f] - truth.position_px[t]) * pixel
    error -= error.mean(0)
    z = np.abs(error / (found.sigma_px[f] * pixel))
    said = float(found.p_exact[f].mean())
    return [
        str(asked),
        f"{len(pairs) / asked:.2f}",
        str(invented),
        f"{(wrong == 0).all(1).mean():.2f}",
        f"{(np.abs(wrong) <= 1).all(1).mean():.2f}",
        f"{wrong.sum(1).mean():+.2f}",
        f"{said:.2f}",
        f"{100 * np.sqrt((error**2).mean()):.2f}",
        f"{(z < 1).mean():.2f} / {(z < 1.96).mean():.2f}",
        _tilt(twin, plan_tables(point, Path())["simulate"]["mistilt_mrad"]),
        f"{twin.history[-1].seconds / 60:.1f}",
    ]


def _tilt(twin: Twin, true: list[float]) -> str:
    known = {e.name: e for e in twin.microscope}
    found: list[NDArray[np.float64] | Any] = [known["tilt_x_mrad"], known["tilt_y_mrad"]]
    return ", ".join(f"{(e.value - v) / e.sigma:+.1f}" for e, v in zip(found, true, strict=True))


def write(lines: list[list[str]], path: Path) -> None:
    """Write the table; points that are not among the lines stay as they are there."""
    body = updated(path, HEAD, lines, [(p.varied, p.value) for p in POINTS])
    about = (__doc__ or "").split("\n\n")[2]
    path.write_text(f"# Dose, thickness and mistilt\n\nWritten by `sweep.py`. {about}\n{body}\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where images and runs are kept")
    parser.add_argument("--reuse", action="store_true", help="score runs that are there")
    parser.add_argument("--only", nargs="*", default=[], help="names of points; others stay as they were")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    a = parser.parse_args()
    prepare()
    lines, ours = [], Remembering()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (a.folder or Path(scratch)).resolve()
        (folder / "runs").mkdir(parents=True, exist_ok=True)
        for point in POINTS:
            if a.only and point.name not in a.only:
                continue
            begin = time.monotonic()
            lines.append(line(point, folder, a.reuse, ours))
            write(lines, a.out)
            print(json.dumps(lines[-1]), f"{time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
