"""Counts to vacuum = 1: known gain, offset, readout and vacuum are found, useless images refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.calibrate.intensity import find_vacuum, local_roughness, normalise, valid_pixels
from qhrtem.errors import InputError
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import ImagePlan

GAIN, OFFSET, ELECTRONS, READOUT = 8.0, 150.0, 220.0, 14.0
VACUUM = OFFSET + GAIN * ELECTRONS


def lattice_image(shape: tuple[int, int] = (160, 192), crystal: float = 0.6) -> NDArray[np.float64]:
    """Intensity of a lattice on the left and vacuum on the right."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    wave = 0.25 * np.cos(2 * np.pi * y / 24) * np.cos(2 * np.pi * x / 18) + 0.06 * np.cos(
        2 * np.pi * (x + y) / 14
    )
    inside = ndimage.gaussian_filter((x < crystal * shape[1]).astype(float), 3)
    return 1 + inside * (wave - 0.03)


def counts_of(intensity: NDArray[np.float64], seed: int = 0) -> RawImage:
    """Counts with shot and readout noise."""
    rng = np.random.default_rng(seed)
    counts = (
        GAIN * rng.poisson(ELECTRONS * intensity) + OFFSET + READOUT * rng.standard_normal(intensity.shape)
    )
    return RawImage(counts, "synthetic.tif")


def plan(**known: object) -> ImagePlan:
    return ImagePlan.model_validate({"path": "synthetic.tif", **known})


def test_given_numbers_are_used_as_they_are() -> None:
    raw = counts_of(lattice_image())
    known = {"offset_counts": OFFSET, "vacuum_counts": VACUUM, "gain_counts_per_electron": GAIN}
    m = normalise(raw, plan(**known, readout_counts=READOUT, mtf={"a": 0.4, "b": 0.3}), 0.1)
    assert np.allclose(m.intensity, (raw.counts - OFFSET) / (VACUUM - OFFSET))
    assert m.electrons_per_pixel == pytest.approx(ELECTRONS)
    assert m.readout_variance == pytest.approx((READOUT / (VACUUM - OFFSET)) ** 2)
    assert m.notes == () and m.pixel_size_A == 0.1
    residual = m.intensity - lattice_image()
    assert (residual**2 / m.variance(lattice_image())).mean() == pytest.approx(1, abs=0.04)


def test_vacuum_and_noise_are_found_in_the_image() -> None:
    raw = counts_of(lattice_image())
    m = normalise(raw, plan(offset_counts=OFFSET), 0.1)
    vacuum = lattice_image() > 0.9999
    vacuum[:, :150] = False
    assert m.intensity[vacuum].mean() == pytest.approx(1, abs=0.003)
    assert m.variance(np.ones(1))[0] == pytest.approx(
        1 / ELECTRONS + (READOUT / (GAIN * ELECTRONS)) ** 2, rel=0.12
    )
    assert m.scale_sigma == 0.003
    assert any("vacuum level" in n for n in m.notes) and any("gain" in n for n in m.notes)


def test_readout_fills_what_the_gain_leaves_of_the_variance() -> None:
    raw = counts_of(lattice_image())
    more = raw.counts + 60.0 * np.random.default_rng(4).standard_normal(raw.counts.shape)
    m = normalise(RawImage(more, "x"), plan(offset_counts=OFFSET, gain_counts_per_electron=GAIN), 0.1)
    assert m.electrons_per_pixel == pytest.approx(ELECTRONS, rel=0.01)
    assert m.readout_variance == pytest.approx((60**2 + READOUT**2) / (GAIN * ELECTRONS) ** 2, rel=0.2)


def test_without_vacuum_the_level_must_be_given() -> None:
    raw = counts_of(lattice_image(crystal=2.0))
    assert not find_vacuum(raw.counts).any()
    with pytest.raises(InputError, match="vacuum_counts"):
        normalise(raw, plan(offset_counts=OFFSET), 0.1)
    m = normalise(raw, plan(offset_counts=OFFSET, vacuum_counts=VACUUM), 0.1)
    assert m.intensity.mean() == pytest.approx(0.97, abs=0.01)
    # The noise then comes from differences of neighbouring pixels.
    assert m.electrons_per_pixel == pytest.approx(ELECTRONS, rel=0.25)


def test_vacuum_is_the_flat_part() -> None:
    found = find_vacuum(counts_of(lattice_image()).counts)
    assert found[:, 150:].mean() > 0.6
    assert not found[:, :105].any()


def test_roughness_tells_lattice_from_noise() -> None:
    rough = local_roughness(counts_of(lattice_image()).counts)
    assert np.median(rough[:, :90]) > 4 * np.median(rough[:, 150:])


def test_dead_and_hot_pixels_are_left_out() -> None:
    raw = counts_of(lattice_image())
    bad = [(20, 30), (80, 160), (100, 40)]
    raw.counts[bad[0]] = 60000
    raw.counts[bad[1]] = -5000
    raw.counts[bad[2]] = np.nan
    valid = valid_pixels(raw.counts)
    assert not any(valid[b] for b in bad)
    assert (~valid).sum() < 12
    m = normalise(raw, plan(offset_counts=OFFSET), 0.1)
    assert not m.valid[bad[2]] and m.intensity[:, 160:][m.valid[:, 160:]].mean() == pytest.approx(
        1, abs=0.005
    )


def test_useless_images_are_refused_with_the_remedy() -> None:
    raw = counts_of(lattice_image())
    known = {"offset_counts": OFFSET, "vacuum_counts": VACUUM}
    with pytest.raises(InputError, match="at least 48 × 48"):
        normalise(RawImage(raw.counts[:40], "x"), plan(**known), 0.1)
    with pytest.raises(InputError, match="constant"):
        normalise(RawImage(np.full((64, 64), 7.0), "x"), plan(**known), 0.1)
    with pytest.raises(InputError, match="times the vacuum level"):
        normalise(raw, plan(offset_counts=OFFSET, vacuum_counts=10 * VACUUM), 0.1)
    with pytest.raises(InputError, match="must exceed offset_counts"):
        normalise(raw, plan(offset_counts=VACUUM + 100), 0.1)
