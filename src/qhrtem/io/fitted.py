"""The parts of result.h5 for later computation: joint errors, and what the image was simulated from."""

from __future__ import annotations

from dataclasses import astuple

import h5py
import numpy as np
import torch
from scipy import sparse

from qhrtem.grid import Grid
from qhrtem.io.hdf5 import put, put_strings, strings
from qhrtem.model.forward import Field
from qhrtem.model.microscope import NAMES, Microscope
from qhrtem.model.sampling import COARSEST, Sampling
from qhrtem.model.twin import Fitted, ImagingErrors, PositionErrors
from qhrtem.physics.potential import Species
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import Crystal, project

ERROR_UNITS = {"column": "1", "element": "1", "axis": "1", "common_A": "angstrom"}
COLUMN_UNITS = {
    "kind": "1",
    "cell": "1",
    "anchor": "angstrom",
    "frame": "1",
    "rise": "angstrom",
    "shift": "angstrom",
    "first": "1",
    "last": "1",
}
GRIDS = ("grid", "image_grid")


def write_errors(file: h5py.File, errors: PositionErrors | None, imaging: ImagingErrors | None) -> None:
    """Store joint errors under /errors; the local covariance as compressed sparse rows."""
    if errors is not None:
        group = file.create_group("errors/position")
        for name, unit in ERROR_UNITS.items():
            put(group, name, getattr(errors, name), unit)
        put_strings(group, "common_name", errors.common_name)
        local = errors.local_A2.astype(np.float32)
        put(group, "local_A2", local.data, "angstrom^2")
        put(group, "indices", local.indices.astype(np.int32), "1")
        put(group, "indptr", local.indptr.astype(np.int64), "1")
        group.attrs["reach_A"] = errors.reach_A
        group.attrs["layout"] = "covariance = csr(local_A2, indices, indptr) + common_A common_A^T"
    if imaging is not None:
        put_strings(file, "errors/imaging/name", imaging.name)
        put(file, "errors/imaging/covariance", imaging.covariance, "product of the units in the names")


def read_errors(file: h5py.File) -> tuple[PositionErrors | None, ImagingErrors | None]:
    """Return the joint errors of a result, None where it holds none."""
    position = imaging = None
    if "errors/position" in file:
        g = file["errors/position"]
        size = len(g["column"])
        parts = (g["local_A2"][()], g["indices"][()], g["indptr"][()])
        position = PositionErrors(
            **{name: g[name][()] for name in ERROR_UNITS},
            common_name=strings(g, "common_name"),
            local_A2=sparse.csr_array(parts, shape=(size, size)),
            reach_A=float(g.attrs["reach_A"]),
        )
    if "errors/imaging" in file:
        imaging = ImagingErrors(strings(file, "errors/imaging/name"), file["errors/imaging/covariance"][()])
    return position, imaging


def write_fitted(file: h5py.File, fitted: Fitted | None) -> None:
    """Store under /model what the image was simulated from."""
    if fitted is None:
        return
    group = file.create_group("model")
    columns, field, m = fitted.columns, fitted.field, fitted.microscope
    for name, unit in COLUMN_UNITS.items():
        put(group, f"columns/{name}", getattr(columns, name), unit)
    put(group, "claimed", fitted.claimed, "1")
    put(group, "diffuse", fitted.diffuse, "vacuum")
    if fitted.bend is not None:
        put(group, "bend", fitted.bend, "rad/angstrom")
    _write_crystal(group, columns.projection.crystal, columns.projection.zone)
    put_strings(group, "microscope/name", NAMES)
    for part in ("values", "mean", "sigma"):
        put(group, f"microscope/{part}", getattr(m, part), "angstrom and rad, vacuum = 1")
    put(group, "microscope/energy", m.energy, "eV")
    put(group, "microscope/mtf", np.asarray(m.mtf), "formula (a, b), or q in cycles/pixel and value")
    for name in GRIDS:
        grid: Grid = getattr(field, name)
        put(group, f"field/{name}_shape", grid.shape, "px")
        put(group, f"field/{name}_pixel", grid.pixel, "angstrom")
    for part in ("image_shape", "pad", "ratio"):
        put(group, f"field/{part}", getattr(field, part), "px")
    put(group, "field/reference_z", field.reference_z, "angstrom")
    if field.pivot_z is not None:
        put(group, "field/pivot_z", field.pivot_z, "angstrom")
    put(group, "field/sampling", astuple(field.sampling), "angstrom")
    put(group, "field/foci", field.foci, "1")
    group["field"].attrs["table"] = field.table
    group["field"].attrs["dtype"] = str(field.grid.dtype).removeprefix("torch.")


def read_fitted(file: h5py.File) -> Fitted | None:
    """Return what the image of a result was simulated from, on the CPU; None where it is not stored."""
    if "model" not in file:
        return None
    group = file["model"]
    crystal, zone = _read_crystal(group)
    columns = ColumnModel(
        project(crystal, zone), **{name: group[f"columns/{name}"][()] for name in COLUMN_UNITS}
    )
    f = group["field"]
    dtype = getattr(torch, f.attrs["dtype"])
    grid, image_grid = (
        Grid(_pair(f, f"{name}_shape"), tuple(f[f"{name}_pixel"][()].tolist()), "cpu", dtype)
        for name in GRIDS
    )
    field = Field(
        grid,
        image_grid,
        image_shape=_pair(f, "image_shape"),
        pad=_pair(f, "pad"),
        ratio=_pair(f, "ratio"),
        reference_z=float(f["reference_z"][()]),
        foci=int(f["foci"][()]),
        table=str(f.attrs["table"]),
        pivot_z=float(f["pivot_z"][()]) if "pivot_z" in f else None,
        sampling=Sampling(*f["sampling"][()].tolist()) if "sampling" in f else COARSEST,
    )
    bend = group["bend"][()] if "bend" in group else None
    return Fitted(columns, group["claimed"][()], _read_microscope(group), field, group["diffuse"][()], bend)


def _read_microscope(group: h5py.Group) -> Microscope:
    """Return the imaging parameters; a parameter that a newer program added keeps its nominal value."""
    g = group["microscope"]
    stored = {name: n for n, name in enumerate(strings(g, "name"))}
    if set(NAMES) - set(stored):
        raise ValueError(f"parameters {sorted(set(NAMES) - set(stored))} are missing")
    order = [stored[name] for name in NAMES]
    values, mean, sigma = (g[part][()][order] for part in ("values", "mean", "sigma"))
    mtf = g["mtf"][()]
    return Microscope(
        float(g["energy"][()]), values, mean, sigma, (float(mtf[0]), float(mtf[1])) if mtf.ndim == 1 else mtf
    )


def _write_crystal(group: h5py.Group, crystal: Crystal, zone: tuple[int, int, int]) -> None:
    put(group, "crystal/cell", crystal.cell, "angstrom")
    put(group, "crystal/fractional", crystal.fractional, "1")
    put(group, "crystal/centring", crystal.centring, "1")
    put(group, "crystal/zone_axis", zone, "1")
    put_strings(group, "crystal/element", tuple(s.element for s in crystal.species))
    put(group, "crystal/b_iso", [s.b_iso for s in crystal.species], "angstrom^2")
    put(group, "crystal/occupancy", [s.occupancy for s in crystal.species], "1")
    put_strings(group, "crystal/name", (crystal.name,))
    put_strings(group, "crystal/notes", crystal.notes)


def _read_crystal(group: h5py.Group) -> tuple[Crystal, tuple[int, int, int]]:
    g = group["crystal"]
    columns = (strings(g, "element"), g["b_iso"][()].tolist(), g["occupancy"][()].tolist())
    species = tuple(Species(e, b, o) for e, b, o in zip(*columns, strict=True))
    name, notes = strings(g, "name")[0], strings(g, "notes")
    crystal = Crystal(name, g["cell"][()], g["fractional"][()], species, g["centring"][()], notes)
    u, v, w = (int(n) for n in g["zone_axis"][()])
    return crystal, (u, v, w)


def _pair(group: h5py.Group, name: str) -> tuple[int, int]:
    first, second = (int(n) for n in group[name][()])
    return first, second
