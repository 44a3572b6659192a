"""Dr. Probe's image rules: each mode against its images, notation and quadratures against their formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import drprobe
from qhrtem.errors import InputError
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.aberrations import chi_at
from qhrtem.physics.drprobe import (
    ORDERS,
    Settings,
    energy_of,
    focus_samples,
    information_limit,
    mtf_values,
    object_tilt,
    settings_of,
    source_samples,
    wavimg,
)
from qhrtem.physics.electron import wavelength
from qhrtem.physics.lens import Lens
from qhrtem.physics.multislice import propagator

RECORD: dict[str, Any] = {"high_tension_kV": 200.0, "coherence_model": 6}
ALL = sorted(drprobe.image_names())


@pytest.mark.parametrize("name", ALL)
def test_every_image_is_reproduced(name: str) -> None:
    """Coherence models 1, 2, 3, 4 and 6, aperture, beam tilt, vibration, MTF, resampling, complex wave."""
    image = wavimg(drprobe.wave(name), drprobe.GRID, drprobe.imaging(name))
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) < 3e-5


def test_the_images_cover_every_mode() -> None:
    all_settings = [drprobe.imaging(name) for name in ALL]
    assert {s.model for s in all_settings} == {1, 2, 3, 4, 6}
    assert any(s.lens.aperture and s.lens.beam_tilt != (0, 0) for s in all_settings)
    assert any(s.vibration[0] != s.vibration[1] for s in all_settings)
    assert any(s.mtf is not None for s in all_settings) and any(s.resampling for s in all_settings)
    used = {name for s in all_settings for name in s.lens.aberrations}
    assert used == {"C1", "A1", "B2", "A2", "C3", "S3", "A3"}


@pytest.mark.parametrize(
    "name", ["coh_el_t4_A1", "coh_el_t4_B2", "coh_el_t4_A2", "coh_el_t4_S3", "coh_el_t4_A3"]
)
def test_a_mirrored_coefficient_is_told_from_the_right_one(name: str) -> None:
    """The reference images do pin the direction of every aberration."""
    given = drprobe.settings(name)
    mirrored = {index: (x, -y) for index, (x, y) in given["aberrations_nm"].items()}
    image = wavimg(drprobe.wave(name), drprobe.GRID, settings_of({**given, "aberrations_nm": mirrored}))
    assert drprobe.rms(image, drprobe.data()[f"image_{name}"]) > 0.01


@pytest.mark.parametrize("index", range(1, len(ORDERS)))
def test_aberrations_by_index(index: int) -> None:
    """χ = (2π/λ)(1/m)|w|^m (a_x cos nφ + a_y sin nφ), up to sixth order in w."""
    m, n = ORDERS[index]
    ax, ay = 700.0, (0.0 if n == 0 else -450.0)  # nm
    s = settings_of({**RECORD, "aberrations_nm": {str(index): [ax, ay]}})
    lam = wavelength(s.lens.energy)
    angle = torch.arange(12, dtype=torch.float64)
    w = torch.tensor(0.02, dtype=torch.float64)
    found = chi_at(w * torch.cos(angle) / lam, w * torch.sin(angle) / lam, s.lens.energy, s.lens.aberrations)
    amplitude = 10 * (ax * torch.cos(n * angle) + ay * torch.sin(n * angle))
    assert torch.allclose(found, 2 * math.pi / lam / m * w**m * amplitude, rtol=1e-9)


def test_index_zero_is_an_image_shift() -> None:
    spectrum = drprobe.wave("coh_el_t4")
    plain, moved = (
        wavimg(
            spectrum,
            drprobe.GRID,
            settings_of({**RECORD, "aberrations_nm": {"0": shift, "1": [6.0, 0], "5": [-15000.0, 0]}}),
        )
        for shift in ([0.0, 0.0], [0.03, -0.05])
    )
    ky, kx = drprobe.GRID.frequencies()
    back = torch.exp(2j * math.pi * (kx * 0.3 - ky * 0.5))
    inner = (kx**2 + ky**2) ** 0.5 < drprobe.GRID.band_limit()  # beyond, the intensity is folded back
    assert drprobe.rms((fft2(moved) * back)[inner], fft2(plain)[inner]) < 0.02
    assert drprobe.rms(moved, plain) > 0.1


def test_unknown_aberrations_are_refused() -> None:
    with pytest.raises(InputError, match="within 0 to 14, got 15"):
        settings_of({**RECORD, "aberrations_nm": {"15": [1.0, 0.0]}})


def test_an_unknown_coherence_model_is_refused() -> None:
    with pytest.raises(InputError, match="got 5"):
        wavimg(drprobe.wave("coh_el_t4"), drprobe.GRID, Settings(5, Lens(3e5)))


@given(st.floats(40, 400))
def test_the_energy_has_the_wavelength_of_the_other_constants(kilovolt: float) -> None:
    lam = 12.39842447 / math.sqrt(kilovolt * (2 * 511 + kilovolt))
    energy = energy_of(1e3 * kilovolt)
    assert wavelength(energy) == pytest.approx(lam, rel=1e-12)
    assert energy == pytest.approx(1e3 * kilovolt, rel=1e-5)


@given(st.floats(-0.04, 0.04), st.floats(-0.04, 0.04))
def test_object_tilt_is_that_of_dr_probe(x: float, y: float) -> None:
    """P = exp(-i π/λ Δz cos|t| (|w - t|² - |t|²))."""
    grid, dz = Grid((12, 14), (0.2, 0.21), dtype=torch.float64), 1.9
    thickness, mistilt = object_tilt(np.array([dz]), (x, y))
    found = propagator(grid, float(thickness[0]), 300e3, mistilt)
    ky, kx = grid.frequencies()
    lam, size = wavelength(300e3), math.hypot(x, y)
    square = (lam * kx - x) ** 2 + (lam * ky - y) ** 2 - size**2
    phase = -math.pi / lam * dz * math.cos(size) * square
    keep = kx**2 + ky**2 <= grid.band_limit() ** 2
    assert torch.allclose(found, torch.polar(keep.double(), phase), atol=1e-9)


@given(st.floats(5, 80), st.floats(0, 0.4))
def test_focus_samples_are_a_gaussian_cut_at_two_half_widths(spread: float, vibration: float) -> None:
    lam = wavelength(300e3)
    limit = information_limit(spread, vibration, lam)
    assert limit <= 1 / (math.pi * vibration) if vibration else limit > 0
    rule = focus_samples(spread, limit, lam)
    z = rule.offset * spread / math.sqrt(2)
    assert z[-1] == pytest.approx(2 * spread) and z[len(z) // 2] == pytest.approx(0, abs=1e-12)
    assert rule.weight.sum() == pytest.approx(1)
    assert np.ptp(np.diff(z)) == pytest.approx(0, abs=1e-9 * spread)
    assert np.diff(z)[0] <= 2 / (lam * (3 * limit) ** 2)
    ratio = np.log(rule.weight[0] / rule.weight[len(z) // 2])
    assert ratio == pytest.approx(-4)
    if len(z) > 12:
        assert (rule.weight * rule.offset**2).sum() == pytest.approx(0.95, abs=0.03)


def test_no_spread_needs_one_focus_and_no_limit() -> None:
    assert focus_samples(0.0, math.inf, 0.02).weight.tolist() == [1]
    assert information_limit(0.0, 0.0, 0.02) == math.inf


def test_source_samples_fill_a_disc() -> None:
    rule = source_samples()
    radius = np.hypot(*rule.offset.T)
    assert len(radius) == 81 and radius.max() == pytest.approx(2)
    assert rule.weight.sum() == pytest.approx(1)
    assert (rule.weight[:, None] * rule.offset).sum(0) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "at_half"),
    [
        ("synthetic MTF(q)=(0.25+0.75*exp(-2.2 q)), q=frequency/Nyquist", 0.25 + 0.75 * math.exp(-1.1)),
        ("MTF(q) = 1/(1+(q/0.4)^2); sinc factors", 1 / (1 + 1.25**2)),
        ("MTF(q)=exp(-(pi q)**2/8) with q in Nyquist", math.exp(-(math.pi**2) / 32)),
        ("MTF(q)=1 - 0.3q + 0.1 q^2", 1 - 0.15 + 0.025),
        ("MTF(q)=sqrt(abs(cos(q)))", math.sqrt(math.cos(0.5))),
        ("MTF(q)=0.7", 0.7),
    ],
)
def test_mtf_expressions(text: str, at_half: float) -> None:
    value = mtf_values(text)
    assert value[len(value) // 2] == pytest.approx(at_half)


@pytest.mark.parametrize("text", ["a file", "MTF(q)=open('x')", "MTF(q)=q.real", "MTF(q)=(1+", "MTF(q)=x*2"])
def test_other_texts_are_refused_as_mtf(text: str) -> None:
    with pytest.raises(InputError, match=r"MTF\(q\)=EXPRESSION"):
        mtf_values(text)


def test_vacuum_is_one_in_every_absolute_model() -> None:
    vacuum = fft2(torch.ones(drprobe.GRID.shape, dtype=torch.complex128))
    for model in (1, 2, 4, 6):
        record = {
            **RECORD,
            "coherence_model": model,
            "focus_spread_1e_nm": 2.0,
            "semi_convergence_1e_mrad": 0.5,
        }
        image = wavimg(vacuum, drprobe.GRID, settings_of({**record, "vibration_rms": [0.02, 0.03, 20.0]}))
        assert torch.allclose(image, torch.ones(drprobe.GRID.shape, dtype=torch.float64))


def test_the_linear_image_counts_the_unscattered_beam_twice() -> None:
    """Its modulation is that of the whole image to first order in a weak object."""
    grid, epsilon = drprobe.GRID, 1e-5
    noise = torch.randn(grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ky, kx = grid.frequencies()
    phase = ifft2(fft2(noise) * (kx**2 + ky**2 < 1)).real
    spectrum = fft2(torch.exp(1j * epsilon * phase))
    lens = Lens(300e3, {"C1": 60.0, "B2": 100 + 50j}, 20.0, 3e-4)
    whole, linear = (wavimg(spectrum, grid, Settings(model, lens)) for model in (6, 3))
    assert float(linear.mean()) == pytest.approx(2, abs=1e-6)
    assert drprobe.rms(linear - linear.mean(), whole - whole.mean()) < 1e-3
