"""The misfit, the bench that evaluates it, and the derivatives by imaging parameters."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benches import bench_of
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS
from qhrtem.stages.objective import State, make_misfit
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    """A slab that leans about its reference plane; about its own middle it would hardly show a mistilt."""
    upright = slab()
    field = replace(upright.model.field, pivot_z=None)
    return replace(upright, model=ForwardModel(field, upright.model.energy))


def test_cost_is_twice_the_negative_log_likelihood() -> None:
    field = make_field((40, 40), 0.2, 40.0, margin=2.0)
    rng = np.random.default_rng(0)
    micrograph = Micrograph(
        1 + 0.1 * rng.standard_normal((40, 40)), np.ones((40, 40), bool), 0.2, 100.0, 2e-3, 0.002
    )
    misfit = make_misfit(micrograph, field, border=0.0)
    image = torch.full(field.image_grid.shape, 0.9)
    variance = 0.9 / 100 + 2e-3
    r = micrograph.intensity - 0.9
    expected = (r**2).sum() / variance + 1600 * math.log(variance * 100)
    assert misfit.cost(image) == pytest.approx(expected, rel=1e-5)
    assert misfit.reduced_chi2(image) == pytest.approx((r**2).mean() / variance, rel=1e-5)
    assert float(misfit.weight(image).max()) == pytest.approx(1 / variance)
    assert misfit.pixels == 1600 and int((misfit.weight(image) > 0).sum()) == 1600


def test_border_and_bad_pixels_do_not_count() -> None:
    field = make_field((40, 40), 0.2, 40.0, margin=2.0)
    data = np.ones((40, 40))
    valid = np.ones((40, 40), bool)
    valid[20, 20] = False
    data[20, 20], data[10, 10], data[2, 2] = 50.0, np.nan, 70.0
    misfit = make_misfit(Micrograph(data, valid, 0.2, 100.0, 0.0, 0.002), field, border=1.5)
    image = torch.ones(field.image_grid.shape)
    assert misfit.pixels == 24 * 24 - 2
    assert misfit.reduced_chi2(image) == pytest.approx(0, abs=1e-9)
    assert math.isnan(misfit.reduced_chi2(image, torch.zeros(field.image_grid.shape, dtype=torch.bool)))


def test_truth_has_unit_chi_square_and_the_least_cost(island: Slab) -> None:
    bench = bench_of(island, electrons=20000.0)
    truth = State(island.columns, island.microscope)
    assert bench.chi2(truth) == pytest.approx(1, abs=5 * math.sqrt(2 / bench.misfit.pixels))
    for change in ({"c1": 58.0}, {"a1_y": 8.0}, {"scale": 1.01}, {"tilt_x": 2e-3}, {"b_scale": 1.3}):
        wrong = replace(truth, microscope=island.microscope.with_values(**change))
        assert bench.cost(wrong) > bench.cost(truth) + 10, change


def test_the_kept_exit_wave_is_renewed_when_it_must_be(island: Slab) -> None:
    bench = bench_of(island)
    state = State(island.columns, island.microscope)
    first = bench.image(state)
    lens = replace(state, microscope=island.microscope.with_values(c1=30.0))
    assert torch.allclose(bench.image(lens), island.model.image(island.columns, lens.microscope), atol=1e-6)
    tilted = replace(state, microscope=island.microscope.with_values(tilt_x=3e-3, absorption=0.3))
    assert torch.allclose(
        bench.image(tilted), island.model.image(island.columns, tilted.microscope), atol=1e-6
    )
    shift = island.columns.shift.copy()
    shift[0] += 0.1
    moved = replace(state, columns=replace(island.columns, shift=shift))
    assert torch.allclose(bench.image(moved), island.model.image(moved.columns, state.microscope), atol=1e-6)
    assert torch.allclose(bench.image(state), first, atol=1e-6)
    assert torch.allclose(bench.image(replace(state, diffuse=Diffuse(0.1))), first + 0.1, atol=1e-6)


def test_the_thermal_correction_follows_the_debye_waller_scale(island: Slab) -> None:
    """In the image and in its derivative, by the slope that it carries."""
    bench = bench_of(island)
    lens = island.microscope.with_values(b_scale=1.2)
    plain = State(island.columns, lens)
    slope = torch.linspace(0, 1, bench.image(plain).numel()).reshape(bench.image(plain).shape)
    warm = replace(plain, diffuse=Diffuse(0.01, slope, 1.0))
    assert torch.allclose(bench.image(warm), bench.image(plain) + 0.01 + 0.2 * slope, atol=1e-6)
    i = INDEX["b_scale"]
    more = bench.global_jacobian(warm, [i]) - bench.global_jacobian(plain, [i])
    assert np.allclose(more[0], PARAMETERS[i].step * slope.numpy(), atol=1e-5)


def test_jacobian_is_the_derivative_per_step(island: Slab) -> None:
    bench = bench_of(island)
    state = State(island.columns, island.microscope)
    names = ["tilt_y", "c1", "b2_x", "vibration_xx", "b_scale", "scale", "shift_x"]
    index = [INDEX[n] for n in names]
    jacobian = bench.global_jacobian(state, index)
    for i, found in zip(index, jacobian, strict=True):
        step = PARAMETERS[i].step
        h = 0.1 * step
        pair = [
            island.model.image(
                island.columns,
                island.microscope.with_vector([i], np.array([island.microscope.values[i] + s * h])),
            )
            for s in (1, -1)
        ]
        expected = ((pair[0] - pair[1]) / (2 * h) * step).double().numpy()
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected), PARAMETERS[i].name
    assert bench.global_jacobian(state, []).shape == (0, *bench.misfit.used.shape)
