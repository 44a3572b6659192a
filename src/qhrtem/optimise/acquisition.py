"""Acquisition: which of many candidates to evaluate next, by name.

`thompson` draws one plausible objective per trial and takes its best candidate: cheap, diverse, made for
large batches. `qlogei` adds trials one by one, each for the largest expected improvement given those
already chosen (Ament et al., NeurIPS 2023); `ucb` the same with the upper confidence bound. All pick from a
finite candidate set, so integers need no relaxation here. Importing this module imports BoTorch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.errors import PlanError
from qhrtem.optimise.surrogate import Surrogate

UCB_BETA = 2.0  # exploration weight: mean + √β σ
SAMPLES = 32  # Monte Carlo draws of the batch acquisitions
SHORTLIST = 200  # candidates that the batch acquisitions look at, the best by upper confidence bound

Accept = Callable[[NDArray[np.float64]], bool]
Acquisition = Callable[
    [Surrogate, NDArray[np.float64], int, NDArray[np.float64], np.random.Generator, Accept], list[int]
]


def choose(
    name: str,
    surrogate: Surrogate,
    candidates: NDArray[np.float64],
    q: int,
    pending: NDArray[np.float64],
    generator: np.random.Generator,
    accept: Accept,
) -> list[int]:
    """Return the rows of up to q candidates (m, d) of the unit cube to evaluate, by the acquisition `name`.

    pending: (p, d) points under evaluation. accept: asked about a candidate just before it is chosen (a rule
    or an earlier trial may forbid it); what it refuses is passed over for the next best.
    """
    if name not in ACQUISITIONS:
        raise PlanError(f"acquisition must be one of {', '.join(ACQUISITIONS)}, got {name!r}")
    return ACQUISITIONS[name](surrogate, candidates, q, pending, generator, accept)


def thompson(
    surrogate: Surrogate,
    candidates: NDArray[np.float64],
    q: int,
    pending: NDArray[np.float64],
    generator: np.random.Generator,
    accept: Accept,
) -> list[int]:
    """Return the best acceptable candidate of each of q posterior sample paths (Eriksson et al. 2019)."""
    return follow(surrogate.sample(candidates, q, generator), candidates, accept)


def follow(paths: NDArray[np.float64], candidates: NDArray[np.float64], accept: Accept) -> list[int]:
    """Return the highest acceptable candidate (m, d) of each path (q, m), none twice."""
    chosen: list[int] = []
    refused: set[int] = set()
    for path in paths:
        pick = _first(np.argsort(-path, kind="stable"), candidates, chosen, refused, accept)
        if pick is None:
            break
        chosen.append(pick)
    return chosen


def _first(
    order: NDArray[np.intp],
    candidates: NDArray[np.float64],
    chosen: list[int],
    refused: set[int],
    accept: Accept,
) -> int | None:
    """Return the first index in order that is neither chosen nor refused and that is accepted."""
    for i in map(int, order):
        if i in chosen or i in refused:
            continue
        if accept(candidates[i]):
            return i
        refused.add(i)
    return None


def _greedy(make: Callable[[Surrogate, Tensor | None, Any], Any]) -> Acquisition:
    """Return an acquisition that fills its batch one by one with the criterion that `make` builds."""

    def acquisition(
        surrogate: Surrogate,
        candidates: NDArray[np.float64],
        q: int,
        pending: NDArray[np.float64],
        generator: np.random.Generator,
        accept: Accept,
    ) -> list[int]:
        from botorch.sampling.normal import SobolQMCNormalSampler

        mean, sigma = surrogate.predict(candidates)
        short = np.argsort(-(mean + np.sqrt(UCB_BETA) * sigma), kind="stable")
        seed = int(generator.integers(2**31))
        chosen: list[int] = []
        refused: set[int] = set()
        while len(chosen) < q:
            # Refused candidates leave the shortlist, so that a strict rule cannot empty it.
            open_rows = [i for i in short if i not in refused and i not in chosen]
            if not open_rows:
                break
            rows = np.array(open_rows[:SHORTLIST])
            busy = np.concatenate([pending, candidates[chosen]])
            sampler = SobolQMCNormalSampler(torch.Size([SAMPLES]), seed=seed)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                criterion = make(surrogate, torch.as_tensor(busy) if len(busy) else None, sampler)
                score = criterion(torch.as_tensor(candidates[rows])[:, None, :]).numpy()
            pick = _first(rows[np.argsort(-score, kind="stable")], candidates, chosen, refused, accept)
            if pick is not None:
                chosen.append(pick)
        return chosen

    return acquisition


def _log_improvement(surrogate: Surrogate, pending: Tensor | None, sampler: Any) -> Any:
    """Return the logarithm of the expected improvement of a batch over the best gain."""
    from botorch.acquisition.logei import qLogExpectedImprovement

    best = surrogate.gains.max()
    return qLogExpectedImprovement(surrogate.model, best_f=best, sampler=sampler, X_pending=pending)


def _confidence_bound(surrogate: Surrogate, pending: Tensor | None, sampler: Any) -> Any:
    """Return the batch upper confidence bound."""
    from botorch.acquisition.monte_carlo import qUpperConfidenceBound

    return qUpperConfidenceBound(surrogate.model, beta=UCB_BETA, sampler=sampler, X_pending=pending)


ACQUISITIONS: dict[str, Acquisition] = {
    "thompson": thompson,
    "qlogei": _greedy(_log_improvement),
    "ucb": _greedy(_confidence_bound),
}
