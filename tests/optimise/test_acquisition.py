"""Each acquisition finds the obvious, and obeys what it is told."""

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise import acquisition, search, surrogate

X = np.random.default_rng(0).random((40, 2))
MODEL = surrogate.fit(X, 1 - 8 * ((X - 0.3) ** 2).sum(1), None, steps=40)
CANDIDATES = np.random.default_rng(1).random((500, 2))
NONE = np.empty((0, 2))


@pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
def test_picks_lie_near_the_optimum_and_differ(name: str) -> None:
    rows = acquisition.choose(name, MODEL, CANDIDATES, 4, NONE, np.random.default_rng(0), lambda _: True)
    assert len(set(rows)) == 4
    assert np.linalg.norm(CANDIDATES[rows[0]] - 0.3) < 0.15


@pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
def test_refused_candidates_are_never_chosen(name: str) -> None:
    rows = acquisition.choose(
        name, MODEL, CANDIDATES, 3, NONE, np.random.default_rng(0), lambda u: bool(u[0] > 0.6)
    )
    assert len(rows) == 3
    assert (CANDIDATES[rows, 0] > 0.6).all()


@pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
def test_nothing_acceptable_gives_nothing(name: str) -> None:
    assert (
        acquisition.choose(name, MODEL, CANDIDATES, 3, NONE, np.random.default_rng(0), lambda _: False) == []
    )


@pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
def test_same_generator_same_choice(name: str) -> None:
    a, b = (
        acquisition.choose(name, MODEL, CANDIDATES, 3, NONE, np.random.default_rng(7), lambda _: True)
        for _ in range(2)
    )
    assert a == b


def test_pending_points_repel_expected_improvement() -> None:
    few = surrogate.fit(X[:8], 1 - 8 * ((X[:8] - 0.3) ** 2).sum(1), None, steps=40)
    free = acquisition.choose("qlogei", few, CANDIDATES, 1, NONE, np.random.default_rng(0), lambda _: True)
    taken = CANDIDATES[free]
    busy = acquisition.choose("qlogei", few, CANDIDATES, 1, taken, np.random.default_rng(0), lambda _: True)
    assert busy != free


def test_search_offers_exactly_these_names() -> None:
    assert search.FROM_CANDIDATES == tuple(acquisition.ACQUISITIONS)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PlanError, match="thompson, qlogei, ucb"):
        acquisition.choose("ei", MODEL, CANDIDATES, 1, NONE, np.random.default_rng(0), lambda _: True)
