"""What is claimed of counts where other specimens describe the image nearly as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qhrtem.model.microscope import INDEX
from qhrtem.stages.assess import agreed, prior_error
from qhrtem.stages.objective import State
from qhrtem.stages.thickness import Rival, shifted
from slabs import slab


@pytest.mark.parametrize(
    ("name", "deviations", "expected"),
    [("b_scale", -5.0, 25.0), ("semi_convergence", 4.0, 16.0), ("c3", 0.5, 1.0), ("scale", 9.0, 1.0)],
)
def test_a_parameter_that_left_its_prior_tells_of_errors(
    name: str, deviations: float, expected: float
) -> None:
    island = slab(radius=3.5)
    i = INDEX[name]
    usual = replace(island.microscope, values=island.microscope.mean)
    away = usual.with_values(**{name: usual.mean[i] + deviations * usual.sigma[i]})
    state = State(island.columns, away)
    free = [INDEX["c1"], INDEX["b_scale"], i]
    assert prior_error(state, free) == pytest.approx(expected)
    assert prior_error(state, free[:1]) == 1.0  # held, it can tell nothing


def test_a_rival_counts_the_more_the_larger_the_error() -> None:
    island = slab(radius=3.5)
    thicker = shifted(State(island.columns, island.microscope), 1).columns.element_counts()
    rivals = (Rival("thicker", 40.0, thicker), Rival("the same", 10.0, island.columns.element_counts()))
    claimed = [agreed(island.columns, rivals, inflation) for inflation in (1.0, 5.0, 25.0)]
    assert np.all(claimed[0] > 1 - 1e-7) and np.all(claimed[1] > claimed[2])
    weights = np.exp(-0.5 * np.array([40.0, 10.0]) / 25.0)
    assert claimed[2] == pytest.approx(np.full(len(thicker), (1 + weights[1]) / (1 + weights.sum())))
