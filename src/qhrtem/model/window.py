"""What one column changes in the image, computed in a window around it.

The wave of the whole field is known; a change of one column adds a wave δ that starts at the changed atoms
and stays near the column, so it is carried through the slices in a small window:

- δ' = P[t δ + s (ψ + δ)], s the change of the transmission function (exact for added or removed atoms);
- δ' = P[t δ + s ψ], s = i t ∂φ (the derivative with respect to a position).

The windows hold only δ, never a cut-out of the full wave, so their edges cost nothing but the far tail of δ.
Through the specimen δ travels in a narrow one, which it hardly leaves; the lens, whose aberrations spread it
farther, acts in a wide one. Inside the part that is returned, image changes are within 0.1 % of the vacuum
intensity of those of the whole field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qhrtem.grid import Grid, fft2, good_size, ifft2
from qhrtem.model.forward import ForwardModel, paired_size, thermal_of
from qhrtem.model.microscope import Microscope
from qhrtem.physics.coherence import image_waves
from qhrtem.physics.electron import wavelength
from qhrtem.physics.multislice import propagator, transmission
from qhrtem.physics.potential import phase_factor, radial_frequency, soft_band_limit
from qhrtem.specimen.columns import ColumnModel

USED_A = 10.0  # Å, edge of the part of a window that is returned, for a well-tuned lens
NEAR_A = 7.5  # Å, edge of the part in which δ travels through a thin specimen
SPREAD = 1.25  # 1/Å, spatial frequency up to which δ spreads on the way through a thick one
GUARD_A = 2.0  # Å on every side, computed and dropped: what leaves a window comes back at its other side
WIDEST_USED_A = 22.0


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
class _Act:
    """What a change does in one slice."""

    axis: int | None  # of a derivative by position, None where atoms come or go
    atoms: tuple[tuple[int, int], ...]  # element group and sign of each


@dataclass(frozen=True)
class Response:
    """Image changes of one column, as windows of the image grid that start at (row, col) (may wrap)."""

    row: int
    col: int
    change: np.ndarray  # (K, n, n) float32; per atom moves: intensity; per tangent: intensity per Å


class WindowModel:
    """Image changes by single columns around one reference structure and microscope."""

    def __init__(
        self,
        model: ForwardModel,
        columns: ColumnModel,
        microscope: Microscope,
        width: float | None = None,
        near: float | None = None,
    ) -> None:
        """width: edge of the returned part, Å; by default what the lens needs. near: edge of the part in
        which waves travel through the specimen, Å; by default what its thickness needs."""
        self.model, self.columns, self.microscope = model, columns, microscope
        field = model.field.grid
        up, down = model.field.ratio
        if width is None:
            width = min(USED_A + 2 * microscope.delocalisation(), WIDEST_USED_A)
        pixel = model.field.detector_pixel
        self.size = paired_size(math.ceil((width + 2 * GUARD_A) / pixel), up, down)  # image pixels
        self.guard = math.floor(GUARD_A / pixel)  # image pixels
        self.wave_size = self.size * up // down
        lens_grid = Grid((self.wave_size,) * 2, field.pixel, field.device, field.dtype)
        self._below: dict[int, Tensor] = {}
        self.stack, self.waves = model.waves(columns, microscope)
        if near is None:
            thickness = len(self.stack.order) * columns.projection.plane
            near = NEAR_A + 2 * SPREAD * wavelength(model.energy) * thickness
        self.near_size = min(good_size(math.ceil(near / field.pixel[0])), self.wave_size)  # wave pixels
        self.grid = Grid((self.near_size,) * 2, field.pixel, field.device, field.dtype)
        tilt = (microscope["tilt_x"], microscope["tilt_y"])
        self.step = propagator(self.grid, columns.projection.plane, model.energy, tilt)
        self.exit_z = self.stack.exit_z
        self.spectrum = fft2(self.waves[-1])
        self.transfer = model.transfer(microscope, self.exit_z, lens_grid)
        # A change of the waves adds Σ_f w_f (2 Re ψ_f* δ_f + |δ_f|²) to the image; here is 2 w_f ψ_f*.
        double = 2 * self.transfer.weights[:, None, None]
        waves = image_waves(self.spectrum, model.transfer(microscope, self.exit_z))
        self.interference = (double * waves.conj()).resolve_conj()
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
        self.mask = _radial_mask(self.size - 2 * self.guard).to(field.device)

    def _corner(self, position: np.ndarray) -> tuple[int, int]:
        """First image pixel of the window around a position, one that is also a whole wave pixel."""
        down = self.model.field.ratio[1]
        pixel = self.model.field.detector_pixel
        row, col = (down * round((p / pixel - self.size / 2) / down) for p in position)
        return row, col

    def _cut(self, field: Tensor, corner: tuple[int, int], n: int) -> Tensor:
        """Return the part (n, n) of a field (rows, columns) that starts at a wave pixel; it may wrap."""
        rows, cols = field.shape
        row, col = corner[0] % rows, corner[1] % cols
        if row + n <= rows and col + n <= cols:
            return field[row : row + n, col : col + n]
        r = (torch.arange(n, device=field.device) + row) % rows
        c = (torch.arange(n, device=field.device) + col) % cols
        return field[r[:, None], c[None, :]]

    def _stamps(self, c: int, corner: tuple[int, int], slopes: bool) -> list[Tensor]:
        """Complex phase (1, n, n) of each element group of column c; (3, n, n) with slopes along y and x."""
        ky, kx = self.frequencies
        out = []
        kind = self.columns.kind_of(c)
        position = self.columns.group_position()[c]
        for g, s in enumerate(kind.groups):
            y = position[g, 0] - corner[0] * self.grid.pixel[0]
            x = position[g, 1] - corner[1] * self.grid.pixel[1]
            spectrum = self.kernels[self.species.index(s)] * torch.outer(
                torch.exp(-2j * math.pi * y * ky[:, 0]), torch.exp(-2j * math.pi * x * kx[0])
            )
            parts = [spectrum]
            if slopes:
                parts += [-2j * math.pi * ky * spectrum, -2j * math.pi * kx * spectrum]
            out.append(ifft2(torch.stack(parts).to(self.grid.complex_dtype)))
        return out

    def respond(self, c: int, changes: Sequence[Move | Tangent]) -> Response:
        """Return the image changes by moves and position derivatives of column c, each on its own."""
        corner = self._corner(self.columns.group_position()[c, 0])
        up, down = self.model.field.ratio
        wide = corner[0] * up // down, corner[1] * up // down  # the same in wave pixels
        inset = (self.wave_size - self.near_size) // 2
        delta = self._exit_changes(c, changes, (wide[0] + inset, wide[1] + inset))
        images = self._image_change(functional.pad(delta, (inset,) * 4), changes, wide)
        return Response(corner[0] + self.guard, corner[1] + self.guard, images)

    def _exit_changes(self, c: int, changes: Sequence[Move | Tangent], corner: tuple[int, int]) -> Tensor:
        """Return what changes of column c do to the exit wave, (K, n, n) from a wave pixel on.

        Changes that have acted alike so far share one wave: a slide is a move of the upper end until the
        lower one follows.
        """
        acts = [self._acts(c, change) for change in changes]
        stamps = self._stamps(c, corner, any(isinstance(change, Tangent) for change in changes))
        first, last = self.stack.first_slice, self.stack.first_slice + len(self.stack.order) - 1
        seen: dict[int, Tensor] = {}
        factor: dict[tuple[int, int], Tensor] = {}
        none = torch.zeros((1, *self.grid.shape), dtype=self.grid.complex_dtype, device=self.grid.device)
        delta = none[:0]
        # First the changes that have not acted yet, then those of each wave of `delta`.
        shared = [list(range(len(changes)))]
        stop = max([last, *(max(a) for a in acts if a)])
        for j in range(min([first, *(min(a) for a in acts if a)]), stop + 1):
            rows, acting, shared = _parted(shared, acts, j)
            if rows != list(range(len(delta) + 1)):
                delta = torch.cat([none, delta])[rows[1:]]
            if not len(delta):
                continue
            grating = self._grating(j, corner, seen)
            if grating is not None:
                delta *= grating
            if any(acting):
                psi = self._wave(j, corner)
                transmitted = psi if grating is None else psi * grating
            for wave, act in zip(delta, acting[1:], strict=True):
                if act is None:
                    continue
                whole = transmitted if act.axis is not None else transmitted + wave
                for group, sign in act.atoms:
                    if act.axis is not None:
                        wave += 1j * stamps[group][1 + act.axis] * whole
                        continue
                    if (group, sign) not in factor:
                        factor[group, sign] = transmission(sign * stamps[group][0]) - 1
                    wave += factor[group, sign] * whole
            delta = ifft2(fft2(delta).mul_(self.step))
        if stop > last:
            # Waves below the last occupied slice came too far.
            delta = ifft2(fft2(delta) * self.step.conj() ** (stop - last))
        row = {k: n for n, members in enumerate(shared) for k in members}
        return torch.cat([none, delta])[[row[k] for k in range(len(changes))]]

    def _grating(self, j: int, corner: tuple[int, int], seen: dict[int, Tensor]) -> Tensor | None:
        """Transmission function (n, n) of slice j from a corner on, None where the slice is empty."""
        n = j - self.stack.first_slice
        if not 0 <= n < len(self.stack.order):
            return None
        u = self.stack.order[n]
        if u not in seen:
            seen[u] = self._cut(self.stack.gratings[u], corner, self.near_size).contiguous()
        return seen[u]

    def _wave(self, j: int, corner: tuple[int, int]) -> Tensor:
        """Wave (n, n) in front of slice j from a corner on."""
        n = j - self.stack.first_slice
        if n < 0:
            return torch.ones(self.grid.shape, dtype=self.grid.complex_dtype, device=self.grid.device)
        if n >= len(self.stack.order):
            # Below the last occupied slice the wave only travels on.
            return self._cut(self._travelled(n - len(self.stack.order)), corner, self.near_size)
        return self._cut(self.waves[n], corner, self.near_size)

    def _travelled(self, slices: int) -> Tensor:
        if slices == 0:
            return self.waves[-1]
        if slices not in self._below:
            step = self.model.step(self.columns, self.microscope)
            self._below[slices] = ifft2(fft2(self._travelled(slices - 1)) * step)
        return self._below[slices]

    def _acts(self, c: int, change: Move | Tangent) -> dict[int, _Act]:
        """Return what a change of column c does in each slice that it touches."""
        out: dict[int, list[tuple[int, int]]] = {}
        if isinstance(change, Tangent):
            sites = np.arange(self.columns.first[c], self.columns.last[c] + 1)
            signs = np.ones(len(sites), dtype=np.int64)
        else:
            sites = np.array([s for ch in change.changes for s in ch.sites], dtype=np.int64)
            signs = np.array([ch.sign for ch in change.changes for _ in ch.sites], dtype=np.int64)
        if not len(sites):
            return {}
        atoms = self.columns.atoms_at(np.full(len(sites), c), sites)
        for j, group, sign in zip(atoms.slice, atoms.group, signs, strict=True):
            if isinstance(change, Move) or group == change.group:
                out.setdefault(int(j), []).append((int(group), int(sign)))
        axis = change.axis if isinstance(change, Tangent) else None
        return {j: _Act(axis, tuple(atoms)) for j, atoms in out.items()}

    def _image_change(
        self, delta: Tensor, changes: Sequence[Move | Tangent], corner: tuple[int, int]
    ) -> np.ndarray:
        """Lens, incoherent sum and detector for the changed waves at the exit plane."""
        spectrum = fft2(delta)
        finite = [k for k, change in enumerate(changes) if isinstance(change, Move)]
        linear = torch.zeros_like(delta)
        square = torch.zeros((len(finite), *delta.shape[1:], 2), dtype=self.grid.dtype, device=delta.device)
        for f, weight in enumerate(self.transfer.weights.tolist()):
            wave = ifft2(spectrum * self.transfer.functions[f])
            linear.addcmul_(wave, self._cut(self.interference[f], corner, self.wave_size))
            parts = torch.view_as_real(wave)
            for n, k in enumerate(finite):
                square[n].addcmul_(parts[k], parts[k], value=weight)
        total = linear.real.clone()
        total.index_add_(0, torch.tensor(finite, dtype=torch.long, device=total.device), square.sum(-1))
        inner = slice(self.guard, self.size - self.guard)
        changed = self.model.detect(total, self.response)[..., inner, inner] * self.mask
        return changed.cpu().numpy()


def _parted(
    shared: list[list[int]], acts: list[dict[int, _Act]], j: int
) -> tuple[list[int], list[_Act | None], list[list[int]]]:
    """Return how waves part in slice j: the wave that each comes from, what acts on it, its changes.

    shared: the changes of each wave so far. The first stays that of changes that have not acted.
    """
    rows: list[int] = []
    acting: list[_Act | None] = []
    out: list[list[int]] = []
    for n, members in enumerate(shared):
        groups: dict[_Act | None, list[int]] = {None: []} if n == 0 else {}
        for k in members:
            groups.setdefault(acts[k].get(j), []).append(k)
        rows += [n] * len(groups)
        acting += groups
        out += groups.values()
    return rows, acting, out


def _radial_mask(n: int) -> Tensor:
    """One inside, falling to zero towards the edge of the inscribed circle."""
    r = (torch.arange(n) - n / 2 + 0.5) / (n / 2)
    radius = torch.sqrt(r[:, None] ** 2 + r[None, :] ** 2)
    return 0.5 * torch.erfc((radius - 0.92) / 0.03)
