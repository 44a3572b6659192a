"""Joint refinement finds known positions and lens values within its own error bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benches import bench_of
from qhrtem.model.forward import ForwardModel
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.stages.joint import apply_step, refine, total_cost
from qhrtem.stages.linearise import linearise
from qhrtem.stages.objective import State
from slabs import Slab, slab

NAMES = ("c1", "a1_x", "vibration_xx", "tilt_x")
FREE = [INDEX[n] for n in NAMES]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.5)


def test_known_shifts_and_focus_are_found(island: Slab) -> None:
    rng = np.random.default_rng(0)
    shift = np.zeros_like(island.columns.shift)
    shift[:, 0] = rng.normal(0, 0.05, (len(shift), 2))
    shift[:, 1] = shift[:, 0] + rng.normal(0, 0.02, (len(shift), 2))
    true = State(replace(island.columns, shift=shift), island.microscope.with_values(c1=58.0, a1_x=5.0))
    bench = bench_of(island, true.columns, true.microscope, electrons=20000.0)
    costs: list[float] = []
    positions = list(range(len(shift)))
    start = State(island.columns, island.microscope)
    found = refine(bench, start, FREE, positions, 5, report=lambda s, c: costs.append(c))
    assert costs == sorted(costs, reverse=True) and len(costs) >= 2
    assert found.cost == pytest.approx(costs[-1])
    assert found.cost <= total_cost(bench, true, FREE) + 5
    assert bench.chi2(found.state) == pytest.approx(1, abs=0.12)
    sd = np.sqrt(np.diag(found.covariance))
    q = found.quadratic
    for a, i in enumerate(FREE):
        error = found.state.microscope.values[i] - true.microscope.values[i]
        assert abs(error) < 4 * sd[a] * PARAMETERS[i].step, PARAMETERS[i].name
    assert found.state.microscope["c1"] == pytest.approx(58.0, abs=1.0)
    pull = [
        (found.state.columns.shift[t] - shift[t]) / s
        for t, s in zip(q.tangents, sd[len(FREE) :], strict=True)
    ]
    assert np.abs(pull).max() < 4.5 and 0.5 < np.std(pull) < 1.4
    heavy = [
        n for n, (c, g, _) in enumerate(q.tangents) if island.columns.kind_of(c).name == "BaO" and g == 0
    ]
    assert np.median([sd[len(FREE) + n] for n in heavy]) < 0.02  # Å


def test_a_state_at_the_optimum_stays(island: Slab) -> None:
    bench = bench_of(island, seed=None)
    found = refine(bench, State(island.columns, island.microscope), FREE, [0, 1], 3)
    assert np.abs(found.state.columns.shift).max() < 1e-3
    assert found.state.microscope["c1"] == pytest.approx(island.microscope["c1"], abs=0.1)
    assert found.covariance.shape == (len(found.quadratic.gradient),) * 2


def test_what_is_usual_of_places_does_not_hold_back_the_mistilt() -> None:
    """Leaning about a far plane moves all columns, and the prior of their places would have to pay for it."""
    island = slab(radius=4.5, ends=(10.0, 45.0))
    tilt, lens = [3e-3, -2e-3], island.microscope.with_values(c1=-40.0)
    middle = replace(island.model.field, reference_z=140.0, pivot_z=27.5)
    recorded = replace(island, model=ForwardModel(middle, island.model.energy))
    tilted = lens.with_values(tilt_x=tilt[0], tilt_y=tilt[1])
    bench = bench_of(recorded, microscope=tilted, electrons=4000.0, seed=None)
    found = []
    for field in (middle, replace(middle, pivot_z=None)):
        leaning = replace(bench, model=ForwardModel(field, island.model.energy))
        start = State(island.columns, lens)
        free = [INDEX["tilt_x"], INDEX["tilt_y"]]
        state = refine(leaning, start, free, start.occupied(), 8, tolerance=1e-3).state
        found.append(np.array([state.microscope["tilt_x"], state.microscope["tilt_y"]]))
    assert found[0] == pytest.approx(tilt, rel=0.1)
    assert np.linalg.norm(found[1]) < 0.8 * np.linalg.norm(tilt)


def test_steps_keep_to_bounds_and_to_themselves(island: Slab) -> None:
    state = State(island.columns, island.microscope)
    q = linearise(bench_of(island, seed=None), state, [INDEX["vibration_xx"], INDEX["c1"]], [2], {})
    z = np.zeros(q.continuous)
    z[0], z[1], z[2] = -1000.0, 3.0, 0.5
    after = apply_step(state, q, z)
    assert after.microscope["vibration_xx"] == PARAMETERS[INDEX["vibration_xx"]].low
    assert after.microscope["c1"] == pytest.approx(island.microscope["c1"] + 3 * PARAMETERS[INDEX["c1"]].step)
    c, g, axis = q.tangents[0]
    assert after.columns.shift[c, g, axis] == pytest.approx(0.15)  # Å, the longest step
    assert np.count_nonzero(after.columns.shift) == 1
    assert not state.columns.shift.any()
