"""Acquisitions optimised over mixed spaces, against enumeration."""

import random

import numpy as np
import pytest
import torch

from qhrtem.optimise import mixed, surrogate, trust_region
from qhrtem.optimise.place import Place
from qhrtem.optimise.space import Parameter, SearchSpace

SPACE = SearchSpace(
    (
        Parameter("x", 0, 1),
        Parameter("n", 0, 7, "", "integer"),
        Parameter("m", 0, 7, "", "integer"),
        Parameter.categorical("c", ("a", "b", "c")),
    )
)


def gain(unit: np.ndarray) -> np.ndarray:
    v = SPACE.from_unit(unit)
    return -((v[:, 0] - 0.6) ** 2) - 0.05 * (v[:, 1] - 5) ** 2 - 0.05 * (v[:, 2] - 2) ** 2 - (v[:, 3] != 1)


@pytest.fixture(scope="module")
def model() -> surrogate.Surrogate:
    points = SPACE.to_unit(SPACE.sobol(24, np.random.default_rng(0)))
    y = gain(points)
    return surrogate.fit(SPACE.encode(points), (y - y.mean()) / y.std(), None, 40)


@pytest.mark.parametrize("name", mixed.CLIMBS)
def test_near_the_best_of_all_points(name: str, model: surrogate.Surrogate) -> None:
    place = Place(0, trust_region.start((0.5,) * 4, (0, 8, 8, 1), 1.6))
    before, state = torch.get_rng_state(), random.getstate()
    asked: list[np.ndarray] = []

    def accept(unit: np.ndarray) -> bool:
        asked.append(unit)
        return True

    points = mixed.propose(name, model, place, SPACE, 3, np.empty((0, 4)), np.random.default_rng(1), accept)
    assert torch.equal(before, torch.get_rng_state())
    assert state == random.getstate()
    np.testing.assert_array_equal(SPACE.to_unit(SPACE.from_unit(points)), points)
    assert len({tuple(p) for p in points}) == 3
    every = SPACE.to_unit(SPACE.from_unit(np.random.default_rng(2).random((20000, 4))))
    score = mixed.Criterion(model, SPACE).score
    assert score(points[0][None])[0] > np.quantile(score(every), 0.999)


def test_refused_points_are_passed_over(model: surrogate.Surrogate) -> None:
    place = Place(0, trust_region.start((0.5,) * 4, (0, 8, 8, 1), 1.6))
    busy, generator = np.empty((0, 4)), np.random.default_rng(1)
    points = mixed.propose("rounding", model, place, SPACE, 2, busy, generator, lambda u: bool(u[0] < 0.4))
    assert points
    assert all(p[0] < 0.4 for p in points)
    assert mixed.propose("rounding", model, place, SPACE, 2, busy, generator, lambda u: False) == []
