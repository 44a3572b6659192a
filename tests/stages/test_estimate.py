"""The estimate before a fit: it grows as it must, and a field for a cluster does not pass for a laptop's."""

import pytest

from crystals import projection
from qhrtem.specimen.columns import lattice_columns
from qhrtem.stages.estimate import MARGIN_A, estimate
from qhrtem.stages.tiling import MOST_COLUMNS

BTO = projection("BaTiO3", (1, 1, 0))


def test_columns_are_those_of_the_field_with_its_margin():
    import numpy as np

    asked = estimate((300, 400), 0.1, BTO)
    high, wide = 30 + 2 * MARGIN_A, 40 + 2 * MARGIN_A
    there = lattice_columns(BTO, np.zeros(2), np.array([[0.0, 1], [1, 0]]), (0.0, 0.0, high, wide))
    assert asked.columns == pytest.approx(len(there), rel=0.03)


def test_a_large_field_needs_the_memory_of_a_tile_and_the_time_of_all():
    whole, large, huge = (estimate((n, n), 0.1, BTO) for n in (800, 2000, 6500))
    assert whole.columns < MOST_COLUMNS < large.columns and huge.columns > 1e5
    assert large.memory < 2 * whole.memory and huge.memory < 16e9
    area = huge.columns / large.columns
    assert huge.seconds / large.seconds == pytest.approx(area, rel=0.4)  # halos only where tiles meet
    assert huge.seconds > 12 * 3600


def test_the_demo_needs_little_and_larger_fields_more():
    sizes = [estimate((n, n), 0.112, BTO) for n in (134, 268, 536)]
    assert sizes[1].memory < 4e9
    assert sizes[0].memory < sizes[1].memory < sizes[2].memory
    assert sizes[0].seconds < sizes[1].seconds < sizes[2].seconds
    slower = estimate((268, 268), 0.112, BTO, transform=5e-3)
    assert slower.seconds == pytest.approx(2 * sizes[1].seconds)
    assert slower.on(1) == pytest.approx(slower.seconds)
    assert slower.seconds / 2 < slower.on(2) < slower.on(1)
