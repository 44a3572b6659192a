"""One lens from many tiles against the least squares that knows them all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qhrtem.model.microscope import INDEX, PARAMETERS, nominal
from qhrtem.stages.consensus import UNIT_A, TileLens, consensus, design

Floats = NDArray[np.float64]
IMAGING = tuple(INDEX[n] for n in ("c1", "a1_x", "tilt_x", "tilt_y"))
MIDDLES = [np.array([y, x]) for y in (-100.0, 0.0, 100.0) for x in (-100.0, 0.0, 100.0)]
MEAN, SIGMA = np.array([2.0, 0.0, 0.0, 0.0]), np.full(4, 50.0)
TRUE = np.array([3.0, -1.0, 2.0, 1.5, 0.8, -0.5, 0.3, 0.2])  # in the middle, then slopes of both tilts


def tiles(seed: int, wrong: float = 0.0, prior: float = 50.0) -> list[TileLens]:
    """Tiles whose own images know the lens to about a step, correlated, each under a prior of its own."""
    generator = np.random.default_rng(seed)
    out = []
    for away in MIDDLES:
        root = np.tril(generator.normal(0, 0.3, (4, 4))) + np.eye(4)
        alone = np.linalg.inv(root @ root.T)
        said = design(IMAGING, away) @ TRUE + root @ generator.normal(size=4)
        said += wrong * generator.normal(size=4)
        weight = np.eye(4) / prior**2
        covariance = np.linalg.inv(alone + weight)
        mean = MEAN + generator.normal(size=4)
        values = covariance @ (alone @ said + weight @ mean)
        out.append(TileLens(values, covariance, mean, np.full(4, prior), 1.0, away))
    return out


@pytest.mark.parametrize("prior", [50.0, 1.5])
def test_the_lens_and_the_bend_come_out_within_their_errors_whatever_the_prior_of_a_tile(
    prior: float,
) -> None:
    z = []
    for seed in range(80):
        lens = consensus(tiles(seed, prior=prior), IMAGING, MEAN, SIGMA)
        z.append((lens.solution - TRUE) / np.sqrt(np.diag(lens.covariance) / lens.agreement))
    scatter = np.array(z).std(0)
    assert np.abs(np.array(z).mean(0)).max() < 1.0
    assert ((scatter > 0.65) & (scatter < 1.35)).all()


def test_an_image_counts_once_however_narrow_the_prior_it_was_fitted_under() -> None:
    wide, narrow = (consensus(tiles(3, prior=p), IMAGING, MEAN, SIGMA) for p in (50.0, 1.5))
    ratio = np.diag(narrow.covariance / narrow.agreement) / np.diag(wide.covariance / wide.agreement)
    assert np.allclose(ratio, 1.0, rtol=0.01)


def test_tiles_that_contradict_each_other_widen_the_errors() -> None:
    agreeing, quarrelling = (consensus(tiles(5, wrong=w), IMAGING, MEAN, SIGMA) for w in (0.0, 4.0))
    assert agreeing.agreement < 2 and quarrelling.agreement > 5
    assert np.diag(quarrelling.covariance).min() > 3 * np.diag(agreeing.covariance).min()


def test_one_tile_has_no_bend() -> None:
    lens = consensus(tiles(0)[:1], IMAGING, MEAN, SIGMA)
    assert len(lens.solution) == 4 and not lens.bend.any() and not lens.bend_sigma().any()


def test_the_mistilt_at_a_place_follows_the_bend() -> None:
    lens = consensus(tiles(1), IMAGING, MEAN, SIGMA)
    away = np.array([40.0, -70.0])
    middle, there = (lens.microscope(nominal(300e3), a, prior=True) for a in (np.zeros(2), away))
    step = np.array([there["tilt_y"] - middle["tilt_y"], there["tilt_x"] - middle["tilt_x"]])
    assert np.allclose(step, lens.bend @ away)
    assert there["c1"] == middle["c1"] and there["c1"] == pytest.approx(
        lens.solution[0] * PARAMETERS[IMAGING[0]].step
    )
    # Far from the middle the mistilt is known less well than in it.
    tilt = INDEX["tilt_x"]
    assert there.sigma[tilt] > middle.sigma[tilt] and there.mean[tilt] == there["tilt_x"]
    assert UNIT_A * lens.bend[1, 1] == pytest.approx(PARAMETERS[tilt].step * lens.solution[-1])
