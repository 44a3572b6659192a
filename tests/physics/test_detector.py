"""Vibration, MTF and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qhrtem.grid import Grid, fft2, ifft2, irfft2, resample_half, rfft2
from qhrtem.physics.detector import (
    Resampling,
    add_noise,
    apply,
    bicubic,
    half_frequencies,
    mtf_filter,
    mtf_from_samples,
    pixel_sinc,
    vibration_filter,
)

GRID = Grid((64, 80), (0.06, 0.05), dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.12, 0.3), st.floats(0.12, 0.3), st.floats(-1.5, 1.5))
def test_vibration_is_a_convolution_with_a_gaussian(major: float, minor: float, angle: float) -> None:
    """A point spreads into the normal density with the covariance asked for, y and x told apart."""
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])  # columns: principal axes in (x, y)
    (xx, xy), (_, yy) = turn @ np.diag([major**2, minor**2]) @ turn.T
    point = torch.zeros(GRID.shape, dtype=torch.float64)
    point[32, 40] = 1
    blurred = apply(point, vibration_filter(GRID, yy, xx, xy)).numpy()
    y = (np.arange(64)[:, None] - 32) * GRID.pixel[0]
    x = (np.arange(80)[None, :] - 40) * GRID.pixel[1]
    inverse = np.linalg.inv([[xx, xy], [xy, yy]])
    square = inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y
    density = np.exp(-square / 2) / (2 * np.pi * major * minor) * GRID.pixel[0] * GRID.pixel[1]
    assert np.abs(blurred - density).max() < 1e-3 * density.max()


def test_filters_keep_the_mean() -> None:
    image = torch.rand(GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for response in (vibration_filter(GRID, 0.1, 0.02, 0.03), mtf_filter(GRID, 0.35, 0.28)):
        assert float(apply(image, response).mean()) == pytest.approx(float(image.mean()))
    assert apply(torch.stack([image, 2 * image]), mtf_filter(GRID, 0.35, 0.28)).shape == (2, *GRID.shape)


def test_mtf_is_a_function_of_cycles_per_pixel() -> None:
    a, b = 0.35, 0.25
    mtf = mtf_filter(GRID, a, b)
    assert float(mtf[0, 0]) == pytest.approx(1)
    assert float(mtf[16, 0]) == pytest.approx((1 + a) / 2)  # q = 16/64 = b along y …
    assert float(mtf[0, 20]) == pytest.approx((1 + a) / 2)  # … and 20/80 along x, though the pixels differ
    assert torch.equal(mtf_filter(GRID, 1.0, 1.0), torch.ones_like(mtf))


def test_a_tabulated_mtf_is_interpolated_and_held() -> None:
    q = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    value = torch.tensor([1.0, 0.8, 0.2], dtype=torch.float64)
    mtf = mtf_from_samples(GRID, q, value)
    assert float(mtf[0, 0]) == pytest.approx(1)
    assert float(mtf[0, 4]) == pytest.approx(0.9)  # q = 0.05
    assert float(mtf[0, 16]) == pytest.approx(0.5)  # q = 0.2
    assert float(mtf[32, 40]) == pytest.approx(0.2)  # q = 0.71
    fine = torch.linspace(0, 0.8, 4001, dtype=torch.float64)
    dense = mtf_from_samples(GRID, fine, (1 - 0.35) / (1 + (fine / 0.28) ** 2) + 0.35)
    assert torch.allclose(dense, mtf_filter(GRID, 0.35, 0.28), atol=1e-6)


def test_frequencies_have_the_layout_of_a_real_transform() -> None:
    ky, kx = half_frequencies(GRID)
    assert ky.shape == (64, 1) and kx.shape == (1, 41)
    assert float(kx[0, -1]) == pytest.approx(0.5 / 0.05)
    y = torch.arange(64, dtype=torch.float64)[:, None] * 0.06
    x = torch.arange(80, dtype=torch.float64)[None, :] * 0.05
    wave = torch.cos(2 * math.pi * (ky[5, 0] * y + kx[0, 7] * x))
    shifted = apply(wave, torch.exp(-2j * math.pi * (ky * 0.3 + kx * 0.2)))
    assert torch.allclose(
        shifted, torch.cos(2 * math.pi * (ky[5, 0] * (y - 0.3) + kx[0, 7] * (x - 0.2))), atol=1e-9
    )


def test_the_sinc_is_the_mean_over_a_pixel() -> None:
    """A fine image averaged over blocks, against the response at the coarse pixel."""
    fine = Grid((128, 160), (0.03, 0.025), dtype=torch.float64)
    ky, kx = half_frequencies(fine)
    point = fft2(torch.rand(fine.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    inside = (torch.hypot(*torch.broadcast_tensors(*fine.frequencies())) < 3).double()
    image = ifft2(point * inside).real
    steps = 16  # sub-pixel shifts of the coarse pixel, at the middle of equal parts
    blurred = torch.zeros_like(image)
    for i in range(steps):
        for j in range(steps):
            y, x = ((i + 0.5) / steps - 0.5) * GRID.pixel[0], ((j + 0.5) / steps - 0.5) * GRID.pixel[1]
            blurred += apply(image, torch.exp(2j * math.pi * (ky * y + kx * x))) / steps**2
    coarse = pixel_sinc(GRID)
    filtered = irfft2(resample_half(rfft2(image), fine.shape, GRID.shape) * coarse, GRID.shape)
    assert torch.allclose(filtered, blurred[::2, ::2], atol=5e-4 * float(image.std()))
    assert float((filtered - image[::2, ::2]).abs().max()) > 0.05 * float(image.std())
    assert float(coarse[0, -1]) == pytest.approx(2 / math.pi)


def smooth_image(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A periodic image on GRID's extent, at any position in Å."""
    ey, ex = GRID.extent
    return torch.sin(2 * math.pi * (2 * y / ey + x / ex)) + 0.5 * torch.cos(2 * math.pi * 3 * x / ex)


def test_bicubic_resampling_finds_the_image_at_shifted_and_turned_places() -> None:
    """Offset in pixels of the source (x, y); the content turns from +x towards +y, so places turn back."""
    y = torch.arange(64, dtype=torch.float64)[:, None] * GRID.pixel[0]
    x = torch.arange(80, dtype=torch.float64)[None, :] * GRID.pixel[1]
    window = Resampling((30, 40), 0.043, (7.3, -12.6), 0.4)
    v = torch.arange(30, dtype=torch.float64)[:, None] * 0.043
    u = torch.arange(40, dtype=torch.float64)[None, :] * 0.043
    c, s = math.cos(0.4), math.sin(0.4)
    expected = smooth_image(-12.6 * GRID.pixel[0] + c * v - s * u, 7.3 * GRID.pixel[1] + c * u + s * v)
    found = bicubic(smooth_image(y, x), GRID, window)
    assert torch.allclose(found, expected, atol=5e-4)
    assert window.grid(GRID) == Grid((30, 40), (0.043, 0.043), dtype=torch.float64)


def test_bicubic_resampling_keeps_pixels_and_the_mean() -> None:
    grid = Grid((20, 24), (0.05, 0.05), dtype=torch.float64)
    image = torch.rand(grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(bicubic(image, grid, Resampling(grid.shape, 0.05)), image)
    moved = bicubic(image, grid, Resampling(grid.shape, 0.05, (-3.0, 25.0)))
    assert torch.allclose(moved, torch.roll(image, (-25, 3), (0, 1)))
    between = bicubic(image, grid, Resampling(grid.shape, 0.05, (0.4, 0.7)))
    assert float(between.mean()) == pytest.approx(float(image.mean()))  # the kernel sums to one everywhere


@pytest.mark.parametrize("level", [0.0, 0.4, 1.3])
def test_noise_has_the_mean_and_variance_of_counted_electrons(level: float) -> None:
    electrons, gain, offset, readout = 200.0, 12.0, 100.0, 9.0
    image = torch.full((300, 300), level)
    counts = add_noise(image, electrons, gain, offset, readout, torch.Generator().manual_seed(3))
    mean, variance = gain * electrons * level + offset, gain**2 * electrons * level + readout**2
    n = counts.numel()
    assert float(counts.mean()) == pytest.approx(mean, abs=4.5 * math.sqrt(variance / n))
    assert float(counts.var()) == pytest.approx(variance, rel=4.5 * math.sqrt(2.1 / n))


def test_noise_is_reproducible_and_white() -> None:
    image = torch.ones(200, 200)
    first = add_noise(image, 100.0, 1.0, 0.0, 0.0, torch.Generator().manual_seed(5))
    again = add_noise(image, 100.0, 1.0, 0.0, 0.0, torch.Generator().manual_seed(5))
    other = add_noise(image, 100.0, 1.0, 0.0, 0.0, torch.Generator().manual_seed(6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, first.round())  # whole electrons
    d = first - first.mean()
    assert abs(float((d[:, 1:] * d[:, :-1]).mean() / d.var())) < 0.025
