"""Electron form factors of atoms: elastic, damped by thermal motion, and absorptive."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.physics.electron import gamma, wavelength

Array = NDArray[np.float64]
TABLES = ("lobato", "kirkland")


@lru_cache
def _table(name: str) -> dict[str, list[list[float]]]:
    if name not in TABLES:
        raise InputError(f"form factor table must be one of {', '.join(TABLES)}, got {name!r}")
    text = files("qhrtem.physics").joinpath(f"tables/{name}.json").read_text("utf-8")
    data: dict[str, list[list[float]]] = json.loads(text)
    return data


def form_factor(element: str, g: Array, table: str = "lobato") -> Array:
    """Return f_e(g) in Å for a neutral atom in the first Born approximation.

    g: spatial frequency, 1/Å, any shape. Raises `InputError` for an unknown element.
    Lobato and Van Dyck (2014) eq. 17; Kirkland (2010) eq. C.15.
    """
    coefficients = _table(table).get(element)
    if coefficients is None:
        raise InputError(
            f"no electron form factor for element {element!r}; check the element symbols of the CIF"
        )
    c = np.asarray(coefficients, dtype=np.float64)
    g2 = np.asarray(g, dtype=np.float64)[..., None] ** 2
    if table == "lobato":
        terms = c[0] * (2 + c[1] * g2) / (1 + c[1] * g2) ** 2
    else:
        terms = c[0] / (g2 + c[1]) + c[2] * np.exp(-c[3] * g2)
    return np.asarray(terms.sum(-1))


def debye_waller(g: Array, b_iso: float) -> Array:
    """Return exp(-B g²/4), the amplitude damping by isotropic motion; B in Å², g in 1/Å."""
    return np.exp(-b_iso * np.asarray(g) ** 2 / 4)


@lru_cache(maxsize=256)
def _absorptive_samples(element: str, b_iso: float, energy: float, table: str) -> tuple[Array, Array]:
    """Sample f'(g) on 0..6 1/Å; the plane integral by polar Gauss–Legendre quadrature around the origin."""
    g = np.linspace(0.0, 6.0, 61)
    # The integrand varies over 1/Å near both centres and dies with f_e² at large q.
    node, weight = np.polynomial.legendre.leggauss(96)
    reach = 40.0
    t = (node + 1) / 2
    q, dq = reach * t**3, weight / 2 * 3 * reach * t**2  # cubic map: dense near q = 0
    angle = (np.arange(48) + 0.5) * np.pi / 48
    qq, aa = q[:, None], angle[None, :]
    fq = form_factor(element, qq, table)
    out = np.empty_like(g)
    for i, gi in enumerate(g):
        other = qq**2 + gi**2 - 2 * qq * gi * np.cos(aa)
        other = np.maximum(other, 0)
        thermal = np.exp(-b_iso * gi**2 / 4) - np.exp(-b_iso * (qq**2 + other) / 4)
        integrand = fq * form_factor(element, np.sqrt(other), table) * thermal
        out[i] = (integrand.mean(1) * 2 * np.pi * q * dq).sum()
    return g, gamma(energy) ** 2 * wavelength(energy) / 2 * out


def absorptive_form_factor(
    element: str, g: Array, b_iso: float, energy: float, table: str = "lobato"
) -> Array:
    """Return f'(g) in Å, what thermal diffuse scattering takes from the coherent wave (Einstein model).

    f' already holds the thermal damping; add i·f' to γ f_e exp(-B g²/4). g in 1/Å, B in Å², energy in eV.
    Hall and Hirsch (1965) as evaluated by Weickenmeier and Kohl, Acta Cryst. A47 (1991) 590.
    """
    if b_iso <= 0:
        return np.zeros_like(np.asarray(g, dtype=np.float64))
    sample_g, sample = _absorptive_samples(element, round(float(b_iso), 4), float(energy), table)
    flat = np.interp(np.abs(np.asarray(g)).ravel(), sample_g, sample, right=0.0)
    return flat.reshape(np.shape(g))
