"""What is claimed of counts where other specimens describe the image nearly as well."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qhrtem.model.microscope import INDEX
from qhrtem.stages.assess import agreed, motion_error
from qhrtem.stages.objective import State
from qhrtem.stages.thickness import Rival, shifted
from slabs import slab


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1.0), (1.05, 1.0), (0.5, 25.0), (1.4, 16.0)])
def test_an_unusual_debye_waller_scale_tells_of_errors(scale: float, expected: float) -> None:
    island = slab(radius=3.5)
    free = [INDEX["c1"], INDEX["b_scale"]]
    sigma = island.microscope.sigma.copy()
    sigma[INDEX["b_scale"]] = 0.1
    microscope = island.microscope.with_values(b_scale=scale)
    state = State(island.columns, replace(microscope, sigma=sigma))
    assert motion_error(state, free) == pytest.approx(expected)
    assert motion_error(state, free[:1]) == 1.0  # held, it can tell nothing


def test_a_rival_counts_the_more_the_larger_the_error() -> None:
    island = slab(radius=3.5)
    thicker = shifted(State(island.columns, island.microscope), 1).columns.element_counts()
    rivals = (Rival("thicker", 40.0, thicker), Rival("the same", 10.0, island.columns.element_counts()))
    claimed = [agreed(island.columns, rivals, inflation) for inflation in (1.0, 5.0, 25.0)]
    assert np.all(claimed[0] > 1 - 1e-7) and np.all(claimed[1] > claimed[2])
    weights = np.exp(-0.5 * np.array([40.0, 10.0]) / 25.0)
    assert claimed[2] == pytest.approx(np.full(len(thicker), (1 + weights[1]) / (1 + weights.sum())))
