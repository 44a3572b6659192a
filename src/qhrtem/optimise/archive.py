"""The archive: every point that came back, and which of them a model should learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.protocol import Observation
from qhrtem.optimise.space import SearchSpace

SAME = 1e-9  # points nearer than this in every unit coordinate are one point
OUTLIER = 3.0  # bad values are drawn in beyond this many interquartile ranges above the median


class Archive:
    """Observations in order of arrival, with their unit-cube coordinates and the region they belong to."""

    def __init__(self, space: SearchSpace) -> None:
        """Start empty."""
        self.space = space
        self.observations: list[Observation] = []
        self.regions: list[int] = []  # restart count when the point was proposed
        self._unit: list[NDArray[np.float64]] = []

    def __len__(self) -> int:
        return len(self.observations)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self.observations)

    def add(self, observation: Observation, region: int) -> None:
        """Append one observation."""
        self.observations.append(observation)
        self.regions.append(region)
        self._unit.append(self.space.to_unit(observation.vector))

    def best(self, region: int | None = None) -> Observation | None:
        """Return the lowest finite observation, of one region or of all; None where there is none."""
        pairs = zip(self.observations, self.regions, strict=True)
        finite = [o for o, r in pairs if not o.failed and region in (None, r)]
        return min(finite, key=lambda o: o.value, default=None)

    def near(
        self, centre: NDArray[np.float64], limit: int, scale: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return unit points (n ≤ limit, d) nearest the centre and their values (n,), to train on.

        Distance is the largest coordinate difference over `scale` (d,). Repeated points are merged to their
        lowest value. A failed point counts as the worst value among the others, so that the model avoids its
        surroundings; without any finite value nothing is returned.
        """
        if not any(not o.failed for o in self.observations):
            return np.empty((0, self.space.dimension)), np.empty(0)
        points = np.array(self._unit)
        values = np.array([o.value if not o.failed else np.nan for o in self.observations])
        distance = np.abs((points - centre) / scale).max(axis=1)
        order = np.lexsort((np.arange(len(values)), np.where(np.isnan(values), np.inf, values), distance))
        _, first = np.unique(np.round(points[order] / SAME), axis=0, return_index=True)
        keep = order[np.sort(first)][:limit]
        values = values[keep]
        if np.isnan(values).all():
            return np.empty((0, self.space.dimension)), np.empty(0)
        return points[keep], np.where(np.isnan(values), np.nanmax(values), values)

    def to_list(self) -> list[dict[str, Any]]:
        """Return the archive in JSON types; a failed value is None."""
        return [
            {
                "id": o.id,
                "vector": o.vector.tolist(),
                "value": None if o.failed else o.value,
                "origin": o.origin,
                "region": r,
            }
            for o, r in zip(self.observations, self.regions, strict=True)
        ]

    def extend(self, rows: list[dict[str, Any]]) -> None:
        """Append what `to_list` wrote."""
        for row in rows:
            value = np.nan if row["value"] is None else float(row["value"])
            self.add(Observation(row["id"], frozen(row["vector"]), value, row["origin"]), row["region"])


def frozen(vector: Any) -> NDArray[np.float64]:
    """Return a read-only copy of a vector."""
    copy = np.array(vector, dtype=np.float64)
    copy.setflags(write=False)
    return copy


def gains(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values (n,) negated and standardised, the bad tail drawn in; zeros when all are equal.

    A few points that are worse by orders of magnitude say nothing about the optimum, but they would set the
    scale, so values beyond OUTLIER interquartile ranges above the median are clipped.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return np.zeros_like(values)
    values = values / largest
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    if high > low:
        values = np.minimum(values, middle + OUTLIER * (high - low))
    spread = float(values.std())
    if spread <= 1e-14:
        return np.zeros_like(values)
    standardised: NDArray[np.float64] = (values.mean() - values) / spread
    return standardised


def spread(values: NDArray[np.float64]) -> float:
    """Return the standard deviation of values (n,) of any size, without overflow."""
    largest = float(np.abs(values).max(initial=0.0))
    return float((values / largest).std() * largest) if largest > 0 else 0.0
