"""Cut what the benchmark needs out of the Dr. Probe data: python -m optimiser.extract_targets FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from optimiser.lens import resampled

DATA = Path(__file__).parent / "data"
CELL = (60, 80)  # pixels of one cell of the repeated-cell images
PERIODS = (4, 8, 12)  # thicknesses of the exit waves
SURFACE = (160, 160)  # detector pixels kept of the 320 x 320 surface images
CELL_IMAGE = "focal_abs_t8_vibaniso"
SURFACE_IMAGES = ("focal_abs", "full_abs_abr")


def main(folder: Path) -> None:
    settings = {}
    with np.load(folder / "bto110_images.npz") as images:
        cell = images[CELL_IMAGE].reshape(4, CELL[0], 3, CELL[1]).mean((0, 2))
    with np.load(folder / "bto110_waves.npz") as waves:
        periods = [int(n) for n in waves["z_repeats"]]
        chosen = [waves["wave_dwf_abs"][periods.index(n)] for n in PERIODS]
        cell_waves = np.array([w.reshape(4, CELL[0], 3, CELL[1]).mean((0, 2)) for w in chosen])
    with np.load(folder / "bto110_surface_images.npz") as images:
        surface = {f"surface_{i}": resampled(images[i], SURFACE).astype(np.float32) for i in SURFACE_IMAGES}
    for prefix, name in (("cell", "bto110_images.json"), ("surface", "bto110_surface_images.json")):
        for image in json.loads((folder / name).read_text("utf-8"))["images"]:
            if image["id"] in (CELL_IMAGE, *SURFACE_IMAGES) and (prefix == "surface") == (
                image["id"] in SURFACE_IMAGES
            ):
                settings[f"{prefix}_{image['id']}"] = image
    rows = (folder / "bto110_surface.extxyz").read_text("utf-8").splitlines()[2:]
    element = np.array([r.split()[0] for r in rows])
    xyz = np.array([[float(v) for v in r.split()[1:4]] for r in rows])
    b_iso = np.array([float(r.split()[5]) for r in rows])
    arrays: dict[str, Any] = {
        f"cell_{CELL_IMAGE}": cell.astype(np.float32),
        "cell_waves": cell_waves.astype(np.complex64),
        "cell_wave_periods": np.array(PERIODS),
        **surface,
        "surface_element": element,
        "surface_xyz": xyz,
        "surface_b_iso": b_iso,
    }
    np.savez_compressed(DATA / "targets.npz", **arrays)
    (DATA / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
