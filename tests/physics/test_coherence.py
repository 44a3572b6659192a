"""Image formation: sign of focus, coherent and partially coherent images of an independent program."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drprobe
from qhrtem.grid import Grid, fft2, irfft2, rfft2
from qhrtem.physics.aberrations import chi
from qhrtem.physics.coherence import (
    Transfer,
    focal_transfer,
    gauss_hermite,
    image_waves,
    intensity,
    source_transfer,
)
from qhrtem.physics.detector import apply, mtf_from_samples, vibration_filter
from qhrtem.physics.electron import wavelength
from qhrtem.physics.multislice import propagator
from qhrtem.physics.potential import radial_frequency

ENERGY = 300e3
LAM = wavelength(ENERGY)
GRID = Grid((40, 48), (0.12, 0.1), dtype=torch.float64)
LENS = {"C1": 60.0, "C3": -15e4, "A1": 12 - 8j, "B2": 150 + 90j}


def object_spectrum(seed: int = 0) -> torch.Tensor:
    """Spectrum of a phase object that fits below the band limit."""
    noise = torch.randn(GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spectrum = fft2(noise) * (radial_frequency(GRID) < 0.3 * GRID.band_limit())
    phase = torch.fft.ifft2(spectrum).real
    return fft2(torch.exp(0.4j * phase / phase.std()))


@given(st.floats(0.1, 50), st.integers(4, 12))
def test_quadrature_has_the_moments_of_a_normal_distribution(sigma: float, nodes: int) -> None:
    x, w = gauss_hermite(sigma, nodes)
    moments = [(w * x**n).sum() / sigma**n for n in range(7)]
    assert moments == pytest.approx([1, 0, 1, 0, 3, 0, 15], abs=1e-8)


def test_no_spread_needs_no_quadrature() -> None:
    x, w = gauss_hermite(0.0, 7)
    assert x.tolist() == [0] and w.tolist() == [1]


def test_overfocus_is_free_space_behind_the_specimen() -> None:
    """Propagating the exit wave by d and imaging with C1 gives the image with C1 + d."""
    spectrum, d = object_spectrum(), 35.0
    travelled = spectrum * propagator(GRID, d, ENERGY)
    cut = spectrum * propagator(GRID, 0.0, ENERGY)  # the same band limit without the way
    two = focal_transfer(GRID, ENERGY, {**LENS, "C1": LENS["C1"] + d}, 30.0, 0.0)
    plain = focal_transfer(GRID, ENERGY, LENS, 30.0, 0.0)
    assert torch.allclose(intensity(travelled, plain), intensity(cut, two), atol=1e-10)
    assert not torch.allclose(intensity(cut, plain), intensity(cut, two), atol=1e-2)


@settings(max_examples=20, deadline=None)
@given(st.floats(-150, 150), st.integers(1, 5), st.floats(0, 40), st.floats(0, 6e-4))
def test_weak_phase_object(c1: float, order: int, spread: float, alpha: float) -> None:
    """I = 1 + 2ε E_t E_s sin χ cos(2πkx): positive potential is bright where χ > 0."""
    epsilon = 1e-4
    _, kx = GRID.frequencies()
    k = float(kx[0, order])
    x = torch.arange(GRID.shape[1], dtype=torch.float64) * GRID.pixel[1]
    phase = epsilon * torch.cos(2 * math.pi * k * x)[None, :].expand(GRID.shape)
    transfer = focal_transfer(GRID, ENERGY, {"C1": c1}, spread, alpha, nodes=13)
    image = intensity(fft2(torch.exp(1j * phase)), transfer)
    amplitude = float((fft2(image - 1)[0, order] / image.numel()).real)  # ε sin χ …
    chi_k = math.pi * LAM * c1 * k**2
    nodes, weights = gauss_hermite(spread, 41)  # E_t, with E_s at each focus, by a finer independent sum
    source = np.exp(-((alpha * math.pi * k) ** 2) * (c1 + nodes) ** 2)
    expected = epsilon * float((weights * source * np.sin(chi_k + math.pi * LAM * nodes * k**2)).sum())
    assert amplitude == pytest.approx(expected, abs=2e-3 * epsilon)
    if alpha == 0:
        damping = math.exp(-0.5 * (math.pi * LAM * spread * k**2) ** 2)
        assert amplitude == pytest.approx(epsilon * damping * math.sin(chi_k), abs=2e-3 * epsilon)


def test_vacuum_is_one() -> None:
    vacuum = fft2(torch.ones(GRID.shape, dtype=torch.complex128))
    for transfer in (
        focal_transfer(GRID, ENERGY, LENS, 30.0, 3e-4),
        source_transfer(GRID, ENERGY, LENS, 30.0, 3e-4),
    ):
        assert float(transfer.weights.sum()) == pytest.approx(1)
        assert torch.allclose(intensity(vacuum, transfer), torch.ones(GRID.shape, dtype=torch.float64))


def test_intensity_is_the_weighted_sum_of_coherent_images() -> None:
    spectrum = object_spectrum()
    transfer = focal_transfer(GRID, ENERGY, LENS, 30.0, 3e-4, nodes=3)
    waves = image_waves(spectrum, transfer)
    expected = (transfer.weights[:, None, None] * waves.abs() ** 2).sum(0)
    assert torch.allclose(intensity(spectrum, transfer), expected)


def test_source_envelope_agrees_with_the_sum_over_source_angles() -> None:
    """Exact for the linear part of the image; small angles keep the quadratic part small too."""
    spectrum = object_spectrum(3)
    envelope = intensity(spectrum, focal_transfer(GRID, ENERGY, LENS, 30.0, 3e-4))
    summed = intensity(spectrum, source_transfer(GRID, ENERGY, LENS, 30.0, 3e-4, source_nodes=5))
    coherent = intensity(spectrum, focal_transfer(GRID, ENERGY, LENS, 30.0, 0.0))
    assert drprobe.rms(envelope, summed) < 2e-3
    assert drprobe.rms(coherent, summed) > 2 * drprobe.rms(envelope, summed)


COHERENT = (
    "coh_el_t4",
    "coh_el_t8_abr",
    "coh_el_t4_A1",
    "coh_el_t4_B2",
    "coh_el_t4_A2",
    "coh_el_t4_S3",
    "coh_el_t4_A3",
)


@pytest.mark.parametrize("name", COHERENT)
def test_coherent_images_match_dr_probe(name: str) -> None:
    phase = chi(drprobe.GRID, ENERGY, drprobe.coefficients(name))
    image = intensity(drprobe.wave(name), drprobe.single(torch.polar(torch.ones_like(phase), -phase)))
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) < 2e-4


@pytest.mark.parametrize(
    "name", ["coh_el_t4_A1", "coh_el_t4_B2", "coh_el_t4_A2", "coh_el_t4_S3", "coh_el_t4_A3"]
)
def test_a_mirrored_coefficient_is_told_from_the_right_one(name: str) -> None:
    """The reference images do pin the direction of every aberration."""
    wrong = {n: complex(c).conjugate() for n, c in drprobe.coefficients(name).items()}
    phase = chi(drprobe.GRID, ENERGY, wrong)
    image = intensity(drprobe.wave(name), drprobe.single(torch.polar(torch.ones_like(phase), -phase)))
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) > 0.01


def as_dr_probe(name: str, image: torch.Tensor) -> torch.Tensor:
    """Apply what Dr. Probe does behind the lens: its information-limit filter, vibration and MTF."""
    s = drprobe.settings(name)
    grid = drprobe.GRID
    if s["focus_spread_1e_nm"]:
        _, _, limit = drprobe.focus_samples(name, LAM)
        ky, kx = grid.frequencies()
        kx = kx[:, : grid.shape[1] // 2 + 1].abs()
        g = torch.sqrt(
            kx**2 + (ky * grid.pixel[0] / grid.pixel[1]) ** 2
        )  # it takes the x pixel for both axes
        image = irfft2(rfft2(image) * (0.5 - 0.5 * torch.tanh((g - 2.5 * limit) / (0.2 * limit))), grid.shape)
    vibration = s["vibration_rms"]
    if vibration:
        major, minor, angle = vibration if isinstance(vibration, list) else (vibration, vibration, 0.0)
        c, n = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        p, q = (10 * major) ** 2, (10 * minor) ** 2
        image = apply(
            image, vibration_filter(grid, p * n * n + q * c * c, p * c * c + q * n * n, (p - q) * c * n)
        )
    if s["mtf"] != "none":
        q = torch.linspace(0, 0.5, 2001, dtype=torch.float64)  # cycles/pixel; Nyquist is 1/2
        image = apply(image, mtf_from_samples(grid, q, 0.25 + 0.75 * torch.exp(-4.4 * q)))
        ky, kx = grid.frequencies()
        kx = kx[:, : grid.shape[1] // 2 + 1]
        image = apply(image, torch.sinc(ky * grid.pixel[0]) * torch.sinc(kx * grid.pixel[1]))
    return image


def dr_probe_focal(name: str) -> Transfer:
    """The source envelope of `focal_transfer` at Dr. Probe's own focus samples."""
    s = drprobe.settings(name)
    z, weight, _ = drprobe.focus_samples(name, LAM)
    lens = drprobe.coefficients(name)
    alpha = 1e-3 * s["semi_convergence_1e_mrad"]
    ky, kx = drprobe.GRID.frequencies()
    still = focal_transfer(drprobe.GRID, ENERGY, lens, 0.0, alpha).functions[0]
    focus = torch.as_tensor(z)[:, None, None] * (kx**2 + ky**2)
    functions = still * torch.polar(torch.ones_like(focus), -math.pi * LAM * focus)
    return Transfer(functions, torch.as_tensor(weight))


@pytest.mark.parametrize(
    "name",
    ["focal_abs_t8", "focal_abs_t8_abr", "focal_abs_t8_fsonly", "focal_abs_t8_vibaniso", "focal_abs_t8_mtf"],
)
def test_partially_coherent_images_match_dr_probe(name: str) -> None:
    """Model 1: focal sum and source envelope at the mean focus, then vibration (two axes, turned) and MTF."""
    spectrum = drprobe.wave(name)
    reference = drprobe.data()[f"image_{name}"]
    exact = as_dr_probe(name, intensity(spectrum, dr_probe_focal(name)))
    assert drprobe.rms(exact, reference) < 1e-4
    # Our own quadrature: a Gaussian with the variance of the truncated one, the source at each focus.
    s = drprobe.settings(name)
    z, weight, _ = drprobe.focus_samples(name, LAM)
    sigma = math.sqrt(float((weight * z**2).sum()))
    alpha = 1e-3 * s["semi_convergence_1e_mrad"]
    # Where no source damps high frequencies, the focus sum alone has to, and that takes many nodes.
    nodes = 7 if alpha else 61
    ours = focal_transfer(drprobe.GRID, ENERGY, drprobe.coefficients(name), sigma, alpha, nodes)
    assert drprobe.rms(as_dr_probe(name, intensity(spectrum, ours)), reference) < 3e-3


def test_source_sum_matches_dr_probe() -> None:
    """Model 2 without focal spread: the sum over source angles, exact χ at each."""
    name = "full_abs_t8_sconly"
    # Dr. Probe cuts the source at 2α, which leaves 4 % less variance along each axis.
    step = 0.4 * np.arange(-5, 6)
    y, x = np.meshgrid(step, step)
    inside = np.hypot(x, y) <= 2
    w = np.exp(-(x**2 + y**2)) * inside
    alpha = 3e-4 * math.sqrt(2 * float((w * x**2).sum() / w.sum()))
    transfer = source_transfer(drprobe.GRID, ENERGY, drprobe.coefficients(name), 0.0, alpha, source_nodes=15)
    image = intensity(drprobe.wave(name), transfer)
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) < 1.5e-3


def test_vibration_of_a_coherent_image_matches_dr_probe() -> None:
    name = "coh_abs_t8_vib"
    phase = chi(drprobe.GRID, ENERGY, drprobe.coefficients(name))
    sharp = intensity(drprobe.wave(name), drprobe.single(torch.polar(torch.ones_like(phase), -phase)))
    reference = drprobe.data()[f"image_{name}"]
    assert drprobe.rms(apply(sharp, vibration_filter(drprobe.GRID, 0.25**2, 0.25**2)), reference) < 2e-4
    assert drprobe.rms(sharp, reference) > 0.01
