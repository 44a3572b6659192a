"""The surrogate: a Gaussian process on the points near the trust region, on BoTorch and GPyTorch.

It models the *gain*, the negated and standardised objective, so that larger is better. The kernel is
Matérn-5/2 with one length scale λ a dimension under a log-normal prior whose median grows with √d (Hvarfner,
Hellsten, Nardi, ICML 2024, "Vanilla Bayesian optimization performs great in high dimensions") and shrinks
with the extent of the data, which follows the region. Where physics predicts the gain, the process models
what that prediction leaves over. Importing this module imports BoTorch.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.optimise import likelihood
from qhrtem.optimise.hyperparameters import Hyperparameters

with warnings.catch_warnings():
    # GPyTorch compiles with torch.jit, which torch 2.13 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from botorch.models import SingleTaskGP
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel, ScaleKernel
    from gpytorch.likelihoods import GaussianLikelihood
    from gpytorch.means import ConstantMean
    from gpytorch.priors import LogNormalPrior

JITTERS = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)  # added variance, tried in turn until the covariance factorises
FEATURES = 512  # frequencies of the random Fourier prior (each gives a sine and a cosine)
UNIFORM_STD = 1 / math.sqrt(12.0)  # of one coordinate of the unit cube


Points = NDArray[np.float64]
Prior = Callable[[Points], Points]  # points (m, D) as the process sees them → expected gain (m,)


class PriorMean(ConstantMean):
    """A constant plus the gain that physics predicts, which carries no derivative."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean (...,) at points (..., D)."""
        flat = x.detach().reshape(-1, x.shape[-1]).numpy()
        return super().forward(x) + torch.as_tensor(self.prior(flat)).reshape(x.shape[:-1])


@dataclass(frozen=True)
class Surrogate:
    """A conditioned Gaussian process; n points, D encoded dimensions, all tensors float64 on the CPU."""

    model: SingleTaskGP  # on the gain, evaluation mode
    hyperparameters: Hyperparameters
    inputs: Tensor  # (n, D) unit cube
    gains: Tensor  # (n,) standardised
    factor: Tensor  # (n, n) lower Cholesky factor of the covariance with noise
    fitted: bool  # False when the fit failed and earlier hyperparameters serve
    prior: Prior | None = None

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the prior covariance (m, k) between points (m, D) and (k, D) of the unit cube."""
        with torch.no_grad():
            dense: Tensor = self.model.covar_module(a, b).to_dense()
        return dense

    def mean(self, points: Tensor) -> Tensor:
        """Return the prior mean (m,) at points (m, D)."""
        constant = torch.full((len(points),), self.hyperparameters.mean, dtype=torch.float64)
        return constant if self.prior is None else constant + torch.as_tensor(self.prior(points.numpy()))

    def predict(self, points: Points) -> tuple[Points, Points]:
        """Return mean and standard deviation (m,) of the gain at points (m, D), without noise."""
        at = torch.as_tensor(points)
        cross = self.covariance(at, self.inputs)
        weights = torch.cholesky_solve((self.gains - self.mean(self.inputs))[:, None], self.factor)
        mean = self.mean(at) + (cross @ weights)[:, 0]
        explained = torch.linalg.solve_triangular(self.factor, cross.T, upper=False).square().sum(0)
        variance = (self.hyperparameters.outputscale - explained).clamp_min(0.0)
        return mean.numpy(), variance.sqrt().numpy()

    def sample(self, points: Points, count: int, generator: np.random.Generator) -> Points:
        """Return posterior sample paths (count, m) of the gain at points (m, D).

        A prior path from random Fourier features plus the exact correction at the data, so that the cost is
        linear in m (Wilson et al., ICML 2020, "Efficiently sampling functions from Gaussian process
        posteriors", equation 13).
        """
        hyper = self.hyperparameters
        d = self.inputs.shape[1]
        # The spectral density of Matérn-ν is Student's t with 2ν degrees of freedom: normal over √(χ²/2ν).
        normal = generator.standard_normal((FEATURES, d))
        frequencies = torch.as_tensor(normal / np.sqrt(generator.gamma(2.5, 1 / 2.5, (FEATURES, 1))))
        weights = torch.as_tensor(generator.standard_normal((2 * FEATURES, count)))
        noise = torch.as_tensor(generator.standard_normal((len(self.inputs), count)))
        scale = torch.tensor(hyper.lengthscale, dtype=torch.float64)

        def path(x: Tensor) -> Tensor:
            phase = (x / scale) @ frequencies.T
            features = torch.cat([phase.sin(), phase.cos()], dim=-1)
            return self.mean(x)[:, None] + math.sqrt(hyper.outputscale / FEATURES) * (features @ weights)

        at = torch.as_tensor(points)
        residual = self.gains[:, None] - path(self.inputs) - math.sqrt(hyper.noise) * noise
        correction = self.covariance(at, self.inputs) @ torch.cholesky_solve(residual, self.factor)
        return (path(at) + correction).T.numpy()

    def believing(self, points: Points) -> Surrogate:
        """Return the process as if its own means had been observed at points (m, D).

        Kriging believer (Ginsbourger, Le Riche, Carraro 2010): what lets a batch be chosen one by one.
        """
        if len(points) == 0:
            return self
        inputs = np.concatenate([self.inputs.numpy(), points])
        gains = np.concatenate([self.gains.numpy(), self.predict(points)[0]])
        return replace(fit(inputs, gains, self.hyperparameters, 0, prior=self.prior), fitted=self.fitted)


def fit(
    inputs: Points,
    gains: Points,
    previous: Hyperparameters | None,
    steps: int,
    *,
    prior: Prior | None = None,
    scaled: bool = True,
    noise: float | None = None,
) -> Surrogate:
    """Return the process conditioned on inputs (n, D) of the unit cube and standardised gains (n,).

    The marginal likelihood times the priors is climbed by at most `steps` iterations, from `previous` when
    given. Where the climb fails, `previous` (or the prior's own values) is kept; where the covariance
    does not factorise, growing jitter is added. prior: gain expected by physics, part of `gains`. scaled:
    False leaves the length-scale prior the same in every dimension and region. noise: variance to hold.
    Raises ArithmeticError when even the largest jitter does not help.
    """
    x, y = torch.as_tensor(inputs), torch.as_tensor(gains)
    # The prior's median is √d times the extent, so this extent makes it one constant.
    extent = data_extent(inputs) if scaled else 1 / math.sqrt(inputs.shape[1])
    initial = previous or Hyperparameters.prior(inputs.shape[1], extent)
    if noise is not None:
        initial = initial.with_noise(noise)
    hyper, fitted = initial, False
    if steps > 0:
        left = gains if prior is None else gains - prior(inputs)
        with contextlib.suppress(np.linalg.LinAlgError):
            hyper, fitted = likelihood.climb(inputs, left, extent, initial, steps, noise), True
    for jitter in JITTERS:
        held = hyper.with_noise(max(hyper.noise, likelihood.NOISE_FLOOR) + jitter)
        model = build(x, y, extent, held, prior)
        held = read(model)
        factor, info = torch.linalg.cholesky_ex(_covariance(model, x, held.noise))
        if int(info) == 0 and bool(torch.isfinite(factor).all()):
            model.eval()
            return Surrogate(model, held, x, y, factor, fitted, prior)
    raise ArithmeticError(f"covariance of {len(x)} points is singular even with jitter {JITTERS[-1]:g}")


def data_extent(inputs: NDArray[np.float64]) -> float:
    """Return how far points (n, d) spread, as a share of the unit cube: 1 for uniform points."""
    return float(np.clip(inputs.std(axis=0).mean() / UNIFORM_STD, 0.5**7, 1.0))


def build(
    x: Tensor, y: Tensor, extent: float, hyper: Hyperparameters, mean: Prior | None = None
) -> SingleTaskGP:
    """Return the process with its priors and with the given hyperparameters, in training mode.

    x: (n, D) unit cube. y: (n,) standardised gains. extent: how far x spreads, see `data_extent`. mean: gain
    expected by physics.
    """
    d = x.shape[1]
    prior = likelihood.lengthscale_prior(d, extent)
    matern = MaternKernel(
        nu=2.5,
        ard_num_dims=d,
        lengthscale_prior=LogNormalPrior(prior.location, prior.sigma),
        lengthscale_constraint=GreaterThan(0.5 * likelihood.LENGTHSCALE_FLOOR, transform=None),
    )
    scaled = ScaleKernel(
        matern,
        outputscale_prior=LogNormalPrior(0.0, likelihood.SCALE_LOG_SIGMA),
        outputscale_constraint=GreaterThan(0.5 * likelihood.OUTPUTSCALE_FLOOR, transform=None),
    )
    noise = GaussianLikelihood(
        noise_prior=LogNormalPrior(likelihood.NOISE_LOG_MEDIAN, likelihood.NOISE_LOG_SIGMA),
        noise_constraint=GreaterThan(0.5 * likelihood.NOISE_FLOOR, transform=None),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the gains are standardised on purpose against all data, not these
        model = SingleTaskGP(
            x,
            y[:, None],
            likelihood=noise,
            covar_module=scaled,
            mean_module=None if mean is None else PriorMean(mean),
            outcome_transform=None,
        )
    model.to(torch.float64)  # before the values go in: GPyTorch makes its parameters in single precision
    scales = torch.tensor(hyper.lengthscale, dtype=torch.float64)
    matern.lengthscale = scales.clamp_min(likelihood.LENGTHSCALE_FLOOR)
    scaled.outputscale = max(hyper.outputscale, likelihood.OUTPUTSCALE_FLOOR)
    noise.noise = max(hyper.noise, likelihood.NOISE_FLOOR)
    model.mean_module.constant = hyper.mean
    return model


def read(model: SingleTaskGP) -> Hyperparameters:
    """Return the hyperparameters a model holds."""
    kernel: Any = model.covar_module
    return Hyperparameters(
        lengthscale=tuple(kernel.base_kernel.lengthscale.detach().flatten().tolist()),
        outputscale=float(kernel.outputscale.detach()),
        noise=float(model.likelihood.noise.detach()),
        mean=float(model.mean_module.constant.detach()),
    )


def _covariance(model: SingleTaskGP, x: Tensor, noise: float) -> Tensor:
    """Return the (n, n) covariance of the data, noise included."""
    with torch.no_grad():
        dense: Tensor = model.covar_module(x).to_dense()
    return dense + noise * torch.eye(len(x), dtype=torch.float64)
