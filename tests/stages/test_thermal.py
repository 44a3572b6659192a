"""The thermal correction of a state, and the coherent image that answers moves in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benches import bench_of
from qhrtem.model.diffuse import frozen_phonon_image
from qhrtem.stages.objective import EFFECTIVE_ABSORPTION, Bench, State
from qhrtem.stages.thermal import corrected, corrected_with_scatter, pooled
from slabs import slab


def test_a_corrected_image_is_the_average_over_frozen_phonons() -> None:
    """At the Debye-Waller scale that it was computed for, whatever the state had before."""
    island = slab(radius=3.5, ends=(20.0, 30.0))
    bench = bench_of(island)
    lens = island.microscope.with_values(b_scale=1.2, absorption=EFFECTIVE_ABSORPTION)
    once = corrected(bench, State(island.columns, lens), 2, np.random.default_rng(1))
    again = corrected(bench, once, 2, np.random.default_rng(1))
    full = frozen_phonon_image(island.model, island.columns, lens, 2, np.random.default_rng(1))
    assert torch.allclose(bench.image(once), full, atol=1e-6)
    assert torch.equal(torch.as_tensor(once.diffuse.image), torch.as_tensor(again.diffuse.image))
    assert once.diffuse.b_scale == 1.2 and torch.as_tensor(once.diffuse.slope).abs().max() > 1e-3


def test_the_scatter_of_a_correction_is_what_it_costs() -> None:
    """On the mean over draws: with it taken off, few pairs and many cost the same."""
    island = slab(radius=3.5, ends=(20.0, 30.0))
    lens = island.microscope.with_values(absorption=EFFECTIVE_ABSORPTION, b_scale=2.0)
    plain = State(island.columns, lens)
    true = corrected(bench_of(island), plain, 60, np.random.default_rng(1))
    bench = bench_of(island, electrons=2e5, seed=None)
    bench = Bench(bench.model, replace(bench.misfit, measured=bench.image(true)))
    costs, scatters = [], []
    for seed in range(8):
        state, scatter = corrected_with_scatter(bench, plain, 1, seed)
        costs.append(bench.cost(state) - bench.cost(true))
        scatters.append(scatter)
    assert np.mean(costs) > 20
    assert np.mean(scatters) == pytest.approx(np.mean(costs), rel=0.3)
    still = replace(plain, microscope=lens.with_values(b_scale=0.4))
    assert corrected_with_scatter(bench, still, 1, 0)[1] < 0.2 * np.mean(scatters)


def test_a_pooled_correction_averages_over_all_that_were_drawn() -> None:
    """Each pair alike, the slope as it was; where the scale has left it, the old draws are not used."""
    island = slab(radius=3.5, ends=(20.0, 30.0))
    bench = bench_of(island)
    state = State(island.columns, island.microscope.with_values(absorption=EFFECTIVE_ABSORPTION))
    first = corrected(bench, state, 1, np.random.default_rng(1))
    second = corrected(bench, state, 3, np.random.default_rng(2))
    both = pooled(bench, first, 3, np.random.default_rng(2)).diffuse
    mean = (torch.as_tensor(first.diffuse.image) + 3 * torch.as_tensor(second.diffuse.image)) / 4
    assert torch.allclose(torch.as_tensor(both.image), mean, atol=1e-6) and both.pairs == 4
    assert both.slope is first.diffuse.slope
    hot = replace(first, microscope=first.microscope.with_values(b_scale=1.4))
    anew = pooled(bench, hot, 3, np.random.default_rng(2)).diffuse
    alone = corrected(bench, hot, 3, np.random.default_rng(2)).diffuse
    assert torch.equal(torch.as_tensor(anew.image), torch.as_tensor(alone.image)) and anew.pairs == 3
    assert torch.equal(torch.as_tensor(anew.slope), torch.as_tensor(alone.slope))


def test_one_atom_more_is_seen_as_the_average_sees_it() -> None:
    """By the share of absorption that fits use, far better than by Debye–Waller factors alone."""
    island = slab(radius=4.5, ends=(20.0, 55.0))
    middle = island.nearest("Ti")
    last = island.columns.last.copy()
    last[middle] += 1
    more = island.columns.with_ends(island.columns.first, last)
    true = sum(
        frozen_phonon_image(island.model, c, island.microscope, 6, np.random.default_rng(2)) * sign
        for c, sign in ((more, 1), (island.columns, -1))
    )
    error = {}
    for share in (0.0, 0.35, EFFECTIVE_ABSORPTION):
        m = island.microscope.with_values(absorption=share)
        change = island.model.image(more, m) - island.model.image(island.columns, m)
        error[share] = float((change - true).square().mean())
    assert error[EFFECTIVE_ABSORPTION] < 0.5 * error[0.35] < 0.5 * error[0.0]
