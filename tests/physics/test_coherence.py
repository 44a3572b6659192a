"""Image formation: sign of focus, coherent and partially coherent images of an independent program."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drprobe
from qhrtem.errors import ResourceError
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.coherence import (
    focal_transfer,
    full_intensity,
    gauss_hermite,
    image_waves,
    intensity,
    quasi_coherent_transfer,
    source_grid,
    source_transfer,
    tcc_intensity,
)
from qhrtem.physics.drprobe import behind_the_lens, source_samples
from qhrtem.physics.electron import wavelength
from qhrtem.physics.lens import Aperture, Lens
from qhrtem.physics.multislice import propagator
from qhrtem.physics.potential import radial_frequency

ENERGY = 300e3
LAM = wavelength(ENERGY)
GRID = Grid((40, 48), (0.12, 0.1), dtype=torch.float64)
ABERRATIONS: dict[str, complex | torch.Tensor] = {"C1": 60.0, "C3": -15e4, "A1": 12 - 8j, "B2": 150 + 90j}
LENS = Lens(ENERGY, ABERRATIONS, 30.0, 3e-4)


def object_phase(seed: int) -> torch.Tensor:
    """A random phase of standard deviation one, well below the band limit."""
    noise = torch.randn(GRID.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    spectrum = fft2(noise) * (radial_frequency(GRID) < 0.3 * GRID.band_limit())
    phase = torch.fft.ifft2(spectrum).real
    return phase / phase.std()


def object_spectrum(seed: int = 0) -> torch.Tensor:
    """Spectrum of a phase object that fits below the band limit."""
    return fft2(torch.exp(0.4j * object_phase(seed)))


@given(st.integers(4, 12))
def test_quadrature_has_the_moments_of_a_normal_distribution(nodes: int) -> None:
    rule = gauss_hermite(nodes)
    moments = [(rule.weight * rule.offset**n).sum() for n in range(7)]
    assert moments == pytest.approx([1, 0, 1, 0, 3, 0, 15], abs=1e-8)


@given(st.integers(3, 9))
def test_the_source_rule_has_the_moments_of_a_gaussian_of_that_half_angle(nodes: int) -> None:
    """Density exp(-θ²/α²)/(πα²): variance ½ α² along each axis."""
    rule = source_grid(nodes)
    x, y = rule.offset.T
    moments = [(rule.weight * m).sum() for m in (1, x, y, x * x, y * y, x * y, x * x * y * y)]
    assert moments == pytest.approx([1, 0, 0, 0.5, 0.5, 0, 0.25], abs=1e-9)


def test_no_spread_needs_no_quadrature() -> None:
    still = Lens(ENERGY, ABERRATIONS)
    assert focal_transfer(GRID, still, 7).weights.tolist() == [1]
    assert source_transfer(GRID, still, 7, 3).weights.tolist() == [1]
    rule = gauss_hermite(1)
    assert rule.offset.tolist() == [0] and rule.weight.tolist() == [1]


def test_overfocus_is_free_space_behind_the_specimen() -> None:
    """Propagating the exit wave by d and imaging with C1 gives the image with C1 + d."""
    spectrum, d = object_spectrum(), 35.0
    travelled = spectrum * propagator(GRID, d, ENERGY)
    cut = spectrum * propagator(GRID, 0.0, ENERGY)  # the same band limit without the way
    two = focal_transfer(GRID, Lens(ENERGY, {**ABERRATIONS, "C1": 60.0 + d}, 30.0))
    plain = focal_transfer(GRID, Lens(ENERGY, ABERRATIONS, 30.0))
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
    transfer = focal_transfer(GRID, Lens(ENERGY, {"C1": c1}, spread, alpha), 13)
    image = intensity(fft2(torch.exp(1j * phase)), transfer)
    amplitude = float((fft2(image - 1)[0, order] / image.numel()).real)  # ε sin χ …
    chi_k = math.pi * LAM * c1 * k**2
    rule = gauss_hermite(41)  # E_t, with E_s at each focus, by a finer independent sum
    nodes, weights = spread * rule.offset, rule.weight
    source = np.exp(-((alpha * math.pi * k) ** 2) * (c1 + nodes) ** 2)
    expected = epsilon * float((weights * source * np.sin(chi_k + math.pi * LAM * nodes * k**2)).sum())
    assert amplitude == pytest.approx(expected, abs=2e-3 * epsilon)
    if alpha == 0:
        damping = math.exp(-0.5 * (math.pi * LAM * spread * k**2) ** 2)
        assert amplitude == pytest.approx(epsilon * damping * math.sin(chi_k), abs=2e-3 * epsilon)


def test_vacuum_is_one() -> None:
    vacuum = fft2(torch.ones(GRID.shape, dtype=torch.complex128))
    for transfer in (focal_transfer(GRID, LENS), source_transfer(GRID, LENS)):
        assert float(transfer.weights.sum()) == pytest.approx(1)
        assert torch.allclose(intensity(vacuum, transfer), torch.ones(GRID.shape, dtype=torch.float64))


def test_intensity_is_the_weighted_sum_of_coherent_images() -> None:
    spectrum = object_spectrum()
    transfer = focal_transfer(GRID, LENS, 3)
    waves = image_waves(spectrum, transfer)
    expected = (transfer.weights[:, None, None] * waves.abs() ** 2).sum(0)
    assert torch.allclose(intensity(spectrum, transfer), expected)


def test_source_envelope_agrees_with_the_sum_over_source_angles() -> None:
    """Exact for the linear part of the image; small angles keep the quadratic part small too."""
    spectrum = object_spectrum(3)
    envelope = intensity(spectrum, focal_transfer(GRID, LENS))
    summed = intensity(spectrum, source_transfer(GRID, LENS, source=5))
    coherent = intensity(spectrum, focal_transfer(GRID, Lens(ENERGY, ABERRATIONS, 30.0)))
    assert drprobe.rms(envelope, summed) < 2e-3
    assert drprobe.rms(coherent, summed) > 2 * drprobe.rms(envelope, summed)


def test_the_closed_form_is_the_converged_sum_over_focus_and_source() -> None:
    """With first-order aberrations χ is linear in the source angle up to a constant, so both are exact."""
    grid = Grid((16, 18), (0.28, 0.24), dtype=torch.float64)
    noise = torch.randn(grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    phase = torch.fft.ifft2(fft2(noise) * (radial_frequency(grid) < 0.4 * grid.band_limit())).real
    spectrum = fft2(torch.exp(0.5j * phase / phase.std()))
    aberrations: dict[str, complex | torch.Tensor] = {"C1": 60.0, "A1": 25 - 15j}
    for tilt in ((0.0, 0.0), (1.5e-3, -1e-3)):
        lens = Lens(ENERGY, aberrations, 40.0, 1.5e-3, Aperture(0.02, 0.1), tilt)
        closed = tcc_intensity(spectrum, grid, lens)
        summed = full_intensity(spectrum, grid, lens, 31, 9)
        assert drprobe.rms(closed, summed) < 1e-8
        # Either spread matters, and the models that simplify differ from it.
        for poorer in (Lens(ENERGY, aberrations, 40.0), Lens(ENERGY, aberrations, 0.0, 1.5e-3)):
            assert drprobe.rms(tcc_intensity(spectrum, grid, poorer), closed) > 1e-3
        assert 1e-5 < drprobe.rms(intensity(spectrum, focal_transfer(grid, lens, 31)), closed) < 0.05


def test_the_closed_form_refuses_many_beams() -> None:
    grid = Grid((256, 256), (0.1, 0.1))
    with pytest.raises(ResourceError, match="at most 6000 beams"):
        tcc_intensity(torch.ones(grid.shape, dtype=torch.complex64), grid, LENS)


@settings(max_examples=10, deadline=None)
@given(st.floats(20, 120), st.booleans(), st.integers(0, 20))
def test_quasi_coherent_envelopes_are_exact_for_the_linear_term(c1: float, focus: bool, seed: int) -> None:
    """I - 1 of a weak phase object to first order, each spread alone (together they have a cross term)."""
    epsilon = 1e-5
    lens = Lens(ENERGY, {"C1": c1}, 35.0, 0.0) if focus else Lens(ENERGY, {"C1": c1}, 0.0, 6e-4)
    phase = object_phase(seed)
    spectrum = fft2(torch.exp(1j * epsilon * phase))
    quasi = intensity(spectrum, quasi_coherent_transfer(GRID, lens)) - 1
    exact = full_intensity(spectrum, GRID, lens, 41, 9) - 1
    assert float((quasi - exact).abs().max()) < 5e-4 * float(exact.abs().max())


def test_the_quasi_coherent_image_loses_intensity() -> None:
    spectrum = object_spectrum()
    kept = full_intensity(spectrum, GRID, LENS, 11, 3).mean()
    assert float(kept) == pytest.approx(1, abs=2e-3)
    assert float(intensity(spectrum, quasi_coherent_transfer(GRID, LENS)).mean()) < 0.99


def test_a_tilted_beam_shifts_the_aberration_function() -> None:
    """With C1 alone a beam tilt t moves the image by C1·t and does nothing else."""
    c1, tilt = 80.0, (2e-3, -1e-3)
    spectrum = object_spectrum(2)
    tilted = intensity(spectrum, focal_transfer(GRID, Lens(ENERGY, {"C1": c1}, beam_tilt=tilt)))
    upright = intensity(spectrum, focal_transfer(GRID, Lens(ENERGY, {"C1": c1})))
    ky, kx = GRID.frequencies()
    move = torch.exp(-2j * math.pi * c1 * (kx * tilt[0] + ky * tilt[1]))
    assert torch.allclose(tilted, ifft2(fft2(upright) * move).real, atol=1e-9)
    assert not torch.allclose(tilted, upright, atol=1e-2)


def test_the_aperture_takes_out_what_lies_beyond() -> None:
    spectrum = object_spectrum()
    radius = 0.4 * GRID.band_limit() * LAM
    cut = focal_transfer(GRID, Lens(ENERGY, ABERRATIONS, aperture=Aperture(radius, 0.0))).functions[0]
    far = radial_frequency(GRID) * LAM > radius
    assert not cut[far].any()
    assert torch.allclose(cut[~far].abs(), torch.ones(1, dtype=torch.float64))
    one_beam = intensity(spectrum, focal_transfer(GRID, Lens(ENERGY, {}, aperture=Aperture(1e-4))))
    unscattered = float(spectrum[0, 0].abs() / spectrum.numel()) ** 2
    assert torch.allclose(one_beam, torch.full(GRID.shape, unscattered, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("focal_abs_t8", 3e-3),
        ("focal_abs_t8_abr", 3e-3),
        ("focal_abs_t8_fsonly", 3e-3),
        ("focal_abs_t8_vibaniso", 3e-3),
        ("focal_abs_t8_mtf", 3e-3),
        ("full_abs_t8_sconly", 1.5e-3),
        ("full_abs_t8_abr", 3e-3),
    ],
)
def test_our_quadratures_of_whole_gaussians_come_near_dr_probe(name: str, limit: float) -> None:
    """A Gaussian with the variance of the truncated one; the source at each focus, or summed."""
    s = drprobe.imaging(name)
    z, weight, g_i = drprobe.focus_samples(name, LAM)
    source = source_samples()
    narrower = math.sqrt(2 * float((source.weight * source.offset[:, 0] ** 2).sum()))
    sigma = math.sqrt(float((weight * z**2).sum()))
    alpha = float(s.lens.semi_convergence)
    # Where no source damps high frequencies, the focus sum alone has to, and that takes many nodes.
    foci, angles = (9 if alpha else 61), (9 if sigma else 15)
    if name.startswith("full"):
        lens = replace(s.lens, focal_spread=sigma, semi_convergence=alpha * narrower)
        image = full_intensity(drprobe.wave(name), drprobe.GRID, lens, foci, angles)
    else:
        image = intensity(
            drprobe.wave(name), focal_transfer(drprobe.GRID, replace(s.lens, focal_spread=sigma), foci)
        )
    image = behind_the_lens(image, drprobe.GRID, s, g_i if sigma else math.inf)
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) < limit
