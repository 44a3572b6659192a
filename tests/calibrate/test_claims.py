"""What files say: technique, tension, gain and contradictions, from the words of several makers."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.calibrate.claims import read_claims, require_fittable
from qhrtem.errors import InputError
from qhrtem.model.micrograph import RawImage


def raw(
    counts: np.ndarray | None = None, path: str = "image.dm4", pixel: float | None = 0.1, **said: str
) -> RawImage:
    if counts is None:
        counts = np.random.default_rng(0).poisson(500.0, (64, 64)).astype(float)
    metadata = {k.replace("__", "."): v for k, v in said.items()}
    return RawImage(counts, path, None if pixel is None else (pixel, pixel), metadata)


@pytest.mark.parametrize(
    ("key", "text", "technique"),
    [
        ("file.ImageTags.Microscope Info.Operation Mode", "SCANNING", "STEM"),
        ("file.ObjectInfo.ExperimentalDescription.Mode", "STEM nP Mh Zoom Diffraction", "STEM"),
        ("file.ImageTags.Microscope Info.Imaging Mode", "DIFFRACTION", "diffraction"),
        ("file.ImageTags.Microscope Info.Imaging Mode", "EFTEM", "EFTEM"),
        ("file.ObjectInfo.ExperimentalDescription.Mode", "TEM uP SA Zoom Image", "TEM"),
        ("file.BinaryResult.AcquisitionUnit", "CameraImage", "TEM"),
        ("file.anything", "STEM", "unknown"),
    ],
)
def test_techniques_are_told_and_only_tem_is_fitted(key, text, technique):
    image = RawImage(raw().counts, "image.dm4", (0.1, 0.1), {key: text})
    assert read_claims(image).technique == technique
    if technique in ("TEM", "unknown"):
        require_fittable(image)
    else:
        with pytest.raises(InputError, match="cannot be fitted"):
            require_fittable(image)


def test_the_name_of_a_file_can_tell():
    assert read_claims(raw(path="a/SrTiO3_HAADF_3.tif")).technique == "STEM"
    assert read_claims(raw(path="TiO2_462eV.tif")).technique == "EFTEM"
    assert read_claims(raw(path="TiO2_0eV.tif")).technique == "unknown"
    assert read_claims(raw(path="system_lead.tif")).technique == "unknown"


def test_tension_in_any_unit():
    assert read_claims(raw(**{"file__Optics__AccelerationVoltage": "300000"})).high_tension_kV == 300
    assert read_claims(raw(**{"file__Microscope Info__Voltage": "80 kV"})).high_tension_kV == 80
    two = read_claims(raw(**{"file__AcceleratingVoltage": "200000", "metadata__beam_energy": "300.0"}))
    assert two.high_tension_kV is None and any("several high tensions" in c for c in two.contradictions)


def test_gain_of_the_camera_that_was_used():
    said = {
        "file.BinaryResult.Detector": "BM-Ceta",
        "file.CustomProperties.Detectors[BM-Ceta].CountsToElectrons.value": "0.25",
        "file.CustomProperties.Detectors[Other].CountsToElectrons.value": "0.5",
    }
    assert read_claims(RawImage(raw().counts, "x", None, said)).gain_counts_per_electron == 4


def test_odd_statements_are_listed():
    said = {"axis.row": "2.0 A", "axis.col": "0.1 nm"}
    image = RawImage(raw().counts, "x", (0.2, 0.1), said)
    text = " ".join(read_claims(image).contradictions)
    assert "rows are in A and its columns in nm" in text and "rectangular" in text


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (raw(pixel=0.9), "at most 0.5 Å"),
        (raw(pixel=0.001), "no microscope"),
        (raw(**{"stored__dtype": "uint8"}), "8-bit"),
        (raw(raw().counts - raw().counts.mean()), "mean of zero"),
        (raw(np.random.default_rng(1).normal(0.2, 1, (64, 64))), "not exposed"),
        (raw(np.ones((20, 64)) * np.arange(64)), "20 × 64 pixels"),
    ],
)  # fmt: skip
def test_what_rules_out_a_fit(image, reason):
    with pytest.raises(InputError, match="cannot be fitted") as caught:
        require_fittable(image)
    assert reason in str(caught.value)
