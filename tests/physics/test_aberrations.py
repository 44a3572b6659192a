"""The aberration function: polar form, gradient, directions and signs."""

from __future__ import annotations

import math
import re

import pytest
import torch

from qhrtem.errors import PlanError
from qhrtem.grid import Grid
from qhrtem.physics.aberrations import (
    KRIVANEK,
    ROUND,
    TERMS,
    chi,
    chi_at,
    chi_gradient,
    slope_at,
    to_krivanek,
)
from qhrtem.physics.electron import wavelength

ENERGY = 300e3
GRID = Grid((20, 24), (0.2, 0.17), dtype=torch.float64)
LAM = wavelength(ENERGY)


def angles(grid: Grid = GRID) -> tuple[torch.Tensor, torch.Tensor]:
    """Polar angle (rad) and azimuth of the scattering angle."""
    ky, kx = grid.frequencies()
    return LAM * torch.sqrt(kx**2 + ky**2), torch.atan2(ky + 0 * kx, kx + 0 * ky)


def value_of(name: str) -> complex:
    """A coefficient that has both parts where the aberration allows it."""
    return 800.0 if name in ROUND else complex(700.0, -450.0)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_the_krivanek_polynomial(name: str) -> None:
    """χ = (2π/λ) θ^(n+1)/(n+1) [C_a cos mφ + C_b sin mφ] (Krivanek, Dellby and Lupini 1999)."""
    label, a, b = to_krivanek(name, value_of(name))
    match = re.fullmatch(r"C(\d)(\d)", label)
    assert match
    n, m = int(match[1]), int(match[2])
    theta, azimuth = angles()
    expected = (
        2
        * math.pi
        / LAM
        * theta ** (n + 1)
        / (n + 1)
        * (a * torch.cos(m * azimuth) + b * torch.sin(m * azimuth))
    )
    assert torch.allclose(chi(GRID, ENERGY, {name: value_of(name)}), expected, rtol=1e-10, atol=1e-12)


def test_krivanek_factors_are_those_of_the_conventions() -> None:
    factors = {name: factor for name, (_, factor) in KRIVANEK.items() if factor != 1}
    assert factors == {"B2": 3, "S3": 4, "B4": 5, "D4": 5, "S5": 6, "R5": 6}
    assert {label for label, _ in KRIVANEK.values()} == {
        *("C10", "C12", "C21", "C23", "C30", "C32", "C34", "C41", "C43", "C45", "C50", "C52", "C54", "C56")
    }


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_the_derivative_of_chi(name: str) -> None:
    """∇χ/(2π/λ) by central differences in the angle, through the offset of k."""
    coefficients = {name: value_of(name)}
    gy, gx = chi_gradient(GRID, ENERGY, coefficients)
    h = 1e-4  # 1/Å
    scale = 2 * math.pi / LAM * LAM  # dχ/dk = λ dχ/dθ
    dx = (
        (chi(GRID, ENERGY, coefficients, (h, 0)) - chi(GRID, ENERGY, coefficients, (-h, 0))) / (2 * h) / scale
    )
    dy = (
        (chi(GRID, ENERGY, coefficients, (0, h)) - chi(GRID, ENERGY, coefficients, (0, -h))) / (2 * h) / scale
    )
    size = max(float(gx.abs().max()), float(gy.abs().max()))
    assert size > 0
    assert float((gx - dx).abs().max()) < 1e-5 * size and float((gy - dy).abs().max()) < 1e-5 * size


def at(coefficients: dict[str, complex], kx: float, ky: float) -> float:
    """χ at one spatial frequency (1/Å), in units of 2π/λ."""
    point = Grid((1, 1), (1.0, 1.0), dtype=torch.float64)
    return float(chi(point, ENERGY, coefficients, (kx, ky))) * LAM / (2 * math.pi)


def test_directions_of_the_axial_aberrations() -> None:
    """x is along columns, y along rows (downwards); values in units of θ^(n+1)."""
    k = 0.5
    theta = LAM * k
    assert at({"C1": 30.0}, k, 0) == pytest.approx(15 * theta**2)
    # A real A1 adds overfocus along x, takes it away along y; i times it does so on the diagonals.
    assert at({"A1": 30.0}, k, 0) == pytest.approx(15 * theta**2)
    assert at({"A1": 30.0}, 0, k) == pytest.approx(-15 * theta**2)
    assert at({"A1": 30.0j}, k / math.sqrt(2), k / math.sqrt(2)) == pytest.approx(15 * theta**2)
    # Coma is odd: a real B2 rises along +x; i times it falls along +y.
    assert at({"B2": 100.0}, k, 0) == pytest.approx(100 * theta**3)
    assert at({"B2": 100.0}, -k, 0) == pytest.approx(-100 * theta**3)
    assert at({"B2": 100.0j}, 0, k) == pytest.approx(-100 * theta**3)
    # Three-fold astigmatism repeats after 120°; i times it peaks at 30°.
    turn = 2 * math.pi / 3
    assert at({"A2": 90.0}, k * math.cos(turn), k * math.sin(turn)) == pytest.approx(30 * theta**3)
    assert at({"A2": 90.0j}, k * math.cos(turn / 4), k * math.sin(turn / 4)) == pytest.approx(30 * theta**3)


def test_negative_c3_balances_overfocus() -> None:
    """Scherzer's condition mirrored: with C3 < 0, C1 > 0, χ returns to zero at θ² = -2 C1/C3."""
    c1, c3 = 60.0, -15e4
    k = math.sqrt(-2 * c1 / c3) / LAM
    assert at({"C1": c1, "C3": c3}, k, 0) == pytest.approx(0, abs=1e-12)
    assert at({"C1": c1, "C3": c3}, k / 2, 0) > 0


def test_coefficients_add_and_zeros_do_nothing() -> None:
    both = chi(GRID, ENERGY, {"C1": 50.0, "B2": 200 + 100j, "C5": 0.0})
    assert torch.allclose(both, chi(GRID, ENERGY, {"C1": 50.0}) + chi(GRID, ENERGY, {"B2": 200 + 100j}))
    assert not chi(GRID, ENERGY, {}).any()


def test_offset_is_a_tilt_of_the_frequency() -> None:
    ky, kx = GRID.frequencies()
    dk = float(kx[0, 1])
    shifted = chi(GRID, ENERGY, {"A2": 300 + 50j}, (dk, 0.0))
    plain = chi(GRID, ENERGY, {"A2": 300 + 50j})
    assert torch.allclose(shifted[:, :8], plain[:, 1:9])


@pytest.mark.parametrize("name", TERMS)
def test_gradcheck_by_every_coefficient(name: str) -> None:
    """χ and its slope differentiated by the coefficient and by the spatial frequency."""
    k = torch.tensor([[0.7, -0.4], [0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([3e4, -2e4], dtype=torch.float64, requires_grad=True)

    def phase(k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        value = c[0] if name in ROUND else torch.complex(c[0], c[1])
        gy, gx = slope_at(k[0], k[1], ENERGY, {name: value})
        return torch.cat([chi_at(k[0], k[1], ENERGY, {name: value}), gy, gx])

    assert torch.autograd.gradcheck(phase, (k, c), eps=1e-6, atol=1e-4, rtol=1e-5)


def test_a_round_aberration_has_no_direction() -> None:
    with pytest.raises(PlanError, match="C3 is a round aberration"):
        chi(GRID, ENERGY, {"C3": 1e5j})
