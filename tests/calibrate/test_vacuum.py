"""Vacuum and noise: level, gain, readout and correlation of synthetic noise are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from qhrtem.calibrate.vacuum import find_vacuum, measure_vacuum, photon_transfer, pixel_noise

GAIN, OFFSET, ELECTRONS = 7.0, 120.0, 300.0


def image(readout: float = 5.0, seed: int = 0, size: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    mean = 1 + 0.35 * np.cos(2 * np.pi * x / 23) * np.cos(2 * np.pi * y / 19) * (x < 0.7 * size)
    return GAIN * rng.poisson(ELECTRONS * mean) + OFFSET + readout * rng.standard_normal(mean.shape)


def test_level_and_variance_of_the_vacuum():
    counts = image()
    where = find_vacuum(counts)
    found = measure_vacuum(counts, where)
    level = OFFSET + GAIN * ELECTRONS
    assert abs(found.level - level) < 4 * found.level_sigma
    assert found.level_sigma < 0.002 * level
    assert found.variance == pytest.approx(GAIN**2 * ELECTRONS + 25, rel=0.04)
    assert found.correlation == pytest.approx(1, abs=0.2) and not found.correlated


def test_correlated_noise_is_noticed():
    rng = np.random.default_rng(2)
    counts = 1000 + 300 * ndimage.gaussian_filter(rng.standard_normal((300, 300)), 0.8)
    found = measure_vacuum(counts, np.ones(counts.shape, bool))
    assert found.correlated
    # The filter passes low frequencies whole; sums over squares see most of that.
    assert 0.7 < found.low_frequency / 300**2 < 1.05


def test_uneven_illumination_widens_the_level_not_the_noise():
    rng = np.random.default_rng(3)
    slope = np.linspace(-60, 60, 300)[None, :]
    counts = 2000 + slope + 40 * rng.standard_normal((300, 300))
    found = measure_vacuum(counts, np.ones(counts.shape, bool))
    assert found.variance == pytest.approx(1600, rel=0.03)
    assert found.level_sigma > 20


@pytest.mark.parametrize("readout", [5.0, 120.0])
def test_shot_and_readout_noise_are_separated_by_their_rise(readout):
    found = photon_transfer(image(readout), np.ones((400, 400), bool))
    assert abs(found.slope - GAIN) < 4 * found.slope_sigma and found.slope_sigma < 0.08 * GAIN
    offset = found.offset(readout)
    sigma = (found.centre - offset) * found.slope_sigma / found.slope
    assert abs(offset - OFFSET) < 4 * sigma


def test_no_contrast_no_separation():
    counts = 1000 + np.random.default_rng(4).standard_normal((200, 200))
    assert photon_transfer(counts, np.ones(counts.shape, bool)) is None


def test_pixel_noise_needs_no_vacuum():
    valid = np.ones((400, 400), bool)
    assert pixel_noise(image(), valid) == pytest.approx(GAIN**2 * ELECTRONS + 25, rel=0.1)
