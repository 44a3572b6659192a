"""Levenberg–Marquardt against closed forms and scipy."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from qhrtem.errors import InputError, PlanError
from qhrtem.optimise.least_squares import covariance, levenberg_marquardt, levenberg_marquardt_normal

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(30, 4)), RNG.normal(size=30)


def linear(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return A @ x - B, A


def rosenbrock(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]), np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])


def test_linear_problem_has_the_textbook_solution_and_covariance() -> None:
    fit = levenberg_marquardt(linear, np.zeros(4))
    np.testing.assert_allclose(fit.x, np.linalg.lstsq(A, B, rcond=None)[0], atol=1e-8)
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(A.T @ A), rtol=1e-8)
    assert fit.converged
    assert not fit.at_bound.any()
    assert fit.cost == fit.data_cost == pytest.approx(0.5 * np.sum((A @ fit.x - B) ** 2))


def test_covariance_is_the_scatter_of_repeated_measurements() -> None:
    truth, scatter = np.array([1.0, -2.0, 0.5, 3.0]), []
    for seed in range(400):
        noisy = A @ truth + np.random.default_rng(seed).normal(size=30)
        scatter.append(levenberg_marquardt(lambda x, y=noisy: (A @ x - y, A), np.zeros(4)).x)
    ratio = np.std(scatter, axis=0) / levenberg_marquardt(linear, np.zeros(4)).sigma
    np.testing.assert_allclose(ratio, 1.0, atol=0.15)


def test_gaussian_prior_is_a_measurement() -> None:
    mean, sigma = np.array([1.0, 0.0, 0.0, -1.0]), np.array([0.1, np.inf, 0.5, 0.02])
    fit = levenberg_marquardt(linear, np.zeros(4), prior_mean=mean, prior_sigma=sigma)
    rows = np.diag(1 / sigma)[[0, 2, 3]]
    stacked, target = np.vstack([A, rows]), np.concatenate([B, rows @ mean])
    np.testing.assert_allclose(fit.x, np.linalg.lstsq(stacked, target, rcond=None)[0], atol=1e-8)
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(stacked.T @ stacked), rtol=1e-8)
    assert fit.cost > fit.data_cost


def test_box_agrees_with_an_independent_bounded_solver() -> None:
    lower, upper = np.array([-0.05, -np.inf, 0.0, -0.02]), np.array([0.05, 0.01, np.inf, 0.02])
    fit = levenberg_marquardt(linear, np.full(4, 0.5), lower=lower, upper=upper)
    reference = lsq_linear(A, B, (lower, upper), tol=1e-14)
    np.testing.assert_allclose(fit.x, reference.x, atol=1e-6)
    assert np.array_equal(fit.at_bound, reference.active_mask != 0)
    assert fit.converged
    assert fit.at_bound.any()


def test_rosenbrock_from_the_classical_start() -> None:
    fit = levenberg_marquardt(rosenbrock, np.array([-1.2, 1.0]))
    np.testing.assert_allclose(fit.x, [1.0, 1.0], atol=1e-6)
    assert fit.converged
    assert fit.evaluations < 40


def test_rosenbrock_in_a_box_stops_on_its_wall() -> None:
    fit = levenberg_marquardt(rosenbrock, np.array([-1.2, 1.0]), upper=np.array([0.8, 2.0]))
    np.testing.assert_allclose(fit.x, [0.8, 0.64], atol=1e-6)
    assert fit.at_bound.tolist() == [True, False]


def test_both_forms_take_the_same_path() -> None:
    def normal(x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        r, j = rosenbrock(x)
        return 0.5 * float(r @ r), j.T @ r, j.T @ j

    a = levenberg_marquardt(rosenbrock, [-1.2, 1.0], prior_mean=0.5, prior_sigma=3.0)
    b = levenberg_marquardt_normal(normal, [-1.2, 1.0], prior_mean=0.5, prior_sigma=3.0)
    assert np.array_equal(a.x, b.x)
    assert a.evaluations == b.evaluations


def test_units_of_the_parameters_do_not_matter() -> None:
    scale = np.array([1e6, 1e-6])

    def rescaled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r, j = rosenbrock(x / scale)
        return r, j / scale

    plain = levenberg_marquardt(rosenbrock, np.array([-1.2, 1.0]))
    fit = levenberg_marquardt(rescaled, np.array([-1.2, 1.0]) * scale)
    np.testing.assert_allclose(fit.x / scale, [1.0, 1.0], atol=1e-6)
    assert fit.evaluations == plain.evaluations


def test_undetermined_parameters_say_so() -> None:
    flat = np.column_stack([A[:, 0], A[:, 1], A[:, 1], np.zeros(30)])  # the last three cannot be told
    fit = levenberg_marquardt(lambda x: (flat @ x - B, flat), np.zeros(4))
    assert np.isfinite(fit.sigma[0])
    assert np.isinf(fit.sigma[1:]).all()
    assert fit.converged


def test_covariance_of_badly_scaled_matrix() -> None:
    scale = np.diag([1e-8, 1.0, 1e8, 1e3])
    np.testing.assert_allclose(
        covariance(scale @ A.T @ A @ scale),
        np.linalg.inv(scale) @ np.linalg.inv(A.T @ A) @ np.linalg.inv(scale),
        rtol=1e-6,
    )


def test_cliff_where_the_model_is_not_finite_is_walked_around() -> None:
    def cliff(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (np.log(x), np.diag(1 / x)) if (x > 0).all() else (np.full(2, np.nan), np.zeros((2, 2)))

    fit = levenberg_marquardt(cliff, np.array([5.0, 8.0]))
    np.testing.assert_allclose(fit.x, [1.0, 1.0], atol=1e-7)
    with pytest.raises(InputError, match="finite at the starting point"):
        levenberg_marquardt(cliff, np.array([-5.0, 8.0]))


def test_wrong_jacobian_stalls_and_says_so() -> None:
    fit = levenberg_marquardt(lambda x: (A @ x - B, -A), np.zeros(4), max_evaluations=200)
    assert fit.status == "stalled"
    assert not fit.converged
    assert "Jacobian" in fit.message


def test_budget_is_kept_and_reported() -> None:
    seen: list[float] = []
    fit = levenberg_marquardt(
        rosenbrock, np.array([-1.2, 1.0]), max_evaluations=5, report=lambda _, cost: seen.append(cost)
    )
    assert fit.status == "budget"
    assert fit.evaluations == 5
    assert not fit.converged
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == fit.steps


def test_impossible_box_is_refused() -> None:
    with pytest.raises(PlanError, match="lower bounds"):
        levenberg_marquardt(linear, np.zeros(4), lower=1.0, upper=0.0)
    with pytest.raises(PlanError, match="positive"):
        levenberg_marquardt(linear, np.zeros(4), prior_sigma=0.0)
