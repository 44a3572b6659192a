"""Several images of one area in one fit: normal equations add up, photons of all of them count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benches import bench_of, bench_of_series
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.microscope import INDEX, PARAMETERS, SPECIMEN, acting_on, image_of, numbered, parameter
from qhrtem.model.twin import Match
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.counts import count_round
from qhrtem.stages.joint import apply_step, refine, total_cost
from qhrtem.stages.linearise import EndMove, linearise, prior_cost, prior_normal
from qhrtem.stages.model_error import of_images, pooled
from qhrtem.stages.objective import Bench, OwnLens, State, white_noise
from qhrtem.stages.structure import EARLY, LENS, corrected, free_lens
from qhrtem.stages.thickness import shifted
from slabs import Slab, slab

FREE = [
    numbered("c1", 0),
    numbered("tilt_x", 0),
    numbered("b_scale", 0),
    numbered("c1", 1),
    numbered("shift_x", 1),
    numbered("scale", 1),
]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=4.0)


def pair_of(island: Slab) -> State:
    rng = np.random.default_rng(5)
    shift = np.zeros_like(island.columns.shift)
    shift[:, 0] = rng.normal(0, 0.03, (len(shift), 2))
    shift[:, 1] = shift[:, 0] + rng.normal(0, 0.01, (len(shift), 2))
    first = island.microscope.with_values(c1=56.0, tilt_x=1e-3)
    second = first.with_values(c1=88.0, shift_x=0.06, scale=0.99)
    return State(
        replace(island.columns, shift=shift), first, Diffuse(0.01), (OwnLens(second, Diffuse(-0.02)),)
    )


def test_numbers_name_image_and_parameter() -> None:
    assert numbered("c1", 0) == INDEX["c1"] and numbered("tilt_x", 2) == INDEX["tilt_x"]
    third = numbered("a1_x", 2)
    assert image_of(third) == 2 and parameter(third).name == "a1_x"
    assert [FREE[a] for a in acting_on(FREE, 0)] == FREE[:3]
    assert [FREE[a] for a in acting_on(FREE, 1)] == FREE[1:]


def test_values_of_all_images_and_back(island: Slab) -> None:
    state = pair_of(island)
    values = state.values()
    assert values.shape == (2 * len(PARAMETERS),)
    values[numbered("c1", 1)], values[INDEX["tilt_x"]] = 91.0, 4e-3
    after = state.with_values(values)
    assert after.microscope["c1"] == 56.0 and after.others[0].microscope["c1"] == 91.0
    # One specimen: its tilt is the same in every image.
    assert [v.microscope["tilt_x"] for v in after.views()] == [4e-3, 4e-3]
    assert [v.diffuse.image for v in after.views()] == [0.01, -0.02]
    alone = replace(state, others=())
    assert alone.views()[0] is alone and (alone.values() == state.microscope.values).all()


def test_one_period_more_shifts_every_focus(island: Slab) -> None:
    state = pair_of(island)
    thicker = shifted(state, 1)
    half = state.columns.projection.period / 2
    assert [v.microscope["c1"] for v in thicker.views()] == pytest.approx([56 + half, 88 + half])
    assert (thicker.columns.last > state.columns.last).all()


def test_free_parameters_are_each_images_own_or_the_specimens(island: Slab) -> None:
    state = pair_of(island)
    free = free_lens(state, LENS)
    own = [parameter(i).name for i in free if image_of(i) == 1]
    assert {"shift_x", "shift_y", "c1", "scale", "focal_spread"} <= set(own)
    assert not {PARAMETERS[i].name for i in SPECIMEN} & set(own)
    assert [i for i in free if image_of(i) == 0] == free_lens(replace(state, others=()), LENS)
    assert "shift_x" not in [parameter(i).name for i in free if image_of(i) == 0]


def image_differences(bench: Bench, state: State, step: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """∂(all images)/∂(imaging parameter number i)·step, one after the other."""
    pair = []
    for sign in (1, -1):
        values = state.values()
        values[i] += sign * step[i] / 2
        pair.append(stacked(bench, state.with_values(values)))
    return np.asarray(pair[0] - pair[1])


def stacked(bench: Bench, state: State) -> NDArray[np.float64]:
    return torch.stack(bench.images(state)).double().numpy().ravel()


def test_matrix_and_gradient_are_those_of_all_pixels_of_all_images(island: Slab) -> None:
    """Against whole-field differences of both images, stacked."""
    state = pair_of(island)
    true = island.microscope.with_values(c1=58.0), island.microscope.with_values(c1=85.0)
    bench = bench_of_series(island, island.columns, list(true))
    columns, c = state.columns, island.nearest("BaO")
    positions = [c, island.nearest("O")]
    q = linearise(bench, state, FREE, positions, {c: [EndMove(c, 1, -1)]})
    step = np.tile([p.step for p in PARAMETERS], 2)
    rows = [image_differences(bench, state, step, i) for i in FREE]
    for column, group, axis in q.tangents:
        pair = []
        for h in (0.005, -0.005):
            shift = columns.shift.copy()
            shift[column, group, axis] += h
            pair.append(stacked(bench, replace(state, columns=replace(columns, shift=shift))))
        rows.append((pair[0] - pair[1]) / 0.01)
    last = columns.last - (np.arange(len(columns)) == c)
    moved = replace(state, columns=columns.with_ends(columns.first, last))
    rows.append(stacked(bench, moved) - stacked(bench, state))
    images = bench.images(state)
    weight = np.concatenate(
        [m.weight(i).double().numpy().ravel() for m, i in zip(bench.misfits, images, strict=True)]
    )
    residual = np.concatenate(
        [(m.measured - i).double().numpy().ravel() for m, i in zip(bench.misfits, images, strict=True)]
    )
    flat = np.array(rows)
    matrix, gradient = (flat * weight) @ flat.T, flat @ (weight * residual)
    size = np.sqrt(np.diag(matrix))
    assert (np.abs(q.matrix.dense() - matrix) / np.outer(size, size)).max() < 0.02
    assert (np.abs(q.gradient - gradient) / size).max() < 0.02 * np.abs(gradient / size).max()
    # The lens of one image has nothing to do with that of the other, the tilt of the specimen with both.
    at = {i: n for n, i in enumerate(FREE)}
    dense = q.matrix.dense()
    assert dense[at[numbered("c1", 0)], at[numbered("c1", 1)]] == 0
    assert dense[at[numbered("tilt_x", 0)], at[numbered("c1", 1)]] != 0


def test_cost_and_prior_count_every_image_once(island: Slab) -> None:
    state = pair_of(island)
    bench = bench_of_series(island, island.columns, [island.microscope, island.microscope])
    alone = [Bench(island.model, m).cost(v) for m, v in zip(bench.misfits, state.views(), strict=True)]
    assert bench.cost(state) == pytest.approx(sum(alone))
    q = linearise(bench, state, FREE, [0, 1], {})
    prior, pull = prior_normal(state, q, 0.2, 0.05)
    rng = np.random.default_rng(3)
    z = np.concatenate([rng.normal(0, 0.1, len(FREE)), rng.normal(0, 0.03, len(q.tangents))])
    change = prior_cost(apply_step(state, q, z), FREE, 0.2, 0.05) - prior_cost(state, FREE, 0.2, 0.05)
    assert change == pytest.approx(z @ prior.dense() @ z - 2 * pull @ z, rel=1e-6, abs=1e-6)


def test_repeated_frames_count_as_their_photons(island: Slab) -> None:
    """Four frames give half the standard deviations, and the positions of the averaged frame."""
    number, electrons = 4, 5000.0
    lens, every = island.microscope, list(range(len(island.columns)))
    bench = bench_of_series(island, island.columns, [lens] * number, electrons)
    start = State(island.columns, lens, others=(OwnLens(lens),) * (number - 1))
    free = [numbered(name, n) for n in range(number) for name in ("c1", "a1_x", "vibration_xx")]
    found = refine(bench, start, free, every, 4)
    one = Bench(island.model, bench.misfit)
    alone = refine(one, State(island.columns, lens), free[:3], every, 4)
    measured = torch.stack([m.measured for m in bench.misfits]).mean(0)
    mean = Bench(island.model, replace(bench.misfit, measured=measured, electrons=number * electrons))
    average = refine(mean, State(island.columns, lens), free[:3], every, 4)
    at = linearise(bench, start, free, every, {}).matrix.dense()[len(free) :, len(free) :]
    by_one = linearise(one, State(island.columns, lens), free[:3], every, {}).matrix.dense()[3:, 3:]
    assert np.allclose(at, number * by_one, rtol=1e-3, atol=1e-3 * np.abs(at).max())
    sigma = np.sqrt(np.diag(found.covariance)[len(free) :])
    wide = np.sqrt(np.diag(alone.covariance)[3:])
    # Of columns of one element: beside barium the prior says where oxygen is.
    well = [island.columns.kind_of(c).name != "BaO" for c, _, _ in found.quadratic.tangents]
    assert np.allclose(sigma[well] / wide[well], 1 / np.sqrt(number), rtol=0.03)
    where = tuple(np.array(found.quadratic.tangents).T)
    apart = (found.state.columns.shift - average.state.columns.shift)[where]
    assert np.abs(apart / sigma).max() < 0.5
    off = found.state.columns.shift[where] / sigma
    assert 0.6 < off.std() < 1.4
    # The lens of each image is known from that image, with the structure that all of them tell.
    assert found.covariance[0, 0] < alone.covariance[0, 0]


def test_a_focal_series_settles_counts_that_one_image_leaves_open(island: Slab) -> None:
    """Columns a site longer or shorter at random, a dose too low for one image: more exact, and nearer."""
    rng = np.random.default_rng(2)
    columns = island.columns
    ends = rng.integers(-1, 2, len(columns))
    shift = np.zeros_like(columns.shift)
    shift[:] = rng.normal(0, 0.03, (len(columns), 1, 2))
    true = replace(columns.with_ends(columns.first, columns.last + ends), shift=shift)
    lenses = [island.microscope.with_values(c1=c, shift_y=s) for c, s in ((50, 0), (90, 0.04), (130, -0.05))]
    # A field of the island is small, so its electrons are few: 130 e/Å² a pixel of 0.18 Å.
    bench = bench_of_series(island, true, lenses, electrons=130.0, seed=11)
    rules = (
        SurfaceEnergy(Neighbours.within(columns, 2.8)),
        NeighbourStep(Neighbours.within(columns, 2.8), 6.0),
    )
    begun = [m.with_values(c1=m["c1"] + 3, shift_y=0.0) for m in lenses]
    wrong, error = [], []
    for others, misfits in (((), ()), (tuple(OwnLens(m) for m in begun[1:]), bench.others)):
        state = State(columns, begun[0], others=others)
        its = Bench(island.model, bench.misfit, others=misfits)
        state = refine(its, state, free_lens(state, EARLY), [], 3).state
        for _ in range(4):
            every = state.occupied()
            done = count_round(its, state, free_lens(state, EARLY), every, every, *rules, {})
            state = done.state
            if not done.changed:
                break
        state = refine(its, state, free_lens(state, EARLY), state.occupied(), 3).state
        wrong.append(int((state.columns.element_counts() != true.element_counts()).any(1).sum()))
        away = state.columns.shift[:, 0] - true.shift[:, 0]
        error.append(float(np.sqrt(((away - away.mean(0)) ** 2).mean())))
    assert wrong[1] < wrong[0]
    assert error[1] < 0.8 * error[0]


def test_thermal_correction_is_each_images_own(island: Slab) -> None:
    state = pair_of(island)
    bench = bench_of_series(island, island.columns, [island.microscope] * 2)
    warm = corrected(bench, state, 2, np.random.default_rng(0))
    alone = corrected(bench, replace(state, others=()), 2, np.random.default_rng(0))
    first, second = (torch.as_tensor(v.diffuse.image) for v in warm.views())
    assert torch.equal(first, torch.as_tensor(alone.diffuse.image))
    assert not torch.allclose(first, second, atol=1e-4)


def test_white_noise_of_the_first_image_is_that_of_one(island: Slab) -> None:
    bench = bench_of_series(island, island.columns, [island.microscope] * 3)
    noise = white_noise(bench, 4, 2)
    assert noise.shape == (2, 3, *island.model.field.image_grid.shape)
    assert torch.equal(noise[0, 0], white_noise(bench_of(island), 4, 1)[0, 0])
    for other in (noise[0, 1], noise[1, 0]):
        assert abs(float((noise[0, 0] * other).mean())) < 0.03


def test_what_all_images_lack_alike_does_not_average_away() -> None:
    """A model error common to all images stands out of their mean; one that differs does not."""
    rng = np.random.default_rng(0)
    shape, every = (40, 40), np.ones((40, 40), bool)
    sigma = np.full(shape, 0.1, np.float32)

    def match(error: NDArray[np.float64]) -> Match:
        measured = (error + 0.1 * rng.normal(size=shape)).astype(np.float32)
        return Match(measured, np.zeros(shape, np.float32), sigma, every, every)

    def power(m: Match, perfect: Sequence[Match] = ()) -> float:
        return float((((m.measured - m.simulated) / m.sigma) ** 2).mean())

    wrong = 0.1 * rng.normal(size=shape)
    common = [match(wrong) for _ in range(4)]
    apart = [match(0.1 * rng.normal(size=shape)) for _ in range(4)]
    assert power(pooled(common)) == pytest.approx(5, rel=0.15)
    assert of_images(power, common, [common, apart]) == pytest.approx(5, rel=0.15)
    assert of_images(power, apart, [apart]) == pytest.approx(2, rel=0.15)
    assert of_images(power, common[:1], [common[:1]]) == power(common[0])


def test_a_bench_of_one_image_is_what_it_was(island: Slab) -> None:
    bench = bench_of(island)
    state = State(island.columns, island.microscope)
    assert bench.cost(state) == bench.misfit.cost(bench.image(state))
    assert total_cost(bench, state, [INDEX["c1"]]) == pytest.approx(bench.cost(state), rel=1e-3)
