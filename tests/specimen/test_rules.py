"""Physics rules: flat surfaces pass, towers and collisions do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import crystals
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.rules import (
    HIGH,
    MinimumDistance,
    Neighbours,
    NeighbourStep,
    SurfaceEnergy,
    site_spacing,
    unavoidable_step,
)

VIEWS = [("BaTiO3", (1, 1, 0)), ("SrTiO3", (1, 1, 1)), ("MgO", (0, 0, 1)), ("CeO2", (1, 1, 0))]


def block(
    view: tuple[str, tuple[int, int, int]] = VIEWS[0], thickness: float = 22.0, top: float = 0.3
) -> ColumnModel:
    """A flat slab."""
    columns = lattice_columns(
        crystals.projection(*view), np.zeros(2), np.array([[0.0, 1], [1, 0]]), (0, 0, 16, 16)
    )
    n = len(columns)
    return columns.filled(np.full(n, top), np.full(n, top + thickness))


def middle(columns: ColumnModel) -> int:
    """A column far from the rim."""
    return int(np.argmin(np.linalg.norm(columns.anchor - 8, axis=1)))


def test_neighbours_are_the_pairs_within_a_radius() -> None:
    columns = block()
    pairs = Neighbours.within(columns, 3.0).pairs
    d = np.linalg.norm(columns.anchor[:, None] - columns.anchor[None], axis=-1)
    expected = {(i, j) for i, j in np.argwhere(d <= 3.0) if i < j}
    assert {tuple(sorted(p)) for p in pairs.tolist()} == expected and expected


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(VIEWS), st.floats(8, 40), st.floats(-5, 5))
def test_flat_slabs_break_no_rule_and_cost_nothing(
    view: tuple[str, tuple[int, int, int]], thickness: float, top: float
) -> None:
    columns = block(view, thickness, top)
    # A cut through the very middle of a plane is flat or not as numbers are rounded.
    every = np.arange(len(columns))
    ends = [columns.site_depth(every, e + d) for e in (columns.first, columns.last) for d in (-1, 0, 1)]
    assume(min(np.abs(z - cut).min() for z in ends for cut in (top, top + thickness)) > 1e-3)
    neighbours = Neighbours.within(columns, 3.2)
    assert not NeighbourStep(neighbours, 0.5).broken(columns).any()
    assert SurfaceEnergy(neighbours).cost(columns) == pytest.approx(0, abs=1e-9)
    assert not MinimumDistance(1.5).broken(columns).any()


@pytest.mark.parametrize("side", [0, 1])
def test_a_tower_is_unsupported(side: int) -> None:
    columns = block()
    c = middle(columns)
    rule = NeighbourStep(Neighbours.within(columns, 3.2), 6.0)
    first, last = columns.first.copy(), columns.last.copy()
    if side == 0:
        first[c] -= 6
    else:
        last[c] += 6
    tower = columns.with_ends(first, last)
    broken = rule.broken(tower)
    assert broken[c] and broken.sum() == 1  # a minority of its neighbours' neighbours
    # Within the limit it may stand.
    first[c], last[c] = columns.first[c] - 1, columns.last[c]
    assert not rule.broken(columns.with_ends(first, last)).any()


def test_empty_columns_are_nobodys_support() -> None:
    columns = block()
    c = middle(columns)
    last = columns.last.copy()
    last[c] = columns.first[c] - 1
    neighbours = Neighbours.within(columns, 3.2)
    hole = columns.with_ends(columns.first, last)
    assert not NeighbourStep(neighbours, 6.0).broken(hole).any()
    assert SurfaceEnergy(neighbours).cost(hole) == pytest.approx(0, abs=1e-9)


def test_unsupported_needs_more_than_half_of_the_neighbours() -> None:
    rule = NeighbourStep(Neighbours(np.zeros((0, 2), np.int64)), 6.0)
    step = np.array([[8.0, -8.0, 0.0, 0.0], [8.0, 8.0, -8.0, 0.0]])
    assert rule.unsupported(step, np.ones(4)).tolist() == [False, True]
    assert not rule.unsupported(step, np.full(4, 3.0)).any()


def test_surface_energy_grows_with_the_step_up_to_its_cap() -> None:
    columns = block()
    c = middle(columns)
    energy = SurfaceEnergy(Neighbours.within(columns, 3.2))
    cost = []
    for n in range(5):
        last = columns.last.copy()
        last[c] += n
        cost.append(energy.cost(columns.with_ends(columns.first, last)))
    assert cost[0] == 0 and cost[1] < cost[2] < cost[3]
    degree = int((energy.neighbours.pairs == c).sum())
    assert cost[4] <= (energy.bond + energy.cap) * degree + 1e-9
    # One step of excess e on a surface costs a bond and (e/scale)².
    assert energy.pair_cost(
        np.array([5.0, -5.0, 1.0, 40.0]), np.array([3.0, 3.0, 3.0, 3.0])
    ) == pytest.approx([2.0, 2.0, 0.0, 7.0])


def test_a_lone_atom_costs_a_bond_for_each_neighbour_and_a_terrace_only_its_edge() -> None:
    columns = block(("SrTiO3", (0, 0, 1)))
    energy = SurfaceEnergy(Neighbours.within(columns, 4.1), bond=1.0, scale=1e6)
    p, c = columns.projection, middle(columns)
    last = columns.last.copy()
    last[c] += len(p.kinds[columns.kind[c]].sites)
    a, b = energy.neighbours.pairs.T
    alike = int(((columns.kind[a] == columns.kind[b]) & ((a == c) | (b == c))).sum())
    assert alike == 4 and energy.cost(columns.with_ends(columns.first, last)) >= alike
    beyond = columns.anchor[:, 1] > 8.3
    per_period = np.array([len(k.sites) for k in p.kinds])[columns.kind]
    terrace = columns.with_ends(columns.first, columns.last + beyond * per_period)
    assert energy.cost(terrace) == pytest.approx((beyond[a] != beyond[b]).sum())


@pytest.mark.parametrize("rough", [0.0, 0.3])
def test_a_bond_is_worth_what_the_roughness_says(rough: float) -> None:
    columns = block(("SrTiO3", (0, 0, 1)))
    everything = np.ones(len(columns), bool)
    energy = SurfaceEnergy(Neighbours.within(columns, 2.44))
    flat = energy.learned(columns, everything).bond
    up = np.random.default_rng(0).random(len(columns)) < rough
    sites = np.array([len(k.sites) for k in columns.projection.kinds])[columns.kind]
    learned = energy.learned(columns.with_ends(columns.first, columns.last + up * sites), everything)
    assert flat > 1.2
    assert learned.bond == flat if rough == 0 else 0 <= learned.bond < flat - 1
    # Nothing seen: the prior.
    assert energy.learned(columns, ~everything).bond == pytest.approx(2 * np.log(3))


def test_more_neighbours_are_worth_less_each() -> None:
    columns = block()
    everything = np.ones(len(columns), bool)
    few, many = (
        SurfaceEnergy(Neighbours.within(columns, r)).learned(columns, everything) for r in (2.1, 5.8)
    )
    assert few.weight == 1.0 and many.weight < 0.5
    assert many.pair_cost(np.array(9.0), np.array(1.0)) == pytest.approx(many.bond + HIGH * many.weight)


def test_minimum_distance_finds_colliding_columns() -> None:
    columns = block()
    name = [columns.kind_of(i).name for i in range(len(columns))]
    ti = min(
        (i for i in range(len(columns)) if name[i] == "Ti"), key=lambda i: np.abs(columns.anchor[i] - 8).sum()
    )
    bao = min(
        (i for i in range(len(columns)) if name[i] == "BaO"),
        key=lambda i: np.abs(columns.anchor[i] - columns.anchor[ti]).sum(),
    )
    columns.shift[ti, 0] = 0.7 * (columns.anchor[bao] - columns.anchor[ti])
    broken = MinimumDistance(1.5).broken(columns)
    assert broken[ti] and broken[bao]
    atoms = columns.atoms()
    points = np.column_stack([atoms.position, atoms.z])
    d = np.linalg.norm(points[:, None] - points[None], axis=-1) + 9 * np.eye(len(points))
    assert set(np.flatnonzero(broken)) == set(atoms.column[(d < 1.5).any(1)])


def test_unavoidable_step_is_that_of_alternating_planes() -> None:
    columns = block()
    spacing = site_spacing(columns)
    p = columns.projection
    names = [columns.kind_of(c).name for c in range(len(columns))]
    per = {"BaO": p.period / 2, "Ti": p.period, "O": p.period / 2}
    assert spacing == pytest.approx([per[n] for n in names])
    a, b = Neighbours.within(columns, 3.2).pairs.T
    top, bottom = columns.surfaces()
    allowed = unavoidable_step(columns, a, b)
    assert allowed == pytest.approx((spacing[a] + spacing[b] - p.plane) / 2)
    assert (np.abs(top[a] - top[b]) <= allowed + 1e-9).all() and (
        np.abs(bottom[a] - bottom[b]) <= allowed + 1e-9
    ).all()
