"""How the calibration holds on images it was not made for: phantoms turned, cut, misstated and spoilt.

    python benchmarks/calibration.py [--data ../shared/data] [--out benchmarks/calibration.md] [--only TEXT]

Each variant of a phantom goes through the calibration of a fit and its first model of the field (lattice,
orientation, columns). Truth serves for scoring alone: pixel size and rotation of the lattice, and columns of
the first model against the true ones. A refusal must name its reason. "wrong" in the table is an accepted
image with fewer than 98 % of the columns found, more than 1 % invented, 0.1 % of pixel size or 0.05 degree.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.engines.ours import Ours
from qhrtem.errors import QhrtemError
from qhrtem.model.micrograph import RawImage
from qhrtem.model.sampling import sampling_of
from qhrtem.plan import Plan, plan_from_tables
from qhrtem.simulate.phantom import make_phantom
from qhrtem.specimen.crystal import Projection, project, read_cif
from qhrtem.stages.averages import cell_averages
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.cell_match import CellMatch, orientations
from qhrtem.stages.checkpoint import Forgetful, Log, Parts
from qhrtem.stages.imaging import Hypothesis
from qhrtem.stages.start import planned_microscope, start_field

Floats = NDArray[np.float64]
EDGE_A = 6.0  # columns nearer to the image's edge are not scored, as in the shared scorer
MATCH_A = 0.7
FOCI_A = (10.0, 30.0, 45.0, 55.0, 65.0, 80.0)  # C1 tried for the first model
PUBLIC = {"bto_edge_small": "BaTiO3", "sto_wedge": "SrTiO3", "bto_edge": "BaTiO3"}


@dataclass(frozen=True)
class Case:
    """A phantom or what was made of it."""

    name: str
    clean: Floats  # [row, col], vacuum = 1, detector's MTF included
    columns: Floats  # (N, 2) true row, col
    frame: Floats  # (2, 2): lattice vector (x, y) in Å @ frame = (row, col), up to a symmetry
    cif: Path
    zone: tuple[int, int, int]
    known: dict[str, Any]  # [image] of the plan
    lens: dict[str, Any]  # [microscope] of the plan
    gain: float = 12.0
    offset: float = 100.0
    electrons: float = 250.0
    expect: str = "accept"  # or "refuse"
    stated: tuple[float, float] | None = None  # by the file
    spread: tuple[float, float] | None = None  # (a, b) by which the camera spreads the noise of the electrons
    spoil: tuple[Callable[[Floats, np.random.Generator], Floats], ...] = ()
    expected_columns: Floats | None = field(default=None, repr=False)

    def counts(self, seed: int = 5) -> Floats:
        """Return detector counts."""
        rng = np.random.default_rng(seed)
        sharp = np.maximum(self.clean, 0)
        drawn = rng.poisson(self.electrons * sharp)
        if self.spread is not None:
            drawn = self.electrons * sharp + blurred(drawn - self.electrons * sharp, *self.spread)
        counts = self.gain * drawn + self.offset
        counts = counts + 3.0 * rng.standard_normal(counts.shape)
        for change in self.spoil:
            counts = change(counts, rng)
        return counts


def public(data: Path) -> Iterator[Case]:
    """Yield the public phantoms as they are known to a user, with their truth for scoring."""
    for name, crystal in PUBLIC.items():
        facts = json.loads((data / "phantoms" / f"{name}.json").read_text())
        spec = json.loads((data / "phantoms" / "truth" / f"{name}.json").read_text())["spec"]
        truth = np.load(data / "phantoms" / "truth" / f"{name}.npz")
        pixel, turn = spec["pixel_A"], np.deg2rad(spec["rotation_deg"])
        frame = np.array([[np.sin(turn), np.cos(turn)], [np.cos(turn), -np.sin(turn)]]) / pixel
        known = {
            "pixel_size_A": facts["nominal_pixel_A"],
            "offset_counts": float(facts["offset_counts"]),
            "vacuum_counts": float(facts["vacuum_mean_counts"]),
            "gain_counts_per_electron": facts["gain_counts_per_electron"],
            "mtf": {"a": facts["mtf"]["a"], "b": facts["mtf"]["b"]},
        }
        lens = {"high_tension_kV": facts["energy_eV"] / 1e3, "c3_um": facts["nominal_C3_A"] / 1e4}
        electrons = (facts["vacuum_mean_counts"] - facts["offset_counts"]) / facts["gain_counts_per_electron"]
        yield Case(
            name,
            truth["clean"].astype(float),
            np.column_stack([truth["row"], truth["col"]]),
            frame,
            data / "structures" / f"{crystal}.cif",
            (1, 1, 0),
            known,
            lens,
            electrons=float(electrons),
        )


CONDITIONS: dict[str, dict[str, Any]] = {
    "1.2 nm, 1000 e/Å²": {"thickness_nm": 1.2, "dose_e_per_A2": 1e3},
    "8 nm, mistilt 9 mrad": {"thickness_nm": 8.0, "mistilt_mrad": (8.0, -5.0)},
    "steep wedge, 5000 e/Å², C1 9 nm, A1 4 nm, B2 80 nm": {
        "shape": "wedge",
        "wedge_mrad": 700.0,
        "thickness_nm": 0.8,
        "dose_e_per_A2": 5e3,
        "c1_nm": 9.0,
        "a1_nm": (3.0, -2.0),
        "b2_nm": (80.0, 0.0),
    },
}


def simulated(data: Path) -> Iterator[Case]:
    """Yield sound crystals under conditions that none of the public phantoms has, by our own simulator."""
    pixel, degrees = 0.11, 13.0
    turn = np.deg2rad(degrees)
    frame = np.array([[np.sin(turn), np.cos(turn)], [np.cos(turn), -np.sin(turn)]]) / pixel
    for crystal, zone in (("SrTiO3", (0, 0, 1)), ("BaTiO3", (1, 0, 0)), ("BaTiO3", (1, 1, 0))):
        cif = data / "structures" / f"{crystal}.cif"
        for condition, settings in CONDITIONS.items():
            asked = {"field_nm": (5.0, 5.0), "rotation_deg": degrees, "vacuum_nm": 1.2, **settings}
            lens = {"high_tension_kV": 300.0}
            plan = plan_from_tables(
                {
                    "image": {"path": "phantom.tif", "pixel_size_A": pixel},
                    "microscope": lens,
                    "structure": {"path": str(cif), "zone_axis": list(zone)},
                    "simulate": asked,
                }
            )
            phantom = make_phantom(plan, read_cif(cif), Ours())
            electrons = asked.get("dose_e_per_A2", 1e4) * pixel**2
            known = {
                "pixel_size_A": pixel,
                "offset_counts": 100.0,
                "vacuum_counts": 100.0 + 12.0 * electrons,
                "gain_counts_per_electron": 12.0,
                "mtf": {"a": 1.0, "b": 1.0},
            }
            yield Case(
                f"{crystal} [{' '.join(map(str, zone))}], {condition}",
                phantom.image.astype(float),
                phantom.columns.position_px,
                frame,
                cif,
                zone,
                known,
                lens,
                electrons=electrons,
            )


def moved(case: Case, name: str, matrix: Floats, share: float) -> Case:
    """Return the case under a linear map of (row, col) about its centre, the middle `share` of it kept."""
    shape = np.array(case.clean.shape)
    size = (shape * share).astype(int)
    old, new = (shape - 1) / 2, (size - 1) / 2
    inverse = np.linalg.inv(matrix)
    clean = ndimage.affine_transform(
        case.clean, inverse, old - inverse @ new, tuple(size), order=5, mode="nearest"
    )
    columns = (case.columns - old) @ matrix.T + new
    return replace(case, name=name, clean=clean, columns=columns, frame=case.frame @ matrix.T)


def turned(case: Case, degrees: float) -> Case:
    """Return the case turned about its centre, cut so that no corner is empty."""
    a = np.deg2rad(degrees)
    share = 1 / (abs(np.cos(a)) + abs(np.sin(a))) if degrees % 90 else 1.0
    matrix = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return moved(case, f"turned {degrees:g}°", matrix, max(share * 0.99, 0.7))


def window(case: Case, name: str, rows: slice, cols: slice, **changes: Any) -> Case:
    """Return a part of the case."""
    corner = np.array([rows.start or 0, cols.start or 0])
    return replace(case, name=name, clean=case.clean[rows, cols], columns=case.columns - corner, **changes)


def told(case: Case, name: str, expect: str = "accept", **known: Any) -> Case:
    """Return the case with other knowledge; None takes a key away."""
    kept = {k: v for k, v in {**case.known, **known}.items() if v is not None}
    return replace(case, name=name, known=kept, expect=expect)


def blurred(image: Floats, a: float, b: float) -> Floats:
    """Return an image after a camera with the transfer (1 - a)/(1 + (q/b)²) + a."""
    q = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    return np.fft.irfft2(np.fft.rfft2(image) * ((1 - a) / (1 + (q / b) ** 2) + a), s=image.shape)


def dead(counts: Floats, rng: np.random.Generator) -> Floats:
    """1 % dead pixels: half at the offset, half hot by a factor."""
    hit = rng.random(counts.shape)
    out = np.where(hit < 0.005, 100.0, counts)
    return np.where((hit >= 0.005) & (hit < 0.01), out * rng.uniform(1.8, 6), out)


def zingers(counts: Floats, rng: np.random.Generator) -> Floats:
    """0.1 % of the pixels hit, each with a tail on one side."""
    hit = rng.random(counts.shape) < 0.001
    height = 20000 * rng.random(counts.shape) + 5000
    return counts + hit * height + np.roll(hit * height, 1, 1) * 0.4


def amorphous(case: Case) -> Case:
    """Return the case with a blob of carbon film over the vacuum side and part of the crystal."""
    shape = np.array(case.clean.shape)
    rng = np.random.default_rng(8)
    noise = ndimage.gaussian_filter(rng.standard_normal(case.clean.shape), 0.9 * 9)
    noise -= ndimage.gaussian_filter(rng.standard_normal(case.clean.shape), 0.6 * 9) * 0.5
    y, x = np.mgrid[: shape[0], : shape[1]]
    centre = np.array([0.22, 0.8 if vacuum_right(case) else 0.2]) * shape
    inside = ndimage.gaussian_filter((np.hypot(y - centre[0], x - centre[1]) < 0.17 * shape[0]) * 1.0, 3)
    film = 0.93 + 0.09 * noise / noise.std()
    clean = case.clean * (1 - inside) + film * inside
    at = np.clip(np.round(case.columns).astype(int), 0, shape - 1)
    beyond = ((case.columns < 0) | (case.columns > shape - 1)).any(1)
    keep = (inside[at[:, 0], at[:, 1]] < 0.05) | beyond
    return replace(case, name="amorphous blob", clean=clean, columns=case.columns[keep])


def second_grain(case: Case) -> Case:
    """Return the case with the same crystal, turned by 33°, in the corner far from the vacuum."""
    shape = np.array(case.clean.shape)
    other = moved(case, "", _rotation(33.0), 1.0).clean
    y, x = np.mgrid[: shape[0], : shape[1]]
    across = x if vacuum_right(case) else shape[1] - x
    where = ((shape[0] - y) / shape[0] + across / shape[1]) < 0.5
    soft = ndimage.gaussian_filter(where * 1.0, 3)
    # The middle of the turned copy has no empty corners; the crystal's side of it is brought to the corner.
    side = -0.25 if vacuum_right(case) else 0.25
    part = np.roll(other, (int(0.25 * shape[0]), int(side * shape[1])), (0, 1))
    clean = case.clean * (1 - soft) + part * soft
    at = np.clip(np.round(case.columns).astype(int), 0, shape - 1)
    keep = soft[at[:, 0], at[:, 1]] < 0.05
    return replace(case, name="second grain", clean=clean, columns=case.columns[keep])


def _rotation(degrees: float) -> Floats:
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def vacuum_right(case: Case) -> bool:
    """Whether the vacuum lies on the right of the image."""
    third = case.clean.shape[1] // 3
    return bool(case.clean[:, -third:].std() < case.clean[:, :third].std())


def variants(case: Case) -> Iterator[Case]:
    """Yield everything that is made of one phantom."""
    rows, cols = case.clean.shape
    pixel = case.known["pixel_size_A"]
    yield replace(case, name="as it is")
    for degrees in (10, 45, 75, 90, 130, 180, 215, 260, 305, 350):
        yield turned(case, float(degrees))
    yield moved(case, "mirrored left-right", np.diag([1.0, -1.0]), 1.0)
    yield moved(case, "mirrored up-down", np.diag([-1.0, 1.0]), 1.0)
    yield window(case, "cropped", slice(rows // 6, rows), slice(0, 5 * cols // 6))
    for percent in (1, -1, 3, -3, 5, -5):
        yield told(case, f"pixel size {percent:+d} %", pixel_size_A=pixel * (1 + percent / 100))
    for factor in (2.0, 0.5, 10.0, 0.1, 2**0.5, 2**-0.5):
        stated = pixel * factor
        yield replace(
            told(case, f"pixel size × {factor:.3g}", "refuse", pixel_size_A=None), stated=(stated, stated)
        )
    yield told(case, "pixel size not stated", pixel_size_A=None)
    yield moved(case, "sheared 1 %", np.array([[1.0, 0.01], [0.0, 1.0]]), 0.98)
    stretch = moved(case, "rectangular pixels", np.diag([1 / 1.053, 1.0]), 0.98)
    yield replace(
        told(stretch, "rectangular pixels", "refuse", pixel_size_A=None), stated=(pixel * 1.053, pixel)
    )
    yield told(case, "MTF unknown", mtf=None)
    yield told(replace(case, spread=(0.35, 0.28)), "noise spread by the camera, MTF unknown", mtf=None)
    yield told(
        replace(case, spread=(0.35, 0.28)),
        "noise spread by the camera, intensity unknown",
        vacuum_counts=None,
        gain_counts_per_electron=None,
        mtf=None,
    )
    yield told(case, "offset unknown", offset_counts=None)
    yield told(
        case,
        "intensity unknown",
        offset_counts=None,
        vacuum_counts=None,
        gain_counts_per_electron=None,
        mtf=None,
    )
    crystal = slice(0, int(0.56 * cols)) if vacuum_right(case) else slice(int(0.44 * cols), cols)
    yield window(case, "no vacuum, level given", slice(0, rows), crystal)
    yield told(
        window(case, "", slice(0, rows), crystal),
        "no vacuum, level unknown",
        "refuse",
        vacuum_counts=None,
    )
    yield replace(case, name="1 % dead and hot pixels", spoil=(dead,))
    yield replace(case, name="0.1 % zingers", spoil=(zingers,))
    yield told(
        replace(case, spoil=(dead, zingers)),
        "dead pixels and zingers, vacuum to be found",
        vacuum_counts=None,
    )
    yield amorphous(case)
    yield second_grain(case)
    fewer = replace(case, electrons=case.electrons / 10)
    level = case.offset + case.gain * fewer.electrons
    yield told(fewer, "a tenth of the dose", vacuum_counts=level)


def score(case: Case, plan: Plan, raw: RawImage, projection: Projection) -> dict[str, Any]:
    """Calibrate, place the columns of the first model, and compare with the truth."""
    micrograph, lattice = calibrate(plan, raw, projection, Parts(Forgetful(), Log(lambda step: None)))
    microscope = planned_microscope(plan, micrograph.scale_sigma)
    averages = cell_averages(micrograph, lattice, lattice.pixel_size_A)
    misfit, best, match = min(
        (
            (match.best(lens)[0], lens, match)
            for symmetry in orientations(projection)
            for match in [
                CellMatch(averages, projection, lattice.frame * averages.pixel_A, symmetry, microscope.energy)
            ]
            for lens in (microscope.with_values(c1=c1) for c1 in FOCI_A)
        ),
        key=lambda found: found[0],
    )
    _, origin, thickness = match.best(best)
    hypothesis = Hypothesis(match.frame, best, origin, thickness, misfit)
    sampling = sampling_of(projection, microscope.energy)
    start = start_field(micrograph, lattice, projection, averages, hypothesis, sampling)
    keep = start.columns.occupied
    placed = start.field.to_detector(start.columns.group_position()[:, 0])[keep]
    out = {"misfit": misfit, **against(case, lattice.frame, lattice.vectors), **columns(case, placed)}
    out["sigma_pixel"] = 100 * lattice.pixel_size_sigma_A / lattice.pixel_size_A
    out["sigma_rotation"] = lattice.rotation_sigma_deg
    return out


def against(case: Case, frame: Floats, vectors: Floats) -> dict[str, float]:
    """Return errors of pixel size (%) and rotation (degrees) of a frame whose lattice is the true one."""
    true = vectors @ case.frame
    whole = np.round(true @ np.linalg.inv(vectors @ frame))
    if abs(abs(np.linalg.det(whole)) - 1) > 1e-6:
        return {"pixel": float("inf"), "rotation": float("inf")}
    change = np.linalg.inv(whole @ vectors @ frame) @ true
    return {
        "pixel": 100 * float(np.sqrt(abs(np.linalg.det(change))) - 1),
        "rotation": float(np.rad2deg(np.arctan2(change[0, 1] - change[1, 0], change[0, 0] + change[1, 1]))),
    }


def columns(case: Case, placed: Floats) -> dict[str, float]:
    """Return the shares of true columns found and of placed columns that are none."""
    pixel = 1 / np.sqrt(abs(np.linalg.det(case.frame)))
    margin, reach = EDGE_A / pixel, MATCH_A / pixel
    high = np.array(case.clean.shape) - 1 - margin

    def inner(p: Floats) -> Floats:
        return p[((p > margin) & (p < high)).all(1)]

    def nearest(a: Floats, b: Floats) -> Floats:
        return np.min(np.linalg.norm(a[:, None] - b[None], axis=-1), axis=1)

    mine, true = inner(placed), inner(case.columns)
    return {
        "found": float((nearest(true, placed) < reach).mean()),
        "invented": float((nearest(mine, case.columns) > reach).mean()) if len(mine) else 0.0,
        "columns": len(true),
    }


def run(case: Case) -> dict[str, Any]:
    """Return one row of the table."""
    begin = time.perf_counter()
    row: dict[str, Any] = {"variant": case.name, "expect": case.expect}
    try:
        plan = plan_from_tables(
            {
                "image": {"path": "phantom.tif", **case.known},
                "microscope": case.lens,
                "structure": {"path": str(case.cif), "zone_axis": list(case.zone)},
            }
        )
        projection = project(read_cif(case.cif), case.zone)
        raw = RawImage(case.counts(), "phantom.tif", case.stated)
        with torch.inference_mode():
            row |= score(case, plan, raw, projection)
        right = row["found"] >= 0.98 and row["invented"] <= 0.01
        right &= abs(row["pixel"]) <= 0.1 and abs(row["rotation"]) <= 0.05
        row["verdict"] = "right" if right and case.expect == "accept" else "wrong"
    except QhrtemError as error:
        row |= {"refusal": str(error), "verdict": "refused"}
    row["seconds"] = time.perf_counter() - begin
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as Markdown."""
    lines = [
        "| variant | verdict | found | invented | pixel (%) | rotation (°) | claimed σ (%, °) | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        verdict = r["verdict"]
        if verdict == "refused":
            verdict += ", as it must be" if r["expect"] == "refuse" else ""
            reason = r["refusal"].split(": ", 1)[-1]
            lines.append(f"| {r['variant']} | {verdict} | {reason} | | | | | {r['seconds']:.1f} |")
            continue
        lines.append(
            f"| {r['variant']} | {verdict} | {r['found']:.3f} of {r['columns']} | {r['invented']:.3f} | "
            f"{r['pixel']:+.3f} | {r['rotation']:+.3f} | {r['sigma_pixel']:.3f}, {r['sigma_rotation']:.3f} | "
            f"{r['seconds']:.1f} |"
        )
    return lines


def main() -> None:
    """Write the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=here.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=here / "calibration.md")
    parser.add_argument("--only", default="", help="variants whose name holds this text")
    parser.add_argument("--phantom", default="", help="phantoms whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Calibration on images it was not made for",
        "",
        "Written by `benchmarks/calibration.py`; what the columns mean stands there.",
        "",
    ]
    total: list[dict[str, Any]] = []
    for case in public(options.data):
        if options.phantom not in case.name:
            continue
        rows = []
        for made in variants(case):
            if options.only in made.name:
                rows.append(run(made))
                print(case.name, rows[-1], flush=True)
                # Written after each row, so that an interrupted run leaves what it has.
                text = [*lines, f"## {case.name}", "", *table(rows), ""]
                options.out.write_text("\n".join([text[0], "", summary([*total, *rows]), *text[1:]]))
        lines += [f"## {case.name}", "", *table(rows), ""]
        total += rows
    if options.phantom in "simulated":
        rows = []
        for case in simulated(options.data):
            if options.only in case.name:
                rows.append(run(case))
                print(rows[-1], flush=True)
                text = [*lines, "## Sound crystals, simulated", "", *table(rows), ""]
                options.out.write_text("\n".join([text[0], "", summary([*total, *rows]), *text[1:]]))


def summary(rows: list[dict[str, Any]]) -> str:
    """Return how many rows are as they should be, and the largest errors of the accepted ones."""
    right = [r for r in rows if r["verdict"] == ("right" if r["expect"] == "accept" else "refused")]
    took = [r for r in rows if "pixel" in r]
    said = f"{len(right)} of {len(rows)} as they should be."
    if not took:
        return said
    return (
        f"{said} Of {len(took)} accepted: found at least "
        f"{min(r['found'] for r in took):.3f}, invented at most {max(r['invented'] for r in took):.3f}, "
        f"pixel size within {max(abs(r['pixel']) for r in took):.3f} %, rotation within "
        f"{max(abs(r['rotation']) for r in took):.3f}°."
    )


if __name__ == "__main__":
    main()
