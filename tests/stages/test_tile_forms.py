"""What a tile is given and gives back survives the way to a worker, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import slabs
from benches import bench_of
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.assess import Evidence, assess
from qhrtem.stages.counts import count_round
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import State, white_noise
from qhrtem.stages.parcel import from_bytes, to_bytes
from qhrtem.stages.start import Start
from qhrtem.stages.thickness import Rival
from qhrtem.stages.tile import Job, Settled
from qhrtem.stages.tile_forms import FinishedForm, JobForm, SettledForm
from slabs import Slab

FREE = [INDEX["c1"], INDEX["tilt_x"]]


@pytest.fixture(scope="module")
def island() -> Slab:
    return slabs.slab(radius=4.5)


@pytest.fixture(scope="module")
def job(island: Slab) -> Job:
    field = island.model.field
    image = field.crop(island.model.image(island.columns, island.microscope)).numpy().astype(float)
    everywhere = np.ones(field.image_shape, bool)
    vectors, pixel = island.columns.projection.vectors, field.detector_pixel
    lattice = Lattice(island.columns.frame / pixel, vectors, pixel, 0.0, 0.0, 100.0, everywhere)
    start = Start(field, island.columns, island.microscope, np.arange(len(island.columns)) % 3 > 0)
    return Job("tile 4", 7, start, Micrograph(image, everywhere, pixel, 2e4, 1e-4, 0.002), lattice, False)


def test_a_job_means_the_same_fit_elsewhere(job: Job) -> None:
    data = to_bytes(JobForm().save(job))
    again = JobForm().load(from_bytes(data))
    assert to_bytes(JobForm().save(again)) == data
    assert again.start.field == job.start.field and (again.name, again.seed) == ("tile 4", 7)
    assert not again.thickness_open
    state = State(job.start.columns, job.start.microscope)
    other = State(again.start.columns, again.start.microscope)
    with torch.inference_mode():
        here, there = job.bench(1), again.bench(2)
        assert here.cost(state) == there.cost(other)
        assert torch.equal(here.image(state), there.image(other))
    assert np.array_equal(again.start.eligible, job.start.eligible)


def test_what_settles_and_what_ends_comes_back(island: Slab, job: Job) -> None:
    bench = bench_of(island, electrons=20000.0)
    everything = list(range(len(island.columns)))
    neighbours = Neighbours.within(island.columns, 2.8)
    rules = SurfaceEnergy(neighbours), NeighbourStep(neighbours, 6.0)
    state = State(island.columns, island.microscope, Diffuse(torch.full(bench.misfit.measured.shape, 1e-3)))
    refined = refine(bench, state, FREE, everything, 1, probe=white_noise(bench, 7, 2))
    final = count_round(bench, refined.state, FREE, everything, everything, *rules, {})
    rivals = (Rival("thicker", 3.0, island.columns.element_counts() + 1), Rival("elsewhere", 9.0))
    evidence = Evidence(FREE, refined, final, *rules, {"neighbour step": 3}, rivals)
    assessed = assess(bench, final.state, job.start, job.lattice, evidence, 7)

    projection = island.columns.projection
    form = SettledForm(projection)
    data = to_bytes(form.save(Settled(final.state, np.eye(2), rivals, {"neighbour step": 3})))
    settled = form.load(from_bytes(data))
    assert to_bytes(form.save(settled)) == data
    assert settled.rivals[1].counts is None and settled.rivals[0].agrees(rivals[0].counts).all()  # type: ignore[arg-type]
    assert settled.rejected == {"neighbour step": 3}

    end = FinishedForm(projection)
    data = to_bytes(end.save((final.state, assessed)))
    there, known = end.load(from_bytes(data))
    assert to_bytes(end.save((there, known))) == data
    assert np.array_equal(there.columns.last, final.state.columns.last)
    assert np.array_equal(known.positions.sigma_A(), assessed.positions.sigma_A())
    assert known.notes == assessed.notes and known.refined == tuple(FREE)
