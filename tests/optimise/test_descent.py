"""Least squares with whole numbers, driven by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.optimise import descent as descents
from qhrtem.optimise.descent import Descent, expected_improvement
from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import Parameter, SearchSpace

COUNTS = SearchSpace(
    (
        *(Parameter(f"x{i}", -2, 2) for i in range(3)),
        *(Parameter(f"n{i}", 0, 12, "", "integer") for i in range(5)),
    )
)
MIX = np.random.default_rng(0).normal(size=(40, 8))
TRUTH = np.array([0.5, -1.0, 2.0, 3, 9, 0, 12, 6])


def model(vector: np.ndarray, bend: float) -> tuple[float, Quadratic]:
    """Return the value and the model of a residual that is linear but for a bend."""
    r = MIX @ (vector - TRUTH + bend * (np.sin(vector) - np.sin(TRUTH)))
    j = MIX * (1 + bend * np.cos(vector))
    return float(r @ r), Quadratic.of(vector, r, j).in_cube(COUNTS)


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_counts_and_positions_on_the_bound_are_recovered(bend: float) -> None:
    generator = np.random.default_rng(1)
    at = COUNTS.from_unit(generator.random(8))
    descent = Descent()
    descent.told(*model(at, bend))
    for _ in range(20):
        best = descents.candidates(descent, COUNTS, generator)[0]
        vector = COUNTS.from_unit(best.unit)
        np.testing.assert_allclose(COUNTS.to_unit(vector), best.unit, atol=1e-12)  # whole already
        descent.asked(1, best)
        value, quadratic = model(vector, bend)
        if bend == 0:
            assert value == pytest.approx(best.expected, abs=1e-9)
        descent.told(value, quadratic)
        assert descent.point is not None
        if descent.point.value < 1e-12:
            break
    np.testing.assert_allclose(COUNTS.from_unit(descent.point.vector), TRUTH, atol=1e-5)


def test_refusals_damp_and_shorten_the_step() -> None:
    space = SearchSpace(COUNTS.parameters[:3])
    at = np.array([1.5, 1.5, -1.5])
    r, j = MIX[:, :3] @ (at - TRUTH[:3]), MIX[:, :3]
    descent = Descent()
    descent.told(float(r @ r), Quadratic.of(at, r, j).in_cube(space))
    lengths = []
    while not descent.stalled:
        best = descents.candidates(descent, space, np.random.default_rng(0))[0]
        lengths.append(float(np.linalg.norm(best.unit - space.to_unit(at))))
        descent.asked(0, best)
        descent.told(np.inf, None)
    assert np.all(np.diff(lengths) <= 0)
    assert lengths[-1] < 1e-3 * lengths[0]
    restored = Descent.from_dict(json.loads(json.dumps(descent.to_dict())))
    assert restored.to_dict() == descent.to_dict()


@given(st.floats(-5, 5), st.floats(0, 3))
def test_expected_improvement_agrees_with_its_integral(lead: float, error: float) -> None:
    z = np.linspace(-9, 9, 20001)
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    integral = float(np.trapezoid(np.maximum(lead + error * z, 0) * density, z))
    assert expected_improvement(lead, error) == pytest.approx(integral, abs=1e-5)
