"""Form factors against an independent table (Weickenmeier and Kohl, by Dr. Probe) and physical limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

import drprobe
from qhrtem.errors import InputError
from qhrtem.physics.electron import BOHR_A, gamma, wavelength
from qhrtem.physics.scattering import TABLES, absorptive_form_factor, debye_waller, form_factor


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("element", "tolerance"),
    [("Ba", 0.03), ("Ti", 0.03), ("O", 0.03), ("Sr", 0.03), ("Mg", 0.04), ("Pb", 0.06)],
)
def test_elastic_form_factor_matches_dr_probe(element: str, tolerance: float, table: str) -> None:
    """Tables from different wave functions differ by 1 to 2 %, more at small g for loosely bound shells."""
    reference = drprobe.form_factors()
    g = reference["g_inv_A"].astype(float)
    near = g <= 2
    b = float(reference[f"{element}_B"])
    value = gamma(drprobe.ENERGY) * form_factor(element, g, table) * debye_waller(g, b)
    assert np.abs(value / reference[f"{element}_re_A"] - 1)[near].max() < tolerance


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("element", ["Ba", "Ti", "O", "Sr", "Mg", "Pb", "Ca"])
def test_absorptive_form_factor_matches_dr_probe(element: str, table: str) -> None:
    reference = drprobe.form_factors()
    g = reference["g_inv_A"].astype(float)
    value = absorptive_form_factor(element, g, float(reference[f"{element}_B"]), drprobe.ENERGY, table)
    expected = reference[f"{element}_im_A"]
    assert np.abs(value / expected - 1)[g <= 2].max() < 0.03
    assert np.abs(value - expected).max() < 0.03 * expected.max()


@pytest.mark.parametrize("element", ["O", "Ti", "Ba", "Pb"])
def test_form_factor_reaches_the_rutherford_limit(element: str) -> None:
    """Mott–Bethe: f_e → Z/(2π² a₀ g²) where the electrons no longer screen the nucleus."""
    z = {"O": 8, "Ti": 22, "Ba": 56, "Pb": 82}[element]
    g = np.array([12.0, 40.0])
    limit = z / (2 * math.pi**2 * BOHR_A * g**2)
    ratio = form_factor(element, g) / limit
    assert 0.9 < ratio[0] < 1.0
    assert ratio[1] == pytest.approx(1, abs=0.02)


def test_total_absorption_is_the_thermal_diffuse_cross_section() -> None:
    """f'(0) = γ²(λ/2) ∫ f² (1 - exp(-B q²/2)) d²q, here by an independent adaptive quadrature."""
    b = 0.6

    def integrand(q: float) -> float:
        return 2 * math.pi * q * float(form_factor("Ti", np.array(q))) ** 2 * (1 - math.exp(-b * q * q / 2))

    total = integrate.quad(integrand, 0, 4)[0] + integrate.quad(integrand, 4, np.inf)[0]
    expected = gamma(200e3) ** 2 * wavelength(200e3) / 2 * total
    assert absorptive_form_factor("Ti", np.array(0.0), b, 200e3) == pytest.approx(expected, rel=2e-3)


def test_absorption_vanishes_without_motion_and_grows_with_it() -> None:
    g = np.linspace(0, 3, 7)
    assert not absorptive_form_factor("Ti", g, 0.0, 300e3).any()
    weak, strong = (absorptive_form_factor("Ti", g[:1], b, 300e3)[0] for b in (0.3, 0.6))
    assert 1.3 * weak < strong < 2 * weak


def test_form_factors_fall_monotonically_for_every_tabulated_element() -> None:
    g = np.linspace(0, 3, 31)
    for element in ("H", "Li", "C", "N", "O", "F", "Na", "Si", "Fe", "Sr", "Zr", "La", "Ce", "Au", "Pb", "U"):
        for table in TABLES:
            f = form_factor(element, g, table)
            assert (f > 0).all() and (np.diff(f) < 0).all(), (element, table)


def test_debye_waller_is_the_transform_of_the_displacement_distribution() -> None:
    """B = 8π²⟨u²⟩: the mean of exp(2πi g u) over a Gaussian u."""
    u2, g = 0.01, 1.3
    x = np.linspace(-1.5, 1.5, 20001)
    p = np.exp(-(x**2) / (2 * u2))
    mean = (p * np.cos(2 * np.pi * g * x)).sum() / p.sum()
    assert debye_waller(np.array(g), 8 * math.pi**2 * u2) == pytest.approx(mean, rel=1e-9)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="'Xx'"):
        form_factor("Xx", np.zeros(1))
    with pytest.raises(InputError, match="lobato, kirkland"):
        form_factor("O", np.zeros(1), "doyle")
