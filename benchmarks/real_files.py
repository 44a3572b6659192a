"""Every file of the shared data: is it read as its origin says, and refused for a fit with the right reason?

    python benchmarks/real_files.py [--data ../shared/data] [--out benchmarks/real_files.md]

The expectations below are the statements of the SOURCES.md files beside the data, not what the program gave.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qhrtem.calibrate.claims import require_fittable
from qhrtem.calibrate.survey import survey
from qhrtem.errors import InputError
from qhrtem.io.micrograph import read_image
from qhrtem.plan import ImagePlan
from qhrtem.specimen.crystal import Crystal, read_cif

CIF = """data_{name}
_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {c}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma {gamma}
_space_group_name_H-M_alt '{group}'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""
# Textbook cells, for files whose material is known.
RUTILE = CIF.format(name="rutile", a=4.594, b=4.594, c=2.959, gamma=90, group="P 42/m n m")
RUTILE += "Ti 0 0 0\nO 0.3053 0.3053 0\n"
GRAPHENE = CIF.format(name="graphene", a=2.46, b=2.46, c=6.7, gamma=120, group="P 6/m m m")
GRAPHENE += "C 0.333333 0.666667 0\n"


@dataclass(frozen=True)
class Expected:
    """What a SOURCES.md says of a file."""

    name: str
    shape: tuple[int, int]
    pitch_A: tuple[float, float] | None = None  # (row, col)
    total: float | None = None  # sum of counts, of all frames
    frames: int = 1
    tension: float | None = None  # kV
    refused: str | None = None  # part of the sentence; None: nothing rules out a fit
    structure: str = ""
    lattice_A: tuple[float, float] | None = None  # pixel size that the crystal implies, and its tolerance


FILES = (
    Expected("formats/dmTest_float32_nonSquare_diffPixelSize.dm3", (64, 128), (2, 10), 520192, refused="pixels of 4.47"),
    Expected("formats/dmTest_float32_nonSquare_diffPixelSize.dm4", (64, 128), (2, 10), 520192, refused="pixels of 4.47"),
    Expected("formats/dmTest_3D_int16_64,65,66.dm3", (65, 64), (30, 0.02), 8648640, 66, refused="pixels of 0.77"),
    Expected("formats/test_STEM_image.dm3", (68, 68), (2.48538, 2.48538), 150998555, tension=200, refused="STEM"),
    Expected("formats/64x64_TEM_images_acquire.emi", (64, 64), (62.8183, 62.8183), 165050961, tension=200, refused="pixels of 62.8"),
    Expected("formats/64x64_TEM_images_acquire_1.ser", (64, 64), (62.8183, 62.8183), 165050961, tension=200, refused="pixels of 62.8"),
    Expected("formats/64x64_TEM_images_acquire.npy", (64, 64), None, 165050961),
    Expected("formats/64x64x5_TEM_preview.emi", (64, 64), (62.8183, 62.8183), 42890461.5, 5, 200, "pixels of 62.8"),
    Expected("formats/64x64x5_TEM_preview_1.ser", (64, 64), (62.8183, 62.8183), 42890461.5, 5, 200, "pixels of 62.8"),
    Expected("formats/fei_example_tem_stack.emd", (3, 3), (0.08172883, 0.08172883), 153, 2, 300, "3 × 3 pixels"),
    Expected("formats/Camera Ceta Imaging Micro.emd", (512, 512), (31.38837, 31.38837), -411708, tension=300, refused="not exposed"),
    Expected("formats/example_image.emd", (3, 3), None, 36, refused="3 × 3 pixels"),
    Expected("formats/temp.mrc", (128, 128), (2, 2), 24435.3, 3, refused="pixels of 2 Å"),
    Expected("formats/test_loading_image_saved_with_DM.tif", (68, 68), (1686.75, 1686.75), 15422830, refused="pixels of 1687"),
    Expected("formats/test_loading_image_saved_with_imageJ.tif", (68, 68), (1686.75, 1686.75), 15422830, refused="pixels of 1687"),
    Expected("real/graphene_flower_raw.tif", (256, 256), structure="graphene", lattice_A=(0.219, 0.003)),
    Expected("real/graphene_filtered.dm3", (512, 512), (0.13821, 0.13821), refused="mean of zero", structure="graphene", lattice_A=(0.13738, 0.001)),
    Expected("real/TiO2_0eV.tif", (256, 256), refused="8-bit", structure="rutile", lattice_A=(0.6146, 0.012)),
    Expected("real/16_STOimage_1.ser", (1024, 1024), (0.100127, 0.100127), tension=80, refused="STEM", structure="SrTiO3", lattice_A=(0.0967, 0.0006)),
    Expected("real/16_STOimage.emi", (1024, 1024), (0.100127, 0.100127), tension=80, refused="STEM"),
)  # fmt: skip


def check(expected: Expected, data: Path, crystals: dict[str, Crystal]) -> tuple[str, str, str, bool]:
    """Return what was read, the refusal, what the lattice says, and whether all is as expected."""
    path = data / expected.name
    wrong: list[str] = []
    if expected.frames > 1:
        try:
            read_image(path)
            wrong.append("a series was taken without asking")
        except InputError as error:
            if f"series of {expected.frames} frames" not in str(error):
                wrong.append(str(error))
    numbers = range(expected.frames) if expected.frames > 1 else [None]
    images = [read_image(path, frame=n) for n in numbers]
    raw = images[0]
    total = sum(float(i.counts.sum()) for i in images)
    if raw.counts.shape != expected.shape:
        wrong.append(f"shape {raw.counts.shape}")
    if (raw.pixel_size_A is None) != (expected.pitch_A is None):
        wrong.append(f"pixel size {raw.pixel_size_A}")
    elif raw.pixel_size_A is not None and expected.pitch_A is not None:
        if any(abs(a / b - 1) > 1e-4 for a, b in zip(raw.pixel_size_A, expected.pitch_A, strict=True)):
            wrong.append(f"pixel size {raw.pixel_size_A}")
    if expected.total is not None and abs(total / expected.total - 1) > 1e-5:
        wrong.append(f"sum {total}")
    crystal = crystals.get(expected.structure)
    found = survey(raw, ImagePlan(path=path), crystal)
    if found.claims.high_tension_kV != expected.tension:
        wrong.append(f"tension {found.claims.high_tension_kV}")
    refusal = ""
    try:
        require_fittable(raw)
    except InputError as error:
        refusal = str(error).split(": ", 1)[1]
    if bool(refusal) != (expected.refused is not None) or (expected.refused or "") not in refusal:
        wrong.append(f"refusal '{refusal}'")
    lattice = ""
    if crystal is not None:
        if found.lattice is None:
            wrong.append("no lattice")
        else:
            zone = " ".join(str(v) for v in found.zone or ())
            lattice = f"{crystal.name} [{zone}], {found.lattice.pixel_size_A:.4f} Å per pixel"
            lattice += f", distorted by {100 * found.lattice.shear:.1f} %"
            if raw.pixel_size_A is not None:
                lattice += f"; stated {100 * (raw.pixel_size_A[0] / found.lattice.pixel_size_A - 1):+.1f} %"
            size, tolerance = expected.lattice_A or (0.0, 0.0)
            if abs(found.lattice.pixel_size_A - size) > tolerance:
                wrong.append(f"lattice gives {found.lattice.pixel_size_A:.4f} Å")
    read = f"{expected.frames} × " if expected.frames > 1 else ""
    read += f"{raw.counts.shape[0]} × {raw.counts.shape[1]}, sum {total:.9g}"
    if raw.pixel_size_A is not None:
        read += f", {raw.pixel_size_A[0]:.6g} × {raw.pixel_size_A[1]:.6g} Å"
    if found.claims.high_tension_kV is not None:
        read += f", {found.claims.high_tension_kV:g} kV"
    if not refusal:
        refusal = "nothing against a fit in the file; " + ("; ".join(found.trouble) or "ready")
    if wrong:
        refusal += f" **WRONG: {'; '.join(wrong)}**"
    return read, refusal, lattice, not wrong


def main() -> None:
    """Write the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=here.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=here / "real_files.md")
    options = parser.parse_args()
    crystals = {"SrTiO3": read_cif(options.data / "structures" / "SrTiO3.cif")}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("rutile", RUTILE), ("graphene", GRAPHENE)):
            path = Path(folder) / f"{name}.cif"
            path.write_text(text, encoding="utf-8")
            crystals[name] = read_cif(path)
    rows, right = [], 0
    for expected in FILES:
        read, refusal, lattice, good = check(expected, options.data, crystals)
        right += good
        rows.append(f"| `{expected.name}` | {read} | {refusal} | {lattice} | {'yes' if good else 'NO'} |")
        print(rows[-1], flush=True)
    lines = [
        "# Files of other people",
        "",
        "Written by `benchmarks/real_files.py`: each file against what its SOURCES.md says.",
        "",
        f"{right} of {len(FILES)} as their origin says.",
        "",
        "| file | read | for a fit | lattice, with the crystal given and neither zone axis nor pixel size asked | right |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    options.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
