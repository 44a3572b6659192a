"""Structure files: the refined atoms as CIF (P1), extended XYZ and Dr. Probe CEL text.

Every format gets the same orthogonal box: x along detector columns, y along detector rows (downward), z along
the beam, right-handed. The periodic formats count from the corner of that box, which is stated in the file.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin

MARGIN_A = 1.0  # kept free around the atoms, so that no atom touches its periodic image
RESOLUTION_A = 2e-5  # coordinates are never rounded more coarsely than this


@dataclass(frozen=True)
class Box:
    """The orthogonal cell around the atoms."""

    origin_A: NDArray[np.float64]  # (3,) x, y, z of its corner in the frame of the twin
    length_A: NDArray[np.float64]  # (3,) edge lengths

    def fractional(self, position_A: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return fractional coordinates (N, 3) of Cartesian positions (N, 3) in Å."""
        return np.asarray((position_A - self.origin_A) / self.length_A)


def box_around(twin: Twin) -> Box:
    """Return the box that holds the imaged field, the simulated depth and every atom with a margin.

    Raises InputError where there is no atom or a coordinate is not finite.
    """
    position = twin.atoms.position_A
    if not len(position):
        raise InputError("a structure file needs at least 1 atom, got none; did the fit find any column?")
    if not np.isfinite(position).all():
        raise InputError("atom positions must be finite (Å), got nan or inf; the refinement diverged")
    rows, cols = twin.match.measured.shape
    field = np.array([cols * twin.pixel_size_A, rows * twin.pixel_size_A, twin.thickness_A])
    low = np.minimum(0.0, position.min(axis=0) - MARGIN_A)
    high = np.maximum(field, position.max(axis=0) + MARGIN_A)
    return Box(low, high - low)


def cif_text(twin: Twin) -> str:
    """Return the structure as CIF: one P1 cell, occupancies, B_iso, standard uncertainties in parentheses."""
    box = box_around(twin)
    atoms = twin.atoms
    document = gemmi.cif.Document()
    block = document.add_new_block("qhrtem")
    for axis, name in enumerate("abc"):
        block.set_pair(f"_cell_length_{name}", f"{box.length_A[axis]:.6f}")
    for name in ("alpha", "beta", "gamma"):
        block.set_pair(f"_cell_angle_{name}", "90")
    block.set_pair("_space_group_name_H-M_alt", gemmi.cif.quote("P 1"))
    block.set_pair("_space_group_IT_number", "1")
    block.init_loop("_space_group_symop_", ["operation_xyz"]).add_row([gemmi.cif.quote("x,y,z")])
    block.set_pair("_qhrtem_box_origin_A", gemmi.cif.quote(" ".join(f"{v:.6f}" for v in box.origin_A)))
    tags = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy", "B_iso_or_equiv"]
    loop = block.init_loop("_atom_site_", [*tags, "qhrtem_column"])
    # The lengths above are rounded, and a reader multiplies by what it reads.
    length = np.round(box.length_A, 6)
    fractional = (atoms.position_A - box.origin_A) / length
    sigma = atoms.sigma_A / length
    decimals = [max(0, math.ceil(-math.log10(RESOLUTION_A / edge))) for edge in length]
    for n, (element, label) in enumerate(zip(atoms.element, _labels(atoms.element), strict=True)):
        place = [with_uncertainty(fractional[n, k], sigma[n, k], decimals[k]) for k in range(3)]
        tail = [f"{atoms.occupancy[n]:.4f}", f"{atoms.b_iso_A2[n]:.4f}", str(int(atoms.column[n]))]
        loop.add_row([label, element, *place, *(_unknown_if_nan(text) for text in tail)])
    return str(document.as_string())


def with_uncertainty(value: float, sigma: float, least_decimals: int) -> str:
    """Return "value(su)" in CIF notation, su in units of the last digit; without "(su)" if sigma is not > 0.

    Two significant digits of sigma are kept, and never fewer than `least_decimals` decimals of the value.
    """
    if not (math.isfinite(sigma) and sigma > 0.0):
        return f"{value:.{least_decimals}f}"
    decimals = max(least_decimals, 1 - math.floor(math.log10(sigma)))
    if decimals > 12:  # finer than a double carries; the uncertainty is then zero for every purpose
        return f"{value:.{max(least_decimals, 12)}f}"
    return f"{value:.{decimals}f}({round(sigma * 10**decimals)})"


def ase_atoms(twin: Twin) -> Any:
    """Return the structure as `ase.Atoms`: Å, the frame of the twin, not periodic.

    Arrays `occupancy`, `b_iso_A2`, `sigma_A` (N, 3) and `column` (row of columns.csv) come along. Raises
    InputError where there is no atom or a coordinate is not finite.
    """
    import ase

    atoms, box = twin.atoms, box_around(twin)
    frame = ase.Atoms(
        symbols=list(atoms.element), positions=atoms.position_A, cell=np.diag(box.length_A), pbc=False
    )
    frame.set_array("occupancy", atoms.occupancy)
    frame.set_array("b_iso_A2", atoms.b_iso_A2)
    frame.set_array("sigma_A", atoms.sigma_A)
    frame.set_array("column", atoms.column)
    frame.info["box_origin_A"] = box.origin_A
    frame.info["pixel_size_A"] = float(twin.pixel_size_A)
    return frame


def extxyz_text(twin: Twin) -> str:
    """Return the structure as extended XYZ (Å, the frame of the twin, not periodic), one frame."""
    import ase.io

    out = io.StringIO()
    ase.io.write(out, ase_atoms(twin), format="extxyz", write_results=False)
    return out.getvalue()


def cel_text(twin: Twin) -> str:
    """Return the structure as Dr. Probe CEL text: edges in nm, fractions, occupancy, B in nm²."""
    box, atoms = box_around(twin), twin.atoms
    a, b, c = box.length_A / 10.0
    lines = [
        f"# qhrtem: {len(atoms.element)} atoms; x along detector columns, y along rows, z along the beam",
        f" 0 {a:.7f} {b:.7f} {c:.7f} 90.0000 90.0000 90.0000",
    ]
    for n, (x, y, z) in enumerate(box.fractional(atoms.position_A)):
        b_nm2 = 0.01 * np.nan_to_num(atoms.b_iso_A2[n])
        site = f"{x:.8f} {y:.8f} {z:.8f} {atoms.occupancy[n]:.6f} {b_nm2:.6f}"
        lines.append(f" {atoms.element[n]:2s} {site} 0.000000 0.000000 0.000000")
    return "\n".join([*lines, "*", ""])


def _labels(element: tuple[str, ...]) -> list[str]:
    seen: dict[str, int] = {}
    labels = []
    for name in element:
        seen[name] = seen.get(name, 0) + 1
        labels.append(f"{name}{seen[name]}")
    return labels


def _unknown_if_nan(text: str) -> str:
    return "?" if text == "nan" else text
