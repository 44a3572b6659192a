"""Modulation transfer of a camera, read from the files in which it is handed on.

Four kinds are told apart by what they hold: two columns of text, a RELION star file, one column as Dr. Probe
reads it, and a line profile saved by DigitalMicrograph. All end as values against q in cycles per pixel of
the image, with the pixel's own sinc inside.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import PlanError

Floats = NDArray[np.float64]
NYQUIST, REACHED = 0.5, 0.49  # cycles/pixel; a curve sampled in bins may end a little before
FARTHEST = 0.75  # cycles/pixel; an image holds nothing beyond 0.71, the corner of its spectrum
TOP, AT_ZERO = 1.05, 0.05  # largest value, and departure from 1 at q = 0, that noise of a measurement leaves
LARGEST_FILE = 10_000_000  # bytes; no measured curve is longer
DIRECTIONS = 180  # over which the sinc of a square pixel is averaged
DM_SUFFIXES = (".dm3", ".dm4")
# Units of a profile's axis as programs write them → cycles/pixel.
PER_PIXEL = re.compile(r"(cycles?|1)?\s*(/|per)\s*(px|pix|pixels?)|(px|pix|pixels?)\s*(\^?\(?-1\)?|⁻¹)", re.I)
PER_NYQUIST = re.compile(r"(1?\s*/\s*|(fraction|share)\s+of\s+)?(nyquist|nyq\.?)", re.I)

Curve = tuple[tuple[float, ...], tuple[float, ...]]


def read_mtf(path: Path) -> Curve:
    """Return (q in cycles/pixel rising from 0 to 0.5 or beyond, modulation transfer, 1 at q = 0) of a file.

    Raises PlanError, naming the file, where it cannot be read or holds no such curve.
    """
    q, value = _profile(path) if path.suffix.lower() in DM_SUFFIXES else _text(path)
    if not (np.isfinite(q).all() and np.isfinite(value).all()):
        raise PlanError(f"{path}: the MTF must be finite numbers, got nan or inf; measure it again")
    if len(q) < 2 or q[0] != 0 or not (np.diff(q) > 0).all() or q[-1] < REACHED:
        got = f"{q[0]:g} to {q[-1]:g}" if len(q) else "none"
        raise PlanError(f"{path}: q must rise from 0 to 0.5 cycles/pixel (Nyquist) or beyond, got {got}")
    if q[-1] > FARTHEST:
        raise PlanError(
            f"{path}: q must end between 0.5 (Nyquist) and {FARTHEST:g} cycles/pixel, got {q[-1]:g}; a curve "
            "against the share of Nyquist must be halved, one in 1/nm multiplied by the pixel size"
        )
    if abs(value[0] - 1) > AT_ZERO or not ((value >= 0) & (value <= TOP)).all():
        got = f"{value[0]:g} at q = 0, {value.min():g} to {value.max():g}"
        raise PlanError(
            f"{path}: the MTF must be 1 at q = 0 and within 0 to 1, got {got}; is it in per cent?"
        )
    return tuple(q.tolist()), tuple(value.tolist())


def pixel_transfer(q: Floats) -> Floats:
    """Return sinc(q_y) sinc(q_x), the transfer of a square pixel, averaged over directions; q: cycles/pixel.

    The average departs from the product by at most 0.13 % up to 0.3 cycles/pixel and 1.2 % at Nyquist.
    """
    angle = (np.arange(DIRECTIONS) + 0.5) * math.pi / (2 * DIRECTIONS)
    return np.asarray((np.sinc(np.outer(q, np.cos(angle))) * np.sinc(np.outer(q, np.sin(angle)))).mean(1))


def _text(path: Path) -> tuple[Floats, Floats]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise PlanError(f"{path}: too large for an MTF file; give a curve, e.g. two columns of text")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        cause = error.strerror or error
        raise PlanError(f"{path}: the MTF file cannot be read ({cause}); check [image] mtf") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}: the MTF file is no text; give two columns, q and MTF, or a .dm3") from error
    rows = [re.split(r"[#!]", line)[0].replace(",", " ").replace(";", " ").split() for line in lines]
    # The head of a star file: names of a block and of its columns.
    rows = [r for r in rows if r and not re.match(r"(data_|loop_|_)", r[0])]
    try:
        if rows and all(len(r) == 1 for r in rows):
            return _counted([float(r[0]) for r in rows], path)
        q, value = zip(*((float(a), float(b)) for a, b in rows), strict=True)
    except ValueError as error:
        raise PlanError(
            f"{path}: must hold two columns of numbers, q in cycles/pixel and the MTF, or one column as Dr. "
            "Probe reads it: the number of values up to Nyquist, then the values"
        ) from error
    return np.array(q), np.array(value)


def _counted(numbers: list[float], path: Path) -> tuple[Floats, Floats]:
    """Return the curve of a Dr. Probe file: a count, then values from q = 0 in equal steps, Nyquist the last.

    The pixel is not in these values: wavimg multiplies by its sinc, and so does this.
    """
    count, values = numbers[0], np.array(numbers[1:])
    if count != round(count) or count < 2:
        raise PlanError(
            f"{path}: a single column must begin with the number of values up to Nyquist, as Dr. Probe "
            f"writes it, got {count:g}; or give two columns, q in cycles/pixel and the MTF"
        )
    if len(values) < count:
        raise PlanError(
            f"{path}: promises {count:g} values up to Nyquist and holds {len(values)}; was the file cut?"
        )
    q: Floats = NYQUIST / (count - 1) * np.arange(len(values), dtype=np.float64)
    kept = q <= FARTHEST
    return q[kept], values[kept] * pixel_transfer(q[kept])


def _profile(path: Path) -> tuple[Floats, Floats]:
    """Return the curve of a line profile of DigitalMicrograph, whose axis must say what its unit is."""
    if not path.is_file():
        raise PlanError(f"{path}: the MTF file does not exist; check [image] mtf")
    from rsciio.digitalmicrograph import file_reader

    try:
        signals = [s for s in file_reader(str(path)) if np.squeeze(s["data"]).ndim == 1]
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise PlanError(
            f"{path}: cannot be read as a profile of DigitalMicrograph ({cause}); save it again, or as two "
            "columns of text"
        ) from error
    if not signals:
        raise PlanError(f"{path}: holds no line profile; give the MTF against frequency, not an image")
    data = np.squeeze(signals[0]["data"]).astype(float)
    axis = max(signals[0]["axes"], key=lambda a: a.get("size") or 0)
    unit = str(axis.get("units") or "").strip()
    step = float(axis.get("scale") or 0.0)
    if PER_PIXEL.fullmatch(unit):
        factor = 1.0
    elif PER_NYQUIST.fullmatch(unit):
        factor = NYQUIST
    else:
        said = f"got '{unit}'" if unit else "it has none"
        raise PlanError(
            f"{path}: the unit of the profile's axis must be 1/pixel or Nyquist, {said}; calibrate it in "
            "DigitalMicrograph, or save two columns of text, q in cycles/pixel and the MTF"
        )
    start = float(axis.get("offset") or 0.0)
    q: Floats = (start + step * np.arange(len(data), dtype=np.float64)) * factor
    q[np.abs(q) < 1e-6 * abs(step)] = 0.0
    kept = q <= FARTHEST
    return q[kept], data[kept]
