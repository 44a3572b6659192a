"""Time to build the report of a large result, and its size.

    PYTHONPATH=tests python benchmarks/report_cost.py [--columns 1500] [--out FOLDER]

The result is the ideal BaTiO3 [110] crystal with errors of known covariance, so every figure is drawn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from qhrtem.report.figures import figures_of
from qhrtem.report.page import write_report
from specimens import twin_of_crystal

AREA_A2 = 3.8  # of one column in projection
PIXEL_A = 0.18


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--columns", type=int, default=1500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    radius = float(np.sqrt(options.columns * AREA_A2) / 2)
    twin = twin_of_crystal(radius=radius, size=int((2 * radius + 14) / PIXEL_A))
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        figures = figures_of(twin)
        path = write_report(twin, options.out or Path(folder), figures)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        size = path.stat().st_size / 1e6
    print(f"{len(twin.columns.kind)} columns, {len(twin.atoms.element)} atoms, {len(figures)} figures")
    print(f"report: {wall:.1f} s ({processor:.1f} s of processor time), {size:.1f} MB")


if __name__ == "__main__":
    main()
