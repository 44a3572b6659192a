"""The files of a simulation: the image, what it was made with, and where the atoms are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import PlanError, ResourceError
from qhrtem.io.twin import columns_text, replace_file, write_text
from qhrtem.model.twin import ColumnTable

SUFFIXES = (".tif", ".tiff")


def paths_of(out: Path) -> tuple[Path, Path, Path]:
    """Return where the image, its parameters and its columns go."""
    return out, out.with_suffix(".json"), out.with_suffix(".columns.csv")


def check_out(out: Path, force: bool) -> None:
    """Raise `PlanError` where nothing must or can be written, before anything is computed."""
    if out.suffix.lower() not in SUFFIXES:
        raise PlanError(f"--out must be a TIFF file such as phantom.tif, got {out.name or out}")
    if out.is_dir():
        raise PlanError(f"{out}: --out must be a file, but it is a folder")
    if not out.parent.is_dir():
        raise PlanError(f"{out}: the folder {out.parent} does not exist; make it first")
    taken = [p.name for p in paths_of(out) if p.exists()]
    if taken and not force:
        raise PlanError(
            f"{out}: {', '.join(taken)} would be overwritten; choose another --out, or --force to replace"
        )


def write_simulation(
    out: Path, counts: NDArray[np.float32], pixel_size: float, facts: dict[str, Any], columns: ColumnTable
) -> None:
    """Write image, parameters and columns, each whole or not at all, the image last.

    pixel_size: Å. The TIFF holds float32 and its calibration in nm. Raises `ResourceError`
    where the disk refuses.
    """
    image, parameters, table = paths_of(out)
    text = json.dumps({"image": image.name, **facts}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_text(parameters, text)
        write_text(table, columns_text(columns))
        replace_file(image, lambda path: _write_tiff(path, counts, pixel_size))
    except OSError as error:
        for path in (parameters, table):
            path.unlink(missing_ok=True)
        cause = error.strerror or str(error)
        raise ResourceError(
            f"{out}: cannot be written ({cause}); free space or choose another --out"
        ) from error


def _write_tiff(path: Path, counts: NDArray[np.float32], pixel_size: float) -> None:
    import tifffile

    pitch = pixel_size / 10
    # ImageJ's unit, and DigitalMicrograph's unit and scale of y and x: readers know one or the other.
    tags = [(65003, "s", 0, "nm"), (65004, "s", 0, "nm"), (65009, "d", 1, pitch), (65010, "d", 1, pitch)]
    with path.open("wb") as file:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(counts, dtype=np.float32),
            imagej=True,
            resolution=(1 / pitch, 1 / pitch),
            metadata={"unit": "nm", "axes": "YX"},
            extratags=[(*tag, True) for tag in tags],
        )
