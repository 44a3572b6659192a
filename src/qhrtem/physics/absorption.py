"""The plane integral of thermal diffuse absorption, for any radial form factor.

With q = g/2 + p the two scattering vectors of the second-order process are p ± g/2, and the thermal factor
depends on |p| and |g| alone:

    ∫ f(q) f(|g - q|) [exp(-Bg²/4) - exp(-B(q² + |g - q|²)/4)] d²q
        = exp(-Bg²/8) ∫ [exp(-Bg²/8) - exp(-Bp²/2)] R(g, p) dp,   R = p ∫ f(|p + g/2|) f(|p - g/2|) dφ.

R is tabulated once for an atom; B enters by exponentials only, so the result is exact and smooth in B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

LARGEST_G = 20.0  # 1/Å, end of the table
NODES = 80
# Nodes lie at g = CROSSOVER·sinh(t), t equidistant: 0.03 1/Å apart at the origin, 0.45 1/Å at 8 1/Å.
CROSSOVER = 0.5  # 1/Å
STEP = math.asinh(LARGEST_G / CROSSOVER) / (NODES - 1)
PEAK = 0.25  # 1/Å, width around the two centres over which the quadrature is dense
# Gauss–Legendre nodes inside and outside |p| = g/2, and in angle. With these numbers the result differs from
# closed forms for sums of Gaussians by about 1e-6 of its maximum for B in 0.05..5 Å².
INNER, OUTER, ANGLES = 24, 48, 16


def frequencies() -> Array:
    """Return the frequencies g (1/Å) at which the integral is tabulated, (NODES,)."""
    return np.asarray(CROSSOVER * np.sinh(STEP * np.arange(NODES)))


def _legendre(n: int) -> tuple[Array, Array]:
    """Return nodes and weights of Gauss–Legendre quadrature over 0..1."""
    node, weight = np.polynomial.legendre.leggauss(n)
    return (node + 1) / 2, weight / 2


def _radii(g: Array) -> tuple[Array, Array]:
    """Return radii p and weights, (NODES, radii), of integrals over 0..∞ whose integrand peaks at p = g/2."""
    half = g[:, None] / 2
    u, du = _legendre(INNER)
    top = np.arcsinh(half / PEAK)
    inner = half - PEAK * np.sinh(top * u)
    t, dt = _legendre(OUTER)
    outer = half + 4 * PEAK * t / (1 - t)
    d_outer = np.broadcast_to(4 * PEAK * dt / (1 - t) ** 2, outer.shape)
    return np.hstack([inner, outer]), np.hstack([top * PEAK * np.cosh(top * u) * du, d_outer])


def _angles(g: Array) -> tuple[Array, Array]:
    """Return angles and weights over a quadrant, (NODES, ANGLES), dense near 0, where p meets a centre."""
    narrow = PEAK / (PEAK + g[:, None] / 2)
    top = np.arcsinh(math.pi / 2 / narrow)
    u, du = _legendre(ANGLES)
    return narrow * np.sinh(top * u), top * narrow * np.cosh(top * u) * du


@dataclass(frozen=True)
class PlaneIntegral:
    """R(g, p) of an atom with the weights of the radial quadrature; see the module's formula."""

    g: Array  # 1/Å, (NODES,)
    p: Array  # 1/Å, (NODES, radii)
    weight: Array  # R dp, Å² · 1/Å², (NODES, radii)

    def diffuse(self, b: Tensor) -> Tensor:
        """Return the integral at the nodes, (NODES,); b: B in Å², without axes, differentiable."""
        p2 = torch.as_tensor(self.p**2, device=b.device)
        g2 = torch.as_tensor(self.g**2, device=b.device)
        weight = torch.as_tensor(self.weight, device=b.device)
        # exp(-Bg²/8) - exp(-Bp²/2), without the cancellation at small B
        scattered = (weight * torch.expm1(-b * p2 / 2)).sum(1)
        coherent = weight.sum(1) * torch.expm1(-b * g2 / 8)
        return torch.exp(-b * g2 / 8) * (coherent - scattered)


def plane_integral(form_factor: Callable[[Array], Array]) -> PlaneIntegral:
    """Tabulate R(g, p) for a form factor (Å) of the spatial frequency (1/Å), falling at least like 1/g²."""
    g = frequencies()
    p, dp = _radii(g)
    angle, d_angle = _angles(g)
    square = (p**2 + g[:, None] ** 2 / 4)[:, :, None]
    cross = p[:, :, None] * (g[:, None] * np.cos(angle))[:, None, :]
    near, far = np.sqrt(np.maximum(square - cross, 0)), np.sqrt(square + cross)
    product = form_factor(near) * form_factor(far)
    return PlaneIntegral(g, p, 4 * p * dp * np.einsum("gpa,ga->gp", product, d_angle))


@lru_cache
def _curvature() -> Array:
    """Return the matrix that gives the second derivatives (of t/STEP) of a cubic spline from its values.

    The spline is even at g = 0; its last two pieces are one cubic (not a knot).
    """
    left, right = np.zeros((2, NODES, NODES))
    i = np.arange(1, NODES - 1)
    left[i, i - 1] = left[i, i + 1] = 1 / 6
    left[i, i] = 2 / 3
    right[i, i - 1] = right[i, i + 1] = 1
    right[i, i] = -2
    left[0, :2], right[0, :2] = (1 / 3, 1 / 6), (-1, 1)
    left[-1, -3:] = (1, -2, 1)
    return np.asarray(np.linalg.solve(left, right), dtype=np.float64)


def interpolate(nodes: Tensor, g: Tensor) -> Tensor:
    """Return values at g (1/Å, any shape) by a cubic spline through values at `frequencies`, 0 beyond."""
    curvature = torch.as_tensor(_curvature(), device=g.device) @ nodes
    t = torch.asinh(g.abs() / CROSSOVER) / STEP
    cell = t.detach().floor().clamp(max=NODES - 2).long()
    x = t - cell
    y = 1 - x
    table = torch.stack([nodes[:-1], nodes[1:], curvature[:-1] / 6, curvature[1:] / 6], -1)
    low, high, bend_low, bend_high = table[cell].unbind(-1)
    value = y * low + x * high + (y**3 - y) * bend_low + (x**3 - x) * bend_high
    return torch.where(t <= NODES - 1, value, 0.0)
