"""The forward model: sampling, frames, reference planes and detector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qhrtem.errors import InputError
from qhrtem.grid import fft2, ifft2, irfft2, is_smooth, rfft2
from qhrtem.model.forward import (
    KERNELS_KEPT,
    RECORDING,
    ForwardModel,
    coarsest,
    make_field,
    paired_size,
    thermal_of,
)
from qhrtem.model.microscope import PARAMETERS
from qhrtem.model.sampling import Sampling
from qhrtem.physics.detector import add_noise, half_frequencies
from qhrtem.physics.multislice import exit_wave, transmission
from qhrtem.physics.potential import Thermal
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.02, 0.45), st.integers(40, 150), st.integers(40, 150))
def test_fields_hold_the_image_and_its_margin(pixel: float, rows: int, cols: int) -> None:
    field = make_field((rows, cols), pixel, 40.0, margin=3.0)
    assert field.grid.extent == pytest.approx(field.image_grid.extent)
    assert field.grid.pixel[0] <= Sampling.wave
    assert field.grid.pixel[0] == pytest.approx(pixel * field.ratio[1] / field.ratio[0])
    for n, recorded, pad in zip(field.image_grid.shape, (rows, cols), field.pad, strict=True):
        assert n - recorded >= 2 * 3.0 / pixel and pad * pixel >= 3.0
    assert all(is_smooth(n) and n % 2 == 0 for n in field.grid.shape)


@pytest.mark.parametrize("pixel", [0.0112, 1.12, 0.009])
def test_impossible_pixel_sizes_are_refused(pixel: float) -> None:
    if pixel == 0.0112:  # a fine but possible sampling
        assert make_field((8, 8), pixel, 40.0, margin=0.1).detector_pixel == pixel
        return
    with pytest.raises(InputError, match="0.01 to 0.5 Å"):
        make_field((64, 64), pixel, 40.0)


@given(st.integers(20, 900), st.sampled_from([(1, 2), (5, 4), (5, 3), (2, 1), (3, 1)]))
def test_paired_sizes_fit_both_grids(n: int, ratio: tuple[int, int]) -> None:
    up, down = ratio
    size = paired_size(n, up, down)
    assert size >= n and size % (2 * down) == 0
    wave = size * up // down
    assert wave * down == size * up and wave % 2 == 0 and is_smooth(wave)


@pytest.mark.parametrize("pixel", [0.04, 0.07, 0.08, 0.105, 0.12, 0.15, 0.2])
def test_changes_are_simulated_on_waves_as_coarse_as_they_may_be(pixel: float) -> None:
    """Over the same field and for the same images, whatever its size."""
    model = ForwardModel(make_field((101, 143), pixel, 40.0), 300e3)
    own, coarse = model.field, model.coarse.field
    assert own.grid.pixel[0] <= coarse.grid.pixel[0] <= Sampling.change
    assert coarse.ratio == coarsest(pixel, Sampling.change)
    assert coarse.image_grid == own.image_grid and coarse.grid.extent == pytest.approx(own.grid.extent)
    assert all(is_smooth(n) for n in coarse.grid.shape)
    assert model.coarse.coarse is model.coarse


def test_positions_and_pixels_invert_each_other() -> None:
    field = make_field((50, 70), 0.13, 40.0)
    pixel = np.array([[0.0, 0.0], [12.25, 60.5]])
    assert np.allclose(field.to_detector(field.to_field(pixel)), pixel)
    image = np.arange(3500.0).reshape(50, 70)
    framed = field.embed(image, -1.0)
    assert framed.shape == field.image_grid.shape and framed[0, 0] == -1
    assert np.array_equal(field.crop(torch.as_tensor(framed)).numpy(), image)


def test_a_pixel_centre_is_where_the_field_says(island: Slab) -> None:
    """An island of one column is brightest at the pixel that `to_detector` names (NCSI: bright atoms)."""
    c = island.nearest("Ti")
    columns = island.columns
    last = columns.first - 1
    last[c] = columns.last[c]
    image = island.model.image(columns.with_ends(columns.first, last), island.microscope)
    crop = island.model.field.crop(image).numpy()
    peak = np.array(np.unravel_index(crop.argmax(), crop.shape))
    target = island.model.field.to_detector(columns.group_position()[c, 0])
    assert np.abs(peak - target).max() < 0.8
    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    near = np.hypot(y - target[0], x - target[1]) < 3
    w = np.where(near, crop - 1, 0)
    assert [(w * y).sum() / w.sum(), (w * x).sum() / w.sum()] == pytest.approx(target, abs=0.1)


def test_vacuum_is_one_far_from_the_specimen(island: Slab) -> None:
    image = island.model.image(island.columns, island.microscope)
    corner = image[:8, :8]
    assert torch.allclose(corner, torch.ones_like(corner), atol=0.01)
    assert 0.9 < float(image.mean()) <= 1.0
    assert float(image.std()) > 0.05


def test_slices_that_repeat_are_computed_once(island: Slab) -> None:
    """The stack with shared gratings gives the wave of every slice on its own."""
    model, columns, m = island.model, island.columns, island.microscope
    stack = model.stack(columns, thermal_of(m))
    assert len(stack.gratings) < len(stack.order)
    atoms = columns.atoms()
    low = int(atoms.slice.min())
    n = int(atoms.slice.max()) - low + 1
    assert len(stack.order) == n and stack.first_slice == low
    phases = model.phases(columns, thermal_of(m), atoms, np.arange(len(atoms.z)), atoms.slice - low, n)
    wave = exit_wave(transmission(phases).to(torch.complex64), range(n), model.step(columns, m))
    spectrum, exit_z = model.exit_spectrum(columns, m)
    assert torch.allclose(ifft2(spectrum), wave, atol=1e-5)
    p = columns.projection
    assert exit_z == pytest.approx(p.origin + (atoms.slice.max() + 0.5) * p.plane)
    _, waves = model.waves(columns, m)
    assert torch.allclose(waves[-1], wave, atol=1e-5) and len(waves) == n + 1


def test_moving_the_specimen_along_the_beam_is_a_change_of_focus(island: Slab) -> None:
    """C1 refers to a plane fixed in space: one period further down needs one period less of C1."""
    model, columns, m = island.model, island.columns, island.microscope
    sites = np.array([len(columns.kind_of(c).sites) for c in range(len(columns))])
    deeper = columns.with_ends(columns.first + sites, columns.last + sites)
    period = columns.projection.period
    moved = model.image(deeper, m.with_values(c1=m["c1"] + period))
    assert torch.allclose(moved, model.image(columns, m), atol=2e-4)
    assert not torch.allclose(model.image(deeper, m), model.image(columns, m), atol=5e-3)


def test_moving_columns_and_moving_the_image_are_the_same(island: Slab) -> None:
    model, columns, m = island.model, island.columns, island.microscope
    dy, dx = 0.061, -0.043
    shifted = replace(columns, anchor=columns.anchor + np.array([dy, dx]))
    a = model.image(shifted, m)
    b = model.image(columns, m.with_values(shift_x=dx, shift_y=dy))
    assert torch.allclose(a, b, atol=1e-3)
    assert not torch.allclose(a, model.image(columns, m), atol=2e-2)


def test_finer_detectors_sample_the_same_image() -> None:
    """Without an MTF, every second pixel of a 0.09 Å detector is a pixel of a 0.18 Å one."""
    coarse, fine = slab(pixel=0.18), slab(shape=(128, 128), pixel=0.09)
    m = coarse.microscope
    columns = replace(fine.columns, anchor=coarse.columns.anchor)
    offset = np.array(fine.model.field.pad) * 0.09 - np.array(coarse.model.field.pad) * 0.18
    columns = replace(columns, anchor=columns.anchor + offset)
    a = coarse.model.field.crop(coarse.model.image(coarse.columns, m))
    b = fine.model.field.crop(fine.model.image(columns, m))[::2, ::2]
    assert torch.allclose(a, b, atol=3e-3)


@pytest.mark.parametrize("pivot_z", [None, 0.0])
def test_mistilt_leans_the_columns_about_the_pivot(island: Slab, pivot_z: float | None) -> None:
    """Tilted imaging equals upright imaging of atoms moved by tan t times their height over the plane."""
    model = ForwardModel(replace(island.model.field, pivot_z=pivot_z), island.model.energy)
    columns = island.columns
    assert model.field.pivot == (model.field.reference_z if pivot_z is None else pivot_z)
    tilt = (5e-3, -3e-3)
    m = island.microscope.with_values(tilt_x=tilt[0], tilt_y=tilt[1])
    upright = island.microscope
    atoms = columns.atoms()
    p = columns.projection
    # Each slice transmits first and is then crossed whole, so its atoms act from its upper face.
    height = p.origin + atoms.slice * p.plane - p.plane / 2 - model.field.pivot
    lean = np.stack(
        [np.full(len(height), math.tan(tilt[1])), np.full(len(height), math.tan(tilt[0]))], axis=1
    )
    atoms = replace(atoms, position=atoms.position + height[:, None] * lean)
    low = int(atoms.slice.min())
    n = int(atoms.slice.max()) - low + 1
    phases = model.phases(columns, thermal_of(m), atoms, np.arange(len(atoms.z)), atoms.slice - low, n)
    wave = exit_wave(transmission(phases).to(torch.complex64), range(n), model.step(columns, upright))
    exit_z = p.origin + (low + n - 0.5) * p.plane
    expected = model.image_of(fft2(wave), exit_z, upright)
    found = model.image(columns, m)
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(model.image(columns, upright), expected, atol=2e-2)


def test_the_detector_scales_blurs_and_shifts(island: Slab) -> None:
    """Scale multiplies, vibration only damps, the mean keeps."""
    model, columns, m = island.model, island.columns, island.microscope
    image = model.image(columns, m)
    assert torch.allclose(model.image(columns, m.with_values(scale=1.03)), 1.03 * image, atol=1e-5)
    blurred = model.image(columns, m.with_values(vibration_xx=0.2, vibration_yy=0.2))
    assert float(blurred.std()) < 0.8 * float(image.std())
    assert float(blurred.mean()) == pytest.approx(float(image.mean()), rel=1e-5)


def test_vibration_axes_are_rows_and_columns(island: Slab) -> None:
    model, columns, m = island.model, island.columns, island.microscope
    ky, kx = half_frequencies(model.field.image_grid)
    sharp = rfft2(model.image(columns, m.with_values(vibration_xx=0.0, vibration_yy=0.0)))
    blurred = irfft2(sharp * torch.exp(-2 * math.pi**2 * 0.09 * kx**2), model.field.image_grid.shape)
    found = model.image(columns, m.with_values(vibration_xx=0.09, vibration_yy=0.0))
    assert torch.allclose(found.double(), blurred.double(), atol=1e-4)


def test_mtf_formula_and_samples_agree(island: Slab) -> None:
    model, columns, m = island.model, island.columns, island.microscope
    q = np.linspace(0, 0.75, 3001)
    formula = replace(m, mtf=(0.35, 0.28))
    samples = replace(m, mtf=np.stack([q, 0.65 / (1 + (q / 0.28) ** 2) + 0.35]))
    a, b = model.image(columns, formula), model.image(columns, samples)
    assert torch.allclose(a, b, atol=1e-5)
    assert float(a.std()) < 0.95 * float(model.image(columns, m).std())


def test_thermal_options_come_from_the_lens(island: Slab) -> None:
    m = island.microscope.with_values(b_scale=1.2, absorption=0.35)
    assert thermal_of(m) == Thermal(1.2, 0.35)
    none = island.model.image(island.columns, island.microscope.with_values(absorption=0.0))
    full = island.model.image(island.columns, island.microscope)
    assert float(none.mean()) == pytest.approx(1, abs=2e-3) and float(full.mean()) < float(none.mean()) - 1e-3


def test_an_empty_model_is_refused(island: Slab) -> None:
    columns = island.columns
    with pytest.raises(InputError, match="no atoms"):
        island.model.image(columns.with_ends(columns.first, columns.first - 1), island.microscope)


def test_kernels_are_kept_and_bounded(island: Slab) -> None:
    model = ForwardModel(island.model.field, island.model.energy)
    first = model.kernels(island.columns, Thermal())
    assert model.kernels(island.columns, Thermal()) is first
    states = [Thermal(proportional=n / 100, absorption_scale=0) for n in range(9)]
    made = [model.kernels(island.columns, t) for t in states]
    assert len(model._kernels[island.columns.species]) == KERNELS_KEPT
    late = range(9 - KERNELS_KEPT, 9)
    assert all(model.kernels(island.columns, states[n]) is made[n] for n in late)


def test_transmission_functions_are_kept_while_structure_and_thermal_motion_are(island: Slab) -> None:
    model, columns, m = (
        ForwardModel(island.model.field, island.model.energy),
        island.columns,
        island.microscope,
    )
    kept = model.stack(columns, thermal_of(m))
    tilted = m.with_values(tilt_x=3e-3, c1=20.0)
    assert model.stack(columns, thermal_of(tilted)) is kept
    shift = columns.shift.copy()
    shift[0] += 0.1
    warm = m.with_values(b_scale=1.5)
    for other, lens in ((columns, tilted), (replace(columns, shift=shift), m), (columns, warm), (columns, m)):
        fresh = ForwardModel(island.model.field, island.model.energy)
        assert torch.equal(model.image(other, lens), fresh.image(other, lens))
    moved = torch.tensor(shift, requires_grad=True)
    model.image(columns, m, shift=moved).square().sum().backward()  # type: ignore[no-untyped-call]
    assert moved.grad is not None and model.stack(columns, thermal_of(m)).gratings.grad_fn is None


def test_what_a_detector_does_leaves_the_intensity_behind_the_lens(island: Slab) -> None:
    """The parameters called so, and no others."""
    model, m = island.model, island.microscope
    spectrum, exit_z = model.exit_spectrum(island.columns, m)
    before = model.sharp_of(spectrum, exit_z, m)
    for p in PARAMETERS:
        if not p.structural:
            other = m.with_values(**{p.name: m[p.name] + p.step})
            same = torch.equal(model.sharp_of(spectrum, exit_z, other), before)
            assert same == (p.name in RECORDING), p.name


def test_a_noisy_image_has_unit_chi_square(island: Slab) -> None:
    image = island.model.image(island.columns, island.microscope)
    counts = add_noise(image, 100.0, 2.0, 10.0, 3.0, torch.Generator().manual_seed(0))
    scaled = (counts - 10) / 200
    variance = image.double() / 100 + 9 / 200**2
    chi2 = float(((scaled - image) ** 2 / variance).mean())
    assert chi2 == pytest.approx(1, abs=5 * math.sqrt(2 / image.numel()))
