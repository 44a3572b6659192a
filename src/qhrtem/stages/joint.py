"""Joint refinement: imaging parameters and all column positions together, by damped Gauss–Newton steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg

from qhrtem.model.microscope import parameter
from qhrtem.stages.bordered import Bordered, Factor
from qhrtem.stages.linearise import Quadratic, linearise, prior_cost, prior_normal
from qhrtem.stages.objective import Bench, State

Floats = NDArray[np.float64]
IDEAL_SIGMA_A = (
    0.2  # displacement of a column from its lattice site: ferroelectric shifts and surface relaxation
)
GROUP_SIGMA_A = 0.05  # displacement of a lighter element against the heaviest of its column


@dataclass(frozen=True)
class Refined:
    """A refined state, its cost (likelihood and prior) and the covariance of the continuous unknowns."""

    state: State
    cost: float
    quadratic: Quadratic
    precision: Bordered  # (P+T, P+T) inverse covariance while the column ends are as they are
    undecided: Floats | float = 0.0  # (P+T, P+T) what undecided column ends add to the covariance
    column_error: float = 1.0  # model error as it varies between columns, factor on variances
    common_error: float = 1.0  # and as all columns have it in common: on what the imaging parameters share

    def lens_sigma(self) -> Floats:
        """Return one standard deviation (P,) of the refined imaging parameters, in their steps.

        While the column ends are as they are, and without model error; nan where the image does not tell.
        """
        try:
            return np.asarray(np.sqrt(np.diag(Factor(self.precision).corner)))
        except np.linalg.LinAlgError:
            return np.full(len(self.quadratic.imaging), np.nan)

    @cached_property
    def covariance(self) -> Floats:
        """Covariance (P+T, P+T) of the continuous unknowns, in the units of the quadratic model.

        Positions err on their own, by the model error of columns, and together with the imaging parameters,
        by the larger of both.
        """
        p = len(self.quadratic.imaging)
        total = self.column_error * linalg.inv(self.precision.dense()) + self.undecided
        more = max(self.common_error / self.column_error, 1.0) - 1.0
        shared = total[:, :p]
        return np.asarray(total + more * shared @ linalg.solve(total[:p, :p], shared.T) if p else total)


def total_cost(bench: Bench, state: State, imaging: list[int]) -> float:
    """Return likelihood plus prior cost of a state."""
    return bench.cost(state) + prior_cost(state, imaging, IDEAL_SIGMA_A, GROUP_SIGMA_A)


def room(state: State, imaging: list[int]) -> Floats:
    """Return the lowest and highest step (P, 2) that the bounds of each imaging parameter leave it."""
    pars, values = [parameter(i) for i in imaging], state.values()
    limits = [
        ((p.low - values[i]) / p.step, (p.high - values[i]) / p.step)
        for i, p in zip(imaging, pars, strict=True)
    ]
    return np.array(limits).reshape(-1, 2)


def apply_step(state: State, quadratic: Quadratic, step: Floats) -> State:
    """Return the state moved by a step in the continuous unknowns, kept within the parameters' bounds."""
    p = len(quadratic.imaging)
    values = state.values()
    for a, i in enumerate(quadratic.imaging):
        par = parameter(i)
        values[i] = np.clip(values[i] + step[a] * par.step, par.low, par.high)
    shift = state.columns.shift.copy()
    for n, (c, group, axis) in enumerate(quadratic.tangents):
        shift[c, group, axis] += np.clip(step[p + n], -0.15, 0.15)
    return replace(state.with_values(values), columns=replace(state.columns, shift=shift))


def refine(
    bench: Bench,
    state: State,
    imaging: list[int],
    positions: list[int],
    steps: int = 3,
    tolerance: float = 1.0,
    report: Callable[[State, float], None] = lambda state, cost: None,
    probe: torch.Tensor | None = None,
    error_bars: bool = False,
) -> Refined:
    """Return the state after up to `steps` damped Gauss–Newton steps.

    Stops when the cost falls by less than `tolerance` (units of χ²). The damping follows Marquardt (1963):
    tenfold up after a failed step, down after a good one. probe: as for `linearise`. error_bars: linearise
    once more where the steps end; else the covariance is that of one step before.
    """
    cost = total_cost(bench, state, imaging)
    damping = 0.0
    quadratic = linearise(bench, state, imaging, positions, {}, probe=probe)
    for number in range(steps):
        prior, pull = prior_normal(state, quadratic, IDEAL_SIGMA_A, GROUP_SIGMA_A)
        hessian = quadratic.matrix.plus(prior)
        gradient = quadratic.gradient + pull
        improved = False
        for _ in range(6):
            damped = hessian.plus_diagonal(damping * hessian.diagonal())
            step = Factor(damped).solve(gradient, room(state, imaging))
            trial = apply_step(state, quadratic, step)
            trial_cost = total_cost(bench, trial, imaging)
            if trial_cost < cost:
                improved = True
                break
            damping = max(10 * damping, 1e-3)
        gain = cost - trial_cost
        if not improved:
            break
        state, cost, damping = trial, trial_cost, damping / 10 if damping > 1e-4 else 0.0
        report(state, cost)
        if gain < tolerance:
            break
        if number + 1 < steps or error_bars:
            quadratic = linearise(bench, state, imaging, positions, {}, probe=probe)
    prior, _ = prior_normal(state, quadratic, IDEAL_SIGMA_A, GROUP_SIGMA_A)
    return Refined(state, cost, quadratic, quadratic.matrix.plus(prior))
