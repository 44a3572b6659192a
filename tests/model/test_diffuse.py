"""Thermal diffuse intensity: displacement statistics, and the frozen lattice of an independent program."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drprobe
from crystals import projection
from qhrtem.model.diffuse import (
    Diffuse,
    RigidModel,
    diffuse_around,
    diffuse_image,
    displacement_pairs,
    frozen_phonon_image,
)
from qhrtem.model.forward import Field, ForwardModel, resampled
from qhrtem.model.microscope import nominal
from qhrtem.model.sampling import COARSEST
from qhrtem.physics.coherence import full_intensity
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from slabs import Slab, slab


@pytest.fixture(scope="module")
def island() -> Slab:
    return slab(radius=3.5, ends=(20.0, 30.0))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99))
def test_displacements_have_exact_second_moments(pairs: int, seed: int) -> None:
    """Coordinates of one column are orthogonal over the pairs, in blocks of as many as there are pairs.

    Blocks are counted from site 0, wherever a column begins.
    """
    island = slab(radius=3.5, ends=(20.0, 30.0))
    atoms = island.columns.atoms()
    sigma = np.linspace(0.05, 0.09, len(atoms.z))
    u = displacement_pairs(atoms, sigma, pairs, np.random.default_rng(seed))
    assert u.shape == (pairs, len(atoms.z), 2)
    assert np.allclose((u**2).mean(0), sigma[:, None] ** 2)
    for c in np.unique(atoms.column):
        mine = np.flatnonzero(atoms.column == c)
        scaled = (u[:, mine] / sigma[mine, None]).reshape(pairs, -1)
        number = (2 * atoms.site[mine][:, None] + np.arange(2)).ravel() // pairs
        for n in np.unique(number):
            block = scaled[:, number == n]
            assert np.allclose(block.T @ block, pairs * np.eye(block.shape[1]), atol=1e-9)


def test_displacements_are_normal_and_reproducible(island: Slab) -> None:
    atoms = island.columns.atoms()
    sigma = np.ones(len(atoms.z))
    many = np.concatenate([displacement_pairs(atoms, sigma, 8, np.random.default_rng(s)) for s in range(40)])
    flat = many.reshape(len(many), -1)
    assert np.abs(flat.mean()) < 0.01 and (flat**2).mean() == pytest.approx(1)
    # Eight-dimensional unit vectors: fourth moment 3·8/(8+2) of a normal one's 3.
    assert (flat**4).mean() == pytest.approx(2.4, rel=0.05)
    between = np.corrcoef(flat[:, :40].T) - np.eye(40)
    assert np.abs(between).max() < 6 / math.sqrt(len(flat))
    again = displacement_pairs(atoms, sigma, 8, np.random.default_rng(0))
    assert np.array_equal(again, many[:8])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(-3, 3), st.integers(-3, 3))
def test_an_atom_is_displaced_alike_whatever_else_there_is(pairs: int, above: int, below: int) -> None:
    """Specimens that differ in some column ends are compared under the same displacements."""
    columns = slab(radius=3.5, ends=(20.0, 30.0)).columns
    odd = np.arange(len(columns)) % 2
    other = columns.with_ends(columns.first - above * odd, columns.last + below * odd)

    def drawn(model: ColumnModel) -> dict[tuple[int, int], bytes]:
        atoms = model.atoms()
        u = displacement_pairs(atoms, np.full(len(atoms.z), 0.07), pairs, np.random.default_rng(3))
        keys = zip(atoms.column.tolist(), atoms.site.tolist(), strict=True)
        return {key: u[:, n].tobytes() for n, key in enumerate(keys)}

    one, two = drawn(columns), drawn(other)
    shared = one.keys() & two.keys()
    assert len(shared) > 15 and all(one[key] == two[key] for key in shared)
    assert len(set(one.values())) > 0.9 * len(one) or pairs == 1


def test_the_average_agrees_with_plain_sampling(island: Slab) -> None:
    """A few orthogonal pairs and many independent configurations estimate the same image."""
    model, columns, m = island.model, island.columns, island.microscope
    few = frozen_phonon_image(model, columns, m, 6, np.random.default_rng(1)).numpy()
    atoms = columns.atoms()
    sigma = np.sqrt(np.array([s.b_iso for s in columns.species])[atoms.species] / (8 * math.pi**2))
    rigid = RigidModel(model, columns, m)
    rng = np.random.default_rng(2)
    moves = (sigma[:, None] * rng.standard_normal((len(sigma), 2)) for _ in range(40))
    images = [rigid.detect(rigid.sharp(u)).numpy() for u in moves]
    plain = np.mean(images, axis=0)
    error = np.std(images, axis=0) / math.sqrt(len(images))
    where = plain.std() * 0.3 < np.abs(plain - 1)
    assert where.sum() > 200
    # Their difference is the noise of the plain average and little more.
    ratio = np.sqrt(((few - plain)[where] ** 2).mean() / (error[where] ** 2).mean())
    assert ratio < 1.5
    still = frozen_phonon_image(
        model, columns, m.with_values(b_scale=0.0), 6, np.random.default_rng(1)
    ).numpy()
    wrong = np.sqrt(((still - plain)[where] ** 2).mean() / (error[where] ** 2).mean())
    assert wrong > 1.5 * ratio


def test_the_difference_completes_the_coherent_image(island: Slab) -> None:
    model, columns, m = island.model, island.columns, island.microscope
    extra = diffuse_image(model, columns, m, 2, np.random.default_rng(3))
    full = frozen_phonon_image(model, columns, m, 2, np.random.default_rng(3))
    assert torch.allclose(model.image(columns, m) + extra, full, atol=1e-6)
    # Absorption takes electrons out of the coherent wave; the diffuse image brings them back.
    lost = 1 - float(model.image(columns, m).double().mean())
    assert lost > 2e-4 and abs(float(full.double().mean()) - 1) < 0.4 * lost


def test_the_addition_follows_the_debye_waller_scale(island: Slab) -> None:
    """As the average itself does, where the coherent image alone is far off."""
    model, columns, m = island.model, island.columns, island.microscope.with_values(absorption=0.8)
    warm = m.with_values(b_scale=1.3)
    extra = diffuse_around(model, columns, m, 2, np.random.default_rng(3))
    assert isinstance(extra, Diffuse) and extra.b_scale == m["b_scale"]
    assert torch.equal(torch.as_tensor(extra.at(m)), torch.as_tensor(extra.image))
    true = sum(
        frozen_phonon_image(model, columns, warm, 8, np.random.default_rng(s))
        - frozen_phonon_image(model, columns, m, 8, np.random.default_rng(s))
        for s in (7, 8)
    )
    coherent = model.image(columns, warm) - model.image(columns, m)
    wrong, right = (
        float((v - true / 2).square().mean()) for v in (coherent, coherent + extra.at(warm) - extra.at(m))
    )
    assert right < 0.5 * wrong


def test_a_frozen_lattice_average_matches_dr_probe() -> None:
    """BaTiO3 [110], 4.5 nm: 192 configurations there, 8 pairs on 4 cells here; coherent is far off."""
    p = projection("BaTiO3", (1, 1, 0))
    cells, pixel = 2, drprobe.GRID.pixel
    grid = replace(drprobe.GRID, shape=(60 * cells, 80 * cells), dtype=torch.float32)
    top = p.origin - p.plane / 2
    # Their cell starts half an edge along x from ours.
    box = (0.0, 0.0, drprobe.C_A * cells - 0.01, drprobe.A_A * cells - 0.01)
    columns = lattice_columns(p, np.array([1e-6, drprobe.A_A / 2 + 1e-6]), np.array([[0.0, 1], [1, 0]]), box)
    n = len(columns)
    columns = columns.filled(np.full(n, top), np.full(n, top + 8 * p.period - 0.01))
    assert len(columns.atoms().z) == cells**2 * len(drprobe.ATOMS) * 8
    field = Field(grid, grid, grid.shape, (0, 0), (1, 1), top + 8 * p.period)
    model = ForwardModel(field, drprobe.ENERGY)
    z, weight, _ = drprobe.focus_samples("focal_abs_t8", 0.0196875)
    spread = math.sqrt(float((weight * z**2).sum()))
    m = nominal(drprobe.ENERGY).with_values(
        c1=60.0, focal_spread=spread, semi_convergence=3e-4, vibration_xx=0.25**2, vibration_yy=0.25**2
    )
    assert pixel == grid.pixel

    def cell(image: torch.Tensor) -> np.ndarray:
        return image.numpy().reshape(cells, 60, cells, 80).mean((0, 2))

    coherent = cell(model.image(columns, m))
    assert drprobe.rms(coherent, drprobe.data()["image_focal_abs_t8"]) < 0.02
    reference = drprobe.data()["frozen_image_mean"]
    # Its lens lets source envelopes take intensity away.
    frozen = cell(frozen_phonon_image(model, columns, m, 8, np.random.default_rng(0), conserve=False))
    assert drprobe.rms(frozen, reference) < 0.018
    assert drprobe.rms(coherent, reference) > 0.035
    assert frozen.mean() == pytest.approx(float(reference.mean()), abs=0.01)


def test_an_extended_source_loses_no_electron(island: Slab) -> None:
    """Against the sum over 25 source angles: the background is there, and the mean is right."""
    model, columns, m = island.model, island.columns, island.microscope
    m = m.with_values(semi_convergence=6e-4)
    rigid, lossy = RigidModel(model, columns, m), RigidModel(model, columns, m, conserve=False)
    b = np.array([s.b_iso for s in columns.species])[rigid.atoms.species]
    rng = np.random.default_rng(4)
    full = sharp = without = 0.0
    p = columns.projection
    exit_z = p.origin + (int(rigid.atoms.slice.max()) + 0.5) * p.plane
    lens = m.lens(resampled(model.field, COARSEST.rigid).reference_z - exit_z)
    for move in displacement_pairs(rigid.atoms, np.sqrt(b / (8 * math.pi**2)), 6, rng):
        spectrum = rigid.spectrum(move)
        full = full + rigid.detect(full_intensity(spectrum, rigid.grid, lens, source=5)).double() / 6
        sharp = sharp + rigid.detect(rigid.sharp(move)).double() / 6
        without = without + lossy.detect(lossy.sharp(move)).double() / 6
    missing = float((full - without).mean())
    assert missing > 1e-4
    assert abs(float((full - sharp).mean())) < 0.05 * missing
    assert float((full - sharp).std()) < 0.8 * float((full - without).std())


def test_a_wave_does_not_depend_on_how_slices_are_grouped(
    island: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a group without atoms, between short columns and one far below, stop it."""
    first, last = island.columns.first.copy(), island.columns.first.copy()
    first[0] = last[0] = island.columns.last.max() + 3
    columns = island.columns.with_ends(first, last)
    used = columns.atoms().slice
    assert len(np.unique(used)) < np.ptp(used) + 1
    move = np.random.default_rng(5).normal(0, 0.05, (len(used), 2))
    waves = []
    for at_once in (1, 2**15, 2**30):
        monkeypatch.setattr("qhrtem.model.diffuse.AT_ONCE", at_once)
        waves.append(RigidModel(island.model, columns, island.microscope).spectrum(move))
    assert torch.equal(waves[0], waves[1]) and torch.equal(waves[0], waves[2])
