"""The same images, gradients and windows on a CUDA device as on the CPU; skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import slabs
from qhrtem.model.diffuse import frozen_phonon_image
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.window import Move, SiteChange, Tangent, WindowModel

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPE, PIXEL_A = (64, 64), 0.18
CLOSE = 1e-5  # of the vacuum intensity


@pytest.fixture(scope="module")
def slab() -> slabs.Slab:
    return slabs.slab(shape=SHAPE, pixel=PIXEL_A)


@pytest.fixture(scope="module")
def device_model() -> ForwardModel:
    field = make_field(SHAPE, PIXEL_A, 40.0, device="cuda", margin=4.0)
    return ForwardModel(field, slabs.ENERGY)


def test_images_agree(slab: slabs.Slab, device_model: ForwardModel) -> None:
    image = device_model.image(slab.columns, slab.microscope)
    assert image.is_cuda and image.dtype == torch.float32
    assert float((image.cpu() - slab.model.image(slab.columns, slab.microscope)).abs().max()) < CLOSE


def test_gradients_agree(slab: slabs.Slab, device_model: ForwardModel) -> None:
    found = []
    for model in (slab.model, device_model):
        values = slab.microscope.differentiable()
        shift = torch.tensor(slab.columns.shift, requires_grad=True)
        ends = torch.ones((len(slab.columns), 2), dtype=torch.float64, requires_grad=True)
        there = model.field.grid.device
        model.image(slab.columns, values, shift.to(there), ends.to(there)).square().mean().backward()
        assert values.values.grad is not None and shift.grad is not None and ends.grad is not None
        found.append(torch.cat([g.flatten() for g in (values.values.grad, shift.grad, ends.grad)]))
    assert torch.allclose(found[0], found[1], rtol=1e-3, atol=1e-6 * float(found[0].abs().max()))


def test_windows_agree(slab: slabs.Slab, device_model: ForwardModel) -> None:
    c = slab.nearest("BaO")
    last = int(slab.columns.last[c])
    changes = [Move((SiteChange((last,), -1),)), Tangent(0, 1)]
    here, there = (
        WindowModel(model, slab.columns, slab.microscope).respond(c, changes).change
        for model in (slab.model, device_model)
    )
    assert np.abs(here - there).max() < CLOSE * max(1.0, float(np.abs(here).max()))


def test_thermal_averages_agree(slab: slabs.Slab, device_model: ForwardModel) -> None:
    here, there = (
        frozen_phonon_image(model, slab.columns, slab.microscope, 2, np.random.default_rng(0)).cpu()
        for model in (slab.model, device_model)
    )
    assert float((here - there).abs().max()) < CLOSE
