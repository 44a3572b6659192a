"""Reflections of a projected crystal: where an image of it can have spots, and how strong they may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.physics.scattering import form_factor
from qhrtem.specimen.crystal import Projection

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reflections:
    """Reflections of the projected lattice up to a resolution."""

    index: NDArray[np.int64]  # (K, 2)
    g: Floats  # (K, 2) x, y in 1/Å, crystal frame
    strength: Floats  # (K,) kinematic amplitude relative to the strongest


def reflections(projection: Projection, spacing: float) -> Reflections:
    """Return reflections with a spacing above `spacing` Å (one of each Friedel pair), without the origin."""
    reciprocal = np.linalg.inv(projection.vectors).T
    reach = int(np.ceil(np.abs(projection.vectors).sum(1).max() / spacing)) + 1
    index = np.array([(h, k) for h in range(-reach, reach + 1) for k in range(reach + 1) if k > 0 or h > 0])
    g = index @ reciprocal
    keep = np.linalg.norm(g, axis=1) < 1 / spacing
    index, g = index[keep], g[keep]
    radius = np.linalg.norm(g, axis=1)
    amplitude = np.zeros(len(g), dtype=complex)
    for kind in projection.kinds:
        base = np.array(kind.fractional) @ projection.vectors
        for site in kind.sites:
            s = kind.groups[site.group]
            phase = np.exp(-2j * np.pi * (g @ (base + kind.offset[site.group])))
            amplitude += (
                s.occupancy * form_factor(s.element, radius) * np.exp(-s.b_iso * radius**2 / 4) * phase
            )
    strength = np.abs(amplitude)
    order = np.argsort(radius)
    return Reflections(index[order], g[order], (strength / strength.max())[order])
