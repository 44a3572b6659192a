"""The problems against Dr. Probe's images, plain differences and the package's own optics."""

import math

import numpy as np
import pytest
import torch
from optimiser.column_fits import ColumnFit, counts8_2, joint, positions12
from optimiser.island import Island, View, columns, ideal
from optimiser.lens import Lens, intensity
from optimiser.reference import ENERGY, data, imaging
from optimiser.repeated import Cell, Imaging22, imaging22, probe, settings
from optimiser.suite import PROBLEMS
from optimiser.truth import Scene
from optimiser.truth import image as scene_image

from qhrtem.grid import Grid
from qhrtem.physics import coherence
from qhrtem.physics.lens import Lens as WholeLens

SMALL = ("imaging22", "positions12", "counts8_2")
MAKE = {"imaging22": imaging22, "positions12": positions12, "counts8_2": counts8_2, "joint": joint}
CELL_IMAGE = "cell_focal_abs_t8_vibaniso"


def relative(image, reference):
    """rms difference over the reference's standard deviation."""
    return float((image - reference).std() / reference.std())


@pytest.mark.parametrize("name", MAKE)
def test_truths_are_allowed_differ_and_are_not_in_the_middle(name):
    problems = [MAKE[name](seed) for seed in range(2)]
    for p in problems:
        assert p.space.refused_by(p.truth) is None
        np.testing.assert_allclose(p.space.snap(p.truth), p.truth, rtol=0, atol=1e-12)
        assert np.median(np.abs(p.space.to_unit(p.truth) - 0.5)) > 0.08
    a, b = (p.truth for p in problems)
    assert (a != b).mean() > 0.5


@pytest.mark.parametrize("image_name", ["surface_focal_abs", "surface_full_abs_abr"])
def test_islands_are_imaged_as_dr_probe_images_them(image_name):
    found = scene_image(Scene(columns(), imaging(image_name)))
    # The model itself, with Lobato's form factors, is three times as far away.
    assert relative(found, data()[image_name]) < 0.006


def test_cells_are_imaged_as_dr_probe_images_them():
    s = imaging(CELL_IMAGE)
    wave = torch.as_tensor(data()["cell_waves"][list(data()["cell_wave_periods"]).index(8)])
    found = probe().recorded(
        torch.fft.fft2(wave)[None], s.aberrations, s.focal_spread, s.semi_convergence, s.vibration
    )
    assert relative(found[0].numpy(), data()[CELL_IMAGE]) < 0.007


@pytest.mark.parametrize("name", SMALL)
def test_the_truth_explains_the_image_but_for_form_factors(name):
    problem = MAKE[name](3)
    reduced = problem.evaluate(problem.truth).value / problem.pixels
    assert 1 - 4 * math.sqrt(2 / problem.pixels) < reduced < 1.1 + 4 * math.sqrt(2 / problem.pixels)


@pytest.mark.parametrize("name", SMALL)
def test_jacobian_agrees_with_central_differences(name):
    problem = MAKE[name](0)
    vector = problem.space.sobol(1, np.random.default_rng(1))[0]
    found = problem.evaluate(vector, "jacobian")
    assert found.value == pytest.approx(float(found.residual @ found.residual))
    assert found.simulations == 1 + problem.space.dimension
    for i in np.flatnonzero(~problem.space.is_discrete):
        h = 2e-3 * (problem.space.high[i] - problem.space.low[i])
        pair = [
            np.clip(vector + s * h * np.eye(len(vector))[i], problem.space.low, problem.space.high)
            for s in (1, -1)
        ]
        slope = (problem.residual(pair[0]) - problem.residual(pair[1])) / (pair[0][i] - pair[1][i])
        error = np.linalg.norm(found.jacobian[:, i] - slope) / np.linalg.norm(slope)
        assert error < 0.15, problem.space.names[i]


def test_derivative_by_an_atom_is_the_image_with_one_more():
    problem = counts8_2(0)
    vector = problem.truth
    found = problem.evaluate(vector, "jacobian")
    for i in np.flatnonzero(problem.space.is_discrete):
        step = 1 if vector[i] < problem.space.high[i] else -1
        change = (problem.residual(vector + step * np.eye(len(vector))[i]) - found.residual) * step
        assert np.linalg.norm(found.jacobian[:, i] - change) < 0.03 * np.linalg.norm(change)


def test_lens_agrees_with_the_packages_transfer():
    grid = Grid((48, 60), (0.11, 0.12))
    s = imaging("surface_full_abs_abr")
    spectrum = torch.fft.fft2(
        torch.randn(grid.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    )
    ky, kx = grid.frequencies()
    spectrum = spectrum * (ky**2 + kx**2 <= grid.band_limit() ** 2)
    arguments = s.aberrations, s.focal_spread, s.semi_convergence
    plain = coherence.intensity(spectrum, coherence.focal_transfer(grid, WholeLens(ENERGY, *arguments)))
    quick = intensity(spectrum, *Lens(grid, ENERGY).transfer(*arguments))
    assert torch.allclose(plain, quick, atol=2e-4 * float(plain.std()))


def test_kept_waves_never_change_an_image():
    free = [40, 60, 61]
    kept = Island(View.around(13.5, 12.0), free)
    s = imaging("surface_focal_abs")
    lens = s.aberrations, s.focal_spread, s.semi_convergence, s.vibration[0]
    counts = np.array([kept.free[k].count for k in range(3)])
    shifts = np.array([(c.y, c.x) for c in kept.free]) - ideal()[free]
    walk = [
        (counts, shifts),
        (counts - [1, 0, 0], shifts),
        (counts - [1, 0, 0], shifts + 0.03),
        (counts, shifts),
    ]
    images = [kept.image(*state, *lens) for state in walk]
    for state, image in zip(walk, images, strict=True):
        assert torch.equal(image, Island(View.around(13.5, 12.0), free).image(*state, *lens))


def test_levels_are_the_values_at_every_thickness_for_one_pass():
    problem = imaging22(0)
    vector = problem.space.sobol(1, np.random.default_rng(5))[0]
    found = problem.evaluate(vector, "levels")
    assert found.passes == pytest.approx(1.0)
    for n in (1, 17, 60):
        vector[0] = n
        assert found.levels[n - 1] == pytest.approx(problem.evaluate(vector).value, rel=1e-5)


def test_work_counts_what_a_jacobian_reuses():
    problem = imaging22(1)
    vector = problem.space.sobol(1, np.random.default_rng(6))[0]
    value = problem.evaluate(vector)
    vector[2] += 0.01  # another tilt, another wave
    jacobian = problem.evaluate(vector, "jacobian")
    share = vector[0] / 60
    # The point itself, two tilts, absorption, and one more slice: 17 lens parameters cost no pass.
    assert value.passes == pytest.approx(share)
    assert jacobian.passes == pytest.approx(4 * share + 1 / 60)
    assert jacobian.ffts > 2 * 60 * jacobian.passes


def test_thicknesses_share_one_pass():
    cell, v = Cell(), settings(imaging22(0).truth)
    deep = cell.spectrum(v["tilt"], v["absorption"], 32)
    shallow = cell.spectrum(v["tilt"], v["absorption"], 9)
    assert torch.equal(shallow, Cell().spectrum(v["tilt"], v["absorption"], 9))
    assert torch.equal(deep, Cell().spectrum(v["tilt"], v["absorption"], 32))


def test_columns_lie_near_their_lattice():
    away = np.array([(c.y, c.x) for c in columns()]) - ideal()
    assert len(away) == 192
    assert sum(c.count for c in columns()) == 853
    assert np.abs(away).max() < 0.2


def test_targets_tighten_and_the_oracle_meets_them():
    problem = counts8_2(0)
    rough, fair, good = problem.targets()
    assert rough > fair > good > 0
    assert problem.evaluate(problem.truth).value < fair


def test_a_seed_fixes_the_noise():
    assert (counts8_2(5).measured == counts8_2(5).measured).all()
    assert (counts8_2(5).measured != counts8_2(6).measured).any()


@pytest.mark.parametrize("name", [n for n in PROBLEMS if not PROBLEMS[n].ours])
def test_test_functions_vanish_at_their_minimum_only(name):
    problem = PROBLEMS[name].make(4)
    assert problem.evaluate(problem.truth).value == pytest.approx(0, abs=1e-6)
    for vector in problem.space.sobol(8, np.random.default_rng(0)):
        assert problem.evaluate(vector).value > 0.1


def test_problems_of_ours_are_typed_as_such():
    assert isinstance(imaging22(0), Imaging22)
    assert isinstance(counts8_2(0), ColumnFit)
