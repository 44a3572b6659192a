"""The Gaussian process against a dense reference, and its behaviour on hard data."""

import numpy as np
import pytest
import torch

from qhrtem.optimise import surrogate
from qhrtem.optimise.hyperparameters import Hyperparameters


def reference(
    hyper: Hyperparameters, x: np.ndarray, y: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and covariance written out from the textbook (Rasmussen and Williams 2006, eq. 2.23)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        r = np.sqrt((((a[:, None] - b[None]) / np.array(hyper.lengthscale)) ** 2).sum(-1) * 5)
        return hyper.outputscale * (1 + r + r**2 / 3) * np.exp(-r)

    inverse = np.linalg.inv(kernel(x, x) + hyper.noise * np.eye(len(x)))
    mean = hyper.mean + kernel(at, x) @ inverse @ (y - hyper.mean)
    return mean, kernel(at, at) - kernel(at, x) @ inverse @ kernel(x, at)


def smooth(x: np.ndarray) -> np.ndarray:
    """A gain that depends strongly on the first coordinate, weakly on the second, not on the rest."""
    raw = np.sin(5 * x[:, 0]) + 0.3 * (x[:, 1] - 0.4) ** 2
    return (raw - raw.mean()) / raw.std()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((40, 4))
    return x, smooth(x)


def test_prediction_and_paths_agree_with_the_textbook(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data[0][:12], data[1][:12]
    hyper = Hyperparameters((0.4, 0.7, 1.0, 1.5), 1.3, 1e-3, 0.2)
    model = surrogate.fit(x, y, hyper, steps=0)
    at = np.random.default_rng(1).random((6, 4))
    mean, covariance = reference(hyper, x, y, at)
    np.testing.assert_allclose(model.predict(at)[0], mean, atol=1e-8)
    np.testing.assert_allclose(model.predict(at)[1], np.sqrt(np.diag(covariance)), atol=1e-8)
    generator = np.random.default_rng(2)
    paths = np.concatenate([model.sample(at, 100, generator) for _ in range(40)])
    np.testing.assert_allclose(
        paths.mean(0), mean, atol=5 * np.sqrt(covariance.diagonal().max() / len(paths))
    )
    np.testing.assert_allclose(np.cov(paths.T), covariance, atol=0.06)


def test_model_on_the_botorch_side_is_the_same_process(data: tuple[np.ndarray, np.ndarray]) -> None:
    model = surrogate.fit(*data, None, steps=20)
    at = np.random.default_rng(1).random((5, 4))
    with torch.no_grad():
        posterior = model.model.posterior(torch.as_tensor(at))
    np.testing.assert_allclose(posterior.mean[:, 0].numpy(), model.predict(at)[0], atol=1e-5)
    np.testing.assert_allclose(posterior.variance[:, 0].sqrt().numpy(), model.predict(at)[1], atol=1e-3)


def test_fit_learns_relevance_and_predicts(data: tuple[np.ndarray, np.ndarray]) -> None:
    model = surrogate.fit(*data, None, steps=50)
    scales = model.hyperparameters.lengthscale
    assert model.fitted
    assert scales[0] < min(scales[2:])
    at = np.random.default_rng(3).random((200, 4))
    both = np.concatenate([data[0], at])
    truth = np.sin(5 * both[:, 0]) + 0.3 * (both[:, 1] - 0.4) ** 2
    truth = (truth - truth[:40].mean()) / truth[:40].std()
    assert np.sqrt(np.mean((model.predict(at)[0] - truth[40:]) ** 2)) < 0.15


def test_warm_start_continues_where_the_last_fit_stopped(data: tuple[np.ndarray, np.ndarray]) -> None:
    long = surrogate.fit(*data, None, steps=80).hyperparameters
    again = surrogate.fit(*data, long, steps=8).hyperparameters
    np.testing.assert_allclose(np.log(again.lengthscale[:2]), np.log(long.lengthscale[:2]), atol=0.2)


@pytest.mark.parametrize("kind", ["constant", "twins", "one place"])
def test_degenerate_data_still_give_a_usable_process(kind: str) -> None:
    x = np.random.default_rng(0).random((20, 3))
    y = smooth(x)
    if kind == "constant":
        y = np.zeros(20)
    elif kind == "twins":
        x[1], y[1] = x[0], y[0] + 1.0
    else:
        x = np.full((20, 3), 0.3) + 1e-9 * x
    model = surrogate.fit(x, y, None, steps=30)
    paths = model.sample(np.random.default_rng(1).random((50, 3)), 4, np.random.default_rng(2))
    assert model.hyperparameters.usable
    assert np.isfinite(paths).all()


def test_failed_fit_keeps_the_last_good_hyperparameters(
    data: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise np.linalg.LinAlgError("not positive definite")

    good = surrogate.fit(*data, None, steps=20).hyperparameters
    monkeypatch.setattr(surrogate.likelihood, "climb", fail)
    model = surrogate.fit(*data, good, steps=20)
    assert not model.fitted
    np.testing.assert_allclose(model.hyperparameters.lengthscale, good.lengthscale)


def test_prior_length_scales_grow_with_dimension_and_shrink_with_the_data() -> None:
    x = np.random.default_rng(0).random((50, 4))
    assert surrogate.data_extent(x) == pytest.approx(1.0, abs=0.15)
    assert surrogate.data_extent(0.5 + 0.1 * x) == pytest.approx(0.1, abs=0.02)
    y = torch.zeros(4, dtype=torch.float64)

    def median(d: int, extent: float) -> float:
        model = surrogate.build(
            torch.rand(4, d, dtype=torch.float64), y, extent, Hyperparameters.prior(d, extent)
        )
        return float(model.covar_module.base_kernel.lengthscale_prior.loc.exp())

    assert median(16, 1.0) == pytest.approx(2 * median(4, 1.0))
    assert median(4, 0.1) == pytest.approx(0.1 * median(4, 1.0))


def test_imaging_sized_fit_predicts_points_it_has_not_seen() -> None:
    def objective(points: np.ndarray) -> np.ndarray:
        return np.asarray(-((points - 0.4) ** 2 @ np.linspace(0.1, 3, 22)))

    generator = np.random.default_rng(0)
    x, unseen = generator.random((300, 22)), generator.random((100, 22))
    y = objective(x)
    truth = (objective(unseen) - y.mean()) / y.std()
    mean, _ = surrogate.fit(x, (y - y.mean()) / y.std(), None, steps=50).predict(unseen)
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.5 * truth.std()


def test_a_prior_mean_is_learned_around_and_returned_to(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data

    def prior(points: np.ndarray) -> np.ndarray:
        return 3.0 * points[:, 2]

    model = surrogate.fit(x, y + prior(x), None, 40, prior=prior)
    plain = surrogate.fit(x, y, None, 40)
    at = np.random.default_rng(1).random((6, 4))
    np.testing.assert_allclose(model.predict(at)[0], plain.predict(at)[0] + prior(at), atol=1e-8)
    far = np.full((1, 4), 1e4)
    assert model.predict(far)[0] == pytest.approx(prior(far) + model.hyperparameters.mean)
    with torch.no_grad():
        posterior = model.model.posterior(torch.as_tensor(at))
    np.testing.assert_allclose(posterior.mean[:, 0].numpy(), model.predict(at)[0], atol=1e-5)


def test_believing_changes_no_mean_and_removes_uncertainty(data: tuple[np.ndarray, np.ndarray]) -> None:
    model = surrogate.fit(*data, None, 40)
    at = np.random.default_rng(1).random((3, 4))
    believed = model.believing(at)
    np.testing.assert_allclose(believed.predict(at)[0], model.predict(at)[0], atol=1e-3)
    assert np.all(believed.predict(at)[1] < 0.5 * model.predict(at)[1])


def test_noise_is_held_and_priors_need_not_scale(data: tuple[np.ndarray, np.ndarray]) -> None:
    assert surrogate.fit(*data, None, 30, noise=0.05).hyperparameters.noise == pytest.approx(0.05)
    narrow = data[0] * 0.01 + 0.5
    free = surrogate.fit(narrow, data[1], None, 0, scaled=False).hyperparameters.lengthscale
    assert free == surrogate.fit(data[0], data[1], None, 0, scaled=False).hyperparameters.lengthscale
    assert surrogate.fit(narrow, data[1], None, 0).hyperparameters.lengthscale < free
