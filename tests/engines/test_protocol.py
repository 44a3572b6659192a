"""Jobs are checked before they run, engines are found by name, frozen phonons are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs import cell_job
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import ENGINES, Job, configurations_of, engine_named, simulate
from qhrtem.errors import InputError, PlanError, ResourceError
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import Slicing


class Recorder:
    """An engine that remembers its jobs and returns the mean square displacement as an even image."""

    name = "recorder"

    def __init__(self):
        self.jobs = []

    def available(self):
        return None

    def check(self, job):
        pass

    def exit_wave(self, job):
        self.jobs.append(job)
        return torch.ones(job.grid.shape, dtype=job.grid.complex_dtype)

    def image(self, wave, job):
        return wave.abs() ** 2


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_is_available_or_says_why_not(name, monkeypatch):
    monkeypatch.delenv("QHRTEM_DRPROBE", raising=False)
    try:
        engine = engine_named(name)
    except ResourceError as error:
        assert "install" in str(error)
        assert "\n" not in str(error)
        assert name != "qhrtem"
        return
    assert engine.name == name
    assert engine.available() is None


def test_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(PlanError, match="qhrtem, abtem, drprobe"):
        engine_named("jems")


@pytest.mark.parametrize(
    ("change", "words", "error"),
    [
        (lambda j: {"grid": replace(j.grid, pixel=(0.1, 0.1))}, "as wide as the grid", InputError),
        (lambda j: {"cell": replace(j.cell, kind=j.cell.kind[:0])}, "at least 1 atom", InputError),
        (lambda j: {"cell": replace(j.cell, position=j.cell.position * np.nan)}, "finite", InputError),
        (lambda j: {"slicing": Slicing(j.slicing.index, j.slicing.thickness[:3])}, "hold every", InputError),
        (
            lambda j: {"slicing": Slicing(j.slicing.index[1:], j.slicing.thickness)},
            "slice number",
            InputError,
        ),
        (lambda j: {"slicing": Slicing(j.slicing.index, j.slicing.thickness * 0)}, "thicker", InputError),
        (lambda j: {"repeats": 0}, "at least once", PlanError),
        (lambda j: {"mode": "linear"}, "focal or full", PlanError),
    ],
)
def test_impossible_jobs_are_refused(change, words, error):
    job = cell_job()
    with pytest.raises(error, match=words):
        replace(job, **change(job))


def test_displacements_have_the_variance_of_each_element_and_cancel_in_pairs():
    job = cell_job(thermal=Thermal(b_scale=2.0))
    cells = list(configurations_of(job, 400, np.random.default_rng(0)))
    moves = np.array([c.position - job.cell.position for c in cells])
    assert np.allclose(moves[::2], -moves[1::2])
    assert np.all(moves[..., 2] == 0)
    b = np.array([s.b_iso for s in job.cell.species])[job.cell.kind]
    found = 8 * np.pi**2 * (moves[::2, :, :2] ** 2).mean((0, 2))
    # 200 independent pairs of normal numbers: relative standard deviation sqrt(2/400).
    assert found == pytest.approx(2 * b, rel=5 * np.sqrt(2 / 400))


def test_frozen_phonons_are_rigid_and_counted():
    engine, seen = Recorder(), []
    image = simulate(engine, cell_job(thermal=Thermal()), 3, np.random.default_rng(1), seen.append)
    assert [j.thermal.rigid for j in engine.jobs] == [True] * 3
    assert seen == [1, 2, 3]
    assert torch.equal(image, torch.ones_like(image))


def test_frozen_phonons_need_a_generator():
    with pytest.raises(PlanError, match="random generator"):
        simulate(Recorder(), cell_job(), 2)


def test_without_configurations_the_job_runs_as_it_is():
    engine = Recorder()
    job = cell_job(thermal=Thermal())
    simulate(engine, job)
    assert engine.jobs == [job]


def test_total_thickness_counts_the_repeats():
    job = cell_job(repeats=3)
    assert isinstance(job, Job)
    assert job.thickness == pytest.approx(3 * 5.64836897)


def test_our_engine_gives_the_same_image_for_the_same_seed():
    job = cell_job(repeats=2)
    images = [simulate(Ours(), job, 2, np.random.default_rng(s)) for s in (5, 5, 6)]
    assert torch.equal(images[0], images[1])
    assert not torch.allclose(images[0], images[2], atol=1e-4)
