"""Amorphous layers: density, distances, determinism, and how they stack on a crystal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.physics.potential import Species
from qhrtem.specimen.amorphous import amorphous_layer, stacked
from qhrtem.specimen.supercell import Supercell


@settings(max_examples=15, deadline=None)
@given(st.floats(10, 25), st.floats(10, 25), st.floats(3, 20), st.floats(0.02, 0.1), st.integers(0, 99))
def test_density_and_distances(
    height: float, width: float, thickness: float, density: float, seed: int
) -> None:
    cell = amorphous_layer((height, width), thickness, np.random.default_rng(seed), density=density)
    assert len(cell.kind) == round(density * height * width * thickness)
    assert (cell.position >= 0).all() and (cell.position < cell.extent).all()
    tree = cKDTree(cell.position, boxsize=[height, width, 1000.0])
    assert not tree.query_pairs(1.4 - 1e-9)


def test_a_seed_means_one_layer() -> None:
    one, two, other = (amorphous_layer((12, 12), 8, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one.position, two.position)
    assert not np.array_equal(one.position, other.position)


def test_an_impossible_density_is_refused() -> None:
    with pytest.raises(InputError, match=r"only \d+ of \d+ atoms fit .* lower the density of 2"):
        amorphous_layer((10, 10), 5, np.random.default_rng(0), density=2.0)
    with pytest.raises(InputError, match="positive thickness"):
        amorphous_layer((10, 10), 0, np.random.default_rng(0))


def test_stacking_keeps_atoms_and_species() -> None:
    carbon = amorphous_layer((10, 10), 5, np.random.default_rng(0))
    barium = Species("Ba", 0.5)
    crystal = Supercell(
        (barium,), np.zeros(1, np.int64), np.array([[1.0, 2.0, 3.0]]), np.array([10.0, 10, 4])
    )
    both = stacked(crystal, carbon)
    assert both.extent.tolist() == [10, 10, 9]
    assert both.position[0].tolist() == [1, 2, 3] and both.species[both.kind[0]] == barium
    assert both.position[1:, 2].min() >= 4
    assert {both.species[k].element for k in both.kind[1:]} == {"C"}
    with pytest.raises(InputError, match="equal extent"):
        stacked(crystal, amorphous_layer((11, 10), 5, np.random.default_rng(0)))
