"""Constants of the fast electron against published tables."""

from __future__ import annotations

import math

import pytest

from qhrtem.errors import PlanError
from qhrtem.physics.electron import (
    BOHR_A,
    HARTREE_A,
    check_energy,
    gamma,
    interaction_constant,
    potential_per_scattering_factor,
    wavelength,
)


# Kirkland, Advanced Computing in Electron Microscopy (2010), tables of wavelength and interaction parameter.
@pytest.mark.parametrize(
    ("kilovolt", "lam", "sigma"),
    [(100, 0.037014, 0.9244e-3), (200, 0.025079, 0.7288e-3), (300, 0.019687, 0.6526e-3)],
)
def test_wavelength_and_interaction_constant_match_tables(kilovolt: float, lam: float, sigma: float) -> None:
    assert wavelength(kilovolt * 1e3) == pytest.approx(lam, abs=6e-7)
    assert interaction_constant(kilovolt * 1e3) == pytest.approx(sigma, abs=6e-8)


def test_relativistic_mass() -> None:
    assert gamma(300e3) == pytest.approx(1.58709, abs=1e-5)
    # Velocity from γ and wavelength from h/(γ m v) must agree: λ = hc/(m c² √(γ²-1)).
    g = gamma(200e3)
    assert wavelength(200e3) == pytest.approx(12398.41984 / (510998.95 * math.sqrt(g * g - 1)), rel=1e-12)


def test_potential_of_a_scattering_factor() -> None:
    """h²/(2πm₀e) is 2π a₀ e²/(4πε₀)/e, 47.88 V Å² (Kirkland 2010)."""
    assert potential_per_scattering_factor() == pytest.approx(47.878, abs=1e-3)
    assert potential_per_scattering_factor() == pytest.approx(2 * math.pi * BOHR_A * HARTREE_A, rel=1e-6)
    # σ times a projected potential is λγ f_e, whichever way the constants are combined.
    product = interaction_constant(300e3) * potential_per_scattering_factor()
    assert product == pytest.approx(wavelength(300e3) * gamma(300e3), rel=1e-12)


@pytest.mark.parametrize("energy", [300.0, 9e3, 4e6, float("nan")])
def test_energies_outside_microscopy_are_refused(energy: float) -> None:
    with pytest.raises(PlanError, match="10 to 3000 kV"):
        check_energy(energy)


def test_common_energies_are_accepted() -> None:
    for energy in (30e3, 80e3, 300e3, 1.25e6):
        check_energy(energy)
