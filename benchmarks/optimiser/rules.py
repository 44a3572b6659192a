"""Physics rules of the benchmark problems, vectorised because searches test thousands of candidates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from optimiser.problem import Floats
from qhrtem.physics.aberrations import ROUND, TERMS
from qhrtem.physics.electron import wavelength


@dataclass(frozen=True)
class ConfinedDetail:
    """The lens may carry 1 Å detail sideways by at most `limit`: fringes end where the crystal ends."""

    energy: float  # eV
    keys: tuple[tuple[str, complex], ...]  # coefficient of `TERMS` and 1 or i, of the entries that follow
    first: int  # where the coefficients begin in a vector
    scale: tuple[float, ...]  # natural unit in Å
    limit: float  # Å
    name: str = "confined detail"
    matrix: Floats = field(init=False, repr=False)  # (2·directions, K) displacement per natural unit, Å

    def __post_init__(self) -> None:
        lam = wavelength(self.energy)
        angle = np.arange(16) * np.pi / 8
        w = torch.as_tensor((lam * np.array([0.5, 0.7, 0.85, 1.0]))[:, None] * np.exp(1j * angle)).ravel()
        rows = []
        for name, unit in self.keys:
            weight, p, q = TERMS[name]
            along = p * w ** max(p - 1, 0) * w.conj() ** q if p else torch.zeros_like(w)
            across = q * w**p * w.conj() ** max(q - 1, 0) if q else torch.zeros_like(w)
            gx, gy = (unit * (along + across)).real, (unit * 1j * (along - across)).real
            rows.append(weight * torch.cat([gx, gy]))
        object.__setattr__(self, "matrix", torch.stack(rows, 1).numpy() * np.array(self.scale))

    def displacement(self, vector: Floats) -> float:
        """Return the largest displacement in Å."""
        g = self.matrix @ vector[self.first : self.first + len(self.keys)]
        n = len(g) // 2
        return float(np.sqrt((g[:n] ** 2 + g[n:] ** 2).max()))

    def allows(self, vector: Floats) -> bool:
        """Return whether a vector keeps detail within the limit."""
        return self.displacement(vector) <= self.limit


@dataclass(frozen=True)
class NeighbourStep:
    """Exit surfaces of neighbouring columns may differ in depth by at most `limit`."""

    pairs: NDArray[np.int64]  # (N, 2) columns
    first: Floats  # (C,) Å, depth of the first atom
    spacing: Floats  # (C,) Å, distance of atoms along the beam
    limit: float  # Å
    name: str = "neighbour step"

    def allows(self, vector: Floats) -> bool:
        """Return whether all steps are small enough; the vector begins with the atom counts (C,)."""
        exits = self.first + (vector[: len(self.first)] - 1) * self.spacing
        step = exits[self.pairs[:, 0]] - exits[self.pairs[:, 1]]
        return bool((np.abs(step) <= self.limit).all())


@dataclass(frozen=True)
class MinimumDistance:
    """Projected positions of neighbouring columns stay apart by a share of their ideal distance."""

    pairs: NDArray[np.int64]  # (N, 2) columns, the free ones first, then the known ones
    least: Floats  # (N,) Å
    ideal: Floats  # (C + K, 2) y, x in Å
    free: int  # C
    start: int  # where the displacements (y, x in pm by column) begin in a vector
    name: str = "minimum distance"

    def allows(self, vector: Floats) -> bool:
        """Return whether all pairs are far enough apart."""
        p = self.ideal.copy()
        p[: self.free] += vector[self.start : self.start + 2 * self.free].reshape(-1, 2) / 100
        apart = p[self.pairs[:, 0]] - p[self.pairs[:, 1]]
        return bool(((apart**2).sum(1) >= self.least**2).all())


def lens_keys(names: tuple[str, ...]) -> tuple[tuple[str, complex], ...]:
    """Return the real and, where there is one, imaginary part of each coefficient."""
    return tuple((n, u) for n in names for u in ((1.0,) if n in ROUND else (1.0, 1j)))
