"""Lattice registration on synthetic images whose lattice is known."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from crystals import projection
from qhrtem.calibrate.lattice import amplitudes, reflections, register
from qhrtem.errors import InputError
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import atomic_number

PIXEL_A = 0.12
SHAPE = (180, 180)
View = tuple[str, tuple[int, int, int]]
BTO: View = ("BaTiO3", (1, 1, 0))


@lru_cache
def synthetic(
    view: View, angle: float, shear: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Image (vacuum = 1), true lattice vectors in pixels (rows), and where the crystal is (at the left)."""
    p = projection(*view)
    s, c = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    frame = np.array([[s, c], [c, -s]]) @ np.array([[1 + shear, 0], [0, 1]])
    rows, cols = SHAPE
    columns = lattice_columns(
        p, np.array([1.3, 2.1]), frame, (-2, -2, rows * PIXEL_A + 2, cols * PIXEL_A + 2)
    )
    y, x = np.arange(rows)[:, None], np.arange(cols)[None, :]
    image = np.ones(SHAPE)
    width = 0.42 / PIXEL_A
    for i, (row, col) in enumerate(columns.anchor / PIXEL_A):
        if col < 0.75 * cols:
            z = max(atomic_number(g.element) for g in columns.kind_of(i).groups)
            spot = np.exp(-((y - row) ** 2) / (2 * width**2)) * np.exp(-((x - col) ** 2) / (2 * width**2))
            image += 0.025 * z**0.7 * spot
    image = image + 0.08 * np.random.default_rng(0).standard_normal(SHAPE)
    return image, p.vectors @ frame / PIXEL_A, np.broadcast_to(x < 0.75 * cols, SHAPE)


def same_lattice(found: NDArray[np.float64], true: NDArray[np.float64], tolerance: float = 0.02) -> bool:
    """Whether two bases span the same lattice: whole numbers relate them, and the area is the same."""
    n = found @ np.linalg.inv(true)
    return bool(np.abs(n - np.round(n)).max() < tolerance and abs(abs(np.linalg.det(np.round(n))) - 1) < 1e-9)


@pytest.mark.parametrize(
    ("view", "angle"),
    [(BTO, 0.0), (BTO, 61.0), (BTO, 155.0), (("SrTiO3", (1, 1, 1)), 17.3), (("MgO", (0, 0, 1)), 123.4)],
)
def test_the_lattice_is_found_at_any_rotation_and_with_a_wrong_pixel_size(view: View, angle: float) -> None:
    image, true, inside = synthetic(view, angle)
    found = register(image, np.ones(SHAPE, bool), 1.05 * PIXEL_A, projection(*view), "test.tif")
    assert same_lattice(found.vectors @ found.frame, true)
    assert found.pixel_size_A == pytest.approx(PIXEL_A, abs=3 * found.pixel_size_sigma_A)
    assert found.pixel_size_sigma_A < 0.003 * PIXEL_A
    assert found.shear < 0.006
    assert any("% too large" in n for n in found.notes)
    assert found.evidence > 30
    assert np.linalg.det(found.frame) < 0  # crystal x, y are right-handed, row and column are not
    agree = found.crystal == inside
    assert agree.mean() > 0.9


def test_a_distorted_image_gives_its_distortion() -> None:
    image, true, _ = synthetic(BTO, 30.0, 0.03)
    found = register(image, np.ones(SHAPE, bool), PIXEL_A, projection(*BTO), "test.tif")
    assert same_lattice(found.vectors @ found.frame, true)
    assert found.shear == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_pixel_size_twice_wrong_is_refused_with_the_right_one(factor: float) -> None:
    image, _, _ = synthetic(BTO, 61.0)
    with pytest.raises(InputError, match="correct pixel_size_A") as caught:
        register(image, np.ones(SHAPE, bool), factor * PIXEL_A, projection(*BTO), "test.tif")
    assert "test.tif" in str(caught.value) and f"{factor * PIXEL_A:.4g} Å was stated" in str(caught.value)
    suggested = float(str(caught.value).split("pixel size of ")[1].split(" Å")[0])
    assert suggested == pytest.approx(PIXEL_A, rel=0.02)


def test_noise_holds_no_lattice() -> None:
    noise = 1 + 0.1 * np.random.default_rng(1).standard_normal(SHAPE)
    with pytest.raises(InputError, match="no lattice of structure along"):
        register(noise, np.ones(SHAPE, bool), PIXEL_A, projection(*BTO), "test.tif")


def test_another_lattice_is_refused() -> None:
    image, _, _ = synthetic(BTO, 61.0)
    with pytest.raises(InputError, match="no lattice of structure along .0 0 1. was found"):
        register(image, np.ones(SHAPE, bool), PIXEL_A, projection("MgO", (0, 0, 1)), "test.tif")


def test_another_crystal_with_similar_spacings_is_refused() -> None:
    """Silicon [110] shares many spacings with BaTiO3 [110], but not the spots that follow from them."""
    image, _, _ = synthetic(BTO, 61.0)
    with pytest.raises(InputError, match="check the CIF and zone_axis first"):
        register(image, np.ones(SHAPE, bool), PIXEL_A, projection("Si", (1, 1, 0)), "test.tif")


@pytest.mark.parametrize("factor", [2**0.5, 2**-0.5, 10.0, 0.1, 3.0])
def test_a_superlattice_of_a_wrong_pixel_size_is_not_accepted(factor: float) -> None:
    image, _, _ = synthetic(BTO, 61.0)
    with pytest.raises(InputError, match="correct pixel_size_A") as caught:
        register(image, np.ones(SHAPE, bool), factor * PIXEL_A, projection(*BTO), "test.tif")
    suggested = float(str(caught.value).split("pixel size of ")[1].split(" Å")[0])
    assert suggested == pytest.approx(PIXEL_A, rel=0.02)
    assert ("pm or nm" in str(caught.value)) == (factor in (10.0, 0.1))


def test_the_lattice_gives_the_pixel_size_where_none_is_stated() -> None:
    image, true, _ = synthetic(BTO, 155.0)
    found = register(image, np.ones(SHAPE, bool), None, projection(*BTO), "test.tif")
    assert same_lattice(found.vectors @ found.frame, true)
    assert found.pixel_size_A == pytest.approx(PIXEL_A, rel=0.002)
    assert any("No pixel size was stated" in note for note in found.notes)


@pytest.mark.parametrize("aspect", [1.25, 0.8])
def test_rectangular_pixels_are_kept(aspect: float) -> None:
    """Every other pitch along the rows: the lattice has the stated aspect and no distortion."""
    image, true, _ = synthetic(BTO, 25.0)
    rows = np.arange(0, SHAPE[0] - 1, aspect)
    resampled = np.stack([np.interp(rows, np.arange(SHAPE[0]), column) for column in image.T], axis=1)
    found = register(
        resampled,
        np.ones(resampled.shape, bool),
        (1.03 * PIXEL_A * aspect, 1.03 * PIXEL_A),
        projection(*BTO),
        "test.tif",
    )
    assert same_lattice(found.vectors @ found.frame, true / np.array([aspect, 1.0]))
    assert found.pitch_A == pytest.approx((PIXEL_A * aspect, PIXEL_A), rel=0.004)
    assert found.shear < 0.006
    assert found.rotation_deg == pytest.approx(25.0, abs=0.2) or found.rotation_deg == pytest.approx(
        -155.0, abs=0.2
    )


def test_uncertainties_cover_the_error() -> None:
    """Over noise alone, the error of pixel size and rotation is about the stated one standard deviation."""
    off = []
    for seed in range(6):
        image, _, _ = synthetic(BTO, 61.0)
        more = image + 0.15 * np.random.default_rng(seed).standard_normal(SHAPE)
        found = register(more, np.ones(SHAPE, bool), PIXEL_A, projection(*BTO), "test.tif")
        turn = (found.rotation_deg - 61.0 + 90) % 180 - 90
        off.append((found.pixel_size_A - PIXEL_A) / found.pixel_size_sigma_A)
        off.append(turn / found.rotation_sigma_deg)
    assert np.sqrt(np.mean(np.square(off))) < 2.0
    assert np.abs(off).max() < 4.0


def test_reflections_are_those_of_the_projected_structure() -> None:
    p = projection("MgO", (0, 0, 1))
    r = reflections(p, 0.9)
    radius = np.linalg.norm(r.g, axis=1)
    assert (np.diff(radius) >= -1e-12).all() and radius.max() < 1 / 0.9
    assert np.allclose(r.g @ p.vectors.T, r.index)  # whole numbers of waves along each lattice vector
    assert r.strength.max() == pytest.approx(1)
    # The strongest reflections of fluorite are {111}.
    ceria = reflections(projection("CeO2", (1, 1, 0)), 0.9)
    strongest = ceria.g[np.argmax(ceria.strength)]
    assert 1 / np.linalg.norm(strongest) == pytest.approx(5.411 / np.sqrt(3), rel=1e-3)
    # One of each Friedel pair.
    pairs = {tuple(i) for i in r.index.tolist()}
    assert not any((-h, -k) in pairs for h, k in pairs)


def test_amplitudes_are_fourier_coefficients() -> None:
    y, x = np.mgrid[:64, :64]
    f = np.array([[4 / 64, 0.0], [3 / 64, -5 / 64], [10 / 64, 0.0]])
    image = 1 + 0.3 * np.cos(2 * np.pi * 4 * y / 64) + 0.2 * np.sin(2 * np.pi * (3 * y - 5 * x) / 64)
    value = amplitudes(image, np.ones_like(image), f)
    assert value == pytest.approx([0.15, -0.1j, 0], abs=1e-12)
