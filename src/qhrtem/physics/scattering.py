"""Electron form factors of atoms and ions: elastic, damped by thermal motion, and absorptive.

All functions take spatial frequencies g = |k| in 1/Å (s = g/2), tensors of any shape, and return float64
tensors on the device of g. Elastic form factors are also given as arrays for arrays.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.physics.absorption import PlaneIntegral, interpolate, plane_integral
from qhrtem.physics.electron import gamma, wavelength
from qhrtem.physics.form_factor_tables import TABLES, ionic_coefficients, neutral_coefficients, parse_ion

__all__ = [
    "TABLES",
    "absorptive_form_factor",
    "coulomb_form_factor",
    "debye_waller",
    "form_factor",
    "parse_ion",
]

# A point charge scatters with f_e = 1/(8π² a₀ s²), 0.0239337 Å⁻¹ over s² (Mott–Bethe).
COULOMB = 0.023933659  # 1/Å, the value Weickenmeier and Kohl's and Peng's coefficients belong to
# Where an ion's form factor passes over to that of the neutral atom, 1/Å: its outer electrons scatter no
# more, and Peng's fits still hold (median deviation 0.5 %; from g = 4 on they lose their Coulomb limit).
IONIC_RANGE = (2.5, 3.5)

Real = TypeVar("Real", Tensor, NDArray[np.float64])


def form_factor(element: str, g: Real, table: str = "lobato") -> Real:
    """Return f_e(g) in Å in the first Born approximation, without the relativistic factor γ.

    element: a symbol such as "Ti", or an ion such as "O2-". g: 1/Å, any shape; an array gives an array.
    table: one of `TABLES`, of neutral atoms. An ion has the form factor of Peng (1998) with the term of its
    charge, `coulomb_form_factor`, and at large g, where its outer electrons no longer scatter, that of the
    neutral atom in `table`. At g = 0, where the charge diverges, the finite part is returned: in a neutral
    cell the charges cancel there, and what remains is a constant phase.

    Lobato and Van Dyck (2014) eq. 17; Kirkland (2010) eq. C.15; Weickenmeier and Kohl (1991); Peng, Ren,
    Dudarev and Whelan (1996). Raises `InputError` for an unknown element, ion or table.
    """
    ion = parse_ion(element)
    g = _double(g)
    neutral = _neutral(ion.element, g, table)
    if ion.charge == 0:
        return neutral
    a, b = ionic_coefficients(ion)
    ionic = _gaussians(a, b, g**2 / 4) + coulomb_form_factor(ion.charge, g)
    low, high = IONIC_RANGE
    t = _library(g).clip((g - low) / (high - low), 0, 1)
    share = t**3 * (10 - 15 * t + 6 * t**2)  # twice differentiable
    return (1 - share) * ionic + share * neutral


def coulomb_form_factor(charge: float, g: Real) -> Real:
    """Return what the net charge of an ion (in elementary charges) adds to f_e(g), Å; 0 at g = 0.

    charge/(8π² a₀ s²): positive for cations. It diverges towards g = 0, so structures should be neutral. A
    potential of slices that are not neutral one by one carries it over many Å and across the field's edges.
    """
    where = _library(g).where
    s2 = _double(g) ** 2 / 4
    away = s2 > 0
    value: Real = where(away, charge * COULOMB / where(away, s2, 1.0), 0.0)
    return value


def _library(x: Tensor | NDArray[np.float64]) -> Any:
    """Return the module with the functions for x; torch and numpy give those used here the same names."""
    return torch if isinstance(x, Tensor) else np


def _double(g: Real) -> Real:
    return g.to(torch.float64) if isinstance(g, Tensor) else np.asarray(g, dtype=np.float64)


def _gaussians(a: tuple[float, ...], b: tuple[float, ...], s2: Real) -> Real:
    total = 0 * s2
    for amplitude, width in zip(a, b, strict=True):
        total = total + amplitude * _library(s2).exp(-width * s2)
    return total


def _screened(amplitude: float, width: float, s2: Real) -> Real:
    """Return A (1 - exp(-B s²))/s², which is A·B at s = 0."""
    m = _library(s2)
    x = width * s2
    small = x < 1e-12
    safe = m.where(small, 1.0, x)
    value: Real = amplitude * width * m.where(small, 1 - x / 2, -m.expm1(-safe) / safe)
    return value


def _neutral(element: str, g: Real, table: str) -> Real:
    rows = neutral_coefficients(element, table)
    g2 = g**2
    total = 0 * g2
    if table == "lobato":
        for a, b in zip(*rows, strict=True):
            inverse = 1 / (1 + b * g2)
            total = total + a * inverse * (1 + inverse)
        return total
    if table == "kirkland":
        for a, b, c, d in zip(*rows, strict=True):
            total = total + a / (g2 + b) + c * _library(g2).exp(-d * g2)
        return total
    if table == "peng":
        return _gaussians(rows[0], rows[1], g2 / 4)
    (z, v), widths = rows
    for i, width in enumerate(widths):
        share = (1.0 if i < 3 else v) / (3 * (1 + v))
        total = total + _screened(COULOMB * z * share, width, g2 / 4)
    return total


def debye_waller(g: Tensor, b: float | Tensor) -> Tensor:
    """Return exp(-B g²/4), the amplitude damping by isotropic motion.

    g: 1/Å, any shape; b: B = 8π²⟨u²⟩ in Å², a number or a tensor without axes. Differentiable in both.
    """
    return torch.exp(-b * g.to(torch.float64) ** 2 / 4)


@lru_cache(maxsize=256)
def _integral(element: str, table: str) -> PlaneIntegral:
    return plane_integral(lambda q: _neutral(element, q, table))


def absorptive_form_factor(
    element: str, g: Tensor, b: float | Tensor, energy: float, table: str = "lobato"
) -> Tensor:
    """Return f'(g) in Å, what thermal diffuse scattering takes from the coherent wave (Einstein model).

    f' already holds the thermal damping; add i·f' to γ f_e exp(-B g²/4). It is positive at small g and
    slightly negative at large g. g: 1/Å, any shape; b: B in Å², a number or a tensor without axes, not
    negative; energy: eV. Differentiable in b and g. Zero beyond `absorption.LARGEST_G`.

    An ion absorbs like the neutral atom: with its bare charge the integral diverges logarithmically at g = 0,
    since the Einstein model lets no neighbour screen it; what both scatter beyond 0.25 1/Å, almost all of it,
    agrees to 3 % (O2-, Mg2+, Ti4+, Sr2+, Ba2+, Pb2+ at B = 0.5 Å²). Hall and Hirsch (1965) as Weickenmeier
    and Kohl, Acta Cryst. A47 (1991) 590, write it, with plane integrals to infinity. Raises `InputError` for
    an unknown element or table or a negative number b.
    """
    if not isinstance(b, Tensor) and not b >= 0:
        raise InputError(f"displacement parameter B must not be negative (Å²), got {b:g}; check the CIF")
    g = g.to(torch.float64)
    integral = _integral(parse_ion(element).element, table)
    nodes = integral.diffuse(torch.as_tensor(b, dtype=torch.float64, device=g.device))
    return gamma(energy) ** 2 * wavelength(energy) / 2 * interpolate(nodes, g)
