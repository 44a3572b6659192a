"""The result of a series as files: series.h5 with a time axis, events.csv, and back."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.hdf5 import put, put_strings, storable, strings
from qhrtem.io.twin import replace_file, write_text
from qhrtem.model.series import Event, Frame, Series

FORMAT, VERSION = "qhrtem-series", 1
# Of each column in each frame: unit, and what stands where a frame does not show the column.
COLUMNS: dict[str, tuple[str, Any]] = {
    "counts": ("atoms", -1),
    "p_exact": ("1", math.nan),
    "p_changed": ("1", math.nan),
    "position_px": ("px", math.nan),
    "sigma_px": ("px", math.nan),
    "displacement_A": ("angstrom", math.nan),
    "top_A": ("angstrom", math.nan),
    "bottom_A": ("angstrom", math.nan),
    "inside": ("1", False),
}
FRAMES = {
    "number": "1",
    "drift_A": "angstrom",
    "drift_behind": "1",
    "lens": "as lens_unit",
    "lens_sigma": "as lens_unit",
    "chi2_crystal": "1",
    "seconds": "s",
}
EVENT = ("frame", "kind", "column", "probability", "before", "after", "moved_x_A", "moved_y_A", "lasted")


def write_series(series: Series, folder: Path) -> None:
    """Write series.h5 and events.csv into a folder, each whole or not at all.

    Raises ResourceError where the disk refuses.
    """
    try:
        replace_file(folder / "series.h5", lambda path: _write_h5(series, path))
        write_text(folder / "events.csv", events_text(series))
    except OSError as error:
        raise ResourceError(
            f"{folder}: the series cannot be written ({error.strerror or error}); free space or choose "
            "another --out"
        ) from error


def read_series(folder: Path) -> Series:
    """Return the series that `write_series` stored; raises InputError where none can be read."""
    path = Path(folder) / "series.h5"
    if not path.is_file():
        raise InputError(f"{path}: no series here; give the folder of a finished run with [series]")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or int(file.attrs["version"]) > VERSION:
                raise InputError(f"{path}: not a {FORMAT} file of version {VERSION} or before; update qhrtem")
            return _read_h5(file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged series ({error}); run the fit again") from error


def events_text(series: Series) -> str:
    """Return events.csv: one row an event, atoms as "Ba 6 O 12", movements against the lattice in Å."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(EVENT)
    for e in series.events:
        atoms = [_formula(series.elements, n) for n in (e.before, e.after)]
        moved = [f"{v:.4f}" for v in e.moved_A]
        writer.writerow(
            [e.frame, e.kind, series.name_of(e.site), f"{e.probability:.4f}", *atoms, *moved, int(e.lasted)]
        )
    return out.getvalue()


def _formula(elements: Sequence[str], counts: Sequence[int]) -> str:
    return " ".join(f"{e} {n}" for e, n in zip(elements, counts, strict=True) if n) or "none"


def table(series: Series, name: str) -> NDArray[Any]:
    """Return a property of columns as (frames, sites, …), sites as `site_list` has them."""
    place = {s: n for n, s in enumerate(site_list(series))}
    first = getattr(series.frames[0], name)
    out = np.full((len(series.frames), len(place), *first.shape[1:]), COLUMNS[name][1], dtype=first.dtype)
    for t, frame in enumerate(series.frames):
        rows = [place[_site(s)] for s in frame.site]
        out[t, rows] = getattr(frame, name)
    return out


def site_list(series: Series) -> list[tuple[int, int, int]]:
    """Return all sites that any frame shows, in a fixed order."""
    return sorted({_site(s) for f in series.frames for s in f.site})


def _site(row: NDArray[np.int64]) -> tuple[int, int, int]:
    return int(row[0]), int(row[1]), int(row[2])


def _write_h5(series: Series, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION})
        for name in ("kinds", "elements", "lens_name", "lens_unit", "dropped", "notes"):
            put_strings(file, name, getattr(series, name))
        put(file, "pixel_size_A", series.pixel_size_A, "angstrom")
        put(file, "interval_s", series.interval_s, "s")
        frames = file.create_group("frames")
        number = np.array([f.number for f in series.frames])
        put(frames, "time", number * series.interval_s, "s")
        for name, unit in FRAMES.items():
            put(frames, name, np.array([getattr(f, name) for f in series.frames]), unit)
        put_strings(frames, "source", [f.source for f in series.frames])
        put_strings(frames, "refused", [f.refused for f in series.frames])
        columns = file.create_group("columns")
        columns.attrs["axes"] = "frames, columns; site: kind, cell a, cell b"
        put(columns, "site", np.array(site_list(series), dtype=np.int64).reshape(-1, 3), "1")
        shown = np.zeros((len(series.frames), len(site_list(series))), dtype=bool)
        place = {s: n for n, s in enumerate(site_list(series))}
        for t, frame in enumerate(series.frames):
            shown[t, [place[_site(s)] for s in frame.site]] = True
        put(columns, "shown", shown, "1")
        for name, (unit, _) in COLUMNS.items():
            put(columns, name, table(series, name), unit)
        _write_events(file.create_group("events"), series)


def _write_events(group: h5py.Group, series: Series) -> None:
    e = series.events
    size = len(series.elements)
    put(group, "frame", np.array([v.frame for v in e], dtype=np.int64), "1")
    group.create_dataset(
        "kind", data=[storable(v.kind) for v in e], shape=(len(e),), dtype=h5py.string_dtype("utf-8")
    )
    put(group, "site", np.array([v.site for v in e], dtype=np.int64).reshape(-1, 3), "1")
    put(group, "probability", np.array([v.probability for v in e], dtype=float), "1")
    for name in ("before", "after"):
        put(group, name, np.array([getattr(v, name) for v in e], dtype=np.int64).reshape(-1, size), "atoms")
    put(group, "moved_A", np.array([v.moved_A for v in e], dtype=float).reshape(-1, 2), "angstrom")
    put(group, "lasted", np.array([v.lasted for v in e], dtype=bool), "1")


def _read_h5(file: h5py.File) -> Series:
    frames, columns = file["frames"], file["columns"]
    site, shown = columns["site"][()], columns["shown"][()]
    known = {name: columns[name][()] for name in COLUMNS}
    each = {name: frames[name][()] for name in FRAMES}
    source, refused = strings(frames, "source"), strings(frames, "refused")
    out = []
    for t in range(len(source)):
        values: dict[str, Any] = {name: known[name][t, shown[t]] for name in COLUMNS}
        for name in FRAMES:
            v = each[name][t]
            values[name] = v if isinstance(v, np.ndarray) else v.item()
        values |= {"site": site[shown[t]], "source": source[t], "refused": refused[t]}
        out.append(Frame(**{f.name: values[f.name] for f in fields(Frame)}))
    words = {n: strings(file, n) for n in ("kinds", "elements", "lens_name", "lens_unit", "dropped", "notes")}
    return Series(
        **{n: words[n] for n in ("kinds", "elements", "lens_name", "lens_unit")},
        pixel_size_A=float(file["pixel_size_A"][()]),
        interval_s=float(file["interval_s"][()]),
        frames=tuple(out),
        events=_read_events(file["events"]),
        dropped=words["dropped"],
        notes=words["notes"],
    )


def _read_events(group: h5py.Group) -> tuple[Event, ...]:
    kind = strings(group, "kind")
    names = ("frame", "site", "probability", "before", "after", "moved_A", "lasted")
    v = {name: group[name][()] for name in names}
    return tuple(
        Event(
            int(v["frame"][n]),
            kind[n],
            _site(v["site"][n]),
            float(v["probability"][n]),
            tuple(v["before"][n].tolist()),
            tuple(v["after"][n].tolist()),
            tuple(v["moved_A"][n].tolist()),
            bool(v["lasted"][n]),
        )
        for n in range(len(kind))
    )
