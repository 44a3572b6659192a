"""Events: what happens to columns between the frames of a series."""

import numpy as np
import pytest

from qhrtem.model.series import Frame
from qhrtem.stages.events import Watch

SITES = [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
PIXEL = 0.1


def frame(number, counts, displacement=None, refused="", sites=SITES, changed=0.95, sigma=0.02):
    n = len(counts)
    move = np.zeros((n, 2)) if displacement is None else np.array(displacement, dtype=float)
    pair = np.zeros((n, 2))
    return Frame(
        number, "f", np.zeros(2), 99.0, np.array(sites[:n]).reshape(-1, 3), np.array(counts),
        np.full(n, 0.99), np.full(n, changed), pair, np.full((n, 2), sigma / PIXEL), move, np.zeros(n),
        np.zeros(n), np.ones(n, bool), np.zeros(1), np.zeros(1), 1.0, 1.0, refused,
    )  # fmt: skip


def kinds(events):
    return [(e.kind, e.site) for e in events]


def test_nothing_happens_where_nothing_changes():
    watch = Watch()
    for n in range(4):
        assert watch.see(frame(n, [[3, 1], [4, 0], [2, 2]]), set(), PIXEL) == ()


def test_atoms_gained_and_lost():
    watch = Watch()
    watch.see(frame(0, [[3, 1], [4, 0], [2, 2]]), set(), PIXEL)
    events = watch.see(frame(1, [[4, 1], [3, 0], [2, 2]]), set(), PIXEL)
    assert kinds(events) == [("gains atoms", SITES[0]), ("loses atoms", SITES[1])]
    assert events[0].before == (3, 1) and events[0].after == (4, 1)
    assert events[0].probability == pytest.approx(0.95)


def test_an_unlikely_change_is_no_event():
    watch = Watch()
    watch.see(frame(0, [[3, 1]]), set(), PIXEL)
    assert watch.see(frame(1, [[4, 1]], changed=0.3), set(), PIXEL) == ()


def test_a_column_leaves_and_comes_back():
    watch = Watch()
    watch.see(frame(0, [[3, 1], [4, 0], [2, 2]]), set(), PIXEL)
    gone = watch.see(frame(1, [[3, 1], [4, 0]]), {SITES[2]}, PIXEL)
    assert kinds(gone) == [("leaves", SITES[2])]
    assert watch.see(frame(2, [[3, 1], [4, 0]]), {SITES[2]}, PIXEL) == ()
    back = watch.see(frame(3, [[3, 1], [4, 0], [2, 2]]), set(), PIXEL)
    assert kinds(back) == [("appears", SITES[2])]


def test_a_column_out_of_sight_did_not_leave():
    watch = Watch()
    watch.see(frame(0, [[3, 1], [4, 0], [2, 2]]), set(), PIXEL)
    assert watch.see(frame(1, [[3, 1], [4, 0]]), set(), PIXEL) == ()


def test_a_jump_is_an_event_and_noise_is_not():
    watch, rng = Watch(), np.random.default_rng(1)
    seen = []
    for n in range(30):
        place = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]) + 0.02 * rng.standard_normal((3, 2))
        place[1, 0] += 0.2 * (n >= 12)
        seen += watch.see(frame(n, [[3, 1], [4, 0], [2, 2]], place), set(), PIXEL)
    assert [(e.kind, e.site, e.frame) for e in seen] == [("moves", SITES[1], 12)]
    assert seen[0].moved_A[0] == pytest.approx(0.2, abs=0.07)
    assert watch.events[0].lasted


def test_an_event_lasts_where_the_next_frame_agrees():
    watch = Watch()
    watch.see(frame(0, [[3, 1], [4, 0]]), set(), PIXEL)
    watch.see(frame(1, [[4, 1], [5, 0]]), set(), PIXEL)
    watch.see(frame(2, [[4, 1], [4, 0]]), set(), PIXEL)
    first = {e.site: e.lasted for e in watch.events if e.frame == 1}
    assert first == {SITES[0]: True, SITES[1]: False}


def test_a_refused_frame_says_nothing():
    watch = Watch()
    watch.see(frame(0, [[3, 1]]), set(), PIXEL)
    assert watch.see(frame(1, [[9, 1]], refused="blurred"), set(), PIXEL) == ()
    assert watch.see(frame(2, [[3, 1]]), set(), PIXEL) == ()
