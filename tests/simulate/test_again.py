"""A run simulated anew: a twin made from a phantom must give the phantom's image back, by either engine."""

from dataclasses import replace

import numpy as np
import pytest

from phantoms import small_plan
from qhrtem.engines.ours import Ours
from qhrtem.engines.protocol import engine_named
from qhrtem.errors import InputError, PlanError
from qhrtem.io.twin import write_results
from qhrtem.model.microscope import PARAMETERS
from qhrtem.model.twin import Atoms, Estimate, Match
from qhrtem.plan import dump_plan
from qhrtem.simulate.again import counts_of, layers, simulate_again
from qhrtem.simulate.phantom import Parameters, make_phantom, planned_lens
from qhrtem.simulate.specimen import make_specimen
from qhrtem.specimen.crystal import project, read_cif
from twins import make_twin

MTF = {"a": 0.4, "b": 0.3}


def leave_run(folder, phonons=0, move=0.0, **lens):
    """Write a run folder that claims the atoms and the lens of a phantom, moved by a part of a pixel."""
    plan = small_plan({"mtf": MTF}, phonon_configurations=phonons, dose_e_per_A2=0.0, seed=7, **lens)
    crystal = read_cif(plan.structure.path)
    made = make_phantom(plan, crystal, Ours())
    microscope = planned_lens(plan, Parameters())
    projection = project(crystal, plan.structure.zone_axis)
    specimen = make_specimen(plan.simulate, projection, 0.15, microscope.delocalisation())
    atoms, field = specimen.columns.atoms(), specimen.field
    tilt = np.tan([microscope["tilt_y"], microscope["tilt_x"]])
    place = field.to_detector(atoms.position + (atoms.z - specimen.exit_z)[:, None] * tilt) + move
    species = [specimen.columns.species[i] for i in atoms.species]
    n = len(species)
    estimates = [Estimate("high_tension_kV", "high tension", 300.0, float("nan"), "kV", False)]
    for p in PARAMETERS:
        unit = p.unit.replace("²", "2").replace("µ", "u")
        name = f"{p.name}_{unit}" if unit else p.name
        estimates.append(Estimate(name, p.label, microscope[p.name] * p.factor, float("nan"), p.unit, False))
    rows, cols = made.image.shape
    crystal_pixels = np.zeros((rows, cols), dtype=bool)
    crystal_pixels[10:-10, 45:-10] = True
    noise = np.random.default_rng(0).normal(0, 0.05, made.image.shape).astype(np.float32)
    base = make_twin(2, 3)
    twin = replace(
        base,
        columns=made.columns,
        atoms=Atoms(
            tuple(s.element for s in species),
            np.column_stack([place[:, ::-1] * 0.15, atoms.z - atoms.z.min()]),
            np.array([s.occupancy for s in species]),
            np.array([s.b_iso for s in species]),
            np.full((n, 3), 0.01),
            np.zeros(n, dtype=np.int64),
        ),
        microscope=tuple(estimates),
        match=Match(
            made.image + noise,
            made.image,
            np.full_like(made.image, 0.05),
            np.ones((rows, cols), dtype=bool),
            crystal_pixels,
        ),
        pixel_size_A=0.15,
    )
    write_results(twin, folder)
    (folder / "plan.toml").write_text(dump_plan(plan), "utf-8")
    return made


def test_a_run_gives_its_own_image_back(tmp_path):
    leave_run(tmp_path, mistilt_mrad=[6.0, -3.0], a1_nm=[2.0, 1.0])
    again = simulate_again(tmp_path, Ours(), configurations=0)
    assert again.differences["from the run's image"] < 1e-3
    assert again.differences["from the measured image"] == pytest.approx(0.05, rel=0.05)
    # A fit states places at the centres of slices, the propagator tilts from their faces.
    assert again.shift_px == pytest.approx((0, 0), abs=0.04)
    assert again.facts["parameters"]["c1_nm"]["value"] == pytest.approx(6.0)


def test_an_image_that_lies_elsewhere_is_moved_back(tmp_path):
    leave_run(tmp_path, move=0.4)
    again = simulate_again(tmp_path, Ours(), configurations=0)
    assert again.shift_px == pytest.approx((-0.4, -0.4), abs=0.01)
    assert again.differences["from the run's image"] < 3e-3


@pytest.mark.abtem
@pytest.mark.slow
def test_another_engine_says_how_far_it_is_from_ours(tmp_path):
    pytest.importorskip("abtem")
    leave_run(tmp_path, phonons=2)
    again = simulate_again(tmp_path, engine_named("abtem"), 2, reference=Ours())
    assert 1e-5 < again.differences["from the image by qhrtem"] < 0.02


def test_noise_is_added_on_request_only(tmp_path):
    leave_run(tmp_path)
    again = simulate_again(tmp_path, Ours(), configurations=0)
    counts, facts = counts_of(again, 0.0, 1)
    assert np.array_equal(counts, again.image)
    assert facts["vacuum_counts"] == 1
    noisy, facts = counts_of(again, 1000.0, 1)
    assert facts["vacuum_counts"] == pytest.approx(22.5)
    assert noisy[:, 0].mean() == pytest.approx(22.5, rel=0.1)


def test_layers_are_counted_from_the_first_atom():
    z = 1.41 * np.array([0, 1, 1, 2, 5]) + np.array([0.0, 0.05, -0.05, 0.1, 0.0])
    assert layers(z, 1.41).tolist() == [0, 1, 1, 2, 5]
    assert layers(z + 0.7, 1.41).tolist() == [0, 1, 1, 2, 5]


def test_a_run_without_plan_or_atoms_is_refused(tmp_path):
    leave_run(tmp_path)
    with pytest.raises(PlanError, match="seed"):
        simulate_again(tmp_path, Ours(), seed=-1)
    (tmp_path / "plan.toml").unlink()
    with pytest.raises(InputError, match="plan of the run is missing"):
        simulate_again(tmp_path, Ours())
    (tmp_path / "result.h5").unlink()
    with pytest.raises(InputError, match="no result here"):
        simulate_again(tmp_path, Ours())
