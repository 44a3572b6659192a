"""Absorptive form factors against closed forms, adaptive quadrature and Dr. Probe."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, special

import drprobe
from qhrtem.errors import InputError
from qhrtem.physics.absorption import LARGEST_G, frequencies, interpolate
from qhrtem.physics.electron import gamma, wavelength
from qhrtem.physics.form_factor_tables import neutral_coefficients
from qhrtem.physics.scattering import COULOMB, TABLES, absorptive_form_factor, debye_waller, form_factor

ENERGY = 300e3
PREFACTOR = gamma(ENERGY) ** 2 * wavelength(ENERGY) / 2
Array = NDArray[np.float64]


def of_gaussians(element: str, g: Array, b: float) -> Array:
    """f' of a sum of Gaussians (Peng): ∫ exp(-x q² - y|g - q|²) d²q = π/(x + y) exp(-x y g²/(x + y))."""
    amplitudes, widths = neutral_coefficients(element, "peng")

    def pair(x: float, y: float) -> Array:
        return math.pi / (x + y) * np.exp(-x * y / (x + y) * g**2)

    total = np.zeros_like(g)
    for a1, x in zip(amplitudes, np.array(widths) / 4, strict=True):
        for a2, y in zip(amplitudes, np.array(widths) / 4, strict=True):
            total += a1 * a2 * (np.exp(-b * g**2 / 4) * pair(x, y) - pair(x + b / 4, y + b / 4))
    return PREFACTOR * total


def scaled_integral(z: Array, x: Array) -> Array:
    """Return exp(-x) Ei(z) for z ≤ x, by the asymptotic series where z is large."""
    large = z > 40
    safe = np.where(large, z, 40.0)
    term, series = np.ones_like(z), np.ones_like(z)
    for k in range(1, 30):
        term = term * k / safe
        series += term
    direct = np.exp(-np.where(large, 0, x)) * special.expi(np.where(large, 1.0, z))
    return np.where(large, np.exp(safe - np.where(large, x, safe)) * series / safe, direct)


def of_screened_charges(element: str, g: Array, b: float) -> Array:
    """f' of Weickenmeier and Kohl's sum by exponential integrals.

    (1 - exp(-x q²))/q² is the integral of exp(-t q²) over t = 0..x, so the plane integral is that of
    π/(t + u) exp(-t u g²/(t + u)) over a rectangle of t and u, whose mixed antiderivative is `corner`.
    """
    (z, v), widths = neutral_coefficients(element, "weickenmeier_kohl")
    amplitude = 4 * COULOMB * z / (3 * (1 + v)) * np.array([1, 1, 1, v, v, v])
    g2 = g**2

    def corner(x: float, y: float) -> Array:
        s = x + y
        rise = scaled_integral(x * x / s * g2, x * g2) + scaled_integral(y * y / s * g2, y * g2)
        return math.pi / g2 * (rise - 2 * special.expi(-x * y / s * g2))

    def rectangle(low: float, x: float, y: float) -> Array:
        return corner(low + x, low + y) - corner(low, low + y) - corner(low + x, low) + corner(low, low)

    total = np.zeros_like(g)
    for a1, x in zip(amplitude, np.array(widths) / 4, strict=True):
        for a2, y in zip(amplitude, np.array(widths) / 4, strict=True):
            total += a1 * a2 * (np.exp(-b * g2 / 4) * rectangle(1e-13, x, y) - rectangle(b / 4, x, y))
    return PREFACTOR * total


@pytest.mark.parametrize("b", [0.05, 0.2, 0.7, 2.0, 5.0])
@pytest.mark.parametrize("element", ["H", "O", "Na", "Ti", "Sr", "Cs", "Ba", "Pb", "U"])
@pytest.mark.parametrize(
    ("table", "closed"), [("peng", of_gaussians), ("weickenmeier_kohl", of_screened_charges)]
)
def test_quadrature_and_spline_match_closed_forms(
    element: str, b: float, table: str, closed: Callable[[str, Array, float], Array]
) -> None:
    g = np.concatenate([np.linspace(0.013, 3, 150), np.linspace(3, 19.9, 80)])
    expected = closed(element, g, b)
    value = absorptive_form_factor(element, torch.as_tensor(g), b, ENERGY, table).numpy()
    top = absorptive_form_factor(element, torch.zeros(1), b, ENERGY, table).item()
    assert np.abs(value - expected).max() < 2e-6 * top


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(("element", "b"), [("Ti", 0.6), ("Pb", 0.05), ("O", 4.0)])
def test_total_absorption_is_the_thermal_diffuse_cross_section(element: str, b: float, table: str) -> None:
    """Optical theorem: f'(0) = γ²(λ/2) ∫ f² (1 - exp(-B q²/2)) d²q, here by adaptive quadrature."""

    def integrand(q: float) -> float:
        return q * float(form_factor(element, np.array(q), table)) ** 2 * -math.expm1(-b * q * q / 2)

    parts = [integrate.quad(integrand, *span, epsabs=0)[0] for span in ((0, 0.5), (0.5, 4), (4, np.inf))]
    expected = PREFACTOR * 2 * math.pi * sum(parts)
    zero = torch.zeros((), dtype=torch.float64)
    assert absorptive_form_factor(element, zero, b, ENERGY, table).item() == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize("element", ["Ba", "Ti", "O", "Sr", "Mg", "Pb", "Ca"])
def test_weickenmeier_kohl_is_that_of_dr_probe(element: str) -> None:
    """Dr. Probe subtracts exponential integrals in single precision: off by up to 7e-4 at g = 0.1 1/Å."""
    data = drprobe.form_factors()
    g = torch.as_tensor(np.round(data["g_inv_A"].astype(float), 6))
    b, expected = round(float(data[f"{element}_B"]), 6), data[f"{element}_im_A"].astype(float)
    value = absorptive_form_factor(element, g, b, ENERGY, "weickenmeier_kohl").numpy()
    error = np.abs(value - expected) / expected.max()
    assert error[0] < 5e-6
    assert error[g.numpy() > 0.45].max() < 3e-5
    assert error.max() < 1e-3


@pytest.mark.parametrize(("table", "tolerance"), [("lobato", 0.03), ("kirkland", 0.03), ("peng", 0.08)])
@pytest.mark.parametrize("element", ["Ba", "Ti", "O", "Sr", "Mg", "Pb", "Ca"])
def test_tables_match_dr_probe(element: str, table: str, tolerance: float) -> None:
    """f' weighs g = 1..4 1/Å, where Peng's five Gaussians waver by up to 4 %."""
    data = drprobe.form_factors()
    g = torch.as_tensor(data["g_inv_A"].astype(float))
    value = absorptive_form_factor(element, g, float(data[f"{element}_B"]), ENERGY, table).numpy()
    expected = data[f"{element}_im_A"]
    assert np.abs(value / expected - 1)[g.numpy() <= 2].max() < tolerance
    assert np.abs(value - expected).max() < tolerance * expected.max()


@pytest.mark.parametrize("table", TABLES)
@settings(max_examples=15, deadline=None)
@given(b=st.floats(0.05, 5), element=st.sampled_from(["O", "Ti", "Ba"]))
def test_absorption_is_even_largest_at_the_origin_and_grows_with_motion(
    table: str, b: float, element: str
) -> None:
    g = torch.linspace(0, 8, 161, dtype=torch.float64)
    value = absorptive_form_factor(element, g, b, ENERGY, table)
    assert value[0] > 0 and bool((value.abs() <= value[0]).all())
    assert torch.equal(absorptive_form_factor(element, -g, b, ENERGY, table), value)
    assert absorptive_form_factor(element, g[:1], 1.1 * b, ENERGY, table) > value[0]
    # Diffuse scattering cannot take more than there is: all that leaves the rigid atom's coherent wave.
    q = torch.linspace(0, 60, 60001, dtype=torch.float64)
    ring = 2 * math.pi * q * form_factor(element, q, table) ** 2
    assert value[0] < PREFACTOR * torch.trapezoid(ring, q)


def test_without_motion_nothing_is_absorbed_and_the_onset_is_linear() -> None:
    g = torch.linspace(0, 3, 7, dtype=torch.float64)
    b = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    value = absorptive_form_factor("Ti", g, b, ENERGY, "peng")
    assert not value.any()
    (onset,) = torch.autograd.grad(value[0], b)
    q = torch.linspace(0, 40, 40001, dtype=torch.float64)
    ring = math.pi * q**3 * form_factor("Ti", q, "peng") ** 2
    assert float(onset) == pytest.approx(PREFACTOR * float(torch.trapezoid(ring, q)), rel=1e-3)


@pytest.mark.parametrize("table", TABLES)
def test_derivatives(table: str) -> None:
    g = torch.tensor([0.0, 0.31, 1.7, 6.2], dtype=torch.float64)
    for start in (0.05, 0.6, 4.0):
        b = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda b: absorptive_form_factor("Ba", g, b, ENERGY, table), b)
        assert torch.autograd.gradgradcheck(lambda b: absorptive_form_factor("Ba", g, b, ENERGY, table), b)
    away = g[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: absorptive_form_factor("Ba", g, 0.6, ENERGY, table), away)


def test_tables_are_made_alike_under_any_mode_of_differentiation() -> None:
    """Nothing of the mode in which an atom is first met stays in its table."""
    g = torch.tensor([0.0, 0.8], dtype=torch.float64)
    b = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        absorptive_form_factor("Zr", g, 0.5, ENERGY)
    transformed = torch.func.grad(lambda b: absorptive_form_factor("Nb", g, b, ENERGY).sum())(b.detach())
    for element in ("Zr", "Nb"):
        (plain,) = torch.autograd.grad(absorptive_form_factor(element, g, b, ENERGY).sum(), b)
    assert float(transformed) == pytest.approx(float(plain), rel=1e-12)


def test_absorption_scales_with_energy_alone_as_it_must() -> None:
    g = torch.linspace(0, 2, 5, dtype=torch.float64)
    high, low = (absorptive_form_factor("Sr", g, 0.5, energy) for energy in (300e3, 80e3))
    ratio = gamma(300e3) ** 2 * wavelength(300e3) / (gamma(80e3) ** 2 * wavelength(80e3))
    assert (high / low).numpy() == pytest.approx(ratio, rel=1e-12)


def test_absorption_is_small_against_the_damped_elastic_form_factor() -> None:
    g = torch.linspace(0, 1, 5, dtype=torch.float64)
    share = absorptive_form_factor("O", g, 0.6, ENERGY) / (form_factor("O", g) * debye_waller(g, 0.6))
    assert bool((share > 0).all()) and float(share.max()) < 0.05


def test_ions_absorb_like_their_atoms() -> None:
    g = torch.linspace(0, 4, 9, dtype=torch.float64)
    assert torch.equal(
        absorptive_form_factor("Ba2+", g, 0.5, ENERGY), absorptive_form_factor("Ba", g, 0.5, ENERGY)
    )


def test_the_table_ends_in_zeros() -> None:
    g = torch.tensor([[LARGEST_G + 0.1, 1e3]], dtype=torch.float64)
    assert not absorptive_form_factor("Ti", g, 0.1, ENERGY).any()


def test_spline_reproduces_its_nodes_and_a_smooth_function() -> None:
    nodes = torch.as_tensor(frequencies())
    assert interpolate(torch.exp(-nodes), nodes).numpy() == pytest.approx(np.exp(-frequencies()), abs=1e-12)
    g = torch.linspace(0, 10, 500, dtype=torch.float64)
    smooth = interpolate(torch.exp(-(nodes**2) / 2), g)
    assert smooth.numpy() == pytest.approx(np.exp(-(g.numpy() ** 2) / 2), abs=3e-6)


def test_impossible_requests_are_refused() -> None:
    g = torch.zeros(2)
    with pytest.raises(InputError, match="B must not be negative .* got -0.1"):
        absorptive_form_factor("Ti", g, -0.1, ENERGY)
    with pytest.raises(InputError, match="got nan"):
        absorptive_form_factor("Ti", g, math.nan, ENERGY)
    with pytest.raises(InputError, match="'Xx'"):
        absorptive_form_factor("Xx", g, 0.5, ENERGY)
    with pytest.raises(InputError, match="form factor table must be one of"):
        absorptive_form_factor("Ti", g, 0.5, ENERGY, "doyle")
