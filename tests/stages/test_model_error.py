"""Model error: noise is none, what columns have in common shows however small it is."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.twin import Match
from qhrtem.stages.model_error import column_error, column_power, common_error

PIXEL_A = 0.1
PLACES = np.array([(r, c) for r in range(40, 180, 20) for c in range(40, 180, 20)], dtype=float)
KINDS = ("Ti",) * len(PLACES)


def column(found: Match) -> float:
    """Error by column where a perfect model leaves white noise."""
    return column_error(found, PIXEL_A, [match(noise(77))])


def common(found: Match, place: NDArray[np.float64] = PLACES, kind: tuple[str, ...] = KINDS) -> float:
    """Error in common where a perfect model leaves white noise, by the mean of several draws."""
    return common_error(found, PIXEL_A, place, kind, [match(noise(s)) for s in range(80, 90)])


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
    found = [column(match(noise(s))) for s in range(8)]
    assert min(found) >= 1 and np.mean(found) < 1.1  # about 200 independent patches each
    # A stack holds a handful of independent patches: it scatters, but about one.
    shared = [common(match(noise(s))) for s in range(20)]
    assert np.median(shared) < 1.5 and max(shared) < 4


def test_noise_that_a_fit_has_followed_is_judged_by_fitted_noise() -> None:
    """What positions and lens take out of noise they take out of a perfect model's residual as well."""
    broad = [ndimage.gaussian_filter(noise(s), 5) for s in (1, 2)]
    left = [match(noise(s) - ndimage.gaussian_filter(noise(s), 5)) for s in (1, 2)]
    assert column_power(left[0], PIXEL_A) < 0.8 * column_power(match(noise(1)), PIXEL_A)
    assert column_error(left[0], PIXEL_A, [left[1]]) == pytest.approx(1.0, abs=0.1)
    wrong = match(noise(1) - broad[0] + 0.3 * broad[1] / broad[1].std())
    assert column_error(wrong, PIXEL_A, [left[1]]) > 1.3 * column(wrong)


def test_misfit_on_the_scale_of_a_column_counts() -> None:
    smooth = ndimage.gaussian_filter(noise(1), 6)
    smooth *= 0.3 / smooth.std()
    error = column(match(noise(2) + smooth))
    # A Gaussian process of width 6√2 keeps 6²/(6² + 4²) of its variance under the filter of width 4, which
    # leaves 1/(4π·4²) of that of white noise.
    assert error == pytest.approx(1 + 0.09 * 36 / 52 * 4 * np.pi * 16, rel=0.25)


def test_the_same_small_residual_at_every_column_counts_more_than_it_does_once() -> None:
    spots = np.zeros((220, 220))
    spots[tuple(PLACES.astype(int).T)] = 1.0
    spots = ndimage.gaussian_filter(spots, 4)
    spots *= 0.12 / spots.max()
    image = match(noise(3) + spots)
    assert column(image) < 1.35
    assert common(image) > 8
    # Turned about from column to column it averages out.
    signs = np.random.default_rng(4).choice([-1.0, 1.0], len(PLACES))
    turned = np.zeros((220, 220))
    turned[tuple(PLACES.astype(int).T)] = signs
    turned = ndimage.gaussian_filter(turned, 4)
    turned *= 0.12 / np.abs(turned).max()
    assert common(match(noise(3) + turned)) < 5


def test_a_wrong_level_is_common_to_all_columns_and_not_between_them() -> None:
    image = match(noise(5) + 0.1)
    assert column(image) == pytest.approx(column(match(noise(5))), abs=0.02)
    assert common(image) > 10


def test_too_few_columns_or_too_small_a_crystal_give_no_estimate() -> None:
    assert column_error(match(np.full((8, 8), 9.0)), PIXEL_A, [match(noise(0)[:8, :8])]) == 1.0
    image = match(np.full((220, 220), 0.3))
    assert common(image, PLACES[:3], KINDS[:3]) == 1.0
    assert common(image, PLACES - 40.0) > 1  # those at the rim are left out
