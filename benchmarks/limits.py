"""What the photons allow: position errors against the Cramér-Rao bound, error bars and lens against truth.

    python benchmarks/limits.py RUN TRUTH.npz [RUN TRUTH.npz …] [--out FILE]

RUN is a finished run folder, TRUTH.npz its answer beside TRUTH.json. The bound is the inverse of the Fisher
information of all positions and imaging parameters together, with the priors of the fit and shot noise alone,
at the fitted state. Positions are those of the heaviest element of columns 6 Å inside the image, after one
rigid shift. The images of the answers are means over some frozen-phonon configurations (24), so a column of N
atoms stands off its place by the mean of 24·N displacements, √(B/8π²/24N), which no fit can know: columns
named "and phonons" count it in. The lens of the answer is in the frame of the sample and is turned into that
of the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from oracle import bench_of, matched, runs_and_answers
from score import heaviest_positions
from tables import table

from qhrtem.io.twin import read_twin
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import atomic_number
from qhrtem.stages.covariance import position_errors
from qhrtem.stages.joint import refine
from qhrtem.stages.structure import LENS, free_lens

Floats = NDArray[np.float64]
MARGIN_A = 6.0
POSITIONS = (
    "run",
    "kind",
    "columns",
    "error (pm)",
    "bound (pm)",
    "error / bound",
    "error / bound and phonons",
    "within 1, 1.96 σ",
    "within 1, 1.96 σ and phonons",
)
LENS_HEAD = ("run", "parameter", "true", "found", "σ", "error / σ")
# Parameter, unit of the twin in units of the answer, and order of rotation: aberrations turn n times as fast.
TURNED = (("a1", "A1", 0.1, 2), ("b2", "B2", 0.1, -1), ("a2", "A2", 0.1, 3))


def bound(run: Path) -> tuple[Floats, Any, Any]:
    """Return the bound (C, E, 2) in Å on the positions y, x of all elements, the state and the fit of a run.

    A rigid shift of all columns is taken out of what they have in common.
    """
    with torch.inference_mode():
        bench, state, fitted = bench_of(run)
        refined = refine(bench, state, free_lens(state, LENS), state.occupied(), 0)
    keep = np.asarray(fitted.claimed)
    errors = position_errors(refined, state.columns, keep, fitted.field.pivot)
    common = errors.common_A.astype(float)
    heaviest = _heaviest(state.columns)[keep]
    for axis in (0, 1):
        along = errors.axis == axis
        common[along] -= common[along & (errors.element == heaviest[errors.column])].mean(0)
    out = np.full((len(state.columns), len(state.columns.projection.elements), 2), np.nan)
    variance = errors.local_A2.diagonal() + (common**2).sum(1)
    out[keep[errors.column], errors.element, 1 - errors.axis] = np.sqrt(variance)
    return out, state, fitted


def _heaviest(columns: ColumnModel) -> NDArray[np.int64]:
    """Return the heaviest element (C,) that each column holds, as a number among those of the projection."""
    charge = np.array([atomic_number(e) for e in columns.projection.elements])
    return np.argmax(np.where(columns.element_counts() > 0, charge, 0), axis=1)


def positions(run: Path, answer: Path) -> list[list[str]]:
    """Return a line for each kind of column and one for all."""
    truth: Any = dict(np.load(answer))
    limit, state, fitted = bound(run)
    columns = state.columns
    index = matched(columns, fitted, truth)
    twin = read_twin(run)
    pixel = twin.pixel_size_A
    row = np.full(len(columns), -1)
    row[np.asarray(fitted.claimed)] = np.arange(len(twin.columns.kind))
    place = np.stack([truth["row"], truth["col"]], axis=1)
    shape, margin = np.array(truth["clean"].shape), MARGIN_A / pixel
    scored = ((place > margin) & (place < shape - 1 - margin)).all(1)
    use = np.flatnonzero((index >= 0) & (row >= 0) & columns.occupied & scored[index])
    heavy = heaviest_positions(truth)[index[use]]
    error = (twin.columns.position_px[row[use]] - heavy) * pixel
    error -= error.mean(0)
    sigma = twin.columns.sigma_px[row[use]] * pixel
    heaviest = _heaviest(columns)[use]
    least = limit[use, heaviest]
    elements = [columns.projection.elements[e] for e in heaviest]
    spec = json.loads(answer.with_suffix(".json").read_text("utf-8"))["spec"]
    number = columns.element_counts()[use, heaviest]
    square = np.array([spec["B"][e] for e in elements]) / (8 * np.pi**2)  # mean square displacement, Å²
    drawn = square / (spec["phonons"] * number)
    kind = np.array([columns.kind_of(int(c)).name for c in use])
    lines = []
    for name in [*sorted(set(kind)), "all"]:
        mine = kind == name if name != "all" else np.ones(len(kind), bool)
        rms, low = (float(np.sqrt((v[mine] ** 2).mean())) * 100 for v in (error, least))
        blur = drawn[mine]
        both = float(np.sqrt((least[mine] ** 2).mean() + blur.mean())) * 100
        cells = [str(int(mine.sum())), f"{rms:.2f}", f"{low:.2f}", f"{rms / low:.2f}", f"{rms / both:.2f}"]
        for width in (sigma[mine], np.sqrt(sigma[mine] ** 2 + blur[:, None])):
            z = np.abs(error[mine] / width)
            cells.append(f"{(z < 1).mean():.2f} / {(z < 1.96).mean():.2f}")
        lines.append([run.name, name, *cells])
    return lines


def lens(run: Path, answer: Path) -> list[list[str]]:
    """Return a line for each imaging parameter whose true value is known."""
    spec = json.loads(answer.with_suffix(".json").read_text("utf-8"))["spec"]
    found = {e.name: e for e in read_twin(run).microscope}
    turn = np.radians(spec["rotation_deg"])
    true: dict[str, float] = {"c3_um": spec["aberrations"]["C3"] * 1e-4}
    for name, key, factor, order in TURNED:
        x, y = spec["aberrations"].get(key, (0.0, 0.0))
        value = complex(x, y) * factor * np.exp(1j * order * turn)
        true[f"{name}_x_nm"], true[f"{name}_y_nm"] = value.real, value.imag
    for name in ("s3_x_um", "s3_y_um", "a3_x_um", "a3_y_um"):
        true[name] = 0.0
    true["focal_spread_nm"] = spec["focal_spread_A"] * 0.1
    true["semi_convergence_mrad"] = spec["semi_convergence_mrad"]
    tilt = complex(*spec["mistilt_mrad"]) * np.exp(1j * turn)
    true["tilt_x_mrad"], true["tilt_y_mrad"] = tilt.real, tilt.imag
    c, s = np.cos(turn), np.sin(turn)
    shake = np.array([[c, -s], [s, c]]) @ np.diag(np.square(spec["vibration_A"]) * 1e4)
    shake = shake @ np.array([[c, s], [-s, c]])
    true["vibration_xx_pm2"], true["vibration_yy_pm2"] = shake[0, 0], shake[1, 1]
    true["vibration_xy_pm2"], true["b_scale"], true["scale"] = shake[0, 1], 1.0, 1.0
    lines = []
    for name, value in true.items():
        e = found[name]
        cells = [f"{value:.4g}", f"{e.value:.4g}", f"{e.sigma:.2g}", f"{(e.value - value) / e.sigma:+.1f}"]
        lines.append([run.name, name, *cells])
    return lines


def main() -> None:
    pairs, out = runs_and_answers(__doc__, __file__)
    prepare()
    where = [line for run, answer in pairs for line in positions(run, answer)]
    imaging = [line for run, answer in pairs for line in lens(run, answer)]
    outside = [line for line in imaging if abs(float(line[-1])) > 3]
    about = (__doc__ or "").split("\n\n")[2]
    text = f"""# What the photons allow

Written by `python benchmarks/limits.py`. {about}

## Positions

{table(POSITIONS, where)}

## Imaging parameters

{len(imaging) - len(outside)} of {len(imaging)} are within 3 σ of the truth.

{table(LENS_HEAD, imaging)}
"""
    out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
