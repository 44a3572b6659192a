"""The fast electron: wavelength, relativistic factor and interaction constant (CODATA 2018)."""

from __future__ import annotations

import math

from qhrtem.errors import PlanError

PLANCK_C_EV_A = 12398.41984  # h·c, eV·Å
REST_ENERGY_EV = 510998.95  # m₀c², eV
BOHR_A = 0.529177210903  # a₀, Å
HARTREE_A = 14.3996454785  # e²/(4πε₀), eV·Å


def check_energy(energy: float) -> None:
    """Raise `PlanError` unless the energy (eV) is one that electron microscopes use."""
    if not 1e4 <= energy <= 3e6:
        raise PlanError(
            f"high tension must be within 10 to 3000 kV, got {energy / 1e3:g} kV; was it given in V?"
        )


def wavelength(energy: float) -> float:
    """Return the vacuum wavelength λ (Å) at an energy (eV): hc/√(E(2m₀c² + E))."""
    return PLANCK_C_EV_A / math.sqrt(energy * (2 * REST_ENERGY_EV + energy))


def gamma(energy: float) -> float:
    """Return the relativistic mass ratio γ = 1 + E/m₀c² at an energy (eV)."""
    return 1 + energy / REST_ENERGY_EV


def interaction_constant(energy: float) -> float:
    """Return σ = 2πγm₀eλ/h² in rad/(V·Å) at an energy (eV); a projected potential v adds a phase σv."""
    return 2 * math.pi * gamma(energy) * REST_ENERGY_EV * wavelength(energy) / PLANCK_C_EV_A**2


def potential_per_scattering_factor() -> float:
    """Return h²/(2πm₀e) in V·Å²: the Fourier transform of a potential is this times f_e (Å)."""
    return PLANCK_C_EV_A**2 / (2 * math.pi * REST_ENERGY_EV)
