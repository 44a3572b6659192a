"""Crystals from objects of other libraries: ASE Atoms and gemmi small structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.physics.potential import Species
from qhrtem.specimen.crystal import DEFAULT_B, Crystal, _from_small, _refuse_overlap

Floats = NDArray[np.float64]
SAME_A = 1e-3  # Å, distance within which two atoms lie on one site


def crystal_from_gemmi(structure: Any, name: str = "crystal") -> Crystal:
    """Return the crystal of a `gemmi.SmallStructure`, occupancies and displacement factors kept.

    Raises InputError as `read_cif` does.
    """
    return _from_small(structure, Path(name), ())


def crystal_from_ase(atoms: Any, name: str = "crystal") -> Crystal:
    """Return the crystal of an `ase.Atoms` with a full cell.

    Arrays `b_iso` (Å²) and `occupancy` of the atoms are used where there are such; B is 0.5 Å² otherwise,
    which is noted. Raises InputError without a cell, atoms or with atoms on top of each other.
    """
    cell = np.asarray(atoms.cell[:], dtype=float)
    if abs(np.linalg.det(cell)) < 1.0 or not len(atoms):
        raise InputError(
            f"{name}: the Atoms must hold atoms in a cell of three vectors, as ase.build.bulk gives"
        )
    fractional = np.mod(np.asarray(atoms.get_scaled_positions(), dtype=float), 1.0)
    fractional[fractional > 1 - 1e-9] = 0.0
    given = atoms.arrays.get("b_iso")
    b = np.full(len(atoms), DEFAULT_B) if given is None else np.asarray(given, dtype=float)
    occupancy = np.asarray(atoms.arrays.get("occupancy", np.ones(len(atoms))), dtype=float)
    if not ((occupancy > 0) & (occupancy <= 1)).all() or not (b >= 0).all():
        raise InputError(f"{name}: occupancy must be within 0 to 1 and b_iso at least 0 Å²")
    symbols = atoms.get_chemical_symbols()
    species = [
        Species(s, float(round(v, 6)), float(o)) for s, v, o in zip(symbols, b, occupancy, strict=True)
    ]
    _refuse_overlap(fractional, cell, species, Path(name))
    notes = (
        () if given is not None else (f"No displacement factors were given; B = {DEFAULT_B} Å² was assumed.",)
    )
    return Crystal(name, cell, fractional, tuple(species), _centring(fractional, species, cell), notes)


def _centring(fractional: Floats, species: list[Species], cell: Floats) -> Floats:
    """Translations within the cell that map the crystal onto itself, (M, 3), the first zero."""
    found = [np.zeros(3)]
    for candidate in range(1, len(fractional)):
        if species[candidate] != species[0]:
            continue
        shift = np.mod(fractional[candidate] - fractional[0], 1.0)
        if all(
            any(
                s == t and np.linalg.norm(((f + shift - g) - np.round(f + shift - g)) @ cell) < SAME_A
                for g, t in zip(fractional, species, strict=True)
            )
            for f, s in zip(fractional, species, strict=True)
        ):
            found.append(shift)
    return np.array(found)
