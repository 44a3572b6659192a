"""Candidates stay in the box, move something, and keep integers whole."""

import numpy as np

from qhrtem.optimise import candidates, trust_region
from qhrtem.optimise.space import Parameter, SearchSpace

SPACE = SearchSpace(
    tuple(Parameter(f"x{i}", 0, 1) for i in range(30)) + (Parameter("n", 0, 40, "", "integer"),)
)


def region(length: float) -> trust_region.TrustRegion:
    centre = tuple(SPACE.to_unit(np.array([0.5] * 30 + [20])).tolist())
    return trust_region.start(centre, tuple(SPACE.levels.tolist()), length)


def test_box_keeps_its_volume_and_follows_length_scales() -> None:
    scales = np.geomspace(0.2, 0.8, 31)
    lower, upper = candidates.box(region(0.2), scales, SPACE)
    sides = (upper - lower)[:30]
    np.testing.assert_allclose(np.exp(np.log(sides).mean()), 0.2)
    np.testing.assert_allclose(sides[29] / sides[0], scales[29] / scales[0])


def test_an_endless_length_scale_does_not_starve_the_others() -> None:
    scales = np.ones(31)
    scales[0] = 1e9
    lower, upper = candidates.box(region(0.1), scales, SPACE)
    assert (upper - lower)[1] > 0.09


def test_candidates_are_inside_and_differ_from_the_centre() -> None:
    here = region(0.1)
    points = candidates.draw(here, None, SPACE, np.random.default_rng(0), 2000)
    lower, upper = candidates.box(here, None, SPACE)
    assert np.all(points >= lower - 1e-12)
    assert np.all(points <= upper + 1e-12)
    moved = (np.abs(points - np.array(here.centre)) > 1e-12).sum(axis=1)
    assert 18 < moved.mean() < 22  # Eriksson et al. 2019: 20 coordinates on average
    alone = candidates.draw(here, None, SPACE, np.random.default_rng(0), 200, single=True)
    assert (np.abs(alone - np.array(here.centre)) > 1e-12).sum(axis=1).max() == 1
    counts = SPACE.from_unit(points)[:, 30]
    assert np.array_equal(counts, np.round(counts))
    assert set(counts) == {
        18,
        19,
        20,
        21,
        22,
    }


def test_integer_neighbours_are_equally_likely() -> None:
    space = SearchSpace((Parameter("n", 0, 40, "", "integer"),))
    here = trust_region.start(tuple(space.to_unit([20.0]).tolist()), (41,), 0.05)
    counts = space.from_unit(candidates.draw(here, None, space, np.random.default_rng(1), 6000))[:, 0]
    levels, shares = np.unique(counts, return_counts=True)
    assert levels.tolist() == [19, 20, 21]
    np.testing.assert_allclose(shares / 6000, 1 / 3, atol=0.03)
