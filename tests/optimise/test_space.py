"""The maps between natural and unit coordinates, and the rules."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.errors import PlanError
from qhrtem.optimise.space import LinearRule, Parameter, SearchSpace

MIXED = SearchSpace(
    (
        Parameter("defocus", -20.0, 80.0, "Å"),
        Parameter("dose", 1e2, 1e6, "e/Å²", "log"),
        Parameter("count", 3, 9, "atoms", "integer"),
        Parameter("fixed", 2.5, 2.5, "mrad"),
    )
)


@dataclass(frozen=True)
class Never:
    name: str = "no atom without support"

    def allows(self, vector: np.ndarray) -> bool:
        return False


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_unit_round_trip(unit: list[float]) -> None:
    vector = MIXED.from_unit(unit)
    assert np.all(vector >= MIXED.low)
    assert np.all(vector <= MIXED.high)
    assert float(vector[2]).is_integer()
    assert vector[3] == 2.5
    np.testing.assert_allclose(MIXED.from_unit(MIXED.to_unit(vector)), vector, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(MIXED.to_unit(vector)[:2], unit[:2], atol=1e-12)


def test_log_midpoint_is_geometric_mean() -> None:
    assert MIXED.from_unit(np.full(4, 0.5))[1] == pytest.approx(1e4)


def test_integer_cells_are_equally_wide() -> None:
    u = np.full((7000, 4), 0.5)
    u[:, 2] = (np.arange(7000) + 0.5) / 7000
    levels, counts = np.unique(MIXED.from_unit(u)[:, 2], return_counts=True)
    assert levels.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert counts.tolist() == [1000] * 7


def test_sobol_is_reproducible_distinct_and_even() -> None:
    points = MIXED.sobol(64, np.random.default_rng(5))
    assert np.array_equal(points, MIXED.sobol(64, np.random.default_rng(5)))
    assert not np.array_equal(points, MIXED.sobol(64, np.random.default_rng(6)))
    assert len(np.unique(points, axis=0)) == 64
    # One point in each of 64 equal cells is what sets a Sobol sequence apart from random draws.
    cells = np.floor(MIXED.to_unit(points)[:, 0] * 64)
    assert len(np.unique(cells)) == 64


def test_rules_filter_and_count() -> None:
    rule = LinearRule("thin", (0.0, 0.0, 1.0, 0.0), 5.0)
    space = SearchSpace(MIXED.parameters, (rule,))
    rejected: Counter[str] = Counter()
    points = space.sobol(32, np.random.default_rng(0), rejected)
    assert len(points) == 32
    assert points[:, 2].max() == 5
    assert 20 < rejected["thin"] < 120  # four of seven levels are forbidden
    allowed, counts = space.admit(np.array([[0, 1e3, 5, 2.5], [0, 1e3, 6, 2.5]]))
    assert allowed.tolist() == [True, False]
    assert counts == {"thin": 1}


def test_rule_that_rejects_everything_is_named() -> None:
    space = SearchSpace(MIXED.parameters, (Never(),))
    with pytest.raises(PlanError, match="no atom without support .* rejected every one") as caught:
        space.sobol(8, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


def test_small_integer_space_is_exhausted_not_repeated() -> None:
    space = SearchSpace((Parameter("a", 0, 2, "", "integer"), Parameter("b", 1, 1, "", "integer")))
    assert space.size == 3
    assert len(space.sobol(10, np.random.default_rng(0))) == 3
    assert space.all_vectors().tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (("a", 1.0, 0.0, "Å"), "rising order"),
        (("a", 0.0, np.inf, "Å"), "finite"),
        (("a", 0.0, 1.0, "Å", "log"), "positive"),
        (("a", 0.5, 2.0, "", "integer"), "whole numbers"),
        (("a", 0.5, 2.0, "", "nominal"), "kind"),
        (("a", 0.5, 2.0, "", "ordinal"), "Parameter.ordinal"),
        (("a", 0, 1, "", "categorical"), "distinct labels"),
    ],
)
def test_bad_parameters_are_explained(parameter: tuple, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Parameter(*parameter)


def test_vector_from_names() -> None:
    given = {"fixed": 2.5, "count": 4.4, "dose": 1e3, "defocus": 1.0}
    assert MIXED.vector(given).tolist() == [1.0, 1e3, 4.0, 2.5]
    with pytest.raises(PlanError, match="missing dose, unknown dosis"):
        MIXED.vector({"fixed": 2.5, "count": 4, "dosis": 1e3, "defocus": 1.0})


KINDS = SearchSpace(
    (
        Parameter("dose", 0.1, 10.0, "", "log"),
        Parameter.ordinal("size", (64, 96, 128, 256), "px"),
        Parameter.categorical("sense", ("up", "down", "flat")),
        Parameter("count", 2, 6, "", "integer"),
    )
)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_listed_values_and_labels_round_trip(unit: list[float]) -> None:
    vector = KINDS.from_unit(unit)
    assert vector[1] in (64, 96, 128, 256)
    assert vector[2] in (0, 1, 2)
    np.testing.assert_allclose(KINDS.from_unit(KINDS.to_unit(vector)), vector, rtol=1e-12)
    encoded = KINDS.encode(KINDS.to_unit(vector))
    np.testing.assert_allclose(KINDS.decode(encoded), KINDS.to_unit(vector), atol=1e-12)


def test_listed_values_are_equally_likely_and_nearest_ones_are_snapped_to() -> None:
    points = KINDS.sobol(3000, np.random.default_rng(0))
    _, counts = np.unique(points[:, 1], return_counts=True)
    np.testing.assert_allclose(counts / len(points), 0.25, atol=0.02)
    assert KINDS.snap([1.0, 111.0, 1.4, 3.6]).tolist() == [1.0, 96.0, 1.0, 4.0]
    assert SearchSpace(KINDS.parameters[1:]).size == 4 * 3 * 5
    assert len(np.unique(SearchSpace(KINDS.parameters[1:]).all_vectors(), axis=0)) == 60


def test_a_model_sees_labels_without_an_order() -> None:
    labels = np.array([[1.0, 96, k, 4] for k in range(3)])
    seen = KINDS.encode(KINDS.to_unit(labels))
    assert seen.shape == (3, 6)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    np.testing.assert_allclose(apart, 1 - np.eye(3), atol=1e-12)


@pytest.mark.parametrize("i", [0, 3])
def test_slopes_turn_natural_derivatives_into_those_of_the_cube(i: int) -> None:
    vector = np.array([2.0, 96, 1, 4])
    slopes = KINDS.slopes(vector)
    step = 1e-6 if i == 0 else 1.0
    moved = vector.copy()
    moved[i] += step
    measured = step / (KINDS.to_unit(moved) - KINDS.to_unit(vector))[i]
    assert slopes[i] == pytest.approx(measured, rel=1e-5)
    assert slopes[2] == 0.0
    assert slopes[1] == pytest.approx(4 * (128 - 64) / 2)
