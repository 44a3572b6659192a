"""Other structure: a turned grain is found up to its border, and none in a crystal with all its faults."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.calibrate.otherwise import other_structure

PIXEL_A = 0.12
SHAPE = (260, 280)
BASIS = np.array([[4.0, 0.0], [0.0, 5.6]])  # Å, (x, y)
UPRIGHT = np.array([[0.0, 1.0], [1.0, 0.0]])  # (x, y) → (row, col)
Floats = np.ndarray


def turned(degrees: float) -> Floats:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[s, c], [c, -s]]) / PIXEL_A


def sites(frame: Floats, basis: Floats = BASIS) -> Floats:
    """Positions (N, 2) row, col of a heavy column and a light one in each cell, heavy ones first."""
    n = np.array([(i, j) for i in range(-40, 41) for j in range(-40, 41)])
    at = [(n + shift) @ basis @ frame + np.array(SHAPE) / 2 for shift in ((0, 0), (0.5, 0.5))]
    return np.concatenate(at)


def drawn(position: Floats, height: Floats | float = 1.0, blur: float = 0.42) -> Floats:
    """Return the sum of round columns, the first half of them higher; blur: one standard deviation in Å."""
    image, w = np.zeros(SHAPE), blur / PIXEL_A
    kind = np.where(np.arange(len(position)) < len(position) / 2, 0.5, 0.3) * height
    for (r, c), h in zip(position, kind, strict=True):
        y = np.arange(max(0, int(r - 5 * w)), min(SHAPE[0], int(r + 5 * w) + 1))
        x = np.arange(max(0, int(c - 5 * w)), min(SHAPE[1], int(c + 5 * w) + 1))
        if len(y) and len(x):
            spot = np.exp(-((y[:, None] - r) ** 2 + (x - c) ** 2) / (2 * w**2))
            image[y[0] : y[-1] + 1, x[0] : x[-1] + 1] += h * spot
    return image


def looked_at(image: Floats, crystal: Floats, frame: Floats, noise: float, seed: int = 0) -> Floats:
    noisy = image - image[crystal].mean() + noise * np.random.default_rng(seed).standard_normal(SHAPE)
    return other_structure(noisy, np.ones(SHAPE, bool), crystal, frame, BASIS)


Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]


@pytest.mark.parametrize(("angle", "noise"), [(33.0, 0.05), (12.0, 0.05), (90.0, 0.05), (33.0, 0.3)])
def test_a_turned_grain_is_found_up_to_its_border(angle: float, noise: float) -> None:
    frame = turned(7.0)
    grain = Y - X > 60  # a corner, 140 pixels along the edges
    image = np.where(grain, drawn(sites(turned(7.0 + angle))), drawn(sites(frame)))
    found = looked_at(image, np.ones(SHAPE, bool), frame, noise)
    depth = (Y - X - 60) / np.sqrt(2) * PIXEL_A  # Å beyond the border
    assert found[depth > 1.3].mean() > 0.99
    assert found[depth < -1.5].mean() < 0.005 and not found[depth < -2.5].any()


def test_another_crystal_and_a_film_on_top_are_found() -> None:
    frame = turned(0.0)
    crystal = drawn(sites(frame))
    other = drawn(sites(frame, np.array([[2.9, 0.0], [0.0, 4.1]])))
    found = looked_at(np.where(X > 200, other, crystal), np.ones(SHAPE, bool), frame, 0.05)
    assert found[X > 212].mean() > 0.95 and not found[X < 185].any()


@pytest.mark.parametrize(
    "fault",
    ["none", "steps", "missing", "wedge", "strained", "bent", "off-centred", "noisy", "dead", "vacuum"],
)
def test_nothing_is_found_in_a_crystal_with_its_faults(fault: str) -> None:
    rng = np.random.default_rng(3)
    frame, noise = turned(20.0), 0.06
    at = sites(frame)
    height: Floats | float = 1.0
    valid, crystal = np.ones(SHAPE, bool), np.ones(SHAPE, bool)
    if fault == "steps":
        height = rng.choice([0.7, 0.85, 1.0, 1.15, 1.3], len(at))
    elif fault == "missing":
        height = (rng.random(len(at)) > 0.05) * 1.0
    elif fault == "wedge":
        height = np.clip(0.2 + 1.2 * at[:, 1] / SHAPE[1], 0, None)
    elif fault == "strained":  # 4 % over the image
        at = at + 0.02 * (at - np.array(SHAPE) / 2) ** 2 * np.sign(at - np.array(SHAPE) / 2) / SHAPE[0]
    elif fault == "bent":  # columns shifted against each other, more and more
        at[len(at) // 2 :] += 0.4 / PIXEL_A * at[len(at) // 2 :, 1:] / SHAPE[1]
    elif fault == "off-centred":
        at = at + 0.15 / PIXEL_A * rng.standard_normal(at.shape)
    elif fault == "noisy":
        noise = 0.6
    image = drawn(at, height)
    if fault == "dead":
        valid = rng.random(SHAPE) > 0.02
    if fault == "vacuum":
        image = image * (at_edge := 1 / (1 + np.exp((X - 180 - 15 * np.sin(Y / 30)) / 4)))
        crystal = at_edge > 0.1
    image = image - image[crystal].mean() * (fault != "vacuum")
    noisy = image + noise * rng.standard_normal(SHAPE)
    assert not other_structure(noisy, valid, crystal, frame, BASIS).any()


def test_what_the_lattice_does_not_explain_at_all_is_left_to_others() -> None:
    crystal = np.ones(SHAPE, bool)
    noise = 0.1 * np.random.default_rng(1).standard_normal(SHAPE)
    assert not other_structure(noise, crystal, crystal, turned(0.0), BASIS).any()
    assert not other_structure(noise, crystal, ~crystal, turned(0.0), BASIS).any()
