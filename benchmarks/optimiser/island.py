"""Images of part of the Dr. Probe island in which some one-element columns vary and all others are known.

The part is a periodic rectangle with a margin of known columns; only the region of interest is compared. What
does not change is kept: the gratings of known columns, the waves above the first slice that changed, the exit
wave while only the lens changes. Derivatives of one column are carried through a window around it, as in
`qhrtem.model.window`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optimiser.lens import Lens, detect, intensity, vibration_response
from optimiser.problem import Floats
from optimiser.reference import ENERGY, data
from optimiser.work import Work
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.physics.multislice import propagator, transmission
from qhrtem.physics.potential import (
    PhaseKernels,
    Species,
    Thermal,
    phase_factor,
    radial_frequency,
    soft_band_limit,
)

Ints = NDArray[np.int64]
EXTENT = (28.25, 28.24)  # Å, y and x
DETECTOR = 160  # pixels of the whole field
SLICES = 20
PLANE = 28.24184484 / SLICES  # Å
STAMP = 72  # wave pixels, window of one column's transmission (8.5 Å)
WINDOW = 96  # wave pixels, window of one column's changes (11.3 Å); a multiple of three
MARGIN_PIXELS = 25  # detector pixels (4.4 Å) of known columns around the region of interest
POSITION_STEP = 0.02  # Å, of differences
KEEP_STAMPS = 512


@dataclass(frozen=True)
class Column:
    """Atoms of one element in a row along the beam, `spacing` slices apart."""

    element: str
    b_iso: float  # Å²
    y: float  # Å
    x: float  # Å
    first: int  # slice
    spacing: int  # slices
    count: int

    @property
    def most(self) -> int:
        """Most atoms that fit above the last slice."""
        return (SLICES - 1 - self.first) // self.spacing + 1

    def slices(self, count: int) -> range:
        """Return the slices that hold an atom."""
        return range(self.first, self.first + count * self.spacing, self.spacing)


@lru_cache
def columns() -> tuple[Column, ...]:
    """Return the 192 one-element columns of the island."""
    d = data()
    rows: dict[tuple[str, float, float], list[int]] = {}
    b_iso = {}
    for element, (x, y, z), b in zip(d["surface_element"], d["surface_xyz"], d["surface_b_iso"], strict=True):
        rows.setdefault((str(element), float(y), float(x)), []).append(round(z / PLANE - 0.5))
        b_iso[str(element)] = float(b)
    out = []
    for (element, y, x), found in sorted(rows.items(), key=lambda r: r[0][1:]):
        s = sorted(found)
        gaps = set(np.diff(s))
        if len(gaps) != 1:
            raise ValueError(f"atoms of the {element} column at y = {y} Å, x = {x} Å are not evenly spaced")
        out.append(Column(element, b_iso[element], y, x, s[0], int(gaps.pop()), len(s)))
    return tuple(out)


@lru_cache
def ideal() -> Floats:
    """Return the lattice positions (C, 2) y, x in Å nearest to the columns, fitted element by element.

    Rows are 4.036 Å apart along y for each kind of column, columns 2.824 Å along x.
    """
    cell, half = 4.036, 5.64836897 / 2
    every = columns()
    at = np.array([(c.y, c.x) for c in every])
    kind = np.array([f"{c.element}{c.spacing}" for c in every])
    out = np.empty_like(at)
    for k in set(kind):
        mine = kind == k
        for axis, pitch in enumerate((cell, half)):
            v = at[mine, axis]
            turn = np.angle(np.exp(2j * np.pi * v / pitch).mean()) / (2 * np.pi) * pitch
            out[mine, axis] = turn + pitch * np.round((v - turn) / pitch)
    return out


@dataclass(frozen=True)
class View:
    """Which part of the field is simulated and which pixels are compared."""

    corner: tuple[int, int]  # detector pixels, even
    size: int  # detector pixels; 2·size/3 … 3·size/2 wave pixels
    margin: int  # detector pixels left out on every side

    @staticmethod
    def around(y: float, x: float, size: int = 100, margin: int = MARGIN_PIXELS) -> View:
        """Return a square view centred on a point (Å)."""
        at = [2 * round((v * DETECTOR / e - size / 2) / 2) for v, e in zip((y, x), EXTENT, strict=True)]
        return View((at[0], at[1]), size, margin)

    @staticmethod
    def whole() -> View:
        """Return the whole field, periodic as in the reference, every pixel compared."""
        return View((0, 0), DETECTOR, 0)

    def crop(self, image: Tensor) -> Tensor:
        """Return the compared pixels (..., n, n)."""
        stop = self.size - self.margin
        return image[..., self.margin : stop, self.margin : stop]

    def cut(self, field: Floats) -> Floats:
        """Return the compared pixels of an image of the whole field."""
        n = np.arange(self.margin, self.size - self.margin)
        return field[np.ix_((n + self.corner[0]) % DETECTOR, (n + self.corner[1]) % DETECTOR)]


class Island:
    """Exit waves and images of a view, as functions of the counts and displacements of its free columns."""

    def __init__(
        self,
        view: View,
        free: Sequence[int],
        b_scale: float = 1.0,
        tilt: tuple[float, float] = (0.0, 0.0),
        table: str = "lobato",
        foci: int = 7,
        oversampling: float = 1.5,
        atoms: Sequence[Column] | None = None,
    ) -> None:
        """free: indices into `atoms`; tilt: (x, y), rad; oversampling: wave pixels per detector pixel.

        atoms: all columns; those of Dr. Probe's island when None.
        """
        self.columns = tuple(columns() if atoms is None else atoms)
        self.view, self.free = view, [self.columns[i] for i in free]
        self.ratio = oversampling
        n = round(view.size * oversampling)
        pixel = (EXTENT[0] / DETECTOR / oversampling, EXTENT[1] / DETECTOR / oversampling)
        self.grid, self.window, self.stamp_grid = (Grid((s, s), pixel) for s in (n, WINDOW, STAMP))
        self.image_grid = Grid((view.size,) * 2, (pixel[0] * oversampling, pixel[1] * oversampling))
        self.lens, self.window_lens = Lens(self.grid, ENERGY, foci), Lens(self.window, ENERGY, foci)
        self.step = propagator(self.grid, PLANE, ENERGY, tilt)
        self.window_step = propagator(self.window, PLANE, ENERGY, tilt)
        self.thermal, self.table = Thermal(b_scale), table
        self.work = Work(n * n, SLICES)
        self.species = tuple(dict.fromkeys(Species(c.element, c.b_iso) for c in self.columns))
        origin = [c * e / DETECTOR for c, e in zip(view.corner, EXTENT, strict=True)]
        self.place = np.array(
            [[(c.y - origin[0]) % EXTENT[0], (c.x - origin[1]) % EXTENT[1]] for c in self.columns]
        )
        chosen = list(free)
        at = np.array([(c.y, c.x) for c in self.free]).reshape(-1, 2)
        self.base = self.place[chosen] - (at - ideal()[chosen])
        self.known = self._known(set(free))
        area = pixel[0] * pixel[1]
        self.kernels = {
            (s.element, g.shape[0]): phase_factor(s, radial_frequency(g), ENERGY, self.thermal, table)
            * soft_band_limit(radial_frequency(g), g)
            / area
            for s in self.species
            for g in (self.window, self.stamp_grid)
        }
        self._stamps: dict[tuple[int, float, float], tuple[tuple[Tensor, Tensor], Tensor]] = {}
        self._keys: list[tuple[object, ...]] = []
        self._gratings: list[Tensor] = []
        self._waves: list[Tensor] = []

    def _known(self, free: set[int]) -> Tensor:
        """Transmission functions (slices, n, n) of the columns that do not vary."""
        length = self.grid.extent
        position, owner, kind = [], [], []
        for i, c in enumerate(self.columns):
            if i in free or (self.place[i] >= np.array(length)).any():
                continue
            for j in c.slices(c.count):
                position.append(self.place[i])
                owner.append(j)
                kind.append(self.species.index(Species(c.element, c.b_iso)))
        kernels = PhaseKernels(self.grid, self.species, ENERGY, self.thermal, self.table)
        phases = kernels.phases(
            torch.as_tensor(np.array(position)),
            torch.tensor(owner),
            torch.tensor(kind),
            torch.ones(len(owner), dtype=torch.float64),
            SLICES,
        )
        return transmission(phases).to(torch.complex64)

    def _phase(self, c: int, at: Floats, corner: tuple[int, int], grid: Grid) -> Tensor:
        """Complex phase of one atom of free column c at `at` (y, x in Å) in a window of the wave grid."""
        ky, kx = grid.frequencies()
        y, x = at[0] - corner[0] * grid.pixel[0], at[1] - corner[1] * grid.pixel[1]
        shift = torch.exp(-2j * torch.pi * ky * y) * torch.exp(-2j * torch.pi * kx * x)
        return ifft2(self.kernels[self.free[c].element, grid.shape[0]] * shift).to(torch.complex64)

    def _index(self, corner: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
        n = self.grid.shape[0]
        step = torch.arange(size)
        return ((corner[0] + step) % n)[:, None], ((corner[1] + step) % n)[None, :]

    def _stamp(self, c: int, shift: Floats) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Where and by what an atom of free column c, displaced by `shift` (Å), multiplies a grating."""
        key = (c, float(shift[0]), float(shift[1]))
        if key not in self._stamps:
            at = self.base[c] + shift
            corner = [round(a / p) - STAMP // 2 for a, p in zip(at, self.grid.pixel, strict=True)]
            place = (corner[0], corner[1])
            phase = self._phase(c, at, place, self.stamp_grid)
            if len(self._stamps) > KEEP_STAMPS:
                self._stamps.clear()
            self._stamps[key] = self._index(place, STAMP), torch.exp(1j * phase)
        return self._stamps[key]

    def spectrum(self, counts: Ints, shifts: Floats) -> Tensor:
        """Return the exit-wave spectrum for counts (C,) and displacements (C, 2) y, x in Å."""
        members: list[list[int]] = [[] for _ in range(SLICES)]
        for c, column in enumerate(self.free):
            for j in column.slices(int(counts[c])):
                members[j].append(c)
        keys: list[tuple[object, ...]] = [
            tuple((c, float(shifts[c, 0]), float(shifts[c, 1])) for c in m) for m in members
        ]
        same = next(
            (j for j, (a, b) in enumerate(zip(self._keys, keys, strict=False)) if a != b), len(self._keys)
        )
        del self._waves[same + 1 :]
        del self._gratings[same:]
        if not self._waves:
            self._waves.append(torch.ones(self.grid.shape, dtype=torch.complex64))
        for j in range(same, SLICES):
            grating = self.known[j].clone() if members[j] else self.known[j]
            for c in members[j]:
                where, factor = self._stamp(c, shifts[c])
                grating[where] *= factor
            self._gratings.append(grating)
            behind = fft2(self._waves[j] * grating) * self.step
            self.work.propagated(1)
            if j == SLICES - 1:
                self._exit = behind
            self._waves.append(ifft2(behind))
        self._keys = keys
        return self._exit

    def response(self, vibration: float) -> Tensor:
        """Return the filter of an isotropic image spread, rms in Å."""
        return vibration_response(self.image_grid, (vibration, vibration, 0.0))

    def image(
        self,
        counts: Ints,
        shifts: Floats,
        aberrations: Mapping[str, complex],
        focal_spread: float,
        semi_convergence: float,
        vibration: float,
    ) -> Tensor:
        """Return the compared pixels (n, n), vacuum = 1; units as in `reference.Imaging`."""
        spectrum = self.spectrum(counts, shifts)
        functions, weights = self.lens.transfer(aberrations, focal_spread, semi_convergence)
        sharp = intensity(spectrum, functions, weights)
        self.work.transforms(len(weights) + 1)  # two of real images count as one
        return self.view.crop(detect(sharp, self.response(vibration), self.image_grid.shape))

    def derivatives(
        self,
        counts: Ints,
        shifts: Floats,
        aberrations: Mapping[str, complex],
        focal_spread: float,
        semi_convergence: float,
        vibration: float,
        count: bool,
        position: bool,
    ) -> tuple[Floats, Floats]:
        """Return the change of the compared pixels by one atom more, (C, n, n), and per Å, (C, 2, n, n).

        A column that can hold no further atom has one removed instead, with the opposite sign.
        """
        spectrum = self.spectrum(counts, shifts)
        lens = (aberrations, focal_spread, semi_convergence)
        functions, weights = self.lens.transfer(*lens)
        lens_waves = ifft2(spectrum * functions)
        self.work.transforms(len(weights))
        window_functions, _ = self.window_lens.transfer(*lens)
        n = len(self.free)
        by_atom = np.zeros((n, *self.view.crop(torch.empty(self.image_grid.shape)).shape))
        by_shift = np.zeros((n, 2, *by_atom.shape[1:]))
        small = round(WINDOW / self.ratio)
        image_window = Grid((small, small), self.image_grid.pixel)
        response = vibration_response(image_window, (vibration, vibration, 0.0))
        for c in range(n):
            delta, index, corner = self._changed_waves(c, counts, shifts, count, position)
            base = lens_waves[:, index[0], index[1]]
            inner = ifft2(fft2(delta)[:, None] * window_functions)
            self.work.transforms(len(delta) * (len(weights) + 2), WINDOW * WINDOW)
            sharp = 2 * (base.real * inner.real + base.imag * inner.imag) + inner.real**2 + inner.imag**2
            change = detect(torch.einsum("f,kfyx->kyx", weights, sharp), response, image_window.shape)
            full = torch.zeros((len(change), *self.image_grid.shape))
            at = [(round(k / self.ratio) + torch.arange(small)) % self.image_grid.shape[0] for k in corner]
            full[:, at[0][:, None], at[1][None, :]] = change
            parts = list(self.view.crop(full).double().numpy())
            if count:
                by_atom[c] = parts.pop(0) * (1 if counts[c] < self.free[c].most else -1)
            if position:
                by_shift[c] = np.array(parts) / POSITION_STEP
        return by_atom, by_shift

    def _changed_waves(
        self, c: int, counts: Ints, shifts: Floats, count: bool, position: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[int, int]]:
        """Changes (K, w, w) of the exit wave by one atom and by steps in y and x, and where the window is."""
        at = self.base[c] + shifts[c]
        third = [3 * round((a / p - WINDOW / 2) / 3) for a, p in zip(at, self.grid.pixel, strict=True)]
        corner = (third[0], third[1])
        index = self._index(corner, WINDOW)
        here = self._phase(c, at, corner, self.window)
        held = self.free[c].slices(int(counts[c]))
        factors: list[tuple[set[int], Tensor]] = []
        if count:
            grows = counts[c] < self.free[c].most
            slot = self.free[c].first + self.free[c].spacing * int(counts[c] - (0 if grows else 1))
            factors.append(({slot}, torch.exp((1j if grows else -1j) * here) - 1))
        if position:
            for axis in (0, 1):
                moved = at + POSITION_STEP * np.eye(2)[axis]
                there = self._phase(c, moved, corner, self.window)
                factors.append((set(held), torch.exp(1j * (there - here)) - 1))
        delta = torch.zeros((len(factors), WINDOW, WINDOW), dtype=torch.complex64)
        for j in range(min(min(s) for s, _ in factors), SLICES):
            out = delta.clone()
            wave = self._waves[j][index]
            for k, (slices, factor) in enumerate(factors):
                if j in slices:
                    out[k] += factor * (delta[k] + wave)
            delta = ifft2(fft2(out * self._gratings[j][index]) * self.window_step)
            self.work.propagated(len(delta), WINDOW * WINDOW)
        return delta, index, corner
