"""What one column changes in the image, computed in a window around it.

The wave of the whole field is known; a change of one column adds a wave δ that starts at the changed atoms
and stays near the column, so it is carried through the slices in a small window:

- δ' = P[t δ + s (ψ + δ)], s the change of the transmission function (exact for added or removed atoms);
- δ' = P[t δ + s ψ], s = i t ∂φ (the derivative with respect to a position).

The window holds only δ, never a cut-out of the full wave, so its edges cost nothing but the far tail of δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.model.forward import ForwardModel, paired_size, thermal_of
from qhrtem.model.microscope import Microscope
from qhrtem.physics.coherence import image_waves
from qhrtem.physics.multislice import propagator
from qhrtem.physics.potential import phase_factor, radial_frequency, soft_band_limit
from qhrtem.specimen.columns import ColumnModel

WINDOW_A = 10.0  # Å, for a well-tuned lens
WIDEST_WINDOW_A = 26.0


@dataclass(frozen=True)
class SiteChange:
    """Atoms added to (+1) or removed from (-1) sites of one column."""

    sites: tuple[int, ...]
    sign: int


@dataclass(frozen=True)
class Move:
    """A change of a column: sites added and removed together."""

    changes: tuple[SiteChange, ...]


@dataclass(frozen=True)
class Tangent:
    """The derivative of the image with respect to the position of one element group of a column."""

    group: int
    axis: int  # 0 = y, 1 = x


@dataclass(frozen=True)
class Response:
    """Image changes of one column, as windows of the image grid that start at (row, col) (may wrap)."""

    row: int
    col: int
    change: np.ndarray  # (K, n, n) float32; per atom moves: intensity; per tangent: intensity per Å


class WindowModel:
    """Image changes by single columns around one reference structure and microscope."""

    def __init__(
        self, model: ForwardModel, columns: ColumnModel, microscope: Microscope, width: float | None = None
    ) -> None:
        self.model, self.columns, self.microscope = model, columns, microscope
        field = model.field.grid
        up, down = model.field.ratio
        if width is None:
            width = min(WINDOW_A + 2 * microscope.delocalisation(), WIDEST_WINDOW_A)
        self.size = paired_size(math.ceil(width / model.field.detector_pixel), up, down)  # image pixels
        self.wave_size = self.size * up // down
        self.grid = Grid((self.wave_size,) * 2, field.pixel, field.device, field.dtype)
        self._below: dict[int, Tensor] = {}
        self.stack, self.waves = model.waves(columns, microscope)
        tilt = (microscope["tilt_x"], microscope["tilt_y"])
        self.step = propagator(self.grid, columns.projection.plane, model.energy, tilt)
        self.exit_z = self.stack.exit_z
        self.spectrum = fft2(self.waves[-1])
        self.transfer = model.transfer(microscope, self.exit_z, self.grid)
        self.lens_waves = image_waves(self.spectrum, model.transfer(microscope, self.exit_z))
        image_grid = Grid((self.size, self.size), model.field.image_grid.pixel, field.device, field.dtype)
        self.response = model.response(microscope, image_grid)
        thermal = thermal_of(microscope)
        g = radial_frequency(self.grid)
        area = field.pixel[0] * field.pixel[1]
        taper = soft_band_limit(g, self.grid) / area
        self.kernels = [
            (phase_factor(s, g, model.energy, thermal, model.field.table) * taper).to(torch.complex128)
            for s in columns.species
        ]
        self.species = columns.species
        self.frequencies = self.grid.frequencies()
        self.mask = _radial_mask(self.size)

    def image(self) -> Tensor:
        """Return the image of the reference structure on the image grid."""
        return self.model.image_of(self.spectrum, self.exit_z, self.microscope)

    def _corner(self, position: np.ndarray) -> tuple[int, int]:
        """First image pixel of the window around a position, one that is also a whole wave pixel."""
        down = self.model.field.ratio[1]
        pixel = self.model.field.detector_pixel
        row, col = (down * round((p / pixel - self.size / 2) / down) for p in position)
        return row, col

    def _index(self, row: int, col: int) -> tuple[Tensor, Tensor]:
        rows, cols = self.model.field.grid.shape
        up, down = self.model.field.ratio
        r = (torch.arange(self.wave_size) + row * up // down) % rows
        c = (torch.arange(self.wave_size) + col * up // down) % cols
        return r[:, None], c[None, :]

    def _stamps(self, c: int, corner: tuple[int, int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Complex phase and its derivatives along y and x, for each element group of column c."""
        ky, kx = self.frequencies
        out = []
        kind = self.columns.kind_of(c)
        position = self.columns.group_position()[c]
        for g, s in enumerate(kind.groups):
            y = position[g, 0] - corner[0] * self.model.field.detector_pixel
            x = position[g, 1] - corner[1] * self.model.field.detector_pixel
            shift = torch.polar(torch.ones_like(ky + kx), -2 * math.pi * (ky * y + kx * x))
            spectrum = self.kernels[self.species.index(s)] * shift
            both = torch.stack([spectrum, -2j * math.pi * ky * spectrum, -2j * math.pi * kx * spectrum])
            phase = ifft2(both).to(self.grid.complex_dtype)
            out.append((phase[0], phase[1], phase[2]))
        return out

    def respond(self, c: int, changes: Sequence[Move | Tangent]) -> Response:
        """Return the image changes by moves and position derivatives of column c, each on its own."""
        corner = self._corner(self.columns.group_position()[c, 0])
        index = self._index(*corner)
        sources = [self._sources(c, change) for change in changes]
        stamps = self._stamps(c, corner)
        begin = [min(s) if s else self.stack.first_slice for s in sources]
        rank = sorted(range(len(changes)), key=lambda k: begin[k])
        factor: dict[tuple[int, int], Tensor] = {}
        first, last = self.stack.first_slice, self.stack.first_slice + len(self.stack.order) - 1
        start = min([first, *begin])
        stop = max([last, *(max(s) for s in sources if s)])
        delta = torch.zeros((len(changes), *self.grid.shape), dtype=self.grid.complex_dtype)
        active = 0
        unit = torch.ones(self.grid.shape, dtype=self.grid.complex_dtype)
        for j in range(start, stop + 1):
            while active < len(rank) and begin[rank[active]] <= j:
                active += 1
            if active == 0:
                continue
            psi, grating = self._slice(j, index, unit)
            inside = delta[:active]
            out = inside * grating
            transmitted = psi * grating
            for a in range(active):
                k = rank[a]
                for group, sign in sources[k].get(j, ()):
                    change = changes[k]
                    if isinstance(change, Tangent):
                        out[a] += 1j * stamps[group][1 + change.axis] * transmitted
                    else:
                        if (group, sign) not in factor:
                            factor[group, sign] = torch.exp(1j * sign * stamps[group][0]) - 1
                        out[a] += factor[group, sign] * (transmitted + inside[a] * grating)
            delta[:active] = ifft2(fft2(out) * self.step)
        return Response(*corner, self._image_change(delta, rank, changes, index, stop - last))

    def _slice(self, j: int, index: tuple[Tensor, Tensor], unit: Tensor) -> tuple[Tensor, Tensor]:
        """Wave in front of slice j and its transmission function, in the window."""
        n = j - self.stack.first_slice
        if n < 0:
            return unit, unit
        if n >= len(self.stack.order):
            # Below the last occupied slice the wave only travels on.
            beyond = n - len(self.stack.order)
            return self._travelled(beyond)[index], unit
        return self.waves[n][index], self.stack.gratings[self.stack.order[n]][index]

    def _travelled(self, slices: int) -> Tensor:
        if slices == 0:
            return self.waves[-1]
        if slices not in self._below:
            step = self.model.step(self.columns, self.microscope)
            self._below[slices] = ifft2(fft2(self._travelled(slices - 1)) * step)
        return self._below[slices]

    def _sources(self, c: int, change: Move | Tangent) -> dict[int, list[tuple[int, int]]]:
        """Slice number to (element group, sign) of the atoms that change there."""
        out: dict[int, list[tuple[int, int]]] = {}
        if isinstance(change, Tangent):
            sites = np.arange(self.columns.first[c], self.columns.last[c] + 1)
            signs = np.ones(len(sites), dtype=np.int64)
        else:
            sites = np.array([s for ch in change.changes for s in ch.sites], dtype=np.int64)
            signs = np.array([ch.sign for ch in change.changes for _ in ch.sites], dtype=np.int64)
        if not len(sites):
            return out
        atoms = self.columns.atoms_at(np.full(len(sites), c), sites)
        for j, group, sign in zip(atoms.slice, atoms.group, signs, strict=True):
            if isinstance(change, Move) or group == change.group:
                out.setdefault(int(j), []).append((int(group), int(sign)))
        return out

    def _image_change(
        self,
        delta: Tensor,
        rank: list[int],
        changes: Sequence[Move | Tangent],
        index: tuple[Tensor, Tensor],
        below: int,
    ) -> np.ndarray:
        """Lens, incoherent sum and detector for the changed waves; undoes travel below the exit plane."""
        spectrum = fft2(delta)
        if below:
            spectrum = spectrum * self.step.conj() ** below
        total = torch.zeros(delta.shape, dtype=self.grid.dtype)
        finite = torch.tensor([isinstance(changes[k], Move) for k in rank])
        for f in range(len(self.transfer.weights)):
            base = self.lens_waves[f][index]
            wave = ifft2(spectrum * self.transfer.functions[f])
            term = 2 * (base.real * wave.real + base.imag * wave.imag)
            if bool(finite.any()):
                power = wave[finite]
                term[finite] += power.real**2 + power.imag**2
            total += self.transfer.weights[f] * term
        changed = self.model.detect(total, self.response) * self.mask
        out = torch.empty_like(changed)
        out[rank] = changed
        return out.numpy()


def _radial_mask(n: int) -> Tensor:
    """One inside the window, falling to zero towards the edge of its inscribed circle."""
    r = (torch.arange(n) - n / 2 + 0.5) / (n / 2)
    radius = torch.sqrt(r[:, None] ** 2 + r[None, :] ** 2)
    return 0.5 * torch.erfc((radius - 0.92) / 0.03)
