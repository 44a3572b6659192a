"""Off-centring and polarisation of crystals whose answer is known from the CIF."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qhrtem.errors import InputError, PlanError
from qhrtem.science.charges import TABLE, charges_of, own_charges
from qhrtem.science.polarisation import SHARED_SIGMA_A, UC_PER_CM2, off_centring, polarisation
from specimens import twin_of_crystal

C = 4.036  # Å, polar axis of the BaTiO3 in the tests
TI, O_AXIAL, O_EQUATORIAL = 0.5224, -0.0244, 0.4895  # fractions of c


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_off_centring_of_the_ideal_crystal_is_that_of_the_cif(angle: float) -> None:
    found = off_centring(twin_of_crystal(angle=angle))
    assert len(found.column) >= 9
    length = np.linalg.norm(found.value, axis=1)
    assert np.allclose(length, (TI - O_EQUATORIAL) * C, atol=1e-6)
    assert "columns of their own" in found.note
    whole = off_centring(twin_of_crystal(angle=angle), cage="whole")
    mean = (4 * O_EQUATORIAL + 2 * (O_AXIAL + 0.5)) / 6
    assert np.allclose(np.linalg.norm(whole.value, axis=1), (TI - mean) * C, atol=1e-6)


def test_polarisation_is_charges_times_displacements() -> None:
    """For the polar axis in the image plane, P = e/V Σ Z* u with u from the cubic places, Ba at rest."""
    z = charges_of(("Ba", "O", "Ti"))
    assert z is not None
    z = z.neutral()
    u = (TI - 0.5) * z.z_b + O_AXIAL * z.z_parallel + 2 * (O_EQUATORIAL - 0.5) * z.z_perpendicular
    expected = u * C / (3.994**2 * C) * UC_PER_CM2
    found = polarisation(twin_of_crystal(angle=0.3))
    assert expected == pytest.approx(34.9, abs=0.5)  # near the 26 to 33 µC/cm² of experiment and theory
    assert np.allclose(np.linalg.norm(found.value, axis=1), expected, rtol=1e-6)


@pytest.mark.parametrize("zone", [(1, 1, 0), (1, 0, 0)])
def test_a_centrosymmetric_crystal_is_not_polar(zone: tuple[int, int, int]) -> None:
    twin = twin_of_crystal(("SrTiO3", zone))
    assert np.allclose(off_centring(twin).value, 0.0, atol=1e-9)
    assert np.allclose(polarisation(twin).value, 0.0, atol=1e-6)


def test_uniform_strain_and_shift_leave_the_polarisation() -> None:
    plain, bent = (polarisation(twin_of_crystal(("SrTiO3", (1, 1, 0)), bend=b)) for b in
                   (None, np.array([[0.01, 0.004], [0.002, -0.01]])))  # fmt: skip
    assert np.allclose(bent.value, plain.value, atol=1e-6)


def test_error_bars_are_those_of_drawn_coordinates() -> None:
    """Coordinates drawn from the stored covariance scatter the result as its error bar says."""
    twin = twin_of_crystal(local_A=0.02, common_A=0.03)
    errors = twin.position_errors
    assert errors is not None
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        move = rng.normal(0, 0.02, len(errors.column)) + errors.common_A[:, 0] * rng.normal()
        places = twin.columns.element_position_px.copy()
        places[errors.column, errors.element, 1 - errors.axis] += move / twin.pixel_size_A
        columns = dataclasses.replace(twin.columns, element_position_px=places)
        draws.append(polarisation(dataclasses.replace(twin, columns=columns), shared="fitted").value)
    spread = np.std(draws, axis=0)
    found = polarisation(twin, shared="fitted")
    stated = found.sigma
    assert np.allclose(spread.mean(0), stated.mean(0), rtol=0.05)
    # What all oxygens share does not average away in the mean over cells.
    along_x = found.along(np.array([1.0, 0.0]))
    mean = along_x.mean()
    assert np.std(np.array(draws)[..., 0].mean(1)) == pytest.approx(float(mean.sigma[0]), rel=0.15)
    assert float(mean.sigma[0]) > 0.8 * float(along_x.common_sigma.mean()) > 0


def test_a_common_shift_of_everything_is_no_error() -> None:
    twin = twin_of_crystal(local_A=1e-6, common_A=0.0)
    errors = twin.position_errors
    assert errors is not None
    moved = dataclasses.replace(errors, common_A=np.full((len(errors.column), 1), 0.05, np.float32))
    shifted = dataclasses.replace(twin, position_errors=moved)
    assert off_centring(shifted).sigma.max() < 1e-4
    assert polarisation(shifted, shared="fitted").sigma.max() < 0.05


def test_anions_beside_a_heavier_atom_carry_a_common_error() -> None:
    """Half of the axial charge of either side moves with the assumption, all cells alike: Z*(∥)·5 pm/V."""
    found = polarisation(twin_of_crystal(local_A=1e-6, common_A=0.0))
    z = charges_of(("Ba", "O", "Ti"))
    assert z is not None
    expected = abs(z.neutral().z_parallel) * SHARED_SIGMA_A / (3.994**2 * C) * UC_PER_CM2
    along_c = found.along(found.principal_direction())
    assert np.allclose(along_c.sigma, expected, rtol=1e-3)
    assert along_c.mean().sigma[0] == pytest.approx(expected, rel=1e-3)


def test_scatter_beyond_the_claim_widens_the_error_bars() -> None:
    rng = np.random.default_rng(1)
    twin = twin_of_crystal(("SrTiO3", (1, 1, 0)), radius=11.0, size=190, local_A=0.01, common_A=0.0)
    errors = twin.position_errors
    assert errors is not None
    places = twin.columns.element_position_px.copy()
    move = rng.normal(0, 0.03, len(errors.column))
    places[errors.column, errors.element, 1 - errors.axis] += move / twin.pixel_size_A
    moved = dataclasses.replace(twin, columns=dataclasses.replace(twin.columns, element_position_px=places))
    assert off_centring(twin).scatter == 1.0
    found = off_centring(moved)
    assert found.scatter == pytest.approx(3.0, rel=0.3)
    assert found.sigma.mean() == pytest.approx(found.scatter * off_centring(twin).sigma.mean(), rel=1e-6)


def test_table_is_neutral_and_sourced() -> None:
    for entry in TABLE:
        assert abs(entry.z_a + entry.z_b + entry.z_parallel + 2 * entry.z_perpendicular) < 0.02
        assert "Phys. Rev." in entry.source
    assert charges_of(("O", "Mg")) is None
    with pytest.raises(PlanError, match="must sum to 0"):
        own_charges("Ba", "Ti", 2.0, 4.0, -2.0, -4.0)


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(InputError, match="no Born charges"):
        polarisation(twin_of_crystal(("MgO", (1, 0, 0))))
    old = dataclasses.replace(twin_of_crystal(radius=5.0, size=100), position_errors=None)
    with pytest.raises(InputError, match="joint position errors"):
        off_centring(old)
