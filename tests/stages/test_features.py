"""Features that a crystal does not explain are found where they are, and noise is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qhrtem.model.twin import Match
from qhrtem.stages.features import feature_note, region_note, unexplained

PIXEL_A = 0.12
SHAPE = (200, 240)


def match(extra: NDArray[np.float64], seed: int = 0) -> Match:
    """A match of noise and something else, both in units of the noise; the left quarter is vacuum."""
    residual = np.random.default_rng(seed).standard_normal(SHAPE) + extra
    simulated = np.ones(SHAPE, np.float32)
    sigma = np.full(SHAPE, 0.05, np.float32)
    crystal = np.zeros(SHAPE, bool)
    crystal[:, 60:] = True
    measured = (simulated + 0.05 * residual).astype(np.float32)
    return Match(measured, simulated, sigma, np.ones(SHAPE, bool), crystal)


def blob(row: float, col: float, height: float, width: float) -> NDArray[np.float64]:
    """A Gaussian of some height (in units of the noise) and standard deviation (px)."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return height * np.exp(-((y - row) ** 2 + (x - col) ** 2) / (2 * width**2))


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_features(seed: int) -> None:
    features, mask = unexplained(match(np.zeros(SHAPE), seed), PIXEL_A)
    assert features == () and not mask.any() and feature_note(features) == ()


def test_an_adsorbate_is_found_where_it_is() -> None:
    features, mask = unexplained(match(blob(120, 150, 2.0, 12.0)), PIXEL_A)
    assert len(features) == 1 and mask[120, 150] and not mask[40, 100]
    first = features[0]
    assert (first.row, first.col) == pytest.approx((120, 150), abs=6)
    assert first.area == pytest.approx(mask.sum() * PIXEL_A**2) and first.power > 10
    (note,) = feature_note(features)
    assert "row 1" in note and "adsorbate" in note


def test_what_is_the_same_everywhere_is_no_feature_but_stands_out_from_less() -> None:
    """A model that is wrong at every column alike is judged by other gates."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    everywhere = 2.0 * np.cos(2 * np.pi * y / 14) * np.cos(2 * np.pi * x / 14)
    assert unexplained(match(everywhere), PIXEL_A)[0] == ()
    assert len(unexplained(match(everywhere + blob(120, 150, 5.0, 12.0)), PIXEL_A)[0]) == 1


def test_the_worst_region_is_named() -> None:
    (note,) = region_note(match(blob(30, 200, 3.0, 10.0)), PIXEL_A)
    assert "rows 0 to" in note and "to 239" in note
    every, flat = np.ones((20, 20), bool), np.ones((20, 20), np.float32)
    assert region_note(Match(flat, flat, flat, every, every), PIXEL_A) == ()  # one region has no worst
