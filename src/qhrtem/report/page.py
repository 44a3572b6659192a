"""report.html: the whole result on one page that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import gemmi
import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from qhrtem.io.twin import write_text
from qhrtem.model.twin import Twin
from qhrtem.report.drawing import IMAGE_MAP, RESIDUAL_MAP, columns_xy, grey_range, spacing_A, style
from qhrtem.report.figures import RESIDUAL_SIGMA, figures_of
from qhrtem.report.notation import number, plain, standing, value_and_sigma
from qhrtem.report.summary import physics_rows
from qhrtem.report.verdict import key_numbers, verdict

CAPTIONS = {
    "match": "Measured and simulated image on one absolute scale (vacuum = 1), and their difference in units "
    "of the expected noise. A good match leaves no lattice in the difference.",
    "counts": "Atoms of each element in every column. Ringed columns have a probability below 90 % that all "
    "their counts are exact.",
    "displacement": "Displacement of each column's heaviest element from the ideal lattice. Arrows are "
    "magnified as stated; compare them with the standard deviation above each panel.",
    "surfaces": "Depth of the first and last atom of every column along the beam, and the specimen seen from "
    "the side.",
    "polarisation": "Displacement of the cation from the centre of its anion cage, as arrows over the image, "
    "and how many standard deviations it is long.",
    "profiles": "Polar displacement, and polarisation by Born effective charges, towards the edge and "
    "against thickness. Band: one standard deviation of the mean; dotted: its part that all cells share "
    "and that averaging does not reduce.",
    "strain": "Strain of the heaviest sublattice against its mean over the image, and the axial ratio of "
    "the projected cell.",
    "relief": "The two surfaces of the specimen, from the first and last atoms of its columns.",
    "posterior": "Imaging parameters that depend on each other most: one and two standard deviations of each "
    "pair, with their correlation.",
    "residual": "Left: pixel values of the difference against pure noise. Middle and right: its power "
    "spectrum; power above 1 at lattice reflections is structure the model missed.",
    "convergence": "Misfit against time, first of cell averages, then of the field. Points are trials, lines "
    "the best so far of each stage.",
    "lens": "Aberration phase across the aperture and the imaging parameters. C1 refers to the exit plane of "
    "the simulated specimen.",
}


def write_report(twin: Twin, folder: Path, figures: Mapping[str, Figure] | None = None) -> Path:
    """Write report.html into `folder` (atomically, no outside resource) and return its path.

    figures: those of `figures_of(twin)` where they were drawn already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    write_text(path, page_text(twin, figures))
    return path


def page_text(twin: Twin, figures: Mapping[str, Figure] | None = None) -> str:
    """Return the report as HTML; every string from outside is escaped, scripts are bound by their hash."""
    sheet, script = _template("report.css"), _template("report.js")
    interactive = twin.passed and len(twin.columns.kind) > 0
    library = (files("qhrtem.report") / "assets" / "3Dmol-min.js").read_text("utf-8") if interactive else ""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_template("report.html.j2")).render(
        policy=_policy(sheet, (library, script) if interactive else ()),
        sheet=Markup(sheet),
        script=Markup(script),
        library=Markup(library),
        physics=physics_rows(twin) if twin.passed else [],
        verdict=verdict(twin),
        numbers=key_numbers(twin),
        figures=_embedded(figures_of(twin) if figures is None else figures),
        view=_view(twin) if interactive else None,
        gates=[(g.name, number(g.value), number(g.limit), g.passed, g.meaning) for g in twin.gates],
        microscope=[
            (e.label, value_and_sigma(e.value, e.sigma), e.unit, standing(e), e.note) for e in twin.microscope
        ],
        rules=list(twin.rules.items()),
        notes=twin.notes,
        provenance=list(twin.provenance.items()),
        image_facts=_image_facts(twin),
    )


def _policy(sheet: str, scripts: tuple[str, ...]) -> str:
    """Allow embedded images and exactly this style sheet and these scripts, nothing from anywhere else."""
    allowed = f"default-src 'none'; img-src data:; style-src {_hash(sheet)}"
    if scripts:
        allowed += "; script-src " + " ".join(_hash(s) for s in scripts)
    return allowed + "; base-uri 'none'; form-action 'none'"


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _template(name: str) -> str:
    return (files("qhrtem.report") / "templates" / name).read_text(encoding="utf-8")


def _embedded(figures: Mapping[str, Figure]) -> list[dict[str, str]]:
    return [
        {"name": name, "caption": CAPTIONS[name], "source": _png_of_figure(figure)}
        for name, figure in figures.items()
    ]


def _png_of_figure(figure: Figure) -> str:
    out = io.BytesIO()
    with style():
        figure.savefig(out, format="png", dpi=150)
    return _data_uri(out)


def _png_of_image(image: NDArray[Any], cmap: str, low: float, high: float) -> str:
    out = io.BytesIO()
    imsave(out, np.nan_to_num(image), cmap=cmap, vmin=low, vmax=high, format="png")
    return _data_uri(out)


def _data_uri(out: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _view(twin: Twin) -> dict[str, Any]:
    """Return what the interactive image needs: three layers and one record a column."""
    match, table = twin.match, twin.columns
    low, high = grey_range(match.measured, match.simulated)
    residual = (match.measured - match.simulated) / match.sigma
    rows, cols = match.measured.shape
    elements = table.elements
    chi2 = column_chi2(twin)
    columns = [
        {
            "id": c,
            "kind": plain(kind, 40),
            "row": round(float(table.position_px[c, 0]), 3),
            "col": round(float(table.position_px[c, 1]), 3),
            "n": [int(n) for n in table.counts[c]],
            "p": _rounded(table.p_exact[c], 3),
            "sigma": [_rounded(100 * twin.pixel_size_A * s, 1) for s in table.sigma_px[c]],
            "shift": [_rounded(100 * d, 1) for d in table.displacement_A[c]],
            "top": _rounded(table.top_A[c], 2),
            "bottom": _rounded(table.bottom_A[c], 2),
            "inside": bool(table.inside[c]),
            "chi2": _rounded(chi2[c], 2),
        }
        for c, kind in enumerate(table.kind)
    ]
    return {
        "rows": rows,
        "cols": cols,
        "layers": [
            ("measured", _png_of_image(match.measured, IMAGE_MAP, low, high)),
            ("simulated", _png_of_image(match.simulated, IMAGE_MAP, low, high)),
            ("difference", _png_of_image(residual, RESIDUAL_MAP, -RESIDUAL_SIGMA, RESIDUAL_SIGMA)),
        ],
        "elements": list(elements),
        "data": _inert_json(
            {
                "rows": rows,
                "cols": cols,
                "pixel": round(twin.pixel_size_A, 6),
                "elements": list(elements),
                "radii": [_radius(e) for e in elements],
                "columns": columns,
                "atoms": _atoms(twin),
            }
        ),
    }


def _atoms(twin: Twin) -> dict[str, list[Any]]:
    """Return the atoms for the model: coordinates in Å, element and column by number."""
    atoms, names = twin.atoms, list(twin.columns.elements)
    known = np.array([e in names for e in atoms.element], dtype=bool)
    x, y, z = (np.round(atoms.position_A[known, k], 2).tolist() for k in range(3))
    element = [names.index(e) for e in atoms.element if e in names]
    return {"x": x, "y": y, "z": z, "element": element, "column": atoms.column[known].tolist()}


def _radius(element: str) -> float:
    """Return a radius (Å) to draw an atom with: a share of its covalent radius."""
    atom = gemmi.Element(element)
    return round(0.55 * atom.covalent_r, 2) if atom.atomic_number else 0.5


def column_chi2(twin: Twin) -> NDArray[np.float64]:
    """Return the reduced χ² (C,) of the pixels within half a column spacing; nan where none was used."""
    match, place = twin.match, twin.columns.position_px
    rows, cols = match.measured.shape
    reach = 0.5 * spacing_A(columns_xy(twin)) / twin.pixel_size_A
    square = ((match.measured - match.simulated) / match.sigma).astype(float) ** 2
    out = np.full(len(place), np.nan)
    for c, (row, col) in enumerate(place):
        r0, r1 = max(0, int(row - reach)), min(rows, int(row + reach) + 2)
        c0, c1 = max(0, int(col - reach)), min(cols, int(col + reach) + 2)
        y, x = np.mgrid[r0:r1, c0:c1]
        pick = ((y - row) ** 2 + (x - col) ** 2 <= reach**2) & match.used[r0:r1, c0:c1]
        if pick.any():
            out[c] = square[r0:r1, c0:c1][pick].mean()
    return out


def _inert_json(content: Any) -> Any:
    """Return JSON that cannot end the script element it stands in, marked as safe."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _rounded(value: float, decimals: int) -> float | None:
    return round(float(value), decimals) if np.isfinite(value) else None


def _image_facts(twin: Twin) -> list[tuple[str, str]]:
    rows, cols = twin.match.measured.shape
    field = f"{number(rows * twin.pixel_size_A / 10, 3)} × {number(cols * twin.pixel_size_A / 10, 3)} nm"
    a, b = (100.0 * twin.pixel_size_A * np.hypot(*v) for v in twin.lattice_px)
    return [
        ("Image", f"{rows} × {cols} pixels (rows × columns), {field}"),
        ("Pixel size", f"{number(twin.pixel_size_A, 5)} Å"),
        ("Projected cell", f"a {number(a, 4)} pm, b {number(b, 4)} pm"),
        ("Depth of the simulated box", f"{number(twin.thickness_A, 4)} Å"),
        ("Pixels in the misfit", f"{int(twin.match.used.sum())} of {rows * cols}"),
    ]
