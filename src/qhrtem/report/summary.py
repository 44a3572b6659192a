"""Physics of a twin in a table: means over the image with their error bars."""

from __future__ import annotations

from collections.abc import Callable

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.report.notation import value_and_sigma
from qhrtem.science.bonds import R0_A, composition, valence_sums
from qhrtem.science.charges import charges_of
from qhrtem.science.polarisation import CellMap, off_centring, polarisation
from qhrtem.science.strain import strain_map

Row = tuple[str, str, str, str, str]  # quantity, value ± s.d., unit, over what, note


def physics_rows(twin: Twin) -> list[Row]:
    """Return what the twin says about the specimen's physics; what it cannot say is left out."""
    parts: list[Callable[[Twin], list[Row]]] = [_polar, _polarised, _lattice, _valences, _atoms]
    rows: list[Row] = []
    for part in parts:
        try:
            rows += part(twin)
        except InputError:
            continue
    return rows


def _polar(twin: Twin) -> list[Row]:
    return _vector(off_centring(twin), 100.0, "pm")


def _polarised(twin: Twin) -> list[Row]:
    if charges_of(twin.columns.elements) is None:
        return []
    return _vector(polarisation(twin), 1.0, "µC/cm²")


def _vector(found: CellMap, factor: float, unit: str) -> list[Row]:
    rows = []
    for axis, direction in (("x", (1.0, 0.0)), ("y", (0.0, 1.0))):
        mean = found.along(direction).mean()
        value = value_and_sigma(factor * float(mean.value[0]), factor * float(mean.sigma[0]))
        note = (
            found.note
            if axis == "x"
            else f"errors widened {found.scatter:.2f} times by scatter of neighbours"
        )
        rows.append((f"{found.name}, {axis}", value, unit, f"{len(found.column)} cells", note))
    return rows


def _lattice(twin: Twin) -> list[Row]:
    found = strain_map(twin)
    over = f"{len(found.column)} columns"
    rows = []
    for name, estimate, unit in (
        ("a", found.a_A, "Å"),
        ("b", found.b_A, "Å"),
        ("axial ratio", found.ratio, "1"),
    ):
        mean = estimate.mean()
        note = "scale set by the crystal of the CIF" if unit == "Å" else "of the projected cell, 1 if cubic"
        rows.append(
            (
                f"projected {name}",
                value_and_sigma(float(mean.value[0]), float(mean.sigma[0])),
                unit,
                over,
                note,
            )
        )
    return rows


def _valences(twin: Twin) -> list[Row]:
    rows: list[Row] = []
    for element in twin.columns.elements:
        if element not in R0_A:
            continue
        try:
            found = valence_sums(twin, element)
        except InputError:
            continue
        mean = found.sum.mean()
        value = value_and_sigma(float(mean.value[0]), float(mean.sigma[0]))
        note = f"formal charge {found.formal}; depths as in the crystal"
        rows.append((f"valence of {element}", value, "v.u.", f"{len(found.column)} columns", note))
    return rows


def _atoms(twin: Twin) -> list[Row]:
    found = composition(twin)
    return [
        (f"{e} atoms", f"{int(n)} ± {s:.1f}", "1", "fitted region",
         f"in a mean cell {r:.3f} ± {d:.3f}, ideal {i:g}")
        for e, n, s, r, d, i in zip(
            found.elements, found.atoms, found.sigma, found.ratio, found.ratio_sigma, found.ideal, strict=True
        )
    ]  # fmt: skip
