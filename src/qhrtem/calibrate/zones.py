"""Zone axes proposed from the spectrum: which views of a crystal have their spots where the image has its."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qhrtem.calibrate.candidates import Candidate, distortion, find_candidates
from qhrtem.calibrate.lattice import SCALE_TOLERANCE
from qhrtem.calibrate.reflections import reflections
from qhrtem.calibrate.spectrum import Peaks, Spectrum
from qhrtem.errors import QhrtemError
from qhrtem.specimen.crystal import Crystal, Projection, project

# Low-index directions, the usual ones first; views alike by symmetry are put together below.
ZONES = (
    *((0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, -1, 0), (1, 1, 1)),
    *((1, 1, 2), (1, 2, 1), (2, 1, 1), (2, 1, 0), (1, 2, 0), (1, 0, 2), (2, 0, 1), (0, 1, 2), (0, 2, 1)),
    *((1, 1, 3), (2, 2, 1), (3, 1, 0)),
)
USUAL_DISTORTION = 0.03  # one standard deviation of what cameras and scans leave
COMPARED_A = 1.2  # Å, spacing down to which two views are compared


@dataclass(frozen=True)
class ZoneProposal:
    """How well one view explains the spectrum."""

    zone: tuple[int, int, int]
    candidate: Candidate
    distortion: float = 0.0  # relative, beyond scale and rotation
    alike: tuple[tuple[int, int, int], ...] = ()  # other directions with the same projected reflections

    @property
    def merit(self) -> float:
        """What the spectrum says for the view; one that needs the image bent counts less."""
        return self.candidate.merit * math.exp(-0.5 * (self.distortion / USUAL_DISTORTION) ** 2)

    def evidence(self) -> str:
        """Say it in words."""
        c = self.candidate
        return (
            f"{100 * c.explained:.0f} % of the spots explained, {100 * c.seen:.0f} % of its spots seen, "
            f"pixel size {c.pitch_A:.4g} Å, distortion {100 * self.distortion:.1f} %"
        )


def propose_zones(
    spectrum: Spectrum, peaks: Peaks, crystal: Crystal, stated: float | None, aspect: float = 1.0
) -> list[ZoneProposal]:
    """Return views ranked by how well they explain the spectrum, the best first.

    stated: geometric mean of the pixel pitches in Å; views are compared within its tolerance, or at any scale
    where nothing is stated. aspect: row over column pitch.
    """
    views: list[tuple[Projection, list[tuple[int, int, int]]]] = []
    for zone in ZONES:
        try:
            projection = project(crystal, zone)
        except QhrtemError:
            continue
        for other, zones in views:
            if _alike(projection, other):
                zones.append(zone)
                break
        else:
            views.append((projection, [zone]))
    found = []
    for projection, zones in views:
        near = [
            c
            for c in find_candidates(spectrum, peaks, projection, aspect)
            if stated is None or abs(math.log(c.pitch_A / stated)) <= math.log(1 + SCALE_TOLERANCE)
        ]
        if near:
            found.append(ZoneProposal(zones[0], near[0], distortion(near[0].frame, aspect), tuple(zones[1:])))
    return sorted(found, key=lambda p: -p.merit)


def _alike(a: Projection, b: Projection) -> bool:
    """Whether two views have the same reflections with the same strengths, up to a turn."""
    x, y = reflections(a, COMPARED_A), reflections(b, COMPARED_A)
    if len(x.g) != len(y.g):
        return False
    # Half a per cent of spacing tells the tetragonal axes of a perovskite apart, as an image may.
    rx, ry = (np.linalg.norm(r.g, axis=1) for r in (x, y))
    order_x, order_y = np.lexsort((x.strength, np.round(rx, 4))), np.lexsort((y.strength, np.round(ry, 4)))
    return bool(
        np.allclose(rx[order_x], ry[order_y], rtol=5e-4)
        and np.allclose(x.strength[order_x], y.strength[order_y], atol=0.02)
    )
