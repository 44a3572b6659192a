"""The repeated cell: images of a perfect crystal of every thickness from one multislice pass.

The wave lives on the lattice's own reciprocal points, so any oblique cell, however turned, costs a small FFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.grid import Beams, fft2, good_size, ifft2
from qhrtem.model.microscope import Microscope
from qhrtem.physics.aberrations import chi, chi_gradient
from qhrtem.physics.coherence import equidistant
from qhrtem.physics.electron import wavelength
from qhrtem.physics.multislice import propagator, transmission
from qhrtem.physics.potential import Thermal, phase_factor, soft_band_limit
from qhrtem.specimen.columns import distinct_species
from qhrtem.specimen.crystal import Projection

Floats = NDArray[np.float64]
CELL_PIXEL_A = 0.11


@dataclass(frozen=True)
class CellGrid(Beams):
    """Reciprocal points of a two-dimensional lattice."""

    shape: tuple[int, int]
    reciprocal: tuple[tuple[float, float], tuple[float, float]]  # rows: (k_y, k_x) of both basis vectors, 1/Å
    limit: float  # 1/Å
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    complex_dtype: torch.dtype = torch.complex64

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return k_y and k_x (rows, columns), 1/Å, in FFT order."""
        h = torch.fft.fftfreq(self.shape[0], 1 / self.shape[0], dtype=torch.float64)[:, None]
        k = torch.fft.fftfreq(self.shape[1], 1 / self.shape[1], dtype=torch.float64)[None, :]
        (ay, ax), (by, bx) = self.reciprocal
        return h * ay + k * by, h * ax + k * bx

    def band_limit(self) -> float:
        """Return the band limit in 1/Å."""
        return self.limit


class RepeatedCell:
    """A perfect crystal in a given orientation; its image spectra at all thicknesses."""

    def __init__(
        self, projection: Projection, frame_A: Floats, energy: float, slices: int, table: str = "lobato"
    ) -> None:
        """frame_A: crystal (x, y) @ frame_A = field (y, x) in Å; slices: greatest thickness."""
        self.projection, self.energy, self.slices, self.table = projection, energy, slices, table
        self.repeat = tuple(_repeat(d, projection.period) for d in projection.depth)
        vectors = projection.vectors @ frame_A
        cell = np.diag(self.repeat) @ vectors  # rows: supercell vectors (y, x)
        reciprocal = np.linalg.inv(cell).T
        shape = tuple(good_size(math.ceil(np.linalg.norm(v) / CELL_PIXEL_A)) for v in cell)
        # The largest circle of frequencies that the sampled parallelogram holds, at two thirds.
        height = abs(np.linalg.det(reciprocal)) / np.linalg.norm(reciprocal[::-1], axis=1)
        limit = 2 / 3 * min(h * n / 2 for h, n in zip(height, shape, strict=True))
        (ay, ax), (by, bx) = reciprocal.tolist()
        self.grid = CellGrid((shape[0], shape[1]), ((ay, ax), (by, bx)), limit)
        self.area = abs(float(np.linalg.det(cell)))
        self._thermal: tuple[object, Tensor] | None = None
        ky, kx = self.grid.frequencies()
        self.radius = torch.sqrt(ky**2 + kx**2)

    def _gratings(self, thermal: Thermal) -> Tensor:
        if self._thermal is not None and self._thermal[0] == thermal:
            return self._thermal[1]
        p = self.projection
        species = distinct_species(p)
        taper = soft_band_limit(self.radius, self.grid)
        kernels = [phase_factor(s, self.radius, self.energy, thermal, self.table) * taper for s in species]
        h = torch.fft.fftfreq(self.grid.shape[0], 1 / self.grid.shape[0], dtype=torch.float64)[:, None]
        k = torch.fft.fftfreq(self.grid.shape[1], 1 / self.grid.shape[1], dtype=torch.float64)[None, :]
        spectrum = torch.zeros((p.slices, *self.grid.shape), dtype=torch.complex128)
        inverse = np.linalg.inv(p.vectors)
        for i in range(self.repeat[0]):
            for j in range(self.repeat[1]):
                rise = i * p.depth[0] + j * p.depth[1]
                for kind in p.kinds:
                    for site in kind.sites:
                        offset = kind.offset[site.group] @ inverse
                        u = (kind.fractional[0] + offset[0] + i) / self.repeat[0]
                        v = (kind.fractional[1] + offset[1] + j) / self.repeat[1]
                        n = int(p.slice_of(site.z + rise)) % p.slices
                        phase = torch.polar(torch.ones_like(h + k), -2 * math.pi * (h * u + k * v))
                        spectrum[n] += kernels[species.index(kind.groups[site.group])] * phase
        cells = self.grid.shape[0] * self.grid.shape[1]
        gratings = transmission(ifft2(spectrum) * cells / self.area).to(self.grid.complex_dtype)
        self._thermal = (thermal, gratings)
        return gratings

    def spectra(self, microscope: Microscope) -> Tensor:
        """Return exit-wave spectra (slices, rows, columns) behind every slice, for a unit incident wave."""
        gratings = self._gratings(
            Thermal(round(microscope["b_scale"], 4), round(microscope["absorption"], 4))
        )
        tilt = (microscope["tilt_x"], microscope["tilt_y"])
        step = propagator(self.grid, self.projection.plane, self.energy, tilt)
        out = torch.empty((self.slices, *self.grid.shape), dtype=self.grid.complex_dtype)
        wave = torch.ones(self.grid.shape, dtype=self.grid.complex_dtype)
        for n in range(self.slices):
            out[n] = fft2(wave * gratings[n % self.projection.slices]) * step
            wave = ifft2(out[n])
        return out / (self.grid.shape[0] * self.grid.shape[1])

    def image_coefficients(
        self,
        spectra: Tensor,
        thickness: NDArray[np.int64],
        microscope: Microscope,
        centre: float,
        foci: int = 5,
    ) -> Tensor:
        """Return Fourier coefficients (T, rows, columns) of images at some thicknesses (numbers of slices).

        C1 of the microscope refers to the exit face of a specimen `centre` slices thick; others are taken to
        be centred on the same mid-plane. A mistilt leaves the mid-plane in place. Vibration and MTF
        are not applied. The mean is that of the incident wave: electrons that absorption takes from the
        coherent wave reach the image as a background that is nearly flat within a cell.
        """
        m, lam = microscope, wavelength(self.energy)
        base = chi(self.grid, self.energy, m.coefficients())
        gy, gx = chi_gradient(self.grid, self.energy, m.coefficients())
        ky, kx = self.grid.frequencies()
        rule = equidistant(foci)
        middle = -torch.as_tensor(thickness / 2 * self.projection.plane)[:, None, None]
        total = torch.zeros((len(thickness), *self.grid.shape), dtype=self.grid.dtype)
        chosen = spectra[torch.as_tensor(thickness - 1)]
        # From the exit plane: the shift of focus, and the slide of a tilted frame to the common mid-plane.
        rise = middle + centre / 2 * self.projection.plane
        slide = (kx * math.tan(m["tilt_x"]) + ky * math.tan(m["tilt_y"])) * 2 * math.pi
        phase = middle * slide - rise * math.pi * lam * self.radius**2
        turn = torch.polar(torch.ones_like(phase), phase)
        chosen = chosen * turn.to(chosen.dtype)
        cells = self.grid.shape[0] * self.grid.shape[1]
        for f, w in zip(rule.offset * m["focal_spread"], rule.weight, strict=True):
            slope2 = (gy + f * lam * ky) ** 2 + (gx + f * lam * kx) ** 2
            envelope = torch.exp(-((m["semi_convergence"] * math.pi / lam) ** 2) * slope2)
            transfer = torch.polar(envelope, -(base + math.pi * lam * f * self.radius**2)).to(chosen.dtype)
            wave = ifft2(chosen * transfer) * cells
            total += w * (wave.real**2 + wave.imag**2)
        out = fft2(total) / cells
        out[:, 0, 0] = 1.0
        return out


def _repeat(rise: float, period: float) -> int:
    """Smallest number of lattice steps after which the depth offset is a whole period."""
    for n in range(1, 13):
        if abs(n * rise / period - round(n * rise / period)) < 1e-3:
            return n
    return 12
