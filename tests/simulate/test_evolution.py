"""Evolution: frames of a specimen that changes in a known way."""

import numpy as np
import pytest

from evolving import PIXEL_A, evolution
from qhrtem.simulate.evolution import moving_step, retreating_edge, switching, together

STILL = together()
DRIFT = np.array([[0.0, 0.0], [2.0, -1.0], [-1.5, 2.5]])


def sites(frame):
    return {tuple(s): n for n, s in enumerate(frame.site.tolist())}


def test_drift_moves_columns_and_keeps_names_and_atoms():
    it = evolution(STILL, DRIFT)
    frames = [it.frame(n) for n in range(3)]
    first = sites(frames[0])
    for frame, drift in zip(frames[1:], DRIFT[1:], strict=True):
        shared = sites(frame).keys() & first.keys()
        assert len(shared) > 20
        a, b = [first[s] for s in shared], [sites(frame)[s] for s in shared]
        moved = (frame.columns.position_px[b] - frames[0].columns.position_px[a]) * PIXEL_A
        assert moved == pytest.approx(np.tile(drift, (len(b), 1)), abs=1e-6)
        assert (frame.columns.counts[b] == frames[0].columns.counts[a]).all()


def test_a_frame_does_not_depend_on_those_before():
    a, b = evolution(STILL, DRIFT), evolution(STILL, DRIFT)
    a.frame(0)
    assert (a.frame(2).counts == b.frame(2).counts).all()
    assert (a.frame(1).counts != a.frame(2).counts).any()


def test_an_edge_retreats():
    it = evolution(retreating_edge(0.0, 3.0), np.zeros((4, 2)))
    left = [it.frame(n).columns.position_px[:, 1].min() * PIXEL_A for n in range(4)]
    assert left[3] >= 9.0 > left[1]
    assert sorted(left) == left


def test_a_step_takes_one_period_from_the_exit():
    it = evolution(moving_step(0.0, 4.0), np.zeros((3, 2)))
    before, after = it.frame(0), it.frame(2)
    place, now = sites(before), sites(after)
    low = [s for s in place if before.columns.position_px[place[s], 0] * PIXEL_A < 8.0 - 1e-3]
    lost = [before.columns.counts[place[s]].sum() - after.columns.counts[now[s]].sum() for s in low]
    size = {k: len(kind.sites) for k, kind in enumerate(it.whole.projection.kinds)}
    assert lost == [size[s[0]] for s in low]
    other = [s for s in place if s not in low]
    assert all((before.columns.counts[place[s]] == after.columns.counts[now[s]]).all() for s in other)


def test_a_domain_switches():
    it = evolution(switching("Ti", (0.0, 0.1), (9.0, 9.0), 30.0, 1), np.zeros((2, 2)))
    first, second = it.frame(0), it.frame(1)
    ti = first.columns.elements.index("Ti")
    shared = sites(first).keys() & sites(second).keys()
    a = first.columns.element_position_px[[sites(first)[s] for s in shared], ti]
    b = second.columns.element_position_px[[sites(second)[s] for s in shared], ti]
    has = np.isfinite(a[:, 0])
    assert has.sum() > 10
    assert (b - a)[has] * PIXEL_A == pytest.approx(np.tile([0.0, -0.2], (has.sum(), 1)), abs=1e-6)
