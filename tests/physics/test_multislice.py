"""Multislice: exact identities, the sign of mistilt, and waves of an independent program."""

from __future__ import annotations

import math

import numpy as np
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


def test_the_exact_propagator_is_the_wave_number_along_the_beam() -> None:
    """Phase 2πΔz (k_z - 1/λ) with k_z² = 1/λ² - k²; the others are its expansions in k²."""
    lam, dz = wavelength(ENERGY), 4.0
    k = radial_frequency(GRID)
    keep = k <= GRID.band_limit()
    kz = torch.sqrt(1 / lam**2 - k[keep] ** 2)
    exact = torch.polar(torch.ones_like(kz), 2 * math.pi * dz * (kz - 1 / lam))
    assert torch.allclose(propagator(GRID, dz, ENERGY, kind="exact")[keep], exact, atol=1e-9)
    fresnel = propagator(GRID, dz, ENERGY)[keep].angle()
    fourth = math.pi * dz * lam**3 * k[keep] ** 4  # of the next term of 1 - cos θ, over -1/4
    assert torch.allclose(exact.angle(), fresnel - fourth / 4, atol=1e-5)
    secant = propagator(GRID, dz, ENERGY, kind="secant")[keep].angle()
    assert torch.allclose(secant, fresnel - 3 * fourth / 4, atol=1e-4)
    assert float((fourth / 4).max()) > 1e-3


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 50), st.integers(-3, 3), st.integers(-3, 3), st.floats(-5e-3, 5e-3))
def test_source_and_detector_may_be_swapped(seed: int, row: int, col: int, tilt: float) -> None:
    """Beam g behind the stack for a plane wave 0 is beam 0 behind the reversed stack for a plane wave -g.

    Absorbing gratings included; the mistilt turns its sign.
    """
    phases = [smooth_phase(0.4, seed + i) + 0.05j * smooth_phase(0.4, seed + 9 + i) ** 2 for i in range(3)]
    gratings = torch.stack([transmission(phase) for phase in phases])
    forth = propagator(GRID, 6.0, ENERGY, (tilt, 2e-3))
    back = propagator(GRID, 6.0, ENERGY, (-tilt, -2e-3))
    direct = fft2(exit_wave(gratings, [0, 1, 2], forth))[row, col]
    spectrum = torch.zeros(GRID.shape, dtype=torch.complex128)
    spectrum[-row, -col] = spectrum.numel()
    swapped = fft2(exit_wave(gratings, [2, 1, 0], back, ifft2(spectrum * back)))[0, 0]
    assert torch.allclose(swapped, direct, atol=1e-9 * spectrum.numel())


def test_thin_slices_converge_to_the_bloch_waves_of_a_cubic_crystal() -> None:
    """Beams through 6 nm of a simple cubic crystal from the eigenvectors of its structure matrix.

    ∂ψ/∂z = i(-πλk² + σV)ψ over the beams within the band limit (Bethe 1928, high-energy approximation). The
    error falls with the slice thickness, as each slice cuts what it scatters beyond the band limit, so two
    thicknesses extrapolate to the limit of none.
    """
    edge, depth = 3.2, 60.0
    grid = Grid((20, 20), (edge / 20, edge / 20), dtype=torch.float64)
    kernels = PhaseKernels(grid, [Species("Cu", 0.6)], ENERGY, Thermal(rigid=True))
    zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.float64)
    per_length = kernels.phases(torch.tensor([[0.7, 1.1]], dtype=torch.float64), zero, zero, one, 1)[0] / edge
    beams = np.argwhere((radial_frequency(grid) <= grid.band_limit()).numpy())
    coefficient = fft2(per_length).numpy() / per_length.numel()
    apart = (beams[:, None] - beams[None]) % 20
    matrix = coefficient[apart[..., 0], apart[..., 1]]
    k2 = (radial_frequency(grid).numpy() ** 2)[beams[:, 0], beams[:, 1]]
    value, vector = np.linalg.eigh(matrix - np.diag(math.pi * wavelength(ENERGY) * k2))
    start = int(np.flatnonzero(~beams.any(1))[0])
    bloch = vector @ (np.exp(1j * value * depth) * vector[start].conj())
    assert abs(bloch[start]) < 0.9  # strongly dynamical

    def beams_behind(slices: int) -> np.ndarray:
        dz = depth / slices
        wave = exit_wave(transmission(per_length * dz)[None], [0] * slices, propagator(grid, dz, ENERGY))
        half = propagator(grid, dz / 2, ENERGY).conj()  # taken back, so that splitting is symmetric
        return (fft2(wave) * half).numpy()[beams[:, 0], beams[:, 1]] / per_length.numel()

    coarse, fine = beams_behind(60), beams_behind(120)
    assert np.linalg.norm(fine - bloch) < 2e-3
    assert np.linalg.norm(coarse - bloch) == pytest.approx(2 * np.linalg.norm(fine - bloch), rel=0.1)
    assert np.linalg.norm(2 * fine - coarse - bloch) < 2e-4


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
