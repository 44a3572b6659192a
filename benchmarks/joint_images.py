"""Several images of one area against one of them: counts, positions and what is said of both.

    python benchmarks/joint_images.py [--only NAME …] [--keep FILE] [--out FILE]

A wedge of BaTiO3 along [110] with rough faces (each column up to a site longer or shorter at either end, at
random), in a field of 1.6 nm, thermal motion by 4 frozen-phonon configurations, drift of several Å between
images. "Alone": the first image. "Repeated": three images at C1 = 5 nm, each of the dose given. "Series":
C1 = 5, 9 and 13 nm. "One of three times the dose": what three times the electrons in one image would give.
Columns are scored 2 Å inside the first image. "Said": the mean probability that a run gives its counts.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import table

from qhrtem.commands.doctor import matched
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import configurations_of
from qhrtem.errors import InputError, QualityError
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import RawImage
from qhrtem.model.microscope import Microscope, nominal
from qhrtem.model.twin import ColumnTable, Twin
from qhrtem.physics.detector import add_noise
from qhrtem.physics.potential import Thermal
from qhrtem.plan import Plan, plan_from_tables
from qhrtem.run.process import prepare
from qhrtem.simulate.phantom import job_of
from qhrtem.simulate.specimen import Specimen, column_table, make_specimen
from qhrtem.specimen.crystal import project, read_cif
from qhrtem.stages.pipeline import fit_image

DATA = Path(__file__).resolve().parents[1] / "src/qhrtem/data"
PIXEL_A, FIELD_A, ROUND_A = 0.12, 16.0, 9.5  # field of an image, and how much larger the specimen is
MARGIN_A = 2.0
ROUGH = 1  # sites by which either end of a column differs at most
PHONONS = 4
DRIFTS_A = ((0.0, 0.0), (3.7, -2.2), (-2.6, 4.3))  # rows, columns
HEAD = (
    *("dose (e/Å²)", "images", "columns", "exact", "said", "position rms (pm)", "stated (pm)"),
    *("coverage 68 / 95 %", "C1 error (nm)", "drift error (pm)", "time (min)"),
)


@dataclass(frozen=True)
class Case:
    """What is fitted: the C1 (nm) of each image and the dose of each."""

    name: str
    c1_nm: tuple[float, ...]
    dose: float  # e/Å², each image


CASES = tuple(
    case
    for dose in (1000.0, 3000.0)
    for case in (
        Case("alone", (5.0,), dose),
        Case("repeated", (5.0, 5.0, 5.0), dose),
        Case("series", (5.0, 9.0, 13.0), dose),
        Case("one of three times the dose", (5.0,), 3 * dose),
    )
)


def plan_of() -> Plan:
    """Return the plan, [simulate] included."""
    return plan_from_tables(
        {
            "image": {
                "path": "phantom.tif",
                "pixel_size_A": PIXEL_A,
                "offset_counts": 0.0,
                "gain_counts_per_electron": 1.0,
            },
            "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
            "structure": {"path": DATA / "BaTiO3.cif", "zone_axis": [1, 1, 0]},
            "simulate": {
                "shape": "wedge",
                "wedge_mrad": 200.0,
                "field_nm": [(FIELD_A + ROUND_A) / 10] * 2,
                "vacuum_nm": (3.5 + ROUND_A / 2) / 10,
                "thickness_nm": 2.5,
                "rotation_deg": 4.0,
            },
        }
    )


def rough_specimen(plan: Plan, seed: int) -> Specimen:
    """Return the specimen with the ends of its columns moved at random."""
    assert plan.simulate is not None
    projection = project(read_cif(plan.structure.path), plan.structure.zone_axis)
    made = make_specimen(plan.simulate, projection, PIXEL_A, 3.0, refine=2)
    rng, columns = np.random.default_rng([seed, 7]), made.columns
    first, last = (
        end + rng.integers(-ROUGH, ROUGH + 1, len(columns)) for end in (columns.first, columns.last)
    )
    columns = columns.with_ends(first, np.maximum(last, first))
    exit_z = projection.origin + (int(columns.atoms().slice.max()) + 0.5) * projection.plane
    return Specimen(replace(made.field, reference_z=exit_z), columns)


def images_of(case: Case, seed: int) -> tuple[RawImage, ColumnTable]:
    """Return the images of a case, the further ones along with the first, and the columns of the first."""
    clean, table = clean_images(seed)
    raws = []
    for n, c1 in enumerate(case.c1_nm):
        generator = torch.Generator().manual_seed(1000 * seed + n)
        counts = add_noise(clean[n, c1], case.dose * PIXEL_A**2, 1.0, 0.0, 0.0, generator).numpy()
        raws.append(RawImage(counts, f"image {n + 1}"))
    return replace(raws[0], also=tuple(raws[1:])), table


@lru_cache
def clean_images(seed: int) -> tuple[dict[tuple[int, float], torch.Tensor], ColumnTable]:
    """Return the images of all cases without noise by place in the series and C1 (nm), and their columns."""
    plan = plan_of()
    specimen = rough_specimen(plan, seed)
    base = nominal(3e5).with_values(
        **{"a1_x": 6.0, "a1_y": -4.0, "b2_x": 120.0, "b2_y": -80.0, "tilt_x": 0.8e-3, "tilt_y": -0.6e-3},
        **{"vibration_xx": 0.24**2, "vibration_yy": 0.26**2, "b_scale": 1.0, "absorption": 1.0},
    )
    size, middle = round(FIELD_A / PIXEL_A), round(ROUND_A / PIXEL_A / 2)
    model = ForwardModel(specimen.field, base.energy)
    keys = sorted({(n, c1) for case in CASES for n, c1 in enumerate(case.c1_nm)})
    whole = [np.floor(np.array(d) / PIXEL_A).astype(int) for d in DRIFTS_A]
    lenses = []
    for n, c1 in keys:
        rest = np.array(DRIFTS_A[n]) - whole[n] * PIXEL_A
        # Each image has a lens of its own, as it would after some minutes.
        lenses.append(base.with_values(c1=10 * c1, a1_x=6.0 + 3 * n, shift_y=rest[0], shift_x=rest[1]))
    out = {}
    for key, lens, sharp in zip(keys, lenses, sharp_images(plan, specimen, lenses, seed), strict=True):
        everything = specimen.field.crop(model.detect(sharp, model.response(lens)))
        top, left = middle - whole[key[0]]
        out[key] = everything[top : top + size, left : left + size].double()
    table = column_table(specimen, (base["tilt_x"], base["tilt_y"]))
    moved = {name: getattr(table, name) - middle for name in ("position_px", "element_position_px")}
    return out, replace(table, **moved)


def sharp_images(plan: Plan, specimen: Specimen, lenses: list[Microscope], seed: int) -> list[torch.Tensor]:
    """Return what each lens makes of the specimen, averaged over the same frozen-phonon configurations."""
    assert plan.simulate is not None
    engine = Ours()
    jobs = [replace(job_of(specimen, lens, plan.simulate), thermal=Thermal(rigid=True)) for lens in lenses]
    total = [torch.zeros(jobs[0].grid.shape, dtype=torch.float64) for _ in lenses]
    warm = job_of(specimen, lenses[0], plan.simulate)
    for cell in configurations_of(warm, PHONONS, np.random.default_rng([seed, 3])):
        wave = engine.exit_wave(replace(jobs[0], cell=cell))
        for n, job in enumerate(jobs):
            total[n] += engine.image(wave, job)
    return [(t / PHONONS).to(jobs[0].grid.dtype) for t in total]


def scored(case: Case, twin: Twin, truth: ColumnTable) -> list[str]:
    """Return the cells of a finished fit."""
    size = round(FIELD_A / PIXEL_A)
    found, pixel = twin.columns, twin.pixel_size_A
    pairs, asked, _ = matched(found, truth, pixel, (size, size), MARGIN_A)
    f, t = np.array(pairs).T
    order = [truth.elements.index(e) for e in found.elements]
    exact = (found.counts[f] == truth.counts[t][:, order]).all(1)
    error = (found.position_px[f] - truth.position_px[t]) * pixel
    error -= error.mean(0)
    sigma = found.sigma_px[f] * pixel
    z = np.abs(error / sigma)
    lenses = [twin.microscope, *(i.microscope for i in twin.further)]
    c1 = [next(e for e in lens if e.name == "c1_nm") for lens in lenses]
    drift = [
        100 * np.linalg.norm(np.array(i.drift_px) * pixel - DRIFTS_A[n])
        for n, i in enumerate(twin.further, 1)
    ]
    away = [f"{e.value - true:+.2f} ± {e.sigma:.2f}" for e, true in zip(c1, case.c1_nm, strict=False)]
    return [
        str(asked),
        f"{exact.sum() / asked:.2f}",
        f"{found.p_exact[f].mean():.2f}",
        f"{100 * np.sqrt((error**2).mean()):.2f}",
        f"{100 * np.sqrt((sigma**2).mean()):.2f}",
        f"{(z < 1).mean():.2f} / {(z < 1.96).mean():.2f}",
        ", ".join(away),
        ", ".join(f"{d:.1f}" for d in drift) or "–",
    ]


def line(case: Case, seed: int) -> list[str]:
    """Return the line of the table of a case."""
    raw, truth = images_of(case, seed)
    plan, begin = plan_of(), time.monotonic()
    head = [f"{case.dose:g}", case.name]
    try:
        twin = fit_image(plan, raw, read_cif(plan.structure.path), _tell)
    except (InputError, QualityError) as error:
        return [*head, f"refused: {error}"]
    for note in (n for n in twin.notes if n.startswith("Image ")):
        print("  ", note, flush=True)
    failed = [g.name for g in twin.gates if not g.passed]
    if failed:
        print("   gates failed:", failed, flush=True)
    return [*head, *scored(case, twin, truth), f"{(time.monotonic() - begin) / 60:.1f}"]


def _tell(step: Any) -> None:
    print(f"   {step.stage} {step.iteration} χ² {step.chi2:.3f} {step.note} {step.seconds:.0f} s", flush=True)


def write(lines: list[list[str]], missing: list[str], path: Path) -> None:
    """Write the table, and which cases have not been measured."""
    body = table(HEAD, lines)
    about = (__doc__ or "").split("\n\n")[2].strip()
    left = f"\n\nNot measured yet (case and dose): {', '.join(missing)}.\n" if missing else "\n"
    title = "# Several images of one area"
    path.write_text(f"{title}\n\nWritten by `joint_images.py`. {about}\n\n{body}{left}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="names of cases, as 'series 1000'")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="JSON of finished lines, which are not computed again")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    a = parser.parse_args()
    prepare()
    kept = json.loads(a.keep.read_text("utf-8")) if a.keep and a.keep.is_file() else {}
    for case in CASES:
        name = f"{case.name} {case.dose:g}"
        if name not in kept and (not a.only or name in a.only):
            kept[name] = line(case, a.seed)
            if a.keep:
                a.keep.write_text(json.dumps(kept, ensure_ascii=False, indent=1), "utf-8")
            print(json.dumps(kept[name], ensure_ascii=False), flush=True)
    names = [f"{case.name} {case.dose:g}" for case in CASES]
    write([kept[n] for n in names if n in kept], [n for n in names if n not in kept], a.out)


if __name__ == "__main__":
    main()
