"""The quadratic model that a Jacobian gives."""

import json

import numpy as np
import pytest

from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import Parameter, SearchSpace

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("m", [2, 4, 50])
def test_exact_for_linear_residuals_and_recoverable_from_few_numbers(m: int) -> None:
    r, j = GENERATOR.normal(size=m), GENERATOR.normal(size=(m, 4))
    at = GENERATOR.normal(size=4)
    model = Quadratic.of(at, r, j)
    points = GENERATOR.normal(size=(7, 4))
    expected = [float(np.sum((r + j @ (p - at)) ** 2)) for p in points]
    np.testing.assert_allclose(model(points), expected)
    small, slopes = model.residual_form()
    assert small.shape == (5,)
    again = Quadratic.of(at, small, slopes)
    np.testing.assert_allclose(again(points), expected)
    restored = Quadratic.from_dict(json.loads(json.dumps(model.to_dict())))
    np.testing.assert_array_equal(restored(points), model(points))


def test_the_cube_does_not_change_the_model() -> None:
    space = SearchSpace((Parameter("a", -3, 5), Parameter("n", 0, 9, "", "integer")))
    at = np.array([1.0, 4.0])
    model = Quadratic.of(at, GENERATOR.normal(size=6), GENERATOR.normal(size=(6, 2)))
    points = np.array([[2.0, 3.0], [-1.0, 8.0]])
    np.testing.assert_allclose(model.in_cube(space)(space.to_unit(points)), model(points))
