"""Atlas: columns keep their names while the specimen drifts."""

import numpy as np
import pytest

from qhrtem.stages.atlas import Atlas, numbers, sites
from slabs import slab


@pytest.fixture(scope="module")
def made():
    return slab(radius=14.0, shape=(64, 64))


def test_without_drift_known_columns_come_back_as_they_were(made):
    field, atlas = made.model.field, Atlas(made.columns)
    columns = atlas.at(field, np.zeros(2))
    number = numbers(sites(made.columns), sites(columns))
    known = number >= 0
    assert known.sum() > 20
    assert np.allclose(columns.anchor[known], made.columns.anchor[number[known]])
    assert (columns.last[known] == made.columns.last[number[known]]).all()


@pytest.mark.parametrize("drift", [(3.0, -2.0), (-5.5, 4.1), (0.04, 0.0)])
def test_drift_moves_every_column_and_changes_no_name(made, drift):
    field, atlas = made.model.field, Atlas(made.columns)
    moved = atlas.at(field, np.array(drift))
    number = numbers(sites(made.columns), sites(moved))
    known = number >= 0
    assert known.sum() > 20
    assert np.allclose(moved.anchor[known], made.columns.anchor[number[known]] + drift)
    same_rise = moved.rise[known] == pytest.approx(made.columns.rise[number[known]])
    assert same_rise


def test_what_a_frame_found_is_there_when_the_column_returns(made):
    field, atlas = made.model.field, Atlas(made.columns)
    away = atlas.at(field, np.array([3.0, 0.0]))
    c = int(np.flatnonzero(numbers(sites(made.columns), sites(away)) >= 0)[7])
    last = away.last.copy()
    last[c] -= 2
    away = away.with_ends(away.first, last)
    later = atlas.updated(away, np.array([3.0, 0.0])).at(field, np.zeros(2))
    back = int(numbers(sites(later), sites(away)[[c]])[0])
    assert later.last[back] == last[c]
    assert later.anchor[back] == pytest.approx(away.anchor[c] - [3.0, 0.0])


def test_sites_never_shown_are_like_their_neighbours(made):
    columns = Atlas(made.columns).at(made.model.field, np.array([9.0, 0.0]))
    new = np.flatnonzero(numbers(sites(made.columns), sites(columns)) < 0)
    assert len(new)
    top, bottom = columns.surfaces()
    known = np.setdiff1d(np.flatnonzero(columns.occupied), new)
    there = new[columns.occupied[new]]
    assert len(there) > len(new) / 2
    plane = columns.projection.period
    assert np.abs(top[there] - np.median(top[known])).max() < plane
    assert np.abs(bottom[there] - np.median(bottom[known])).max() < plane
