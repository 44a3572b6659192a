"""Strain, profiles, valence sums and stoichiometry of specimens with known answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qhrtem.errors import InputError
from qhrtem.model.twin import ImagingErrors
from qhrtem.science.bonds import composition, valence_sums
from qhrtem.science.estimates import JointEstimate, errors_of
from qhrtem.science.polarisation import off_centring
from qhrtem.science.profiles import distance_to_edge, profile, thickness_at
from qhrtem.science.strain import strain_map
from specimens import twin_of_crystal


def test_uniform_gradient_is_recovered_as_lengths_and_has_no_strain_against_itself() -> None:
    plain, bent = strain_map(twin_of_crystal()), strain_map(twin_of_crystal(bend=np.diag([0.02, -0.01])))
    assert np.allclose(plain.b_A.value, 4.036, atol=1e-6) and np.allclose(plain.a_A.value, 2.8242, atol=1e-3)
    assert np.allclose(plain.ratio.value, 4.036 / 3.994, atol=1e-5)
    assert np.allclose(bent.exx.value, 0, atol=1e-9)  # against the mean of the image
    turned = bent.reference @ np.linalg.inv(plain.reference)
    assert np.allclose(sorted(np.linalg.eigvals(turned)), [0.99, 1.02], atol=1e-9)


def test_strain_of_an_inclined_specimen_and_its_error() -> None:
    """Columns displaced by u_x = g x²/2 are strained by g x; independent errors give σ/√2/a."""
    twin = twin_of_crystal(local_A=0.02, common_A=0.05)
    places = twin.columns.element_position_px.copy()
    x = (places[..., 1] - 75) * twin.pixel_size_A
    places[..., 1] += 0.002 * x**2 / 2 / twin.pixel_size_A
    found = strain_map(
        dataclasses.replace(twin, columns=dataclasses.replace(twin.columns, element_position_px=places))
    )
    slope = np.polyfit(found.xy_A[:, 0], found.exx.value, 1)[0]
    assert slope == pytest.approx(0.002, rel=0.02)
    assert np.allclose(found.eyy.value, 0, atol=1e-6)
    along = np.abs(found.reference[:, 0]).max()  # the lattice vector along x
    assert np.allclose(found.exx.sigma, 0.02 / np.sqrt(2) / along, rtol=0.05)
    assert found.exx.common_sigma.max() < 1e-9  # a common shift of one element is no strain


def test_profile_means_and_flatness() -> None:
    rng = np.random.default_rng(3)
    n = 400
    coordinate = rng.uniform(0, 30, n)
    common = np.full((n, 1), 0.5)
    value = 2.0 + rng.normal(0, 1.0, n) + 0.5 * rng.normal()
    estimate = JointEstimate(value, np.eye(n), common, ("lens",), "Å")
    found = profile(coordinate, estimate, "distance (Å)", width=3.0)
    assert found.cells.sum() == n and (found.cells >= 4).all()
    assert np.allclose(found.weight.sum(1), 1)
    # 40 cells a bin: the local part shrinks by √40, the common one stays.
    assert np.allclose(found.estimate.sigma, np.sqrt(0.25 + 1 / found.cells), rtol=1e-6)
    reduced, probability = estimate.flatness()
    assert 0.7 < reduced < 1.3 and probability > 1e-3
    sloped = dataclasses.replace(estimate, value=value + 0.2 * coordinate)
    assert sloped.flatness()[1] < 1e-6
    assert estimate.chi2(estimate.value) == pytest.approx(0.0)


def test_an_uncertain_mistilt_moves_everything_as_its_covariance_says() -> None:
    """A claim of 0.5 mrad is widened to the prior's 3; these positions follow the tilt by 4 pm/mrad."""
    twin = twin_of_crystal()
    errors = twin.position_errors
    assert errors is not None
    follow = np.where(errors.axis == 0, 0.04, 0.0)[:, None]  # Å for one mrad
    tilted = dataclasses.replace(
        twin,
        position_errors=dataclasses.replace(errors, common_A=0.5 * follow, common_name=("imaging tilt_x",)),
        imaging_errors=ImagingErrors(("tilt_x_mrad",), np.array([[0.25]])),
    )
    found = errors_of(tilted)
    assert found.common_name[-1] == "tilt_x_mrad given the counts"
    assert np.allclose((found.common_A**2).sum(1), (3.0 * follow[:, 0]) ** 2, atol=1e-6)


def test_distance_to_the_edge_grows_inward() -> None:
    twin = twin_of_crystal()
    found = off_centring(twin)
    distance = distance_to_edge(twin, found.xy_A)
    middle = np.array([75, 75]) * twin.pixel_size_A
    order = np.argsort(np.abs(found.xy_A - middle).max(1))
    assert distance[order[0]] > distance[order[-1]] > 0
    assert distance.max() < 9.5
    thickness = thickness_at(twin, found.column)
    assert ((thickness > 5) & (thickness <= 14)).all()


def test_without_vacuum_there_is_no_edge() -> None:
    twin = twin_of_crystal(size=64, radius=12.0)
    with pytest.raises(InputError, match="no vacuum"):
        distance_to_edge(twin, np.array([[3.0, 3.0]]))


def test_valences_of_the_ideal_crystal_are_near_the_formal_ones() -> None:
    found = valence_sums(twin_of_crystal(), "Ti")
    assert found.formal == 4 and (found.atoms >= 1).all()
    # by hand: bonds of 1.831, 2.205 and four of 2.001 Å
    expected = sum(np.exp((1.815 - d) / 0.37) for d in (1.8314, 2.2046, 2.0014, 2.0014, 2.0014, 2.0014))
    assert np.allclose(found.sum.value, expected, rtol=2e-3)
    assert (found.sum.sigma > 0).all()
    with pytest.raises(InputError, match="no bond-valence"):
        valence_sums(twin_of_crystal(), "Xe")


def test_composition_counts_and_its_doubt() -> None:
    twin = twin_of_crystal()
    found = composition(twin)
    assert found.atoms.tolist() == twin.columns.counts.sum(0).tolist()
    assert dict(zip(found.elements, found.ideal, strict=True)) == {"Ba": 1.0, "O": 3.0, "Ti": 1.0}
    with_ti = (twin.columns.counts[:, list(found.elements).index("Ti")] > 0).sum()
    assert found.sigma[list(found.elements).index("Ti")] == pytest.approx(np.sqrt(0.1 * with_ti))
