"""Following: a frame fitted from what is known before it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evolving import PIXEL_A, evolution, known_of, lattice, micrograph
from qhrtem.simulate.evolution import together
from qhrtem.stages.assess import claimed
from qhrtem.stages.atlas import numbers, sites
from qhrtem.stages.follow import WALK, carried, crystal_of, follow


def one_less(column_kind: int, at: tuple[float, float]):
    """Return the script by which the column of a kind nearest to a place (y, x) Å loses its last atom."""

    def script(columns, place, frame):
        if frame == 0:
            return columns
        mine = np.flatnonzero(columns.kind == column_kind)
        c = mine[np.argmin(np.hypot(*(place[mine] - np.array(at)).T))]
        last = columns.last.copy()
        last[c] -= 1
        return columns.with_ends(columns.first, last)

    return script


@pytest.fixture(scope="module")
def followed():
    drift = np.array([[0.0, 0.0], [1.9, -2.3]])
    heavy = 0
    it = evolution(one_less(heavy, (9.0, 11.0)), drift)
    known = known_of(it)
    with torch.inference_mode():
        done = follow(known, micrograph(it.frame(1), it), lattice(it), 0, 1, 1)
    return it, known, done


@pytest.mark.slow
def test_the_drift_is_found(followed):
    it, _, done = followed
    assert done.drift.step_A == pytest.approx(it.drift[1], abs=0.05)
    assert done.drift.behind > 12


@pytest.mark.slow
def test_the_one_column_that_changed_is_found_and_no_other(followed):
    it, known, done = followed
    frame = it.frame(1)
    keep = claimed(done.state.columns, done.start)
    inside = done.start.eligible[keep]
    place = {tuple(s): n for n, s in enumerate(frame.site.tolist())}
    where = it.field.to_detector(done.state.columns.anchor[keep])
    margin = 3.0 / PIXEL_A
    well = ((where > margin) & (where < frame.counts.shape[0] - margin)).all(1)
    counts = done.state.columns.element_counts()[keep]
    found = sites(done.state.columns)[keep]
    wrong = [
        tuple(s)
        for s, n, ok in zip(found.tolist(), counts, inside & well, strict=True)
        if ok and (n != frame.columns.counts[place[tuple(s)]]).any()
    ]
    assert wrong == []
    before = known.atlas.at(it.field, it.drift[1])
    number = numbers(sites(before), found)
    changed = (counts != before.element_counts()[number]).any(1) & inside & well
    assert changed.sum() == 1
    c = int(keep[np.flatnonzero(changed)[0]])
    assert done.assessed.probability[c] > 0.8


@pytest.mark.slow
def test_what_an_instrument_keeps_does_not_walk(followed):
    _, known, done = followed
    after = carried(known, done)
    from qhrtem.model.microscope import NAMES

    steady = [i for i, name in enumerate(NAMES) if name not in WALK]
    lens = after.state.microscope
    assert (lens.mean[steady] == known.state.microscope.mean[steady]).all()
    assert (lens.sigma == known.state.microscope.sigma).all()
    assert after.drift_A == pytest.approx(done.drift.step_A)


def test_crystal_is_where_columns_are():
    it = evolution(together(), np.zeros((1, 2)))
    columns = it.specimen(0).columns
    mask = crystal_of(it.field, columns)
    where = np.round(it.field.to_detector(columns.anchor)).astype(int)
    inside = ((where >= 0) & (where < np.array(mask.shape))).all(1)
    assert mask[tuple(where[inside].T)].all()
    assert not mask[:, : int(1.5 / PIXEL_A)].any()
    none = replace(columns, last=columns.first - 1)
    assert not crystal_of(it.field, none).any()
