"""Finder and areas: missing columns are missed, films are left out, single dead pixels do no harm."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from qhrtem.calibrate.area import foreign_area, unusable_area
from qhrtem.calibrate.finder import column_contrast, present_columns
from qhrtem.model.micrograph import Micrograph

PIXEL_A, STEP = 0.12, 30
FRAME, VECTORS = np.array([[0.0, 1.0], [1.0, 0.0]]) / PIXEL_A, STEP * PIXEL_A * np.eye(2)


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image with bright columns at the left, all sites of the lattice, their presence, and an outline."""
    n = 300
    site = np.array([(r, c) for r in range(15, n, STEP) for c in range(15, n, STEP)], dtype=float)
    there = (site[:, 1] < 150) | ((site[:, 1] < 170) & (np.sin(site[:, 0]) > 0))  # every other at the rim
    y, x = np.mgrid[:n, :n]
    image = np.ones((n, n))
    for r, c in site[there]:
        image += 0.5 * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * 4.0**2))
    image += 0.06 * np.random.default_rng(seed).standard_normal(image.shape)
    crystal = np.broadcast_to(x < 190, image.shape)
    return image, site, there, crystal


def test_present_columns_are_told_from_empty_sites():
    image, site, there, crystal = scene()
    kind = np.zeros(len(site), dtype=np.int64)
    valid = np.ones(image.shape, bool)
    found = present_columns(image, valid, site, kind, crystal, PIXEL_A, 0.06)
    assert (found == there).all()
    contrast = column_contrast(image, valid, site, PIXEL_A)
    assert contrast[there].min() > 0.1 and np.abs(contrast[~there]).max() < 0.05


def test_columns_of_no_contrast_are_kept():
    image, site, _, crystal = scene()
    flat = 1 + 0.06 * np.random.default_rng(1).standard_normal(image.shape)
    kind = np.zeros(len(site), dtype=np.int64)
    kept = present_columns(flat, np.ones(image.shape, bool), site, kind, crystal, PIXEL_A, 0.06)
    assert (kept == (site[:, 1] < 190)).all()


def test_a_film_in_the_vacuum_is_foreign_and_the_rim_is_not():
    image, _, _, crystal = scene()
    y, x = np.mgrid[:300, :300]
    micrograph = Micrograph(image, np.ones(image.shape, bool), PIXEL_A, 280.0, 0.0, 0.003)
    assert not foreign_area(micrograph, crystal & (x < 200), FRAME, VECTORS).any()
    film = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal(image.shape), 6)
    blob = (np.hypot(y - 150, x - 285) < 40) & (x > 255)
    spoilt = np.where(blob, image + 0.15 * film / film.std(), image)
    dirty = Micrograph(spoilt, micrograph.valid, PIXEL_A, 280.0, 0.0, 0.003)
    found = foreign_area(dirty, crystal & (x < 200), FRAME, VECTORS)
    assert found[blob & (x > 260)].mean() > 0.6
    assert found[x < 200].sum() == 0


def test_single_dead_pixels_make_no_area():
    valid = np.random.default_rng(0).random((100, 100)) > 0.02
    assert not unusable_area(valid).any()
    valid[20:40, 20:40] = False
    assert unusable_area(valid)[25:35, 25:35].all()
