"""Hops lead out of a basin without leaving the space, and a chain knows when to give up."""

import json

import numpy as np
import pytest

from qhrtem.optimise import hops
from qhrtem.optimise.hops import Chain, hop, soft_step
from qhrtem.optimise.quadratic import Quadratic
from qhrtem.optimise.space import Parameter, SearchSpace

SPACE = SearchSpace(
    (
        *(Parameter(f"x{i}", -1, 1) for i in range(4)),
        Parameter("n", 1, 30, "", "integer"),
        Parameter("fixed", 2, 2),
        Parameter.categorical("sense", ("up", "down")),
    )
)


def end(value: float, d: int = 7) -> Quadratic:
    return Quadratic(np.full(d, 0.5), value, np.zeros(d), np.eye(d))


def test_hops_stay_in_the_cube_and_move_only_what_is_free() -> None:
    generator = np.random.default_rng(0)
    points = np.array([hop(end(1.0), SPACE, generator) for _ in range(200)])
    assert points.min() >= 0
    assert points.max() <= 1
    assert (points[:, 5] == 0.5).all()
    assert np.unique(SPACE.from_unit(points)[:, 4]).size > 8  # near and far thicknesses


@pytest.mark.parametrize("way", hops.WAYS)
def test_every_way_moves_the_point(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hops, "WAYS", (way,))
    moved = hop(end(1.0), SPACE, np.random.default_rng(1))
    assert np.abs(moved - 0.5).max() > 1e-3


def test_soft_steps_follow_the_soft_direction() -> None:
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    stiffness = np.array([1e4, 1e4, 1e4, 1e4, 10.0])
    curvature = turn @ np.diag(stiffness) @ turn.T
    steps = np.array([soft_step(curvature, 1.0, np.random.default_rng(s)) for s in range(300)])
    # ½ δᵀCδ is ½ |value| a direction on average, as far as the cube's side allows.
    energy = 0.5 * np.einsum("ki,ij,kj->k", steps, curvature, steps)
    assert energy.mean() == pytest.approx(2.5, rel=0.15)
    along = steps @ turn
    assert along[:, 4].std() > 20 * along[:, 0].std()


def test_a_chain_moves_on_for_the_better_and_gives_up_after_its_patience() -> None:
    chain = Chain()
    assert chain.spent
    chain.ended(end(10.0))
    assert not chain.spent
    chain.ended(end(9.9999))  # no gain that counts
    assert (chain.value, chain.failures) == (10.0, 1)
    chain.ended(end(5.0))
    assert (chain.value, chain.failures) == (5.0, 0)
    for _ in range(hops.PATIENCE):
        chain.ended(end(7.0))
    assert chain.spent
    restored = Chain.from_dict(json.loads(json.dumps(chain.to_dict(), allow_nan=False)))
    assert restored.to_dict() == chain.to_dict()
