"""What derivatives told with a trial say about its surroundings: a quadratic model of the value.

For a value r·r with Jacobian J the Gauss–Newton model is r·r + 2 (Jᵀr)·δ + δᵀ(JᵀJ)δ (Nocedal and Wright 2006,
equation 10.23 with twice their cost). It never falls below zero, and a residual of any length is reduced to
d² numbers, so a journal can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]

FIRST_STEP = 0.1  # unit cube, of a descent that knows a gradient and nothing else
POWELL = 0.2  # least share of the expected curvature that one step may leave; Powell 1978


@dataclass(frozen=True)
class Quadratic:
    """value + slope·δ + ½ δᵀ curvature δ around one point, in natural units."""

    vector: Vector  # (d,) where it was evaluated
    value: float
    slope: Vector  # (d,)
    curvature: Vector  # (d, d) symmetric, positive semi-definite
    least: float = 0.0  # the value cannot fall below: 0 for a sum of squares, -inf where nothing is known

    @classmethod
    def of(cls, vector: Vector, residual: Vector, jacobian: Vector) -> Quadratic:
        """Return the Gauss–Newton model from a residual (m,) and its Jacobian (m, d)."""
        return cls(vector, float(residual @ residual), 2 * jacobian.T @ residual, 2 * jacobian.T @ jacobian)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Quadratic:
        """Return what `to_dict` wrote."""
        arrays = {k: np.array(state[k]) for k in ("vector", "slope", "curvature")}
        least = -np.inf if state["least"] is None else state["least"]
        return cls(value=state["value"], least=least, **arrays)

    def to_dict(self) -> dict[str, Any]:
        """Return the model in JSON types."""
        return {
            "vector": self.vector.tolist(),
            "value": self.value,
            "slope": self.slope.tolist(),
            "curvature": self.curvature.tolist(),
            "least": self.least if np.isfinite(self.least) else None,
        }

    def __call__(self, vectors: Vector) -> Vector:
        """Return the model's values (...) at natural vectors (..., d)."""
        step = np.asarray(vectors) - self.vector
        value: Vector = self.value + step @ self.slope + 0.5 * np.sum((step @ self.curvature) * step, axis=-1)
        return value

    def in_cube(self, space: SearchSpace) -> Quadratic:
        """Return the model in unit-cube coordinates; categoricals and fixed parameters drop out of it."""
        scale = space.slopes(self.vector)
        unit = space.to_unit(self.vector)
        curvature = self.curvature * np.outer(scale, scale)
        return Quadratic(unit, self.value, self.slope * scale, curvature, self.least)

    def residual_form(self) -> tuple[Vector, Vector]:
        """Return a residual (d + 1,) and a Jacobian (d + 1, d) whose Gauss–Newton model this is.

        With curvature ½C = VΛVᵀ the rows are √Λ Vᵀ, and one constant row carries what no step can remove.
        """
        values, vectors = np.linalg.eigh(0.5 * self.curvature)
        known = values > 1e-15 * max(float(values.max(initial=0.0)), 1e-300)
        root = np.sqrt(np.where(known, values, 0.0))
        jacobian = root[:, None] * vectors.T
        residual = np.where(known, (vectors.T @ (0.5 * self.slope)) / np.where(known, root, 1.0), 0.0)
        rest = np.sqrt(max(self.value - float(residual @ residual), 0.0))
        return np.append(residual, rest), np.vstack([jacobian, np.zeros(len(self.slope))])


def secant(vector: Vector, value: float, slope: Vector, before: Quadratic | None) -> Quadratic:
    """Return a model from a gradient alone, its curvature from how the slope has changed since `before`.

    The BFGS formula with Powell's damping (Nocedal and Wright 2006, equation 6.19 and procedure 18.2);
    without an earlier model, the curvature by which the first step is `FIRST_STEP` of the unit cube.
    """
    if before is None:
        steepest = float(np.abs(slope).max(initial=0.0))
        curvature = max(steepest, 1e-300) / FIRST_STEP * np.eye(len(slope))
        return Quadratic(vector, value, slope, curvature, -np.inf)
    return Quadratic(vector, value, slope, bent(before, vector, slope), -np.inf)


def bent(before: Quadratic, vector: Vector, slope: Vector) -> Vector:
    """Return the curvature (d, d) of a model after the slope at another point became known; see `secant`."""
    step, change = vector - before.vector, slope - before.slope
    pushed = before.curvature @ step
    energy = float(step @ pushed)
    if energy <= 0:
        return before.curvature
    share = float(step @ change) / energy
    if share < POWELL:
        change = pushed + (1 - POWELL) / (1 - share) * (change - pushed)
    curvature: Vector = before.curvature - np.outer(pushed, pushed) / energy
    return curvature + np.outer(change, change) / float(step @ change)
