"""The image differentiated by everything that a fit may move, against differences of the image itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import slabs
from crystals import projection
from qhrtem.model.forward import ForwardModel, make_field, terminal_atoms, thermal_of
from qhrtem.model.microscope import INDEX, PARAMETERS, MicroscopeTensor, nominal
from qhrtem.specimen.columns import ColumnModel, lattice_columns

LENS = nominal(slabs.ENERGY).with_values(
    c1=55.0, a1_x=8.0, a1_y=-5.0, b2_x=90.0, b2_y=40.0, a2_x=-60.0, a2_y=110.0, s3_x=500.0, s3_y=-700.0,
    a3_x=400.0, a3_y=900.0, c5=2e6, tilt_x=2e-3, tilt_y=-1e-3, b_scale=1.1, absorption=0.8, vibration_xy=0.01,
    shift_x=0.1, shift_y=-0.2, scale=1.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> tuple[ForwardModel, ColumnModel]:
    """A few columns of BaTiO3 in vacuum, three slices deep, in double precision."""
    field = make_field((24, 24), 0.18, 40.0, margin=1.0, dtype=torch.float64)
    middle = field.to_field(np.array([12, 12]))
    low, high = middle - 2.2, middle + 2.2
    frame = np.array([[0.0, 1.0], [1.0, 0.0]])
    columns = lattice_columns(projection(*slabs.BTO), middle + 0.07, frame, (*low, *high))
    n = len(columns)
    return ForwardModel(field, slabs.ENERGY), columns.filled(np.full(n, 30.0), np.full(n, 36.5))


def direction(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a fixed random image to contract with."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda p: p.name)
def test_every_imaging_parameter(scene: tuple[ForwardModel, ColumnModel], parameter) -> None:
    """The whole image's directional derivative by differences of fourth order, to 1e-5."""
    model, columns = scene
    values = LENS.differentiable()
    weight = direction(model.field.image_grid.shape, 1)
    (weight * model.image(columns, values)).sum().backward()
    assert values.values.grad is not None
    analytic = float(values.values.grad[INDEX[parameter.name]])
    h = 0.02 * parameter.step

    def at(steps: float) -> float:
        moved = LENS.with_values(**{parameter.name: LENS[parameter.name] + steps * h})
        tensor = MicroscopeTensor(moved.energy, torch.tensor(moved.values), moved.mtf)
        return float((weight * model.image(columns, tensor)).sum())

    numeric = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)
    assert abs(numeric) > 1e-6 / parameter.step
    assert analytic == pytest.approx(numeric, rel=1e-5)


def test_gradcheck_by_positions_and_occupancies(scene: tuple[ForwardModel, ColumnModel]) -> None:
    model, columns = scene
    shift = torch.tensor(columns.shift + 0.03, requires_grad=True)
    ends = torch.full((len(columns), 2), 0.7, dtype=torch.float64, requires_grad=True)
    weight = direction((2, *model.field.image_grid.shape), 2)

    def contracted(s: Tensor, e: Tensor) -> Tensor:
        return (weight * model.image(columns, LENS, s, e)).sum((1, 2))

    assert torch.autograd.gradcheck(contracted, (shift, ends), eps=1e-5, atol=1e-6, rtol=1e-5)


def test_positions_given_as_a_tensor_are_those_of_the_model(scene: tuple[ForwardModel, ColumnModel]) -> None:
    model, columns = scene
    rng = np.random.default_rng(3)
    shift = rng.normal(0, 0.05, columns.shift.shape)
    moved = model.image(replace(columns, shift=shift), LENS)
    assert torch.allclose(model.image(columns, LENS, torch.tensor(shift)), moved, atol=1e-12)


def test_an_end_of_no_occupancy_is_an_atom_less(scene: tuple[ForwardModel, ColumnModel]) -> None:
    model, columns = scene
    c = int(np.argmax(columns.last - columns.first))
    ends = torch.ones((len(columns), 2), dtype=torch.float64)
    assert torch.allclose(model.image(columns, LENS, ends=ends), model.image(columns, LENS), atol=1e-12)
    ends[c, 1] = 0
    last = columns.last.copy()
    last[c] -= 1
    shorter = model.image(columns.with_ends(columns.first, last), LENS)
    assert torch.allclose(model.image(columns, LENS, ends=ends), shorter, atol=1e-7)


def test_a_lone_atom_is_both_ends(scene: tuple[ForwardModel, ColumnModel]) -> None:
    _, columns = scene
    alone = columns.with_ends(columns.first, columns.first)
    assert set(terminal_atoms(alone, alone.atoms()).tolist()) == {3}


def test_checkpoints_change_neither_image_nor_gradient(scene: tuple[ForwardModel, ColumnModel]) -> None:
    model, columns = scene
    grads, images = [], []
    for every in (None, 1, 2):
        values = LENS.differentiable()
        image = model.image(columns, values, checkpoint_every=every)
        image.square().sum().backward()
        assert values.values.grad is not None
        grads.append(values.values.grad)
        images.append(image.detach())
    for gradient, image in zip(grads[1:], images[1:], strict=True):
        assert torch.equal(image, images[0])
        assert torch.allclose(gradient, grads[0], rtol=1e-9)


def test_plain_and_differentiable_parameters_give_one_image(scene: tuple[ForwardModel, ColumnModel]) -> None:
    model, columns = scene
    assert torch.allclose(model.image(columns, LENS.differentiable()), model.image(columns, LENS), atol=1e-9)
    assert thermal_of(LENS.differentiable()).b_scale is not None


def test_single_and_double_precision_agree() -> None:
    slab = slabs.slab(shape=(32, 32), radius=2.5)
    image = slab.model.image(slab.columns, slab.microscope)
    field = make_field((32, 32), 0.18, 40.0, margin=4.0, dtype=torch.float64)
    double = ForwardModel(field, slabs.ENERGY).image(slab.columns, slab.microscope)
    assert image.dtype == torch.float32 and double.dtype == torch.float64
    assert float((image - double).abs().max()) < 1e-5
