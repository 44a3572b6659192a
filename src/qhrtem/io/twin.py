"""The result of a run as files: columns.csv, structure files, microscope.json and result.h5, and back."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.fitted import read_errors, read_fitted, write_errors, write_fitted
from qhrtem.io.hdf5 import put, put_strings, storable, strings
from qhrtem.io.nexus import link_images
from qhrtem.io.structure_files import cel_text, cif_text, extxyz_text
from qhrtem.model.twin import Atoms, ColumnTable, Estimate, FurtherImage, Gate, Match, Step, Twin

FORMAT = "qhrtem-result"
VERSION = 2  # 2 added errors/, model/ and the NeXus entry; 1 is still read
# Written only if the gates hold.
CLAIMS = ("columns.csv", "structure.cif", "structure.extxyz", "structure.cel")

# Unit of every stored array; "1" is a pure number. The layout of result.h5 is this table.
COLUMN_UNITS = {
    "counts": "atoms",
    "position_px": "px",
    "sigma_px": "px",
    "element_position_px": "px",
    "displacement_A": "angstrom",
    "p_exact": "1",
    "top_A": "angstrom",
    "bottom_A": "angstrom",
    "inside": "1",
}
ATOM_UNITS = {
    "position_A": "angstrom",
    "occupancy": "1",
    "b_iso_A2": "angstrom^2",
    "sigma_A": "angstrom",
    "column": "1",
}
MATCH_UNITS = {"measured": "vacuum", "simulated": "vacuum", "sigma": "vacuum", "used": "1", "crystal": "1"}
SCALAR_UNITS = {
    "pixel_size_A": "angstrom",
    "thickness_A": "angstrom",
    "chi2_crystal": "1",
    "chi2_vacuum": "1",
}
FURTHER_SCALARS = ("chi2_crystal", "overlap")


def write_results(twin: Twin, folder: Path) -> None:
    """Write every result file of a run into `folder`, each appearing whole or not at all.

    When a quality gate failed nothing about the specimen is claimed: columns.csv and the structure files are
    left out (older ones removed), while microscope.json says `"passed": false` and result.h5 keeps the
    evidence. Raises ResourceError if a file cannot be written.
    """
    folder = Path(folder)
    # Every text is made before the first file is touched, so that a result no file can hold leaves no part.
    texts = {"microscope.json": microscope_text(twin)} | (_claims(twin) if twin.passed else {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in CLAIMS:
            (folder / name).unlink(missing_ok=True)
        replace_file(folder / "result.h5", lambda path: _write_h5(twin, path))
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        cause = error.strerror or str(error)
        raise ResourceError(
            f"{folder}: results cannot be written ({cause}); free space or choose another --out"
        ) from error


def read_twin(folder: Path) -> Twin:
    """Return the twin that `write_results` stored in result.h5 of a run folder.

    Raises InputError if the file is missing, damaged, of another format or of a newer version.
    """
    path = Path(folder) / "result.h5"
    if not path.is_file():
        raise InputError(f"{path}: no result here; give the folder of a finished run")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise InputError(f"{path}: not a {FORMAT} file; give the folder of a finished run")
            version = int(file.attrs["version"])
            if version > VERSION:
                raise InputError(
                    f"{path}: version {version}, this program reads up to {VERSION}; update qhrtem"
                )
            return _read_h5(file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged result ({error}); run the fit again or resume it") from error


def columns_text(table: ColumnTable) -> str:
    """Return columns.csv: one row a column; row, col and sigma in pixels, depths and displacements in Å."""
    elements = table.elements
    header = ["id", "kind", "row", "col", "sigma_row", "sigma_col"]
    header += [f"n_{e}" for e in elements] + ["p_exact", "top_A", "bottom_A"]
    header += [f"{axis}_{e}" for e in elements for axis in ("row", "col")] + ["dx_A", "dy_A", "inside"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for c, kind in enumerate(table.kind):
        row: list[object] = [c, kind, *_numbers(table.position_px[c], 5), *_numbers(table.sigma_px[c], 6)]
        row += [int(n) for n in table.counts[c]]
        row += _numbers([table.p_exact[c]], 6) + _numbers([table.top_A[c], table.bottom_A[c]], 4)
        row += _numbers(table.element_position_px[c].ravel(), 5) + _numbers(table.displacement_A[c], 5)
        writer.writerow([*row, int(table.inside[c])])
    return out.getvalue()


def microscope_text(twin: Twin) -> str:
    """Return microscope.json: each parameter with value, sigma (null if unknown), unit and status."""
    content: dict[str, Any] = {
        "format": "qhrtem-microscope",
        "version": VERSION,
        "passed": twin.passed,
        "pixel_size_A": _null_if_nan(twin.pixel_size_A),
        "parameters": _parameters(twin.microscope),
    }
    if twin.further:
        content["further_images"] = [
            {
                "path": f.path,
                "drift_px": [_null_if_nan(v) for v in f.drift_px],
                "chi2_crystal": _null_if_nan(f.chi2_crystal),
                "overlap": _null_if_nan(f.overlap),
                "parameters": _parameters(f.microscope),
            }
            for f in twin.further
        ]
    return json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _parameters(estimates: Sequence[Estimate]) -> dict[str, dict[str, Any]]:
    return {
        e.name: {
            "label": e.label,
            "value": _null_if_nan(e.value),
            "sigma": _null_if_nan(e.sigma),
            "unit": e.unit,
            "refined": bool(e.refined),
            "note": e.note,
        }
        for e in estimates
    }


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file so that `path` holds the old or the new content, never a part."""
    data = text.encode("utf-8", "backslashreplace")
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it onto `path`; clean up on failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is private; a result is as readable as its folder
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _claims(twin: Twin) -> dict[str, str]:
    texts = (columns_text(twin.columns), cif_text(twin), extxyz_text(twin), cel_text(twin))
    return dict(zip(CLAIMS, texts, strict=True))


def _write_h5(twin: Twin, path: Path) -> None:
    # In memory first: HDF5 does not survive a disk that fills up while it writes.
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        for name, unit in SCALAR_UNITS.items():
            put(file, name, getattr(twin, name), unit)
        put(file, "lattice_px", twin.lattice_px, "px")
        for group, part, units in _parts(twin):
            for name, unit in units.items():
                put(file, f"{group}/{name}", getattr(part, name), unit)
        put_strings(file, "columns/kind", twin.columns.kind)
        put_strings(file, "columns/elements", twin.columns.elements)
        put_strings(file, "atoms/element", twin.atoms.element)
        _put_records(file, "microscope", Estimate, twin.microscope)
        _put_records(file, "gates", Gate, twin.gates)
        _put_records(file, "history", Step, twin.history)
        file["history/seconds"].attrs["units"] = "s"
        put_strings(file, "rules/name", tuple(twin.rules))
        put(file, "rules/rejected", np.array(list(twin.rules.values()), dtype=np.int64), "candidates")
        put_strings(file, "notes", twin.notes)
        put_strings(file, "provenance/name", tuple(twin.provenance))
        put_strings(file, "provenance/value", tuple(twin.provenance.values()))
        write_errors(file, twin.position_errors, twin.imaging_errors)
        write_fitted(file, twin.fitted)
        for number, image in enumerate(twin.further):
            group = file.create_group(f"further/{number}")
            group.attrs["path"] = storable(image.path)
            put(group, "drift_px", np.array(image.drift_px), "px")
            for name in FURTHER_SCALARS:
                put(group, name, getattr(image, name), "1")
            _put_records(group, "microscope", Estimate, image.microscope)
        link_images(file, twin)
        file.flush()
        content = file.id.get_file_image()
    path.write_bytes(content)


def _read_h5(file: h5py.File) -> Twin:
    def arrays(group: str, units: dict[str, str]) -> dict[str, Any]:
        return {name: file[f"{group}/{name}"][()] for name in units}

    position_errors, imaging_errors = read_errors(file)
    return Twin(
        columns=ColumnTable(
            kind=strings(file, "columns/kind"),
            elements=strings(file, "columns/elements"),
            **arrays("columns", COLUMN_UNITS),
        ),
        atoms=Atoms(element=strings(file, "atoms/element"), **arrays("atoms", ATOM_UNITS)),
        microscope=_records(file, "microscope", Estimate),
        match=Match(**arrays("match", MATCH_UNITS)),
        lattice_px=file["lattice_px"][()],
        gates=_records(file, "gates", Gate),
        history=_records(file, "history", Step),
        rules=dict(zip(strings(file, "rules/name"), file["rules/rejected"][()].tolist(), strict=True)),
        notes=strings(file, "notes"),
        provenance=dict(
            zip(strings(file, "provenance/name"), strings(file, "provenance/value"), strict=True)
        ),
        position_errors=position_errors,
        imaging_errors=imaging_errors,
        fitted=read_fitted(file),
        further=tuple(_further(file[f"further/{n}"]) for n in range(len(file.get("further", ())))),
        **{name: float(file[name][()]) for name in SCALAR_UNITS},
    )


def _further(group: h5py.Group) -> FurtherImage:
    row, col = group["drift_px"][()].tolist()
    numbers = {name: float(group[name][()]) for name in FURTHER_SCALARS}
    path, lens = str(group.attrs["path"]), _records(group, "microscope", Estimate)
    return FurtherImage(path=path, drift_px=(row, col), microscope=lens, **numbers)


def _parts(twin: Twin) -> tuple[tuple[str, object, dict[str, str]], ...]:
    return (
        ("columns", twin.columns, COLUMN_UNITS),
        ("atoms", twin.atoms, ATOM_UNITS),
        ("match", twin.match, MATCH_UNITS),
    )


def _put_records(file: h5py.Group, group: str, kind: type, records: Sequence[Any]) -> None:
    """Store a sequence of records as one dataset a field."""
    for field in fields(kind):
        values = [getattr(record, field.name) for record in records]
        if field.type == "str":
            put_strings(file, f"{group}/{field.name}", values)
        else:
            dtype = {"float": np.float64, "int": np.int64, "bool": np.bool_}[str(field.type)]
            file.create_dataset(f"{group}/{field.name}", data=np.array(values, dtype=dtype))


def _records(file: h5py.Group, group: str, kind: type) -> tuple[Any, ...]:
    columns = []
    for field in fields(kind):
        name = f"{group}/{field.name}"
        columns.append(strings(file, name) if field.type == "str" else file[name][()].tolist())
    return tuple(kind(*values) for values in zip(*columns, strict=True))


def _numbers(values: Sequence[float] | NDArray[np.float64], decimals: int) -> list[object]:
    return [f"{float(v):.{decimals}f}" for v in values]


def _null_if_nan(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
