"""The archive: every point that came back, and which of them a model should learn from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.protocol import Observation
from qhrtem.optimise.space import SearchSpace

SAME = 1e-9  # points nearer than this in every unit coordinate are one point


class Archive:
    """Observations in order of arrival, with their unit-cube coordinates and the region they belong to."""

    def __init__(self, space: SearchSpace) -> None:
        """Start empty."""
        self.space = space
        self.observations: list[Observation] = []
        self.regions: list[int] = []  # restart count when the point was proposed
        self._unit: list[NDArray[np.float64]] = []
        self._best: dict[int | None, Observation] = {}  # of each region, and of all under None

    def __len__(self) -> int:
        return len(self.observations)

    def __iter__(self) -> Iterator[Observation]:
        return iter(self.observations)

    def add(self, observation: Observation, region: int) -> None:
        """Append one observation."""
        self.observations.append(observation)
        self.regions.append(region)
        self._unit.append(self.space.to_unit(observation.vector))
        for key in (None, region):
            lowest = self._best.get(key)
            if not observation.failed and (lowest is None or observation.value < lowest.value):
                self._best[key] = observation

    def best(self, region: int | None = None) -> Observation | None:
        """Return the lowest finite observation, of one region or of all; None where there is none."""
        return self._best.get(region)

    def near(
        self,
        centre: NDArray[np.float64],
        limit: int,
        scale: NDArray[np.float64],
        region: int | None = None,
        apart: float = 0.0,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return unit points (n ≤ limit, d) nearest the centre and their values (n,), to train on.

        Distance is the largest coordinate difference over `scale` (d,); labels of a categorical that differ
        are half the cube apart. Repeated points are merged to their lowest value. A failed point counts as
        the worst value among the others, so that the model avoids its surroundings; without any finite value
        nothing is returned. region: only points proposed by that region. apart: points that a local method
        added are left out where they crowd within this distance of one already kept.
        """
        nothing = np.empty((0, self.space.dimension)), np.empty(0)
        member = np.array([region in (None, r) for r in self.regions], dtype=bool)
        finite = np.array([not o.failed for o in self.observations], dtype=bool)
        if not (member & finite).any():
            return nothing
        points = np.array(self._unit)
        values = np.array([o.value if not o.failed else np.nan for o in self.observations])
        difference = np.abs(points - centre)
        label = self.space.is_categorical
        difference[:, label] = 0.5 * (difference[:, label] > SAME)
        distance = (difference / scale).max(axis=1)
        order = np.lexsort((np.arange(len(values)), np.where(np.isnan(values), np.inf, values), distance))
        order = order[member[order]]
        _, first = np.unique(np.round(points[order] / SAME), axis=0, return_index=True)
        keep = order[np.sort(first)]
        if apart > 0:
            keep = self._uncrowded(keep, points / scale, apart, limit)
        keep = keep[:limit]
        values = values[keep]
        if np.isnan(values).all():
            return nothing
        return points[keep], np.where(np.isnan(values), np.nanmax(values), values)

    def _uncrowded(
        self, order: NDArray[np.intp], points: NDArray[np.float64], apart: float, limit: int
    ) -> NDArray[np.intp]:
        """Return rows in order without the steps of local methods that lie near an earlier row."""
        kept: list[int] = []
        for i in map(int, order):
            step = self.observations[i].origin in ("refined", "added")
            if step and kept and (np.abs(points[kept] - points[i]).max(axis=1) < apart).any():
                continue
            kept.append(i)
            if len(kept) == limit:
                break
        return np.array(kept, dtype=np.intp)

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
