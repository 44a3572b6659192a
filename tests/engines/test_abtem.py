"""abTEM's conventions turned into ours: waves, tilt, every aberration, and what it cannot do."""

from dataclasses import replace

import numpy as np
import pytest

import drprobe
from jobs import EVERY, NCSI, cell_job
from qhrtem.engines.abtem import AbTem, krivanek_polar
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import engine_named, simulate
from qhrtem.errors import PlanError, ResourceError
from qhrtem.physics.lens import Aperture, Lens
from qhrtem.physics.potential import Species, Thermal


@pytest.fixture(scope="module")
def abtem():
    pytest.importorskip("abtem")
    return engine_named("abtem")


def aligned(a, b):
    """Return wave a with the global phase that brings it nearest to b."""
    return a * np.exp(-1j * np.angle((a * b.conj()).sum()))


def difference(a, b):
    a, b = a.numpy(), b.numpy()
    return drprobe.rms(aligned(a, b), b)


@pytest.mark.abtem
@pytest.mark.parametrize(("repeats", "limit"), [(1, 0.006), (4, 0.015), (8, 0.03)])
def test_waves_agree_within_the_spreading_of_its_atoms(abtem, repeats, limit):
    job = cell_job(repeats=repeats)
    assert difference(abtem.exit_wave(job), Ours().exit_wave(job)) < limit


@pytest.mark.abtem
def test_tilt_has_our_sign_and_axes(abtem):
    job = cell_job(mistilt=(5e-3, -2e-3), repeats=4)
    right = difference(abtem.exit_wave(job), Ours().exit_wave(job))
    wrong = [
        difference(abtem.exit_wave(job), Ours().exit_wave(replace(job, mistilt=t)))
        for t in ((0.0, 0.0), (-5e-3, 2e-3), (-2e-3, 5e-3))
    ]
    assert right < 0.015
    assert min(wrong) > 5 * right


@pytest.mark.abtem
def test_image_of_the_same_wave_agrees(abtem):
    wave = Ours().exit_wave(cell_job())
    for lens in (NCSI, Lens(drprobe.ENERGY, EVERY), Lens(drprobe.ENERGY, EVERY, 30.0, 3e-4)):
        job = cell_job(lens=lens)
        assert drprobe.rms(abtem.image(wave, job), Ours().image(wave, job)) < 1e-4


@pytest.mark.abtem
@pytest.mark.parametrize("name", EVERY)
def test_every_aberration_has_our_sign_and_size(abtem, name):
    wave = Ours().exit_wave(cell_job(repeats=2))
    job = cell_job(lens=Lens(drprobe.ENERGY, {name: EVERY[name]}))
    without = Ours().image(wave, cell_job(lens=Lens(drprobe.ENERGY)))
    expected = Ours().image(wave, job)
    assert drprobe.rms(without, expected) > 2e-3
    assert drprobe.rms(abtem.image(wave, job), expected) < 1e-4


@pytest.mark.abtem
def test_frozen_phonon_image_agrees(abtem):
    job = cell_job(thermal=Thermal(), repeats=4)
    theirs, same, other = (
        simulate(e, job, 2, np.random.default_rng(seed)) for e, seed in ((abtem, 0), (Ours(), 0), (Ours(), 1))
    )
    # Atoms between pixels are blurred by abTEM; that is far less than another draw of displacements changes.
    assert float((theirs - same).std()) < 0.02
    assert float((theirs - other).std()) > 0.04


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thermal": Thermal()}, "--phonons 16"),
        ({"mode": "full"}, "focus only"),
        ({"lens": replace(NCSI, aperture=Aperture(0.02))}, "aperture"),
        ({"lens": replace(NCSI, beam_tilt=(1e-3, 0.0))}, "beam tilt"),
    ],
)
def test_what_it_cannot_do_is_refused(change, words):
    with pytest.raises(PlanError, match=words):
        AbTem().check(cell_job(**change))


def test_partial_occupancy_is_refused():
    job = cell_job()
    species = (Species("Ba", 0.5, 0.9), *job.cell.species[1:])
    with pytest.raises(PlanError, match="whole atoms"):
        AbTem().check(replace(job, cell=replace(job.cell, species=species)))


def test_absence_names_the_remedy(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("qhrtem.engines.abtem.importlib.import_module", missing)
    with pytest.raises(ResourceError, match=r"pip install 'qhrtem\[abtem\]'"):
        raise ResourceError(AbTem().available())


def test_azimuths_follow_krivanek():
    # A1 along +y turns the two-fold axis by 45°; a purely negative A1 by 90°.
    polar = krivanek_polar(Lens(drprobe.ENERGY, {"A1": 10j, "C1": -5.0, "B2": 4 + 0j}))
    assert polar["C10"] == -5
    assert (polar["C12"], polar["phi12"]) == pytest.approx((10, np.pi / 4))
    assert (polar["C21"], polar["phi21"]) == pytest.approx((12, 0))
