"""The files that the Dr. Probe command line tools read and write: .cel, msa.prm, wavimg.prm and raw arrays.

Formats as the "howto" texts of celslc 1.2, msa 1.1 and wavimg 1.0 describe them (J. Barthel, Ultramicroscopy
193 (2018) 1; github.com/ju-bar/drprobe_clt). Lengths are nm, angles mrad or degrees. Aberrations are
χ = (2π/λ) Σ (1/m)|w|^(m-n) Re[conj(a) wⁿ]: a holds the cartesian parts of Krivanek's C_{m-1,n} with azimuth
atan2(a_y, a_x)/n, so a = 3·B2, 4·S3 and so on. Focal spread and semi-convergence are 1/e half widths; the
focal spread is √2 times the standard deviation that this package stores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import ResourceError
from qhrtem.physics.aberrations import to_krivanek
from qhrtem.physics.lens import Lens
from qhrtem.specimen.supercell import Slicing, Supercell

# Dr. Probe's number of each aberration; 0 is an image shift.
ABERRATIONS = {
    **{"C1": 1, "A1": 2, "B2": 3, "A2": 4, "C3": 5, "S3": 6, "A3": 7},
    **{"B4": 8, "D4": 9, "A4": 10, "C5": 11, "S5": 12, "R5": 13, "A5": 14},
}
OPEN_MRAD = 2500.0  # an aperture radius that means none
EDGE = 0.03  # default relative smoothness of the aperture's edge


def cel_text(cell: Supercell, slicing: Slicing, b_scale: float = 1.0) -> str:
    """Return a supercell as CEL text: edges in nm, fractions, occupancy, B in nm².

    Each atom is put into the middle of its slice, so that equal slices by `celslc -nz` hold the same atoms.
    """
    edge = np.cumsum(slicing.thickness)
    middle = edge - slicing.thickness / 2
    b, a = cell.extent[:2] / 10
    lines = [
        "# qhrtem: x along image columns, y along rows, z along the beam",
        f" 0 {a:.9f} {b:.9f} {edge[-1] / 10:.9f} 90.0000 90.0000 90.0000",
    ]
    place = np.mod(cell.position[:, [1, 0]] / cell.extent[[1, 0]], 1.0)
    depth = middle[slicing.index] / edge[-1]
    for k, (x, y), z in zip(cell.kind, place, depth, strict=True):
        s = cell.species[k]
        b_nm2 = 0.01 * s.b_iso * b_scale
        lines.append(f" {s.element:2s} {x:.9f} {y:.9f} {z:.9f} {s.occupancy:.6f} {b_nm2:.8f} 0.0 0.0 0.0")
    return "\n".join([*lines, "*", ""])


@dataclass(frozen=True)
class MsaParameters:
    """What msa has to know for an exit wave of a plane wave (`/ctem`)."""

    high_tension: float  # kV
    slice_files: str  # name in front of _001.sli
    slices: int  # number of slice files
    order: Sequence[int]  # slice of each step through the specimen, from 0
    tilt: tuple[float, float] = (0.0, 0.0)  # (x, y) of the object, degrees

    def text(self) -> str:
        """Return msa.prm; what concerns scanning only is set to nothing."""
        lines = [
            "'[Microscope Parameters]'",
            "0.0  ! probe-forming aperture, mrad",
            "0.0  ! inner detector radius, mrad",
            "100.0  ! outer detector radius, mrad",
            "0, ''  ! detector definition file: none",
            f"{self.high_tension:.6f}  ! electron energy, keV",
            "0.0  ! source radius, nm",
            "0.0  ! focal spread, nm",
            "2.0  ! width of the focal kernel",
            "1  ! size of the focal kernel",
            "0  ! number of aberrations: the exit wave is taken before the lens",
            "'[Multislice Parameters]'",
            f"{self.tilt[0]:.9f}  ! object tilt x, deg",
            f"{self.tilt[1]:.9f}  ! object tilt y, deg",
            "0.0  ! scan offset x, nm",
            "0.0  ! scan offset y, nm",
            "1.0  ! scan size x, nm",
            "1.0  ! scan size y, nm",
            "0.0  ! scan rotation, deg",
            "1  ! scan columns",
            "1  ! scan rows",
            "0  ! partial temporal coherence of STEM",
            "0  ! partial spatial coherence of STEM",
            "1  ! repeats of the cell along x",
            "1  ! repeats of the cell along y",
            "1  ! repeats of the cell along z, obsolete",
            f"'{self.slice_files}'  ! slice files",
            f"{self.slices}  ! number of slice files",
            "1  ! variants of each slice",
            "1  ! runs over variants",
            "0  ! readout period: the exit plane only",
            f"{len(self.order)}  ! slices in the object",
            *(str(i) for i in self.order),
        ]
        return "\n".join([*lines, ""])


@dataclass(frozen=True)
class WavimgParameters:
    """What wavimg has to know for an image on the sampling of the wave."""

    wave_file: str
    image_file: str
    shape: tuple[int, int]  # (rows, columns)
    pixel: tuple[float, float]  # (row, column), nm
    lens: Lens
    coherence_model: int = 1  # 1 sum over focus with a source envelope, 2 over focus and source angle
    vibration: tuple[float, float, float] = (
        0.0,
        0.0,
        0.0,
    )  # rms along two axes (nm), angle of the first (deg)

    def text(self) -> str:
        """Return wavimg.prm without MTF, noise, resampling and loops."""
        spread = math.sqrt(2) * float(self.lens.focal_spread) / 10
        source = float(self.lens.semi_convergence) * 1e3
        rows, cols = self.shape
        vibrates = 2 if any(self.vibration[:2]) else 0
        lines = [
            f"'{self.wave_file}'  ! wave",
            f"{cols}, {rows}  ! its columns, rows",
            f"{self.pixel[1]:.10E}, {self.pixel[0]:.10E}  ! its pixel x, y in nm",
            f"{self.lens.energy / 1e3:.6f}  ! high tension, kV",
            "0  ! output: image",
            f"'{self.image_file}'  ! image",
            f"{cols}, {rows}  ! its columns, rows",
            "0, 1.0, 1.0, 0.0  ! no integers, no noise",
            "0  ! no resampling",
            f"{self.pixel[1]:.10E}  ! output pixel, nm (unused)",
            "0.0, 0.0  ! output offset, px (unused)",
            "0.0  ! output rotation, deg (unused)",
            f"{self.coherence_model}  ! coherence model",
            f"{int(spread > 0)}, {spread:.9f}  ! focal spread, 1/e half width, nm",
            f"{int(source > 0)}, {source:.9f}  ! semi-convergence, 1/e half angle, mrad",
            "0, 1.0, ''  ! MTF: none",
            f"{vibrates}, {', '.join(f'{v:.9f}' for v in self.vibration)}  ! vibration, rms x, y in nm, deg",
            *self._aberrations(),
            *self._aperture(),
            "0  ! loops: none",
            # Read, and ignored, even without loops.
            *("1  ! loop class", "1  ! loop variable", "1  ! loop form", "0.0, 1.0, 2  ! loop range", "'_l'"),
        ]
        return "\n".join([*lines, ""])

    def _aberrations(self) -> list[str]:
        given = {ABERRATIONS[name]: _cartesian(name, value) for name, value in self.lens.aberrations.items()}
        lines = [f"{i}, {x:.9E}, {y:.9E}  ! aberration, nm" for i, (x, y) in sorted(given.items())]
        return [f"{len(lines)}  ! number of aberrations", *lines]

    def _aperture(self) -> list[str]:
        aperture = self.lens.aperture
        if aperture is None:
            return [f"{OPEN_MRAD:.1f}, {EDGE}  ! aperture, mrad: none", "0.0, 0.0  ! its centre, mrad"]
        x, y = (1e3 * v for v in aperture.centre)
        return [
            f"{1e3 * aperture.radius:.9f}, {aperture.smoothness:.9f}  ! aperture, mrad",
            f"{x:.9f}, {y:.9f}  ! its centre, mrad",
        ]


def _cartesian(name: str, value: complex | Tensor) -> tuple[float, float]:
    _, along, across = to_krivanek(name, complex(value))
    return along / 10, across / 10


def read_raw(path: Path, shape: tuple[int, int], complex_valued: bool) -> Tensor:
    """Return the raw array (rows, columns) that a tool wrote: complex64 waves, float32 images.

    Raises `ResourceError` where the file is missing or of another size.
    """
    kind = np.complex64 if complex_valued else np.float32
    wanted = shape[0] * shape[1] * np.dtype(kind).itemsize
    if not path.is_file():
        raise ResourceError(f"{path.name} was not written by Dr. Probe; run its tools by hand to see why")
    if path.stat().st_size != wanted:
        raise ResourceError(
            f"{path.name}: {shape[0]} × {shape[1]} pixels need {wanted} bytes, Dr. Probe wrote "
            f"{path.stat().st_size}; is this another version of its tools?"
        )
    values = np.fromfile(path, dtype=kind).reshape(shape)
    if not np.isfinite(values).all():
        raise ResourceError(f"{path.name}: Dr. Probe wrote numbers that are not finite; check the structure")
    return torch.as_tensor(values)
