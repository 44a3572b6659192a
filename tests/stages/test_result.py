"""Statements about the quality of a fit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.twin import Match
from qhrtem.stages.result import model_error


def match(residual: NDArray[np.float64]) -> Match:
    """A match whose residual is given in units of the noise."""
    simulated = np.ones(residual.shape, np.float32)
    sigma = np.full(residual.shape, 0.05, np.float32)
    measured = (simulated + 0.05 * residual).astype(np.float32)
    everywhere = np.ones(residual.shape, bool)
    return Match(measured, simulated, sigma, everywhere, everywhere)


def test_white_noise_is_no_model_error() -> None:
    found = [model_error(match(np.random.default_rng(s).standard_normal((200, 200))), 0.1) for s in range(8)]
    assert min(found) >= 1 and np.mean(found) < 1.1  # about 200 independent patches each


def test_misfit_on_the_scale_of_a_column_counts() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((200, 200))
    smooth = ndimage.gaussian_filter(rng.standard_normal((200, 200)), 6)
    smooth *= 0.3 / smooth.std()
    error = model_error(match(noise + smooth), 0.1)
    # A Gaussian process of width 6√2 keeps 6²/(6² + 4²) of its variance under the filter of width 4, which
    # leaves 1/(4π·4²) of that of white noise.
    assert error == pytest.approx(1 + 0.09 * 36 / 52 * 4 * np.pi * 16, rel=0.25)


def test_too_small_a_crystal_gives_no_estimate() -> None:
    assert model_error(match(np.full((8, 8), 9.0)), 0.1) == 1.0
