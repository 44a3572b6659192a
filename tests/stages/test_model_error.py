"""Model error: noise is none, what columns have in common shows however small it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.twin import Match
from qhrtem.stages.model_error import column_error, common_error

PIXEL_A = 0.1
PLACES = np.array([(r, c) for r in range(40, 180, 20) for c in range(40, 180, 20)], dtype=float)
KINDS = ("Ti",) * len(PLACES)


def match(residual: NDArray[np.float64]) -> Match:
    """A match whose residual is given in units of the noise."""
    simulated = np.ones(residual.shape, np.float32)
    sigma = np.full(residual.shape, 0.05, np.float32)
    measured = (simulated + 0.05 * residual).astype(np.float32)
    everywhere = np.ones(residual.shape, bool)
    return Match(measured, simulated, sigma, everywhere, everywhere)


def noise(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((220, 220))


def test_white_noise_is_no_model_error() -> None:
    found = [column_error(match(noise(s)), PIXEL_A) for s in range(8)]
    assert min(found) >= 1 and np.mean(found) < 1.1  # about 200 independent patches each
    # A stack holds a handful of independent patches: it scatters, but about one.
    common = [common_error(match(noise(s)), PIXEL_A, PLACES, KINDS) for s in range(20)]
    assert np.median(common) < 1.4 and max(common) < 3


def test_misfit_on_the_scale_of_a_column_counts() -> None:
    smooth = ndimage.gaussian_filter(noise(1), 6)
    smooth *= 0.3 / smooth.std()
    error = column_error(match(noise(2) + smooth), PIXEL_A)
    # A Gaussian process of width 6√2 keeps 6²/(6² + 4²) of its variance under the filter of width 4, which
    # leaves 1/(4π·4²) of that of white noise.
    assert error == pytest.approx(1 + 0.09 * 36 / 52 * 4 * np.pi * 16, rel=0.25)


def test_the_same_small_residual_at_every_column_counts_more_than_it_does_once() -> None:
    spots = np.zeros((220, 220))
    spots[tuple(PLACES.astype(int).T)] = 1.0
    spots = ndimage.gaussian_filter(spots, 4)
    spots *= 0.12 / spots.max()
    image = match(noise(3) + spots)
    assert column_error(image, PIXEL_A) < 1.35
    assert common_error(image, PIXEL_A, PLACES, KINDS) > 8
    # Turned about from column to column it averages out.
    signs = np.random.default_rng(4).choice([-1.0, 1.0], len(PLACES))
    turned = np.zeros((220, 220))
    turned[tuple(PLACES.astype(int).T)] = signs
    turned = ndimage.gaussian_filter(turned, 4)
    turned *= 0.12 / np.abs(turned).max()
    assert common_error(match(noise(3) + turned), PIXEL_A, PLACES, KINDS) < 4


def test_too_few_columns_or_too_small_a_crystal_give_no_estimate() -> None:
    assert column_error(match(np.full((8, 8), 9.0)), PIXEL_A) == 1.0
    image = match(np.full((220, 220), 0.3))
    assert common_error(image, PIXEL_A, PLACES[:3], KINDS[:3]) == 1.0
    assert common_error(image, PIXEL_A, PLACES - 40.0, KINDS) > 1  # those at the rim are left out
