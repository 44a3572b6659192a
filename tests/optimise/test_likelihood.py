"""The written-out log posterior against finite differences and against GPyTorch's own."""

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad

from qhrtem.optimise import likelihood, surrogate
from qhrtem.optimise.hyperparameters import Hyperparameters

X = np.random.default_rng(0).random((30, 4))
Y = np.sin(5 * X[:, 0]) + X[:, 1] - 0.5
HYPER = Hyperparameters((0.5, 0.8, 1.0, 2.0), 1.3, 1e-2, 0.1)
THETA = np.array([*np.log([0.5, 0.8, 1.0, 2.0, 1.3, 1e-2]), 0.1])
EXTENT = 0.7


def test_gradient_matches_finite_differences() -> None:
    def value(theta: np.ndarray) -> float:
        return likelihood.log_posterior(theta, X, Y, EXTENT)[0]

    def slope(theta: np.ndarray) -> np.ndarray:
        return likelihood.log_posterior(theta, X, Y, EXTENT)[1]

    assert check_grad(value, slope, THETA) < 1e-5 * np.linalg.norm(slope(THETA))


def test_value_and_gradient_agree_with_gpytorch() -> None:
    from gpytorch.mlls import ExactMarginalLogLikelihood

    model = surrogate.build(torch.as_tensor(X), torch.as_tensor(Y), EXTENT, HYPER)
    theirs = ExactMarginalLogLikelihood(model.likelihood, model)(
        model(*model.train_inputs), model.train_targets
    )
    theirs.backward()
    value, slopes = likelihood.log_posterior(THETA, X, Y, EXTENT)
    # GPyTorch's densities hold their constants in single precision; it divides by the number of points.
    assert value == pytest.approx(len(X) * float(theirs.detach()), rel=1e-6)
    kernel = model.covar_module
    raw = [
        *(kernel.base_kernel.raw_lengthscale.grad.flatten() * torch.tensor(HYPER.lengthscale)).tolist(),
        float(kernel.raw_outputscale.grad) * HYPER.outputscale,
        float(model.likelihood.noise_covar.raw_noise.grad) * HYPER.noise,
        float(model.mean_module.raw_constant.grad),
    ]
    np.testing.assert_allclose(slopes, len(X) * np.array(raw), rtol=1e-5, atol=1e-6)


def test_climb_ends_on_a_summit() -> None:
    top = likelihood.climb(X, Y, EXTENT, HYPER, steps=500)
    theta = np.array([*np.log([*top.lengthscale, top.outputscale, top.noise]), top.mean])
    value, slopes = likelihood.log_posterior(theta, X, Y, EXTENT)
    assert value > likelihood.log_posterior(THETA, X, Y, EXTENT)[0]
    held = np.isclose(top.noise, likelihood.NOISE_FLOOR)  # the noise may rest on its floor
    assert np.abs(np.delete(slopes, 5) if held else slopes).max() < 1e-2
    assert likelihood.climb(X, Y, EXTENT, HYPER, steps=3) != top


def test_singular_covariance_is_an_error_not_a_number() -> None:
    twins = np.concatenate([X, X])
    theta = THETA.copy()
    theta[5] = -60.0
    with pytest.raises(np.linalg.LinAlgError):
        likelihood.log_posterior(theta, twins, np.concatenate([Y, Y]), EXTENT)
