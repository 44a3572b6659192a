"""Phantoms: the same for the same seed, on the scale their dose says, with every assumption stated."""

import json

import numpy as np
import pytest

from phantoms import small_phantom, small_plan
from qhrtem.simulate.phantom import LENS, Parameters, planned_lens


def test_same_seed_same_counts():
    first, again, other = small_phantom(seed=3), small_phantom(seed=3), small_phantom(seed=4)
    assert np.array_equal(first.counts, again.counts)
    assert not np.array_equal(first.counts, other.counts)
    assert np.array_equal(first.image, other.image)


@pytest.mark.slow
def test_frozen_phonons_depend_on_the_seed_and_keep_the_mean():
    images = [small_phantom(seed=s, phonon_configurations=2, dose_e_per_A2=0.0).image for s in (1, 1, 2)]
    assert np.array_equal(images[0], images[1])
    assert 1e-3 < (images[0] - images[2]).std() < 0.1
    damped = small_phantom(dose_e_per_A2=0.0)
    # Diffusely scattered electrons are in the one and missing in the other.
    assert images[0].mean() > damped.image.mean()
    assert "frozen-phonon" not in damped.facts["thermal_motion"]


@pytest.mark.slow
def test_frozen_phonons_lose_no_electron_to_the_envelope_of_the_source():
    wide = {"phonon_configurations": 2, "dose_e_per_A2": 0.0, "semi_convergence_mrad": 0.6}
    usual, focal = small_phantom(**wide), small_phantom(**wide, mode="focal")
    assert usual.facts["parameters"]["mode"] == {"value": "full", "source": "default"}
    assert usual.image.mean() > focal.image.mean() + 1e-3
    for also, mode in (({"mode": "focal"}, "focal"), ({"engine": "abtem"}, "focal")):
        assert small_plan(**wide, **also).simulate.coherence == mode
    assert small_plan().simulate.coherence == "focal"


def test_vacuum_is_at_the_level_and_noise_that_the_dose_says():
    image = {"gain_counts_per_electron": 5.0, "offset_counts": 20.0, "readout_counts": 3.0}
    made = small_phantom(image, vacuum_nm=1.4, dose_e_per_A2=2e4)
    electrons = 2e4 * 0.15**2
    vacuum = made.counts[:, :60].astype(float)
    n = vacuum.size
    variance = 25 * electrons + 9
    assert made.facts["vacuum_counts"] == pytest.approx(20 + 5 * electrons)
    assert vacuum.mean() == pytest.approx(20 + 5 * electrons, rel=0.002, abs=4 * np.sqrt(variance / n))
    assert vacuum.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / n))


def test_without_noise_counts_are_the_image():
    made = small_phantom({"offset_counts": 7.0, "vacuum_counts": 107.0}, dose_e_per_A2=0.0)
    assert np.allclose(made.counts, 7 + 100 * made.image, rtol=1e-5)
    assert small_phantom(dose_e_per_A2=0.0).facts["vacuum_counts"] == 1


def test_vacuum_level_and_gain_of_the_plan_set_the_dose():
    image = {"gain_counts_per_electron": 12.0, "vacuum_counts": 3110.56, "offset_counts": 100.0}
    made = small_phantom(image)
    assert made.facts["vacuum_counts"] == pytest.approx(3110.56)
    assert made.facts["electrons_per_vacuum_pixel"] == pytest.approx(3010.56 / 12)
    assert made.facts["notes"] == []
    contradicted = small_phantom(image, dose_e_per_A2=500.0)
    assert "correct vacuum_counts" in contradicted.facts["notes"][0]


def test_every_parameter_says_where_it_came_from():
    facts = small_phantom({"mtf": {"a": 0.4, "b": 0.3}}).facts
    table = facts["parameters"]
    assert set(LENS) <= set(table)
    assert table["c1_nm"] == {"value": 6.0, "source": "plan [simulate]"}
    assert table["c3_um"] == {"value": -14.0, "source": "plan [microscope]"}
    assert table["focal_spread_nm"] == {"value": 3.0, "source": "default"}
    assert table["dose_e_per_A2"] == {"value": 1e4, "source": "default"}
    assert table["thickness_slices"] == {"value": 8, "source": "plan"}
    assert table["mtf"] == {"value": {"a": 0.4, "b": 0.3}, "source": "plan"}
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_lens_values_reach_the_microscope_in_internal_units():
    plan = small_plan(
        a1_nm=[1.0, -2.0],
        s3_um=[0.5, 0.0],
        c5_mm=2.0,
        vibration_pm=[20.0, 30.0],
        mistilt_mrad=[3.0, -1.0],
        semi_convergence_mrad=0.2,
    )
    m = planned_lens(plan, Parameters())
    lens = m.lens()
    assert lens.aberrations["C1"] == 60
    assert lens.aberrations["A1"] == 10 - 20j
    assert lens.aberrations["S3"] == 5000
    assert lens.aberrations["C5"] == pytest.approx(2e7)
    assert lens.aberrations["C3"] == pytest.approx(-1.4e5)
    assert (m["vibration_xx"], m["vibration_yy"], m["vibration_xy"]) == pytest.approx((0.04, 0.09, 0))
    assert (m["tilt_x"], m["tilt_y"]) == pytest.approx((3e-3, -1e-3))
    assert lens.semi_convergence == pytest.approx(2e-4)
    assert (m["b_scale"], m["absorption"], m["scale"]) == (1, 1, 1)


def test_defocus_and_source_change_the_image_but_not_the_vacuum():
    base, focused, full = (
        small_phantom(dose_e_per_A2=0.0, **change)
        for change in ({}, {"c1_nm": 2.0}, {"mode": "full", "semi_convergence_mrad": 0.3})
    )
    assert np.abs(base.image - focused.image).max() > 0.05
    assert 1e-6 < np.abs(base.image - full.image).max() < 0.02
    assert np.abs(base.image[:, 0] - 1).max() < 0.01
