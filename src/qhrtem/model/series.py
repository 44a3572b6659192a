"""The result of a series: what every frame claims, and what happened between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """What one image of a series claims about C columns; nothing about them where it is refused."""

    number: int  # in the series, from 0
    source: str  # file, and frame in it
    drift_A: NDArray[np.float64]  # (2,) x, y, of the specimen since the first frame
    drift_behind: float  # χ² units by which the next best drift is worse
    site: NDArray[np.int64]  # (C, 3) kind of column and lattice cell: the name that a column keeps
    counts: NDArray[np.int64]  # (C, E) atoms
    p_exact: NDArray[np.float64]  # (C,) probability that all counts are exact
    p_changed: NDArray[
        np.float64
    ]  # (C,) probability that they are others than in the last frame that showed it
    position_px: NDArray[np.float64]  # (C, 2) row, col of the heaviest element
    sigma_px: NDArray[np.float64]  # (C, 2) one standard deviation
    displacement_A: NDArray[np.float64]  # (C, 2) x, y from the ideal lattice
    top_A: NDArray[np.float64]  # (C,) depth of the first atom in the box of the first frame
    bottom_A: NDArray[np.float64]  # (C,) depth of the last atom
    inside: NDArray[np.bool_]  # (C,) in the part of the image that the fit used
    lens: NDArray[np.float64]  # (P,) imaging parameters, in the units of `Series.lens_unit`
    lens_sigma: NDArray[np.float64]  # (P,) one standard deviation, nan where not refined
    chi2_crystal: float
    seconds: float  # that it took
    refused: str = ""  # why nothing is claimed; empty where all gates hold


@dataclass(frozen=True)
class Event:
    """Something that happened to a column between two frames."""

    frame: int  # the first that shows it
    kind: str  # appears, leaves, gains atoms, loses atoms, moves
    site: tuple[int, int, int]
    probability: float  # that it happened, by what is known at this frame
    before: tuple[int, ...]  # (E,) atoms
    after: tuple[int, ...]
    moved_A: tuple[float, float] = (0.0, 0.0)  # x, y, against the lattice; for a column that moves
    lasted: bool = False  # whether the next frame that shows the column agrees


@dataclass(frozen=True)
class Series:
    """Frames of one specimen in the order of time, and the events among them."""

    kinds: tuple[str, ...]  # names of the kinds of column
    elements: tuple[str, ...]  # (E,)
    lens_name: tuple[str, ...]  # (P,)
    lens_unit: tuple[str, ...]
    pixel_size_A: float
    interval_s: float  # from frame to frame, nan where unknown
    frames: tuple[Frame, ...]
    events: tuple[Event, ...]
    dropped: tuple[str, ...] = ()  # files that were left out by the stated policy
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when the first frame and at least half of all claim something."""
        held = [not f.refused for f in self.frames]
        return bool(held and held[0] and 2 * sum(held) >= len(held))

    def name_of(self, site: tuple[int, int, int]) -> str:
        """Return the name of a column, e.g. "BaO 3,-2"."""
        return f"{self.kinds[site[0]]} {site[1]},{site[2]}"
