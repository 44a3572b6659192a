"""The move model: what holding an imaging parameter means, and what options say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from qhrtem.stages.move_model import MoveModel


def random_model(seed: int, lens: int = 3, positions: int = 4, moves: int = 5) -> tuple[MoveModel, dict]:
    """A model from a random positive quadratic cost over continuous unknowns z and moves s."""
    rng = np.random.default_rng(seed)
    k = lens + positions
    root = rng.normal(size=(k + moves, k + moves + 4))
    normal, gradient = root @ root.T, rng.normal(size=k + moves)
    a, cross = normal[lens:k, lens:k], normal[lens:k, k:]
    through = np.linalg.solve(a, normal[lens:k, :lens])
    follow, rest = np.linalg.solve(a, cross), np.linalg.solve(a, gradient[lens:k])
    answer = np.linalg.inv(normal[:lens, :lens] - normal[:lens, lens:k] @ through)
    reach = normal[:lens, k:] - through.T @ cross
    pull = gradient[:lens] - through.T @ gradient[lens:k]
    h = gradient[k:] - cross.T @ rest - reach.T @ answer @ pull
    near = sparse.csr_array(normal[k:, k:] - cross.T @ follow)
    model = MoveModel(h, near, reach, answer, pull, sparse.csc_array(follow), rest, through, [])
    return model, {"normal": normal, "gradient": gradient, "k": k}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), index=st.sampled_from([[0], [2], [0, 1]]))
def test_a_held_parameter_costs_what_the_constrained_minimum_does(seed: int, index: list[int]) -> None:
    """Differences between move sets equal those of the full quadratic, minimised with the parameter fixed."""
    model, full = random_model(seed)
    rng = np.random.default_rng(seed + 1)
    value = rng.normal(size=len(index))
    held = model.held(index, value)
    k, normal, gradient = full["k"], full["normal"], full["gradient"]
    free = [i for i in range(k) if i not in index]

    def constrained(s: np.ndarray) -> float:
        fixed = np.zeros(len(gradient))
        fixed[index], fixed[k:] = value, s
        slope = gradient[free] - normal[free] @ fixed
        best = fixed.copy()
        best[free] = np.linalg.solve(normal[np.ix_(free, free)], slope)
        return float(-2 * gradient @ best + best @ normal @ best)

    def modelled(s: np.ndarray) -> float:
        return held.cost(s)

    nothing = np.zeros(len(model.h))
    for _ in range(3):
        s = (rng.random(len(model.h)) < 0.5).astype(float)
        assert modelled(s) - modelled(nothing) == pytest.approx(
            constrained(s) - constrained(nothing), rel=1e-7, abs=1e-7
        )


def test_holding_a_parameter_where_it_would_go_changes_nothing_for_that_choice() -> None:
    model, _ = random_model(3)
    s = np.array([1.0, 0, 1, 0, 0])
    where = model.step(s)[:2]
    held = model.held([0, 1], where)
    slope = -2 * model.h + 2 * model.dense() @ s
    assert np.allclose(-2 * held.h + 2 * held.dense() @ s, slope, atol=1e-9)
