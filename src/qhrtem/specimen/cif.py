"""What a CIF must hold before a crystal is made of it: one structure, numbers, a symmetry that fits its cell.

gemmi parses the text and evaluates nothing. It is lenient, though: it takes 0 for a coordinate that is no
number, drops an operation that it cannot read, and prefers operations to a space group that contradicts them.
Each of these is another crystal, so each is refused here.
"""

from __future__ import annotations

import math
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError

LARGEST_FILE = 50_000_000  # bytes
MOST_ATOMS = 1000  # in a unit cell; more are a specimen, not the crystal it is made of
SHORTEST_EDGE_A, LONGEST_EDGE_A, SMALLEST_VOLUME_A3 = 1.5, 1000.0, 5.0
FLATTEST = 10.0  # degrees
FARTHEST = 100.0  # fractional; beyond it a coordinate is in other units or damaged
EMPTIEST_A3 = 30.0  # volume of an atom, from which a CIF without any symmetry is not taken for a whole cell
LARGEST_B_A2 = 30.0  # at its melting point a crystal has a few Å²
METRIC = 0.005  # relative misfit of cell edges and angles to the space group


def read_block(path: Path) -> tuple[gemmi.cif.Block, tuple[str, ...]]:
    """Return the structure in a CIF, the first where it holds several, and what must be told of that.

    Raises InputError where there is no readable structure.
    """
    if not path.is_file():
        raise InputError(f"structure file {path} does not exist; give the path of a CIF")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise InputError(
            f"{path} has {size / 1e6:.0f} MB, at most {LARGEST_FILE / 1e6:.0f} MB may be; give the CIF of "
            "the unit cell alone"
        )
    try:
        # Encodings that mark themselves are understood; of any other, only comments and names can suffer.
        data = path.read_bytes()
        marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if marked else "utf-8-sig", errors="replace")
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError, OSError) as error:
        cause = (str(error).splitlines() or ["no text"])[0].removeprefix("string:").strip()
        raise InputError(f"{path} is not a readable CIF ({cause}); export it again") from None
    blocks = [
        b for b in document if b.find_values("_atom_site_label") or b.find_values("_atom_site_type_symbol")
    ]
    if not blocks:
        raise InputError(f"{path} holds no atom sites; give a CIF of a crystal structure")
    notes = () if len(blocks) == 1 else (f"{path.name} holds {len(blocks)} structures; the first was used.",)
    _refuse_words(blocks[0], path)
    return blocks[0], notes


def _refuse_words(block: gemmi.cif.Block, path: Path) -> None:
    """Raise InputError where something that must be a number is none."""
    tags = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
    if not all(block.find_values(t) for t in tags):
        raise InputError(
            f"{path} gives no fractional coordinates; export it with _atom_site_fract_x, _y and _z"
        )
    for tag in tags:
        for text in block.find_values(tag):
            value = gemmi.cif.as_number(text)
            if not abs(value) <= FARTHEST:
                raise InputError(
                    f"{path}: {tag} must be a number within ±{FARTHEST:g} (a fraction of the cell), got "
                    f"{text[:40]!r}; write it as a decimal, e.g. 0.3333"
                )
    cell = [f"_cell_length_{n}" for n in "abc"] + [f"_cell_angle_{n}" for n in ("alpha", "beta", "gamma")]
    for tag in cell:
        text = block.find_value(tag)
        if not text or not math.isfinite(gemmi.cif.as_number(text)):
            got = f"got {text[:40]!r}" if text else "it is missing"
            raise InputError(f"{path} has no usable unit cell: {tag} must be a number, {got}")
        if "angle" in tag and not FLATTEST < gemmi.cif.as_number(text) < 180 - FLATTEST:
            raise InputError(
                f"{path} has no usable unit cell: {tag} must be {FLATTEST:g} to "
                f"{180 - FLATTEST:g}°, got {text}"
            )
    optional = ("occupancy", "B_iso_or_equiv", "U_iso_or_equiv")
    for tag in (f"_atom_site_{n}" for n in optional):
        for text in block.find_values(tag):
            if not gemmi.cif.is_null(text) and not math.isfinite(gemmi.cif.as_number(text)):
                raise InputError(
                    f"{path}: {tag} must be a number, got {text[:40]!r}; correct it or write '?'"
                )


def settle_symmetry(small: gemmi.SmallStructure, path: Path) -> tuple[str, ...]:
    """Set the space group by operations, names and number; return what must be told of it.

    Raises InputError where they cannot be read, contradict each other, do not fit the cell or leave open
    where its origin is.
    """
    for operation in small.symops:
        try:
            gemmi.Op(operation)
        except (ValueError, RuntimeError):
            raise InputError(
                f"{path}: symmetry operation {operation[:40]!r} cannot be read; write it as e.g. "
                "'x, y+1/2, -z'"
            ) from None
    if small.spacegroup is None and not small.symops:
        small.determine_and_set_spacegroup("S.H2N")
        small.setup_cell_images()
    group = small.spacegroup
    named = small.spacegroup_hm or (f"number {small.spacegroup_number}" if small.spacegroup_number else "")
    if group is None and not small.symops:
        if named:
            raise InputError(
                f"{path}: unknown space group {named[:40]!r}; write its symbol as in the International "
                "Tables, or list its symmetry operations"
            )
        return _no_symmetry(small, path)
    if group is not None and not small.symops and not small.spacegroup_hall and _two_origins(group, named):
        raise InputError(
            f"{path}: {named} has two choices of origin, and no symmetry operations are listed that tell "
            f"which; state '{group.hm}:1' or '{group.hm}:2', or export the CIF with its operations"
        )
    if group is not None and small.spacegroup_hm and small.symops:
        other = gemmi.find_spacegroup_by_name(small.spacegroup_hm)
        if other is not None and other.number != group.number:
            raise InputError(
                f"{path}: its {len(small.symops)} symmetry operations are those of {group.xhm()}, not of the "
                f"stated {small.spacegroup_hm}; export the CIF again or remove what is wrong"
            )
    if group is not None and not small.cell.is_compatible_with_spacegroup(group, METRIC):
        c = small.cell
        raise InputError(
            f"{path}: a cell of {c.a:g}, {c.b:g}, {c.c:g} Å and {c.alpha:g}, {c.beta:g}, {c.gamma:g}° does "
            f"not have the symmetry {group.xhm()}; correct the cell or the space group"
        )
    return ()


def _two_origins(group: gemmi.SpaceGroup, named: str) -> bool:
    """Return whether a name leaves open from which of two origins the coordinates count."""
    return group.ext in ("1", "2") and ":" not in named


def _no_symmetry(small: gemmi.SmallStructure, path: Path) -> tuple[str, ...]:
    share = small.cell.volume / max(len(small.sites), 1)
    if share > EMPTIEST_A3:
        raise InputError(
            f"{path} states no symmetry, and its {len(small.sites)} atoms are too few for the cell "
            f"({share:.0f} Å³ an atom); add the space group, or 'P 1' if these are all atoms"
        )
    return ("The CIF states no symmetry; its atoms were taken as the whole cell (P1).",)


def centring(small: gemmi.SmallStructure) -> NDArray[np.float64]:
    """Return the centring translations (M, 3) in fractions of the cell, the first zero."""
    if small.spacegroup is not None:
        operations = small.spacegroup.operations()
    elif small.symops:
        operations = gemmi.GroupOps([gemmi.Op(o) for o in small.symops])
    else:
        return np.zeros((1, 3))
    return np.array([[v / gemmi.Op.DEN for v in t] for t in operations.cen_ops])


def equivalent_u(small: gemmi.SmallStructure, block: gemmi.cif.Block | None) -> dict[str, float]:
    """Return U_eq in Å² by label of the atoms whose displacement is anisotropic only, as U or B."""
    out = {
        s.label: float(small.cell.calculate_u_eq(s.aniso))
        for s in small.sites
        if s.u_iso <= 0 and s.aniso.nonzero()
    }
    if block is None:
        return out
    parts = ["label", *(f"B_{ij}" for ij in ("11", "22", "33", "12", "13", "23"))]
    for row in block.find("_atom_site_aniso_", parts):
        values = [gemmi.cif.as_number(v) / (8 * math.pi**2) for v in list(row)[1:]]
        if all(math.isfinite(v) for v in values):
            out.setdefault(row.str(0), float(small.cell.calculate_u_eq(gemmi.SMat33d(*values))))
    return out


def require_cell(cell: gemmi.UnitCell, path: Path) -> None:
    """Raise InputError where a unit cell is none that atoms fit in."""
    edges = (cell.a, cell.b, cell.c)
    if not (min(edges) > SHORTEST_EDGE_A and cell.volume > SMALLEST_VOLUME_A3):
        angles = f"{cell.alpha:g}, {cell.beta:g}, {cell.gamma:g}"
        raise InputError(
            f"{path} has no usable unit cell (a, b, c = {', '.join(f'{e:g}' for e in edges)} Å, angles "
            f"{angles}°, volume {cell.volume:.3g} Å³); were lengths given in nm?"
        )
    if max(edges) > LONGEST_EDGE_A:
        raise InputError(
            f"{path} has no usable unit cell (a, b, c = {', '.join(f'{e:g}' for e in edges)} Å, at most "
            f"{LONGEST_EDGE_A:g} Å may be); were lengths given in pm?"
        )


def require_few(count: int, path: Path) -> None:
    """Raise InputError where a cell holds more atoms than a crystal to be counted in has."""
    if count > MOST_ATOMS:
        raise InputError(
            f"{path} holds {count} atoms in its cell, at most {MOST_ATOMS} may be; give the unit cell of the "
            "crystal, not a supercell"
        )
