"""What a file says about its image, where it contradicts itself, and what rules out a fit.

Nothing here is trusted for the physics; it serves to tell the user, and to refuse images of another kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from qhrtem.errors import InputError
from qhrtem.model.micrograph import RawImage

COARSEST_A = 0.5  # pixel size beyond which no atomic column is resolved
FINEST_A = 0.01  # below it a pixel size is a mistake
OBLONG = 0.02  # relative difference of the pitches from which pixels are called rectangular
BLANK = 1e-3  # a mean this small against the deviation is no exposure, or was taken away

# In the order in which they are asked; the first that fits names the technique.
TECHNIQUES = (
    (
        "STEM",
        r"mode",
        r"\bstem\b|scanning|haadf",
        "is a scanning (STEM) image, whose contrast is not that of HRTEM; give an image of a parallel beam",
    ),
    (
        "EFTEM",
        r"mode|filter|energy ?loss|signal_type|format",
        r"eftem|energy.?filtered",
        "is an energy-filtered (EFTEM) image; its intensity is not that of all electrons, give an unfiltered "
        "or zero-loss image with its vacuum level",
    ),
    (
        "diffraction",
        r"imaging mode|operat\w*mode|\.mode$|projector\w*mode",
        r"diffraction|\bsaed\b",
        "is a diffraction pattern; give the image itself",
    ),
    ("TEM", r"mode|signal|acquisitionunit", r"\btem\b|cameraimage|brightfield|imaging", ""),
)
VOLTAGE = re.compile(r"(acceler\w*[ _.]?voltage|beam_energy|microscope info\.voltage|high ?tension)", re.I)
USEFUL = (
    ("microscope", r"(\.microscope$|instrumentmodel$|microscope info\.name$)"),
    ("mode", r"(description\.mode$|operation mode$|illumination mode$|temoperatingsubmode$)"),
    ("magnification", r"(indicated magnification$|magnification_x$|nominalmagnification$)"),
    ("camera", r"(cameranamepath$|binaryresult\.detector$|device\.name$)"),
    ("exposure (s)", r"(exposuretime$|exposure \(s\)$|frametime$)"),
    ("binning", r"(\.binning$|binning\.width$)"),
    ("defocus", r"(\.defocus$)"),
    ("recorded", r"(acquiredate$|acquisition date$)"),
)


@dataclass(frozen=True)
class Claims:
    """What a file says, as far as it can be told."""

    technique: str  # TEM, STEM, EFTEM, diffraction or unknown
    high_tension_kV: float | None
    gain_counts_per_electron: float | None
    facts: tuple[tuple[str, str], ...]  # what is worth showing: (what, text)
    contradictions: tuple[str, ...]
    refusals: tuple[str, ...]  # why a fit is refused, each a clause that follows "the image"


def read_claims(raw: RawImage) -> Claims:
    """Return what the file of an image says about it."""
    said = raw.metadata or {}
    technique, why = _technique(raw, said)
    tensions = sorted(set(_tensions(said)))
    gain = _gain(said)
    contradictions = [*_contradictions(raw, said, tensions), *_doubts(raw)]
    refusals = [*([why] if why else []), *_unfit(raw, said)]
    return Claims(
        technique,
        tensions[0] if len(tensions) == 1 else None,
        gain,
        tuple(_facts(said)),
        tuple(contradictions),
        tuple(refusals),
    )


def require_fittable(raw: RawImage) -> None:
    """Raise InputError where what an image is rules out counting atoms in it, with every reason.

    raw: with the pixel size that is to be used, which may be another than the file's.
    """
    refusals = read_claims(raw).refusals
    if refusals:
        raise InputError(f"{raw.path}: cannot be fitted, the image {'; it '.join(refusals)}")


def _technique(raw: RawImage, said: dict[str, str]) -> tuple[str, str]:
    for name, key, word, why in TECHNIQUES:
        for k, text in said.items():
            if re.search(key, k, re.I) and re.search(word, text, re.I) and not k.endswith(".Name"):
                # A microscope in STEM has its projector in diffraction: that alone is no pattern.
                return name, why
    title = f"{PurePath(raw.path).stem} {said.get('General.title', '')}"
    for name, word in (
        ("STEM", r"\bstem\b|haadf|\badf\b"),
        ("diffraction", r"saed|diffraction"),
        ("EFTEM", r"eftem"),
    ):
        if re.search(word, title.replace("_", " "), re.I):
            return name, next(why for n, _, _, why in TECHNIQUES if n == name)
    loss = re.search(r"(?<![\d.])(\d+(?:\.\d+)?) ?ev\b", title.replace("_", " "), re.I)
    if loss and float(loss.group(1)) > 0:
        return "EFTEM", next(why for n, _, _, why in TECHNIQUES if n == "EFTEM")
    return "unknown", ""


def _tensions(said: dict[str, str]) -> Iterable[float]:
    """Yield stated high tensions in kV; files write V, kV, or a number with its unit."""
    for key, text in said.items():
        if VOLTAGE.search(key):
            found = re.search(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", text)
            if found:
                value = abs(float(found.group()))
                value = value / 1e3 if value > 2000 else value
                if 20 <= value <= 1500:
                    yield round(value, 3)


def _gain(said: dict[str, str]) -> float | None:
    """Counts per electron, where a Velox file gives electrons per count of the camera it used."""
    camera = next((v for k, v in said.items() if k.endswith("BinaryResult.Detector")), "")
    for key, text in said.items():
        if "CountsToElectrons.value" in key and camera and camera in key:
            value = float(text)
            return 1 / value if value > 0 else None
    return None


def _facts(said: dict[str, str]) -> Iterable[tuple[str, str]]:
    for what, pattern in USEFUL:
        for key, text in said.items():
            if re.search(pattern, key, re.I):
                yield what, text
                break


def _doubts(raw: RawImage) -> Iterable[str]:
    """Yield what in the numbers is unusual for counts of a camera, but no reason to refuse."""
    counts = raw.counts
    if abs(float(counts.mean()) - 1) < 2e-3:
        yield (
            "its mean is 1: it was divided by a mean or a background, so dose and vacuum level are lost; "
            "export it as it was before"
        )
    if (counts < 0).any() and float(counts.mean()) > 0:
        share = 100 * float((counts < 0).mean())
        yield f"{share:.2g} % of its pixels are negative: a background was taken off"


def _contradictions(raw: RawImage, said: dict[str, str], tensions: list[float]) -> Iterable[str]:
    if len(tensions) > 1:
        yield f"it states several high tensions: {', '.join(f'{t:g} kV' for t in tensions)}"
    units = [said.get(f"axis.{a}", "").split(" ")[-1] for a in ("row", "col")]
    if units[0] != units[1] and all(units):
        yield f"its rows are in {units[0]} and its columns in {units[1]}"
    if raw.pixel_size_A is not None:
        row, col = raw.pixel_size_A
        if abs(row / col - 1) > OBLONG:
            yield f"its pixels are rectangular, {row:.5g} × {col:.5g} Å (row × column)"
        stated = [float(v) * 1e10 for k, v in said.items() if re.search(r"BinaryResult\.PixelSize\.", k)]
        if stated and abs(stated[0] / col - 1) > 1e-3:
            yield f"its axes give {col:.5g} Å per pixel, its acquisition record {stated[0]:.5g} Å"
    modes = {v.split()[0].upper() for k, v in said.items() if re.search(r"description\.mode$", k, re.I) and v}
    stem = said.get("file.CustomProperties.StemMagnification.value")
    if stem == "1" and "TEM" in modes:
        yield "it states TEM mode with a STEM magnification"
    top = next((float(v) for k, v in said.items() if k.endswith("SaturationPoint.value")), None)
    if top is not None and raw.counts.max() > top:
        yield f"it states saturation at {top:g} counts, the image reaches {raw.counts.max():g}"


def _unfit(raw: RawImage, said: dict[str, str]) -> Iterable[str]:
    """Yield what in the numbers rules out a fit on the absolute scale."""
    counts = raw.counts
    finite = counts[np.isfinite(counts)]
    rows, cols = counts.shape
    if min(rows, cols) < 48:
        yield f"has {rows} × {cols} pixels, at least 48 × 48 are needed"
    if raw.pixel_size_A is not None:
        pitch = float(np.sqrt(raw.pixel_size_A[0] * raw.pixel_size_A[1]))
        if pitch > COARSEST_A:
            yield (
                f"has pixels of {pitch:.4g} Å, at most {COARSEST_A:g} Å resolve atomic columns "
                "(if that is wrong, give pixel_size_A)"
            )
        elif pitch < FINEST_A:
            yield f"states pixels of {pitch:.3g} Å, which no microscope has; give pixel_size_A"
    if said.get("stored.dtype", "") in ("uint8", "int8", "bool"):
        yield "has 8-bit grey levels, rescaled on export, so its absolute contrast is lost; export the counts"
    deviation = float(finite.std())
    if deviation > 0 and abs(float(finite.mean())) < max(BLANK * deviation, 1e-12):
        yield "has a mean of zero: filtered, or its background taken off, so its contrast is unknown"
    elif deviation > 0 and float(finite.mean()) < 0.5 * deviation:
        yield (
            f"has a mean of {finite.mean():.3g} counts with a deviation of {deviation:.3g}: the camera "
            "was not exposed, or the background was taken off"
        )
