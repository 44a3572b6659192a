"""Exit waves and images of a supercell: any atoms at any sub-pixel position, slices of any thickness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import PlanError
from qhrtem.grid import Grid, fft2, irfft2
from qhrtem.physics.coherence import FOCI, Samples, focal_transfer, intensity
from qhrtem.physics.detector import half_frequencies
from qhrtem.physics.lens import Lens
from qhrtem.physics.multislice import (
    Propagation,
    band_limited,
    propagator,
    transmission,
    transmit_propagate,
)
from qhrtem.physics.potential import (
    TAPERS,
    PhaseKernels,
    Species,
    Thermal,
    phase_factor,
    radial_frequency,
)
from qhrtem.specimen.supercell import Slicing, Supercell, slices_of

SAME_PLACE_A = 1e-7  # slices whose atoms agree to this share a transmission function


def grid_of(cell: Supercell, pixel: float, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Grid:
    """Return the coarsest even sampling of the supercell with pixels of at most `pixel` Å."""
    rows, cols = (2 * math.ceil(float(edge) / (2 * pixel) - 1e-9) for edge in cell.extent[:2])
    return Grid((rows, cols), (float(cell.extent[0]) / rows, float(cell.extent[1]) / cols), device, dtype)


class PhaseSeries:
    """Phases by direct summation of the Fourier series, exact up to the Nyquist limit.

    `PhaseKernels` is exact up to the band limit, which is all that the taper "soft" leaves; a taper that
    reaches further needs the rest too, as transmission functions mix all of it. Costs the product of atoms
    and pixels. Same arguments and same `phases` as `PhaseKernels`.
    """

    def __init__(
        self, grid: Grid, species: Sequence[Species], energy: float, thermal: Thermal, table: str, taper: str
    ) -> None:
        self.grid = grid
        g = radial_frequency(grid, half=True)
        shape = TAPERS[taper](g, grid) / (grid.pixel[0] * grid.pixel[1])
        self.factors = torch.stack([phase_factor(s, g, energy, thermal, table) * shape for s in species])
        self.absorbs = bool((self.factors.imag != 0).any())

    def phases(
        self, position: Tensor, slice_index: Tensor, species_index: Tensor, weight: Tensor, slices: int
    ) -> Tensor:
        """Return the phase σV of each slice, (slices, rows, columns), complex where there is absorption."""
        rows, cols = self.grid.shape
        ky, kx = half_frequencies(self.grid)
        n = len(self.factors)
        used, channel = torch.unique(slice_index * n + species_index, return_inverse=True)
        total = torch.zeros((2, slices, rows, cols // 2 + 1), dtype=torch.complex128, device=position.device)
        for c, code in enumerate(used.tolist()):
            y, x = position[channel == c].T
            along_y = torch.exp(-2j * math.pi * ky * y) * weight[channel == c]
            series = along_y @ torch.exp(-2j * math.pi * kx * x[:, None])
            total[0, code // n] += series * self.factors[code % n].real
            total[1, code // n] += series * self.factors[code % n].imag
        real = irfft2(total[0], self.grid.shape).to(self.grid.dtype)
        return torch.complex(real, irfft2(total[1], self.grid.shape).to(real.dtype)) if self.absorbs else real


class SupercellModel:
    """Transmission functions, exit waves and images of one sliced supercell on one grid."""

    def __init__(
        self,
        cell: Supercell,
        slicing: Slicing,
        grid: Grid,
        energy: float,
        thermal: Thermal | None = None,
        table: str = "lobato",
        taper: str = "soft",
        band_limit: Literal["potential", "transmission"] = "potential",
        propagation: Propagation = "fresnel",
    ) -> None:
        """energy: eV; table: of `scattering.TABLES`; taper: of `potential.TAPERS`.

        band_limit: whether the taper of the potential is all ("soft" reaches zero at the band limit), or the
        transmission functions are cut as well (for "nyquist"). Raises `PlanError` where grid, slicing and
        cell disagree.
        """
        edges = tuple(float(e) for e in cell.extent[:2])
        if not np.allclose(grid.extent, edges, rtol=1e-5):
            raise PlanError(
                f"the grid must cover the supercell of {edges[0]:.6g} x {edges[1]:.6g} Å (y, x), got "
                f"{grid.extent[0]:.6g} x {grid.extent[1]:.6g} Å; make it with grid_of"
            )
        if len(slicing.index) != len(cell.kind):
            raise PlanError(
                f"the slicing is of {len(slicing.index)} atoms, the supercell has {len(cell.kind)}"
            )
        self.cell, self.slicing, self.grid, self.energy = cell, slicing, grid, energy
        self.band_limit, self.propagation = band_limit, propagation
        kernels = PhaseKernels if taper == "soft" else PhaseSeries
        self.kernels = kernels(grid, cell.species, energy, thermal or Thermal(), table, taper)

    @cached_property
    def _contents(self) -> tuple[list[np.ndarray], tuple[int, ...]]:
        """Atoms of each distinct slice, and which one each slice of the cell is."""
        found: dict[bytes, int] = {}
        distinct: list[np.ndarray] = []
        order = []
        for atoms in slices_of(self.slicing):
            place = np.round(self.cell.position[atoms, :2] / SAME_PLACE_A).astype(np.int64)
            rows = np.column_stack([self.cell.kind[atoms], place])
            key = rows[np.lexsort(rows.T)].tobytes()
            if key not in found:
                found[key] = len(distinct)
                distinct.append(atoms)
            order.append(found[key])
        return distinct, tuple(order)

    @property
    def order(self) -> tuple[int, ...]:
        """Which of the distinct slices each slice of the cell is, in beam order."""
        return self._contents[1]

    def phases(self, only: slice = slice(None)) -> Tensor:
        """Return the phase σV (rad) of the distinct slices, or of some of them, (U, rows, columns)."""
        distinct, device = self._contents[0][only], self.grid.device
        pick = np.concatenate(distinct)
        owner = np.repeat(np.arange(len(distinct)), [len(a) for a in distinct])
        return self.kernels.phases(
            torch.as_tensor(self.cell.position[pick, :2], device=device),
            torch.as_tensor(owner, device=device),
            torch.as_tensor(self.cell.kind[pick], device=device),
            torch.ones(len(pick), dtype=torch.float64, device=device),
            len(distinct),
        )

    def gratings(self, only: slice = slice(None)) -> Tensor:
        """Return the transmission functions of the distinct slices, or some, (U, rows, columns), complex."""
        functions = transmission(self.phases(only)).to(self.grid.complex_dtype)
        return band_limited(functions, self.grid) if self.band_limit == "transmission" else functions

    def exit_waves(
        self, repeats: Sequence[int], mistilt: tuple[float, float] = (0.0, 0.0), wave: Tensor | None = None
    ) -> Tensor:
        """Return the waves behind so many repeats of the cell along the beam, (len(repeats), rows, columns).

        One pass yields all of them; it holds a transmission function from its first use to its last.
        mistilt: (x, y) in rad, as in `multislice.propagator`; wave: incident wave, default the unit plane
        wave. Raises `PlanError` for repeats below 0.
        """
        if not len(repeats) or min(repeats) < 0:
            raise PlanError(f"repeats along the beam must be at least 0, got {list(repeats)}")
        steps = {
            float(dz): propagator(self.grid, float(dz), self.energy, mistilt, self.propagation)
            for dz in set(self.slicing.thickness.tolist())
        }
        grid = self.grid
        psi = torch.ones(grid.shape, dtype=grid.complex_dtype, device=grid.device) if wave is None else wave
        behind, gratings = {0: psi}, dict[int, Tensor]()
        last = {u: j for j, u in enumerate(self.order)}
        for n in range(1, max(repeats) + 1):
            for j, (u, dz) in enumerate(zip(self.order, self.slicing.thickness.tolist(), strict=True)):
                if u not in gratings:
                    gratings[u] = self.gratings(slice(u, u + 1))[0]
                psi = transmit_propagate(psi, gratings[u], steps[dz])
                if n == max(repeats) and j == last[u]:
                    del gratings[u]
            if n in repeats:
                behind[n] = psi
        return torch.stack([behind[n] for n in repeats])

    def exit_wave(self, repeats: int = 1, mistilt: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Return the wave (rows, columns) behind so many repeats of the cell along the beam."""
        return self.exit_waves([repeats], mistilt)[0]

    def image(
        self,
        lens: Lens,
        repeats: int = 1,
        mistilt: tuple[float, float] = (0.0, 0.0),
        foci: int | Samples = FOCI,
    ) -> Tensor:
        """Return the image (rows, columns), vacuum = 1; C1 of the lens refers to the exit face.

        Raises `PlanError` where the sampling is too coarse for the objective aperture.
        """
        return intensity(fft2(self.exit_wave(repeats, mistilt)), focal_transfer(self.grid, lens, foci))
