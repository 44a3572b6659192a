"""Defects: all that were put in are found, and next to nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from qhrtem.calibrate.defects import find_defects
from qhrtem.cli import DEMO_PLAN
from qhrtem.io.micrograph import read_image


@pytest.fixture
def counts():
    return read_image(DEMO_PLAN.parent / "bto_edge_small.tif").counts.copy()


def test_a_clean_image_loses_nothing(counts):
    assert find_defects(counts).valid.all()
    assert find_defects(counts).notes() == ()


def test_dead_hot_and_zingers_are_found(counts):
    rng = np.random.default_rng(0)
    hit = rng.random(counts.shape)
    spoilt = np.where(hit < 0.005, 100.0, counts)
    spoilt = np.where((hit > 0.005) & (hit < 0.01), 2.5 * spoilt, spoilt)
    spoilt = np.where((hit > 0.01) & (hit < 0.011), 60000.0, spoilt)
    bad = hit < 0.011
    found = find_defects(spoilt)
    assert (~found.valid & bad).sum() >= 0.99 * bad.sum()
    assert (~found.valid & ~bad).sum() <= 2


def test_clusters_and_dead_columns_are_found(counts):
    counts[100:102, 50:53] = 65000.0
    counts[:, 200] = 0.0
    found = find_defects(counts)
    assert found.outlying[100:102, 50:53].all() and found.outlying[:, 200].mean() > 0.99
    assert found.outlying.sum() < 268 + 6 + 10


def test_saturation_is_told_from_a_bright_pixel(counts):
    assert not find_defects(counts).saturated.any()
    top = np.quantile(counts, 0.999)
    found = find_defects(np.minimum(counts, top))
    assert found.saturated.sum() == (counts >= top).sum()
    assert any("saturated" in note for note in found.notes())
    levels = np.round(counts / 200) * 200  # a coarse scale shares every value
    assert not find_defects(levels).saturated.any()


def test_what_is_not_finite_is_not_used(counts):
    counts[3, 4] = np.nan
    found = find_defects(counts)
    assert found.unknown.sum() == 1 and not found.valid[3, 4]
