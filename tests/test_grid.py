"""Sampling and transforms: identities that hold for any size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qhrtem.grid import Grid, fft2, good_size, ifft2, irfft2, is_smooth, resample_half, rfft2


@given(st.integers(1, 5000))
def test_smooth_numbers_have_no_large_prime_factor(n: int) -> None:
    factors = {p for p in range(2, n + 1) if n % p == 0 and all(p % d for d in range(2, math.isqrt(p) + 1))}
    assert is_smooth(n) == (max(factors, default=1) <= 5)


@given(st.integers(1, 3000))
def test_good_size_is_the_next_even_smooth_number(n: int) -> None:
    size = good_size(n)
    assert size >= n and size % 2 == 0 and is_smooth(size)
    assert not any(is_smooth(m) for m in range(n + n % 2, size, 2))


def test_frequencies_are_those_of_the_transform() -> None:
    grid = Grid((12, 20), (0.1, 0.25), dtype=torch.float64)
    ky, kx = grid.frequencies()
    y = torch.arange(12, dtype=torch.float64)[:, None] * 0.1
    x = torch.arange(20, dtype=torch.float64)[None, :] * 0.25
    wave = torch.exp(2j * math.pi * (ky[3, 0] * y + kx[0, -2] * x))
    spectrum = fft2(wave) / wave.numel()
    assert abs(spectrum[3, -2] - 1) < 1e-12
    assert spectrum.abs().sum() < 1 + 1e-9
    assert grid.extent == pytest.approx((1.2, 5.0))


def test_band_limit_is_two_thirds_of_the_coarser_nyquist_frequency() -> None:
    assert Grid((8, 8), (0.1, 0.2)).band_limit() == pytest.approx(2.5 * 2 / 3)


def test_complex_dtype_follows_the_real_one() -> None:
    assert Grid((8, 8), (0.1, 0.1)).complex_dtype == torch.complex64
    assert Grid((8, 8), (0.1, 0.1), dtype=torch.float64).complex_dtype == torch.complex128
    window = Grid((8, 10), (0.1, 0.2), dtype=torch.float64).window(6)
    assert window.shape == (6, 6) and window.pixel == (0.1, 0.2) and window.dtype == torch.float64


def test_transforms_invert_each_other() -> None:
    field = torch.randn(3, 10, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ifft2(fft2(field)).real, field)
    assert torch.allclose(irfft2(rfft2(field), (10, 16)), field)
    assert torch.allclose((fft2(field).abs() ** 2).sum() / 160, (field**2).sum())


def band_limited(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Half spectrum of a real random field whose frequencies any grid of at least 12 pixels holds."""
    low = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    coarse = rfft2(low)
    coarse[6], coarse[:, 6] = 0, 0  # Nyquist frequencies have no partner
    return resample_half(coarse, (12, 12), shape)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([12, 14, 18, 30]), st.sampled_from([12, 16, 20, 32]), st.integers(0, 99))
def test_resampling_is_lossless_for_band_limited_fields(rows: int, cols: int, seed: int) -> None:
    spectrum = band_limited((rows, cols), seed)
    field = irfft2(spectrum, (rows, cols))
    fine = irfft2(resample_half(spectrum, (rows, cols), (36, 48)), (36, 48))
    # Pixels that both grids share hold the same value, the origin among them.
    step = math.gcd(rows, 36), math.gcd(cols, 48)
    mine = field[:: rows // step[0], :: cols // step[1]]
    other = fine[:: 36 // step[0], :: 48 // step[1]]
    assert torch.allclose(mine, other, atol=1e-12)
    back = resample_half(rfft2(fine), (36, 48), (rows, cols))
    assert torch.allclose(irfft2(back, (rows, cols)), field, atol=1e-12)


def test_resampling_to_a_coarser_grid_drops_only_what_it_cannot_hold() -> None:
    x = torch.arange(24, dtype=torch.float64)[None, :] / 24
    y = torch.arange(24, dtype=torch.float64)[:, None] / 24
    kept, lost = torch.cos(2 * math.pi * (2 * x + 3 * y)), torch.cos(2 * math.pi * 9 * y) + 0 * x
    coarse = irfft2(resample_half(rfft2(kept + lost + 0.5), (24, 24), (12, 12)), (12, 12))
    assert torch.allclose(coarse, kept[::2, ::2] + 0.5, atol=1e-12)
