"""Projected phases: exact sub-pixel placement, absolute normalisation, differentiability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drprobe
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.electron import gamma, potential_per_scattering_factor, wavelength
from qhrtem.physics.potential import (
    PhaseKernels,
    Species,
    Thermal,
    phase_factor,
    radial_frequency,
    soft_band_limit,
    spread,
)
from qhrtem.physics.scattering import form_factor

ENERGY = 300e3
GRID = Grid((30, 36), (0.11, 0.09), dtype=torch.float64)
TITANIUM = Species("Ti", 0.5)


def phase_of(
    position: list[list[float]], grid: Grid = GRID, thermal: Thermal | None = None, weight: float = 1.0
) -> torch.Tensor:
    """Phase of titanium atoms in one slice."""
    kernels = PhaseKernels(grid, [TITANIUM], ENERGY, thermal or Thermal())
    n = len(position)
    zero = torch.zeros(n, dtype=torch.long)
    amount = torch.full((n,), weight, dtype=torch.float64)
    return kernels.phases(torch.tensor(position, dtype=torch.float64), zero, zero, amount, 1)[0]


@settings(max_examples=25, deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_moving_an_atom_shifts_its_phase_exactly(y: float, x: float, dy: float, dx: float) -> None:
    ky, kx = GRID.frequencies()
    before, after = phase_of([[y, x]]), phase_of([[y + dy, x + dx]])
    shift = torch.exp(-2j * math.pi * (ky * dy + kx * dx))
    assert (ifft2(fft2(before) * shift) - after).abs().max() < 5e-6 * before.abs().max()


def test_an_atom_is_the_fourier_series_of_its_form_factor() -> None:
    y, x = 0.7234, 1.9111
    ky, kx = GRID.frequencies()
    g = radial_frequency(GRID)
    series = phase_factor(TITANIUM, g, ENERGY, Thermal()) * soft_band_limit(g, GRID)
    series = series * torch.exp(-2j * math.pi * (ky * y + kx * x)) / (GRID.pixel[0] * GRID.pixel[1])
    assert (phase_of([[y, x]]) - ifft2(series)).abs().max() < 5e-6 * series.abs().max()


def test_the_field_is_periodic() -> None:
    ey, ex = GRID.extent
    assert torch.allclose(phase_of([[0.2, 0.1]]), phase_of([[0.2 - ey, 0.1 + 2 * ex]]), atol=1e-9)


def test_integrated_phase_is_the_forward_scattering_amplitude() -> None:
    """∫ σV d²r = λγ f_e(0) for each atom, wherever it sits."""
    phase = phase_of([[0.31, 0.77], [1.2, 2.2], [2.9, 0.01]], thermal=Thermal(absorption_scale=0))
    total = float(phase.real.sum()) * GRID.pixel[0] * GRID.pixel[1]
    expected = 3 * wavelength(ENERGY) * gamma(ENERGY) * float(form_factor("Ti", np.array(0.0)))
    assert total == pytest.approx(expected, rel=1e-5)


def test_weight_and_occupancy_scale_the_phase() -> None:
    full = phase_of([[1.0, 1.0]])
    assert torch.allclose(phase_of([[1.0, 1.0]], weight=0.25), full / 4)
    half = PhaseKernels(GRID, [Species("Ti", 0.5, 0.5)], ENERGY, Thermal())
    zero = torch.zeros(1, dtype=torch.long)
    one = torch.ones(1, dtype=torch.float64)
    phase = half.phases(torch.tensor([[1.0, 1.0]], dtype=torch.float64), zero, zero, one, 1)[0]
    assert torch.allclose(phase, full / 2)


def test_atoms_go_to_their_own_slice_with_their_own_species() -> None:
    kernels = PhaseKernels(GRID, [TITANIUM, Species("O", 0.8)], ENERGY, Thermal(rigid=True))
    position = torch.tensor([[0.5, 0.5], [1.5, 2.0], [2.5, 1.0]], dtype=torch.float64)
    owner, kind = torch.tensor([2, 0, 2]), torch.tensor([0, 1, 1])
    one = torch.ones(3, dtype=torch.float64)
    together = kernels.phases(position, owner, kind, one, 3)
    apart = [
        kernels.phases(position[i : i + 1], owner[i : i + 1], kind[i : i + 1], one[:1], 3) for i in range(3)
    ]
    assert torch.allclose(together, sum(apart), atol=1e-12)
    assert not together[1].any()
    area = GRID.pixel[0] * GRID.pixel[1]
    ratio = float(together[0].sum() * area / (wavelength(ENERGY) * gamma(ENERGY)))
    assert ratio == pytest.approx(float(form_factor("O", np.array(0.0))), rel=1e-5)


@pytest.mark.parametrize("absorption", [0.0, 1.0])
def test_a_slice_without_atoms_is_empty(absorption: float) -> None:
    kernels = PhaseKernels(GRID, [TITANIUM], ENERGY, Thermal(absorption_scale=absorption))
    place, weight = torch.zeros((1, 2), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.long)
    some = kernels.phases(place, zero, zero, weight, 2)
    none = kernels.phases(place[:0], zero[:0], zero[:0], weight[:0], 2)
    assert none.shape == some.shape and none.dtype == some.dtype
    assert not none.any() and not some[1].any() and some[0].any()


def test_thermal_options() -> None:
    g = torch.linspace(0, 3, 16, dtype=torch.float64)
    rigid = phase_factor(TITANIUM, g, ENERGY, Thermal(rigid=True))
    plain = phase_factor(TITANIUM, g, ENERGY, Thermal())
    double = phase_factor(TITANIUM, g, ENERGY, Thermal(b_scale=2.0))
    share = phase_factor(TITANIUM, g, ENERGY, Thermal(absorption_scale=0, proportional=0.07))
    assert not rigid.imag.any()
    assert torch.allclose(plain.real, rigid.real * torch.exp(-0.5 * g**2 / 4))
    assert torch.allclose(double.real, rigid.real * torch.exp(-1.0 * g**2 / 4))
    assert bool((plain.imag[:8] > 0).all())
    assert torch.allclose(share.imag, 0.07 * share.real)
    half = phase_factor(TITANIUM, g, ENERGY, Thermal(absorption_scale=0.5))
    assert torch.allclose(half.imag, plain.imag / 2)


def test_soft_band_limit_keeps_the_core_and_ends_at_the_limit() -> None:
    limit = GRID.band_limit()
    g = torch.tensor([0.0, 0.85, 0.94, 1.0, 1.05], dtype=torch.float64) * limit
    taper = soft_band_limit(g, GRID)
    assert taper[:2] == pytest.approx(np.ones(2), abs=1e-5)
    assert float(taper[2]) == pytest.approx(0.5)
    assert taper[3:] == pytest.approx(np.zeros(2), abs=1e-3)


def test_projected_potential_matches_dr_probe() -> None:
    """Volt, mean over a slice, without the relativistic factor; compared below both band limits."""
    phase = drprobe.phases(Thermal(rigid=True))
    ours = phase * potential_per_scattering_factor() / (wavelength(ENERGY) * gamma(ENERGY)) / drprobe.PLANE_A
    theirs = torch.as_tensor(drprobe.data()["projected_potential_V_elastic"], dtype=torch.float64)
    near = radial_frequency(drprobe.GRID) < 0.8 * drprobe.GRID.band_limit()
    a, b = fft2(ours)[:, near], fft2(theirs)[:, near]
    assert drprobe.rms(a, b) < 0.02


def test_gradients_of_spreading() -> None:
    grid = Grid((12, 14), (0.1, 0.12), dtype=torch.float64)
    position = torch.tensor([[0.433, 0.617], [1.02, 1.31]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.4], dtype=torch.float64, requires_grad=True)
    channel = torch.tensor([0, 1])
    assert torch.autograd.gradcheck(lambda p, w: spread(p, channel, 2, w, grid), (position, weight), eps=1e-6)


def test_gradients_of_phases() -> None:
    kernels = PhaseKernels(Grid((12, 12), (0.12, 0.12), dtype=torch.float64), [TITANIUM], ENERGY, Thermal())
    position = torch.tensor([[0.433, 0.617], [1.02, 1.11]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 0.4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.long)
    assert torch.autograd.gradcheck(lambda p, w: kernels.phases(p, zero, zero, w, 1), (position, weight))
