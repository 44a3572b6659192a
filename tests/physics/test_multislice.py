"""Multislice: exact identities, the sign of mistilt, and waves of an independent program."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drprobe
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.electron import wavelength
from qhrtem.physics.multislice import all_waves, exit_wave, propagator, transmission, transmit_propagate
from qhrtem.physics.potential import PhaseKernels, Species, Thermal, radial_frequency

ENERGY = 300e3
GRID = Grid((24, 32), (0.12, 0.1), dtype=torch.float64)


def smooth_phase(strength: float, seed: int = 0) -> torch.Tensor:
    """A random phase whose gratings stay well inside the band limit."""
    noise = torch.randn(GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    keep = radial_frequency(GRID) < 0.25 * GRID.band_limit()
    phase = ifft2(fft2(noise) * keep).real
    return strength * phase / phase.std()


def test_a_plane_wave_gains_the_fresnel_phase() -> None:
    step = propagator(GRID, 7.0, ENERGY)
    ky, kx = GRID.frequencies()
    k2 = float(ky[2, 0] ** 2 + kx[0, 3] ** 2)
    expected = -math.pi * wavelength(ENERGY) * 7.0 * k2
    assert float(step[2, 3].angle()) == pytest.approx(expected, abs=1e-12)


def test_the_propagator_is_cut_at_the_band_limit() -> None:
    step = propagator(GRID, 3.0, ENERGY, (1e-3, -2e-3)).abs()
    inside = radial_frequency(GRID) <= GRID.band_limit()
    assert torch.allclose(step[inside], torch.ones(1, dtype=torch.float64)) and not step[~inside].any()
    assert 0 < int(inside.sum()) < inside.numel()


def test_two_short_steps_make_a_long_one() -> None:
    tilt = (2e-3, -1e-3)
    product = propagator(GRID, 1.5, ENERGY, tilt) * propagator(GRID, 2.5, ENERGY, tilt)
    assert torch.allclose(product, propagator(GRID, 4.0, ENERGY, tilt))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 0.3), st.integers(0, 50), st.floats(-4e-3, 4e-3))
def test_intensity_is_conserved_without_absorption(strength: float, seed: int, tilt: float) -> None:
    gratings = torch.stack([transmission(smooth_phase(strength, seed + i)) for i in range(2)])
    wave = exit_wave(gratings, [0, 1, 0], propagator(GRID, 2.0, ENERGY, (tilt, 0.0)))
    assert float((wave.abs() ** 2).mean()) == pytest.approx(1, abs=2e-5)


def test_a_positive_imaginary_phase_absorbs() -> None:
    absorbing = torch.full(GRID.shape, 0.3 + 0.05j, dtype=torch.complex128)
    wave = exit_wave(transmission(absorbing)[None], [0, 0], propagator(GRID, 2.0, ENERGY))
    assert torch.allclose(wave.abs() ** 2, torch.full(GRID.shape, math.exp(-4 * 0.05), dtype=torch.float64))


def test_slices_are_crossed_in_order() -> None:
    """Transmit, then propagate; the first entry of `order` meets the beam first."""
    gratings = torch.stack([transmission(smooth_phase(0.5, 1)), transmission(smooth_phase(0.5, 2))])
    step = propagator(GRID, 30.0, ENERGY)
    wave = ifft2(fft2(gratings[1]) * step)
    wave = ifft2(fft2(wave * gratings[0]) * step)
    assert torch.allclose(exit_wave(gratings, [1, 0], step), wave)
    assert not torch.allclose(exit_wave(gratings, [0, 1], step), wave, atol=1e-3)
    waves = all_waves(gratings, [1, 0], step)
    assert torch.equal(waves[0], torch.ones_like(wave)) and torch.allclose(waves[2], wave)
    assert torch.allclose(transmit_propagate(waves[1], gratings[0], step), waves[2])


def test_an_incident_wave_continues_a_stack() -> None:
    gratings = torch.stack([transmission(smooth_phase(0.5, 1)), transmission(smooth_phase(0.5, 2))])
    step = propagator(GRID, 2.0, ENERGY)
    half = exit_wave(gratings, [0, 1], step)
    assert torch.allclose(exit_wave(gratings, [1], step, half), exit_wave(gratings, [0, 1, 1], step))


def test_mistilt_is_a_shear_of_the_specimen() -> None:
    """A propagator tilted by t and atoms moved by +z tan t give the same wave in the frame of the columns."""
    tilt, plane, slices = (6e-3, -4e-3), 1.5, 8
    kernels = PhaseKernels(GRID, [Species("Ti", 0.5)], ENERGY, Thermal())
    slope = torch.tensor([math.tan(tilt[1]), math.tan(tilt[0])], dtype=torch.float64)  # y, x
    depth = plane * torch.arange(slices, dtype=torch.float64)[:, None]
    atom = torch.tensor([[1.3, 1.4]], dtype=torch.float64)
    zero, one = torch.zeros(slices, dtype=torch.long), torch.ones(slices, dtype=torch.float64)
    upright = kernels.phases(atom, zero[:1], zero[:1], one[:1], 1)
    sheared = kernels.phases(atom + depth * slope, torch.arange(slices), zero, one, slices)
    tilted = exit_wave(transmission(upright), [0] * slices, propagator(GRID, plane, ENERGY, tilt))
    leaning = exit_wave(transmission(sheared), list(range(slices)), propagator(GRID, plane, ENERGY))
    ky, kx = GRID.frequencies()
    back = torch.exp(2j * math.pi * slices * plane * (ky * slope[0] + kx * slope[1]))
    assert drprobe.rms(ifft2(fft2(leaning) * back) - 1, tilted - 1) < 1e-4
    # The other sign, or none, is far off.
    assert drprobe.rms(leaning - 1, tilted - 1) > 0.05


@pytest.mark.parametrize(
    ("name", "thermal", "limits"),
    [
        ("dwf", Thermal(absorption_scale=0), (0.002, 0.008, 0.02)),
        ("dwf_abs", Thermal(), (0.002, 0.008, 0.015)),
        ("elastic", Thermal(rigid=True), (0.01, 0.025, 0.04)),
    ],
)
def test_exit_waves_match_dr_probe(name: str, thermal: Thermal, limits: tuple[float, ...]) -> None:
    """BaTiO3 [110] at 0.56, 2.3 and 4.5 nm; the rest is the difference between two form factor tables."""
    reference = drprobe.data()
    gratings = transmission(drprobe.phases(thermal)).to(torch.complex128)
    step = propagator(drprobe.GRID, drprobe.PLANE_A, ENERGY)
    for repeats, limit in zip((1, 4, 8), limits, strict=True):
        index = list(reference["z_repeats"]).index(repeats)
        wave = exit_wave(gratings, list(range(drprobe.SLICES)) * repeats, step)
        assert drprobe.rms(wave, reference[f"wave_{name}"][index]) < limit


def test_proportional_absorption_matches_dr_probe() -> None:
    thermal = Thermal(absorption_scale=0, proportional=0.07)
    gratings = transmission(drprobe.phases(thermal)).to(torch.complex128)
    wave = exit_wave(gratings, list(range(4)) * 4, propagator(drprobe.GRID, drprobe.PLANE_A, ENERGY))
    assert drprobe.rms(wave, drprobe.data()["wave_dwf_abf07"][0]) < 0.01


def test_mistilt_matches_dr_probe_in_sign_and_size() -> None:
    tilt = (math.radians(0.4), math.radians(-0.25))
    gratings = transmission(drprobe.phases(Thermal(rigid=True))).to(torch.complex128)
    reference = drprobe.data()["wave_elastic_tilt"][0]

    def difference(x: float, y: float) -> float:
        step = propagator(drprobe.GRID, drprobe.PLANE_A, ENERGY, (x, y))
        return drprobe.rms(exit_wave(gratings, list(range(4)) * 4, step), reference)

    assert difference(*tilt) < 0.025
    assert min(difference(tilt[0], -tilt[1]), difference(-tilt[0], tilt[1]), difference(0.0, 0.0)) > 0.1
