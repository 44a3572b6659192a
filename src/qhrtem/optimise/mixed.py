"""Acquisition optimised over mixed spaces, three ways that are comparable by name.

`rounding` climbs the relaxed acquisition and snaps the ends. `reparameterisation` climbs its expectation over
random roundings, which is smooth in their probabilities and has its maxima at whole points (Daulton et
al., NeurIPS 2022, "Bayesian optimization over discrete and mixed spaces via probabilistic
reparameterization"). `alternating` takes turns between neighbouring levels and gradients (BoTorch). All climb
the logarithm of the expected improvement (Ament et al., NeurIPS 2023); batches are filled one by one with a
Kriging believer. Surrogates are conditioned on snapped points only. Importing this module imports BoTorch.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.optimise import candidates
from qhrtem.optimise.place import Place
from qhrtem.optimise.space import SearchSpace
from qhrtem.optimise.surrogate import Surrogate

with warnings.catch_warnings():
    # GPyTorch compiles with torch.jit, which torch 2.13 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.generation.gen import gen_candidates_scipy
    from botorch.optim.optimize_mixed import optimize_acqf_mixed_alternating

Vector = NDArray[np.float64]
RAW, STARTS = 256, 4  # candidates scored, and the best of them climbed from
CLIMB_STEPS = 30  # iterations of L-BFGS, and of Adam
ROUNDINGS = 16  # Monte Carlo draws of an expectation over roundings
RATE = 0.03  # of Adam, unit cube; probabilities of a rounding move by this times the number of levels
SURE = 1e-3  # probabilities stay this far from 0 and 1, where their logarithm has a slope
ALTERNATIONS = 8  # turns of the alternating search

Climb = Callable[["Criterion", Vector, Vector, Vector, SearchSpace, np.random.Generator], Vector]


class Criterion(torch.nn.Module):
    """Logarithm of the expected improvement over the best gain, on points (b, 1, d) of the unit cube."""

    def __init__(self, surrogate: Surrogate, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.improvement = LogExpectedImprovement(surrogate.model, best_f=surrogate.gains.max())
        self.model = surrogate.model

    def forward(self, points: Tensor) -> Tensor:
        """Return (b,) values; categoricals carry no derivative."""
        value: Tensor = self.improvement(self._encode(points))
        return value

    def _encode(self, points: Tensor) -> Tensor:
        label = self.space.is_categorical
        if not label.any():
            return points
        columns = [points[..., torch.as_tensor(~label)]]
        for i in np.flatnonzero(label):
            n = int(self.space.levels[i])
            level = (points[..., i].detach() * n).floor().clamp(0, n - 1).long()
            columns.append(torch.nn.functional.one_hot(level, n).to(points) / np.sqrt(2.0))
        return torch.cat(columns, dim=-1)

    def score(self, points: Vector) -> Vector:
        """Return the values (b,) at points (b, d)."""
        with torch.no_grad():
            value: Vector = self(torch.as_tensor(points)[:, None]).numpy()
        return value


@contextlib.contextmanager
def seeded(generator: np.random.Generator) -> Iterator[None]:
    """Give library code inside the block global random streams of its own, and restore them afterwards."""
    seed, state = int(generator.integers(2**31)), random.getstate()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def propose(
    name: str,
    surrogate: Surrogate,
    place: Place,
    space: SearchSpace,
    q: int,
    busy: Vector,
    generator: np.random.Generator,
    accept: Callable[[Vector], bool],
) -> list[Vector]:
    """Return up to q accepted points (d,) of the unit cube inside a place's region, snapped.

    busy: (p, d) points under evaluation. Fewer come back where every end point was refused.
    """
    assert place.region is not None
    scales = np.asarray(surrogate.hyperparameters.lengthscale)
    lower, upper = candidates.box(place.region, scales, space)
    believed = surrogate.believing(space.encode(busy))
    picked: list[Vector] = []
    for _ in range(q):
        pool = candidates.draw(place.region, scales, space, generator, RAW)
        with seeded(generator):
            criterion = Criterion(believed, space)
            starts = pool[np.argsort(-criterion.score(pool), kind="stable")[:STARTS]]
            ends = CLIMBS[name](criterion, starts, lower, upper, space, generator)
            snapped = space.to_unit(space.from_unit(np.concatenate([ends, starts])))
            ranked = snapped[np.argsort(-criterion.score(snapped), kind="stable")]
        point = next((u for u in ranked if accept(u)), None)
        if point is None:
            break
        picked.append(point)
        believed = believed.believing(space.encode(point[None]))
    return picked


def rounding(
    criterion: Criterion,
    starts: Vector,
    lower: Vector,
    upper: Vector,
    space: SearchSpace,
    generator: np.random.Generator,
) -> Vector:
    """Return the ends (s, d) of climbs in which discrete parameters are continuous; labels stay."""
    ends, _ = gen_candidates_scipy(
        torch.as_tensor(starts)[:, None],
        criterion,
        lower_bounds=torch.as_tensor(lower),
        upper_bounds=torch.as_tensor(upper),
        options={"maxiter": CLIMB_STEPS},
    )
    return np.asarray(ends[:, 0].detach().numpy())


def reparameterisation(
    criterion: Criterion,
    starts: Vector,
    lower: Vector,
    upper: Vector,
    space: SearchSpace,
    generator: np.random.Generator,
) -> Vector:
    """Return roundings (s · ROUNDINGS, d) drawn where their expected acquisition was climbed to.

    A discrete coordinate θ at level position p is rounded up with probability p − ⌊p⌋; a label comes from a
    softmax. The slope in these probabilities is the score function's, with the mean of the other draws as
    its control variate (Daulton et al. 2022, equation 5).
    """
    label = space.is_categorical
    whole = torch.as_tensor(space.is_discrete & ~label & space.is_free)
    levels = torch.as_tensor(np.maximum(space.levels, 1)).to(torch.float64)
    low, high = torch.as_tensor(lower), torch.as_tensor(upper)
    theta = torch.tensor(starts, requires_grad=True)
    logits = [
        (4.0 * torch.nn.functional.one_hot(torch.as_tensor(starts[:, i] * n).long().clamp(0, n - 1), n))
        .to(torch.float64)
        .requires_grad_()
        for i, n in zip(np.flatnonzero(label), space.levels[label].tolist(), strict=True)
    ]

    def draw() -> tuple[Tensor, Tensor]:
        """Return rounded points (k, s, d) and the log probability (k, s) of each draw."""
        position = theta * levels - 0.5
        base = position.detach().floor()
        share = (position - base).clamp(SURE, 1 - SURE)
        up = torch.as_tensor(generator.random((ROUNDINGS, *theta.shape))) < share
        rounded = (base + up + 0.5) / levels
        points = torch.where(whole, rounded.clamp(0.5 / levels, 1 - 0.5 / levels), theta)
        chance = torch.where(whole, torch.where(up, share.log(), (1 - share).log()), 0.0).sum(-1)
        for i, logit in zip(np.flatnonzero(label), logits, strict=True):
            log_share = logit.log_softmax(-1)
            uniform = torch.as_tensor(generator.random((ROUNDINGS, len(theta), 1)))
            level = (uniform > log_share.detach().exp().cumsum(-1)).sum(-1).clamp(max=logit.shape[-1] - 1)
            picked = torch.nn.functional.one_hot(level, logit.shape[-1])
            chance = chance + (picked * log_share).sum(-1)
            column = torch.nn.functional.one_hot(torch.tensor(int(i)), theta.shape[1]).bool()
            points = torch.where(column, ((level + 0.5) / logit.shape[-1])[..., None], points)
        return points, chance

    optimiser = torch.optim.Adam([theta, *logits], lr=RATE)
    for _ in range(CLIMB_STEPS):
        optimiser.zero_grad()
        points, chance = draw()
        value = criterion(points.reshape(-1, 1, theta.shape[1])).reshape(chance.shape)
        reward = value.detach()
        others = (reward.sum(0) - reward) / (ROUNDINGS - 1)
        loss = -(value + (reward - others) * chance).mean(0).sum()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            theta.copy_(torch.minimum(torch.maximum(theta, low), high))
    return np.asarray(draw()[0].detach().reshape(-1, theta.shape[1]).numpy())


def alternating(
    criterion: Criterion,
    starts: Vector,
    lower: Vector,
    upper: Vector,
    space: SearchSpace,
    generator: np.random.Generator,
) -> Vector:
    """Return the end (1, d) of BoTorch's alternating search inside the box; it draws starts of its own."""
    fixed: dict[int, float] = {}
    ordered: dict[int, list[float]] = {}
    labels: dict[int, list[float]] = {}
    low, high = lower.copy(), upper.copy()
    for i in range(space.dimension):
        n = int(space.levels[i])
        inside = [u for u in ((np.arange(n) + 0.5) / n).tolist() if lower[i] <= u <= upper[i]] if n else []
        if not space.is_free[i] or lower[i] == upper[i] or len(inside) == 1:
            fixed[i] = float(starts[0, i])
        elif n:
            (labels if space.is_categorical[i] else ordered)[i] = inside
            low[i], high[i] = inside[0], inside[-1]
    if len(fixed) == space.dimension:
        return starts[:1]
    end, _ = optimize_acqf_mixed_alternating(
        criterion,
        torch.as_tensor(np.stack([low, high])),
        discrete_dims=ordered,
        cat_dims=labels,
        fixed_features=fixed or None,
        raw_samples=RAW,
        num_restarts=STARTS,
        options={"maxiter_alternating": ALTERNATIONS, "num_spray_points": 0},
    )
    return np.asarray(end.detach().numpy())


CLIMBS: dict[str, Climb] = {
    "rounding": rounding,
    "reparameterisation": reparameterisation,
    "alternating": alternating,
}
