"""Our engine is the forward model of a fit where both apply, and near Dr. Probe's wave."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import drprobe
from jobs import EVERY, NCSI, RIGID, cell_job
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import Job
from qhrtem.errors import PlanError
from qhrtem.grid import ifft2
from qhrtem.model.forward import thermal_of
from qhrtem.physics.lens import Aperture, Lens
from qhrtem.physics.potential import Thermal
from qhrtem.simulate.specimen import supercell_of
from slabs import slab


@pytest.mark.parametrize("tilt", [(0.0, 0.0), (4e-3, -2e-3)])
def test_same_image_as_the_forward_model(tilt):
    s = slab()
    microscope = s.microscope.with_values(tilt_x=tilt[0], tilt_y=tilt[1], a1_x=20.0, b2_y=100.0)
    spectrum, exit_z = s.model.exit_spectrum(s.columns, microscope)
    cell, slicing = supercell_of(s.columns, s.model.field.grid)
    job = Job(cell, slicing, s.model.field.grid, microscope.lens(), tilt, thermal_of(microscope))
    job = replace(job, foci=s.model.field.foci)
    wave = Ours().exit_wave(job)
    expected = ifft2(spectrum)
    assert float((wave - expected).abs().max()) < 2e-5
    # The forward model counts C1 from its reference plane, and lets columns lean about its pivot.
    field = replace(s.model.field, reference_z=exit_z, pivot_z=None)
    s.model.field = field
    direct = s.model.detect(Ours().image(wave, job), s.model.response(microscope))
    assert float((direct - s.model.image_of(spectrum, exit_z, microscope)).abs().max()) < 2e-5


def test_elastic_wave_agrees_with_dr_probe():
    # Lobato against Weickenmeier–Kohl form factors: 1.6 % at 4.5 nm by an independent program.
    index = 3 if len(drprobe.data()["wave_elastic"]) == 5 else -1
    repeats = [1, 2, 4, 8, 12][index]
    wave = Ours().exit_wave(cell_job(repeats=repeats))
    assert drprobe.rms(wave.numpy(), drprobe.data()["wave_elastic"][index]) < 0.03
    exact = Ours("weickenmeier_kohl").exit_wave(cell_job(repeats=repeats))
    assert drprobe.rms(exact.numpy(), drprobe.data()["wave_elastic"][index]) < 5e-4


def test_source_sum_and_envelope_agree_for_a_small_source():
    wave = Ours().exit_wave(cell_job(repeats=2))
    lens = Lens(drprobe.ENERGY, EVERY, 30.0, 5e-5)
    focal = Ours().image(wave, cell_job(lens=lens))
    full = Ours().image(wave, cell_job(lens=lens, mode="full"))
    assert float((focal - full).abs().max()) < 5e-3
    wide = replace(lens, semi_convergence=1e-3)
    differ = Ours().image(wave, cell_job(lens=wide)) - Ours().image(wave, cell_job(lens=wide, mode="full"))
    assert float(differ.abs().max()) > 2e-2


def test_slices_of_unequal_thickness_are_propagated_by_their_own():
    job = cell_job(repeats=1)
    thickness = np.array([1.0, 1.0, 2.0, 1.6])
    mixed = replace(job, slicing=replace(job.slicing, thickness=thickness))
    wave = Ours().exit_wave(mixed)
    ones = torch.ones_like(wave).abs() ** 2
    assert float((wave.abs() ** 2).mean()) == pytest.approx(float(ones.mean()), rel=2e-2)
    assert not torch.allclose(wave, Ours().exit_wave(job), atol=1e-3)


def test_grid_too_coarse_for_the_aperture_is_refused():
    with pytest.raises(PlanError, match="aperture"):
        Ours().check(cell_job(lens=replace(NCSI, aperture=Aperture(0.5))))


def test_damping_and_absorption_take_intensity_away():
    rigid = Ours().exit_wave(cell_job(thermal=RIGID)).abs() ** 2
    warm = Ours().exit_wave(cell_job(thermal=Thermal())).abs() ** 2
    assert 0.9 < float(warm.mean()) < float(rigid.mean()) - 0.01
