"""Bounded least squares with Gaussian priors: Levenberg–Marquardt with Nielsen's damping.

Minimises F(x) = ½ ‖r(x)‖² + ½ Σ ((x_i − m_i) / s_i)² inside a box. Residuals r are in units of their standard
deviation, so that the inverse of the normal matrix H = JᵀJ + diag(1/s²) is the covariance of the solution.

Each step solves (H + μ D) δ = −∇F with D the diagonal of H (Marquardt, SIAM J. 11, 431, 1963, so that units
do not matter); parameters that the step pushes through a bound are held there while the others are solved
again. The gain ratio ϱ of the actual to the predicted decrease sets the damping (Nielsen, report
IMM-REP-1999-05, equation 2.21): an accepted step multiplies μ by max(1/3, 1 − (2ϱ − 1)³), refused ones in a
row by 2, 4, 8 and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qhrtem.errors import InputError, PlanError

Vector = NDArray[np.float64]
ResidualAndJacobian = Callable[[Vector], tuple[Vector, Vector]]  # x → r (m,), J (m, d)
NormalEquations = Callable[[Vector], tuple[float, Vector, Vector]]  # x → ½‖r‖², Jᵀr (d,), JᵀJ (d, d)
Ending = Literal["gradient", "step", "decrease", "stalled", "budget"]

DAMPING_START = 1e-3  # μ relative to the diagonal of H; Nielsen 1999, section 2: small for a good start
DAMPING_SHRINK = 1 / 3  # most that one good step lowers μ; same, equation 2.21
DAMPING_MAX = 1e12  # beyond this no step is long enough to matter
NULL_SHARE = 1e-12  # eigenvalues of the scaled H below this share of the largest are undetermined

MESSAGES: dict[Ending, str] = {
    "gradient": "converged: the gradient vanishes inside the box",
    "step": "converged: the step is below its tolerance",
    "decrease": "converged: the cost no longer falls by more than its tolerance",
    "stalled": "stalled: no step lowers the cost; the Jacobian may be wrong or the cost too noisy",
    "budget": "stopped: the evaluation budget is spent; allow more or start nearer",
}


@dataclass(frozen=True)
class Box:
    """Bounds and Gaussian priors of d parameters; infinities switch a bound or a prior off."""

    lower: Vector  # (d,)
    upper: Vector  # (d,)
    prior_mean: Vector  # (d,)
    prior_sigma: Vector  # (d,) one standard deviation, inf for no prior

    @classmethod
    def of(
        cls,
        dimension: int,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        prior_mean: ArrayLike | None = None,
        prior_sigma: ArrayLike | None = None,
    ) -> Box:
        """Return the box from scalars or arrays (d,); raise PlanError for an empty box or a bad prior."""

        def full(value: ArrayLike | None, default: float) -> Vector:
            given = np.asarray(default if value is None else value, dtype=np.float64)
            return np.broadcast_to(given, (dimension,)).copy()

        box = cls(full(lower, -np.inf), full(upper, np.inf), full(prior_mean, 0.0), full(prior_sigma, np.inf))
        crossed = np.flatnonzero(~(box.lower <= box.upper))
        if crossed.size:
            raise PlanError(
                f"lower bounds must not exceed upper bounds, but do for parameters {crossed.tolist()}"
            )
        if not (box.prior_sigma > 0).all():
            smallest = box.prior_sigma.min()
            raise PlanError(
                f"prior standard deviations must be positive, got {smallest:g}; use inf for no prior"
            )
        if not np.isfinite(box.prior_mean).all():
            raise PlanError("prior means must be finite; an infinite standard deviation switches a prior off")
        return box


@dataclass(frozen=True)
class Fit:
    """Where a least-squares fit ended."""

    x: Vector  # (d,)
    cost: float  # F(x), prior included
    data_cost: float  # ½‖r‖² alone
    status: Ending
    covariance: Vector  # (d, d) inverse normal matrix; variance inf where undetermined
    gradient: Vector  # (d,) of F at x
    at_bound: NDArray[np.bool_]  # (d,) held by a bound; their covariance is that of the unbounded problem
    evaluations: int  # calls of the model
    steps: int  # accepted steps

    @property
    def converged(self) -> bool:
        """True when a tolerance, not the budget or a failure, ended the fit."""
        return self.status in ("gradient", "step", "decrease")

    @property
    def message(self) -> str:
        """What happened, in a sentence."""
        return MESSAGES[self.status]

    @property
    def sigma(self) -> Vector:
        """(d,) one standard deviation of each parameter."""
        return np.sqrt(np.diag(self.covariance))


@dataclass(frozen=True)
class Point:
    """Cost and its quadratic model at x, priors included."""

    x: Vector
    cost: float
    data_cost: float
    gradient: Vector
    hessian: Vector

    @property
    def finite(self) -> bool:
        return bool(
            np.isfinite(self.cost) and np.isfinite(self.gradient).all() and np.isfinite(self.hessian).all()
        )


def levenberg_marquardt(
    residual_and_jacobian: ResidualAndJacobian,
    x0: ArrayLike,
    *,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    prior_mean: ArrayLike | None = None,
    prior_sigma: ArrayLike | None = None,
    max_evaluations: int = 100,
    gradient_tolerance: float = 1e-8,
    step_tolerance: float = 1e-10,
    cost_tolerance: float = 1e-12,
    report: Callable[[Vector, float], None] | None = None,
) -> Fit:
    """Return the least-squares fit of a model given as residual (m,) and exact Jacobian (m, d).

    Arguments and errors are those of `levenberg_marquardt_normal`.
    """

    def normal_equations(x: Vector) -> tuple[float, Vector, Vector]:
        residual, jacobian = residual_and_jacobian(x)
        r, j = np.asarray(residual, dtype=np.float64).ravel(), np.asarray(jacobian, dtype=np.float64)
        if j.shape != (r.size, x.size):
            raise ValueError(f"Jacobian must have a row a residual {(r.size, x.size)}, got shape {j.shape}")
        return 0.5 * float(r @ r), j.T @ r, j.T @ j

    return levenberg_marquardt_normal(
        normal_equations,
        x0,
        lower=lower,
        upper=upper,
        prior_mean=prior_mean,
        prior_sigma=prior_sigma,
        max_evaluations=max_evaluations,
        gradient_tolerance=gradient_tolerance,
        step_tolerance=step_tolerance,
        cost_tolerance=cost_tolerance,
        report=report,
    )


def levenberg_marquardt_normal(
    normal_equations: NormalEquations,
    x0: ArrayLike,
    *,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    prior_mean: ArrayLike | None = None,
    prior_sigma: ArrayLike | None = None,
    max_evaluations: int = 100,
    gradient_tolerance: float = 1e-8,
    step_tolerance: float = 1e-10,
    cost_tolerance: float = 1e-12,
    report: Callable[[Vector, float], None] | None = None,
) -> Fit:
    """Return the least-squares fit of a model given as ½‖r‖², Jᵀr (d,) and JᵀJ (d, d) at x, without priors.

    x0: (d,), moved into the box. gradient_tolerance: largest |∇F_i| / √(H_ii) left, that is, the distance to
    the minimum in standard deviations. step_tolerance: length of a step in the metric √D relative to x.
    cost_tolerance: relative decrease of F. report: called with x and F after each accepted step.
    A point where the model is not finite is refused like one that raises the cost. Raises InputError when the
    model is not finite at the start, PlanError for an empty box.
    """
    start = np.atleast_1d(np.asarray(x0, dtype=np.float64))
    box = Box.of(start.size, lower, upper, prior_mean, prior_sigma)
    point = _evaluate(normal_equations, np.clip(start, box.lower, box.upper), box)
    if not point.finite:
        cost = f"cost {point.cost:g}" if not np.isfinite(point.cost) else "derivatives that are not"
        raise InputError(f"the model must be finite at the starting point, got {cost}; start elsewhere")
    evaluations, steps, damping, factor = 1, 0, DAMPING_START, 2.0
    status: Ending | None = "gradient" if _distance(point, box) <= gradient_tolerance else None
    while status is None:
        if evaluations >= max_evaluations:
            status = "budget"
            break
        step, predicted = damped_step(point, box, damping)
        if _is_tiny(step, point, step_tolerance):
            # A tiny step under heavy damping says nothing about the minimum.
            status = "step" if damping <= 1.0 else "stalled"
            break
        trial = _evaluate(normal_equations, np.clip(point.x + step, box.lower, box.upper), box)
        evaluations += 1
        drop = point.cost - trial.cost
        if trial.finite and drop > 0:
            ratio = drop / predicted if predicted > 0 else 1.0
            damping *= max(DAMPING_SHRINK, 1 - (2 * ratio - 1) ** 3)
            factor = 2.0
            small = max(drop, predicted) <= cost_tolerance * point.cost
            point, steps = trial, steps + 1
            if report is not None:
                report(point.x.copy(), point.cost)
            if _distance(point, box) <= gradient_tolerance:
                status = "gradient"
            elif small:
                status = "decrease"
        else:
            if predicted <= cost_tolerance * point.cost:
                status = "decrease"  # what is left to gain is below rounding
            damping, factor = damping * factor, 2 * factor
            if damping > DAMPING_MAX:
                status = status or "stalled"
    return _finish(point, box, status, evaluations, steps)


def covariance(hessian: Vector) -> Vector:
    """Return the inverse (d, d) of a normal matrix; variance inf for parameters that it leaves undetermined.

    The matrix is scaled to a unit diagonal first, so that the verdict does not depend on units. Covariances
    of undetermined parameters are set to zero.
    """
    diagonal = np.diag(hessian)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    known = values > NULL_SHARE * max(float(values.max(initial=0.0)), 1e-300)
    inverse = (vectors[:, known] / values[known]) @ vectors[:, known].T / np.outer(scale, scale)
    lost = (vectors[:, ~known] ** 2).sum(axis=1) > 1e-6
    inverse[lost, :] = 0.0
    inverse[:, lost] = 0.0
    inverse[lost, lost] = np.inf
    symmetric: Vector = 0.5 * (inverse + inverse.T)
    return symmetric


def _evaluate(model: NormalEquations, x: Vector, box: Box) -> Point:
    """Return cost, gradient and normal matrix at x with the priors added."""
    cost, gradient, hessian = model(x.copy())
    weight = 1.0 / box.prior_sigma**2
    offset = x - box.prior_mean
    return Point(
        x=x,
        cost=float(cost) + 0.5 * float(weight @ offset**2),
        data_cost=float(cost),
        gradient=np.asarray(gradient, dtype=np.float64) + weight * offset,
        hessian=np.asarray(hessian, dtype=np.float64) + np.diag(weight),
    )


def _blocked(point: Point, box: Box) -> NDArray[np.bool_]:
    """Return which parameters sit on a bound that their gradient pushes against (or between equal bounds)."""
    pushed_down = (point.x <= box.lower) & (point.gradient >= 0)
    pushed_up = (point.x >= box.upper) & (point.gradient <= 0)
    blocked: NDArray[np.bool_] = pushed_down | pushed_up | (box.lower == box.upper)
    return blocked


def _diagonal(hessian: Vector) -> Vector:
    """Return Marquardt's scaling D (d,); 1 for parameters without influence, whose gradient is zero too."""
    diagonal = np.diag(hessian)
    return np.where(diagonal > 0, diagonal, 1.0)


def _distance(point: Point, box: Box) -> float:
    """Return the largest |∇F_i| / √(H_ii) over the parameters that are free to move."""
    scaled = np.abs(point.gradient) / np.sqrt(_diagonal(point.hessian))
    return float(np.where(_blocked(point, box), 0.0, scaled).max(initial=0.0))


def _is_tiny(step: Vector, point: Point, tolerance: float) -> bool:
    """Return whether a step no longer changes x, in the metric of D."""
    root = np.sqrt(_diagonal(point.hessian))
    size = float(np.linalg.norm(root * point.x))
    return float(np.linalg.norm(root * step)) <= tolerance * (size + tolerance)


def damped_step(point: Point, box: Box, damping: float) -> tuple[Vector, float]:
    """Return the damped step (d,) inside the box and the decrease of F that the quadratic model predicts."""
    damped = point.hessian + damping * np.diag(_diagonal(point.hessian))
    step = np.zeros_like(point.x)
    free = ~_blocked(point, box)
    while free.any():
        pull = -point.gradient[free] - damped[np.ix_(free, ~free)] @ step[~free]
        step[free] = _solve(damped[np.ix_(free, free)], pull)
        reached = point.x + step
        outside = free & ((reached < box.lower) | (reached > box.upper))
        if not outside.any():
            break
        step[outside] = np.clip(reached, box.lower, box.upper)[outside] - point.x[outside]
        free = free & ~outside
    predicted = -float(point.gradient @ step) - 0.5 * float(step @ point.hessian @ step)
    return step, predicted


def _solve(matrix: Vector, right: Vector) -> Vector:
    """Return the solution of a symmetric system, of least norm where it is singular."""
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])
    return np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, right)))


def _finish(point: Point, box: Box, status: Ending, evaluations: int, steps: int) -> Fit:
    """Return the result at the last accepted point."""
    return Fit(
        x=point.x,
        cost=point.cost,
        data_cost=point.data_cost,
        status=status,
        covariance=covariance(point.hessian),
        gradient=point.gradient,
        at_bound=_blocked(point, box),
        evaluations=evaluations,
        steps=steps,
    )
