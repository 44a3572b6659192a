"""Make phantoms of crystals that nothing was tuned to, fit them and write benchmarks/unseen/results.md.

    PYTHONPATH=benchmarks python -m unseen [NAME …] [--folder FOLDER] [--reuse]

Plans state what a user would know, with the wrong pixel sizes of `suite.py`; answers serve scoring alone.
Rows of phantoms that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tables import updated

from unseen.phantoms import Spec, make
from unseen.suite import SUITE

HERE = Path(__file__).resolve().parent
HEAD = (
    *("phantom", "columns", "found", "invented", "exact by element", "exact, all", "within one"),
    *("position rms (pm)", "χ² crystal", "coverage 68 / 95 %", "p_exact mean / calibration error"),
    *("mistilt error (mrad, in σ)", "time (min)"),
)


def run(spec: Spec, folder: Path, reuse: bool) -> list[str]:
    """Fit one phantom unless it was done before; return its line of the table."""
    plan, out = folder / f"{spec.name}.toml", folder / "runs" / spec.name
    if not plan.is_file() or not (folder / "truth" / f"{spec.name}.json").is_file():
        make(spec, folder)
    if not (reuse and (out / "columns.csv").is_file()):
        command = [sys.executable, "-m", "qhrtem", "fit", str(plan), "--out", str(out), "--force"]
        done = subprocess.run(command, capture_output=True, text=True)
        (folder / f"{spec.name}.log").write_text(done.stdout + done.stderr, "utf-8")
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            why = said[-1].replace(f"error: {out}: ", "") if said else ""
            return [spec.name, f"refused with exit {done.returncode}: {why}"]
    return line(spec, folder, out)


def line(spec: Spec, folder: Path, out: Path) -> list[str]:
    """Return the scores of a finished run."""
    from qhrtem.io.twin import read_twin

    truth = folder / "truth" / f"{spec.name}.npz"
    scorer = [sys.executable, str(HERE.parent / "score.py"), str(out / "columns.csv"), str(truth), "--json"]
    s: dict[str, Any] = json.loads(subprocess.run(scorer, check=True, capture_output=True, text=True).stdout)
    if "by_element" not in s:
        return [spec.name, "no columns matched"]
    twin = read_twin(out)
    return [
        spec.name,
        str(s["columns_true"]),
        f"{s['found']:.3f}",
        str(s["invented"]),
        ", ".join(f"{e} {v:.2f}" for e, v in s["by_element"].items()),
        f"{s['exact_counts']:.3f}",
        f"{s['within_one']:.3f}",
        f"{s['position_rms_pm']:.2f}",
        f"{twin.chi2_crystal:.3f}",
        f"{s['coverage_68']:.2f} / {s['coverage_95']:.2f}",
        f"{s['p_exact_mean']:.2f} / {s['calibration_error']:.2f}",
        _tilt(spec, twin),
        f"{twin.history[-1].seconds / 60:.1f}",
    ]


def _tilt(spec: Spec, twin: Any) -> str:
    """Return the error of the mistilt along x and y of the image, in mrad and in claimed deviations."""
    import numpy as np

    turn = np.radians(spec.rotation_deg)
    c, s = np.cos(turn), np.sin(turn)
    true = np.array([[c, -s], [s, c]]) @ np.array(spec.mistilt)
    found = {e.name: e for e in twin.microscope}
    parts = []
    for k, name in enumerate(("tilt_x_mrad", "tilt_y_mrad")):
        error = found[name].value - true[k]
        parts.append(f"{error:+.1f} ({error / found[name].sigma:+.1f})")
    return ", ".join(parts)


def write(lines: list[list[str]], path: Path) -> None:
    """Write the table; phantoms that are not among the lines stay as they are there."""
    body = updated(path, HEAD, lines, [(s.name,) for s in SUITE])
    specs = "\n".join(f"- {_words(s)}" for s in SUITE)
    path.write_text(
        f"""# Crystals that nothing was tuned to

Written by `python -m unseen`. Images by abTEM and numpy (`phantoms.py`): Lobato potentials, 24 frozen-phonon
configurations with every atom on a pixel, rough surfaces, mistilt as a shear of the columns. Scored like
`../results.md`.

{body}

{specs}
""",
        "utf-8",
    )


def _words(spec: Spec) -> str:
    s = asdict(spec)
    cell = s.pop("cell")["name"]
    zone = "".join(str(v) for v in spec.zone)
    return (
        f"{spec.name}: {cell} [{zone}], {spec.field_A:g} Å, {spec.thickness_A:g} Å thick, "
        f"{spec.dose:g} e/Å², mistilt {spec.mistilt} mrad, stated pixel size × {spec.stated_pixel:g}, "
        f"shear {spec.shear:g}, waves of {spec.sampling_A:g} Å, {spec.foci} foci"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--folder", type=Path, help="where phantoms and runs are kept")
    parser.add_argument("--reuse", action="store_true", help="score runs that are there")
    parser.add_argument("--out", type=Path, default=HERE / "results.md")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (a.folder or Path(scratch)).resolve()
        lines = []
        for spec in SUITE:
            if not a.names or spec.name in a.names:
                lines.append(run(spec, folder, a.reuse))
                print(" | ".join(lines[-1]), flush=True)
                write(lines, a.out)


if __name__ == "__main__":
    main()
