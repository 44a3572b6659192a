"""Small crystal structures for tests, as CIF text and as projections."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from qhrtem.specimen.crystal import Crystal, Projection, project, read_cif

HEAD = """data_{name}
_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {c}
_cell_angle_alpha {alpha}
_cell_angle_beta {beta}
_cell_angle_gamma {gamma}
_symmetry_space_group_name_H-M '{group}'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
_atom_site_B_iso_or_equiv
"""


def cif(
    name: str,
    edges: tuple[float, float, float],
    group: str,
    atoms: list[tuple[str, float, float, float, float, float]],
    angles: tuple[float, float, float] = (90, 90, 90),
) -> str:
    """Return CIF text; atoms: element, fractional x, y, z, occupancy, B in Å²."""
    a, b, c = edges
    alpha, beta, gamma = angles
    head = HEAD.format(name=name, a=a, b=b, c=c, alpha=alpha, beta=beta, gamma=gamma, group=group)
    rows = [f"{e}{n} {e} {x:.6f} {y:.6f} {z:.6f} {o} {u}" for n, (e, x, y, z, o, u) in enumerate(atoms, 1)]
    return head + "\n".join(rows) + "\n"


STRUCTURES = {
    "BaTiO3": cif(
        "BaTiO3",
        (3.994, 3.994, 4.036),
        "P 4 m m",
        [
            ("Ba", 0, 0, 0, 1, 0.5),
            ("Ti", 0.5, 0.5, 0.5224, 1, 0.6),
            ("O", 0.5, 0.5, 0.9756, 1, 0.75),
            ("O", 0.5, 0, 0.4895, 1, 0.75),
        ],
    ),
    "SrTiO3": cif(
        "SrTiO3",
        (3.905, 3.905, 3.905),
        "P m -3 m",
        [("Sr", 0, 0, 0, 1, 0.62), ("Ti", 0.5, 0.5, 0.5, 1, 0.44), ("O", 0.5, 0.5, 0, 1, 0.7)],
    ),
    "MgO": cif(
        "MgO", (4.212, 4.212, 4.212), "F m -3 m", [("Mg", 0, 0, 0, 1, 0.31), ("O", 0.5, 0.5, 0.5, 1, 0.34)]
    ),
    "CeO2": cif(
        "CeO2", (5.411, 5.411, 5.411), "F m -3 m", [("Ce", 0, 0, 0, 1, 0.3), ("O", 0.25, 0.25, 0.25, 1, 0.5)]
    ),
    "Si": cif("Si", (5.431, 5.431, 5.431), "F d -3 m :1", [("Si", 0, 0, 0, 1, 0.46)]),
    "Mg": cif("Mg", (3.209, 3.209, 5.211), "P 63/m m c", [("Mg", 1 / 3, 2 / 3, 0.25, 1, 1.2)], (90, 90, 120)),
    # Atoms of one column that lie on both sides of the edge of the projected cell.
    "distorted": cif(
        "distorted",
        (3.9, 3.9, 3.9),
        "P 1",
        [("Sr", 0, 0, 0, 1, 0.6), ("Ti", 0.47, 0.5, 0.53, 1, 0.4), ("Mg", 0.27, 0.25, 0.23, 1, 0.4)],
    ),
    "Ti": cif("Ti", (3.3, 3.3, 3.3), "I m -3 m", [("Ti", 0, 0, 0, 1, 0.5)]),
}


def crystal_of(text: str) -> Crystal:
    """Return the crystal of a CIF given as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structure.cif"
        path.write_text(text, "utf-8")
        return read_cif(path)


@lru_cache
def crystal(name: str) -> Crystal:
    """Return one of `STRUCTURES`."""
    return crystal_of(STRUCTURES[name])


@lru_cache
def projection(name: str, zone: tuple[int, int, int]) -> Projection:
    """Return one of `STRUCTURES` along a zone axis."""
    return project(crystal(name), zone)
