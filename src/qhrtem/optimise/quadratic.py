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


@dataclass(frozen=True)
class Quadratic:
    """value + slope·δ + ½ δᵀ curvature δ around one point, in natural units."""

    vector: Vector  # (d,) where it was evaluated
    value: float
    slope: Vector  # (d,)
    curvature: Vector  # (d, d) symmetric, positive semi-definite

    @classmethod
    def of(cls, vector: Vector, residual: Vector, jacobian: Vector) -> Quadratic:
        """Return the Gauss–Newton model from a residual (m,) and its Jacobian (m, d)."""
        return cls(vector, float(residual @ residual), 2 * jacobian.T @ residual, 2 * jacobian.T @ jacobian)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Quadratic:
        """Return what `to_dict` wrote."""
        return cls(
            np.array(state["vector"]), state["value"], np.array(state["slope"]), np.array(state["curvature"])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the model in JSON types."""
        return {
            "vector": self.vector.tolist(),
            "value": self.value,
            "slope": self.slope.tolist(),
            "curvature": self.curvature.tolist(),
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
        return Quadratic(unit, self.value, self.slope * scale, self.curvature * np.outer(scale, scale))

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
