"""The image that thermally displaced atoms add to the coherent one (thermal diffuse scattering).

Electrons that leave the coherent wave by thermal diffuse scattering still reach the image, so neither
Debye–Waller factors alone nor an absorptive potential alone give the right intensity. The difference between
the average over frozen-phonon configurations (Loane, Xu and Silcox 1991) and the coherent image changes
slowly with the structure; it is computed now and then and added to the fast coherent image in between.

Configurations come as antithetic pairs (u, -u), which cancels the part of the noise linear in u, and the
displacements of atoms of one column are orthogonal across configurations with exact second moments, which
cancels their cross terms. A handful of configurations then reaches what plain sampling needs a hundred for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.grid import fft2, ifft2, irfft2, rfft2
from qhrtem.model.forward import ForwardModel, resampled
from qhrtem.model.microscope import Microscope
from qhrtem.physics.coherence import intensity, spread_transfer
from qhrtem.physics.detector import vibration_filter
from qhrtem.physics.multislice import exit_wave, transmission
from qhrtem.physics.potential import PhaseKernels, Thermal
from qhrtem.specimen.columns import AtomList, ColumnModel

Floats = NDArray[np.float64]
AT_ONCE = 2**20  # pixels of transmission functions; arrays of more are slower to get than to fill
SLOPE_PAIRS, SLOPE_STEP = 2, 0.2  # frozen-phonon pairs, and change of the Debye–Waller scale, for its slope
SPREAD_A = 1.0  # blur of the background that the source makes of beams at high angles


@dataclass(frozen=True)
class Diffuse:
    """What thermal diffuse scattering adds to the coherent image, near one Debye–Waller scale.

    The coherent image alone answers a Debye–Waller scale wrongly, for heavy atoms by half: it does not know
    where the electrons that it loses come down.
    """

    image: Tensor | float = 0.0  # image grid, vacuum = 1
    slope: Tensor | float = 0.0  # image grid, change for one more of the Debye–Waller scale
    b_scale: float = 1.0  # that `image` was computed for
    pairs: int = 0  # of frozen phonons that `image` averages, 0 where that is not known

    @classmethod
    def without_slope(cls, image: Tensor | NDArray[np.float32], microscope: Microscope) -> Diffuse:
        """Return an addition (image grid) of which only the value at a microscope's scale is known."""
        return cls(torch.as_tensor(image), b_scale=microscope["b_scale"])

    def at(self, microscope: Microscope) -> Tensor | float:
        """Return the addition (image grid) at the Debye–Waller scale of a microscope."""
        return self.image + (microscope["b_scale"] - self.b_scale) * self.slope

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Diffuse:
        """Return the addition with its images changed alike, such as moved."""
        image, slope = (change(v) if isinstance(v, Tensor) else v for v in (self.image, self.slope))
        return Diffuse(image, slope, self.b_scale, self.pairs)

    def pooled(self, other: Diffuse, microscope: Microscope) -> Diffuse:
        """Return the mean with another average, at a microscope's scale, each by its number of pairs."""
        total = self.pairs + other.pairs
        image = (self.pairs * self.at(microscope) + other.pairs * other.at(microscope)) / total
        return Diffuse(image, self.slope, microscope["b_scale"], total)


def displacement_pairs(atoms: AtomList, sigma: Floats, pairs: int, generator: np.random.Generator) -> Floats:
    """Return displacements (pairs, N, 2) in Å; each stands for itself and its negative.

    sigma: (N,) standard deviation along each axis, Å. Over the pairs every coordinate has the exact second
    moment σ², and up to `pairs` successive coordinates of one column are orthogonal to each other. The
    generator gives one seed, from which the draw of an atom follows by its column and site alone: specimens
    that differ in other atoms are compared under the same displacements.
    """
    seed = int(generator.integers(2**63))
    coordinate = 2 * atoms.site[:, None] + np.arange(2)  # (N, 2)
    block, place = np.divmod(coordinate, pairs)
    keys, which = np.unique(
        np.stack(np.broadcast_arrays(atoms.column[:, None], block), axis=-1).reshape(-1, 2),
        axis=0,
        return_inverse=True,
    )
    draws = np.empty((len(keys), pairs, pairs))
    for draw, (column, number) in zip(draws, keys.tolist(), strict=True):
        # Sites are counted from anywhere, seeds from zero.
        own = np.random.default_rng([seed, column, 2 * abs(number) + (number < 0)])
        draw[...] = own.standard_normal((pairs, pairs))
    q, r = np.linalg.qr(draws)
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    unit = q[which.reshape(coordinate.shape), :, place] * math.sqrt(pairs)  # (N, 2, pairs)
    return np.asarray(np.moveaxis(unit, -1, 0) * sigma[None, :, None])


class RigidModel:
    """Images of one column model with its atoms displaced one by one.

    Rigid atoms scatter much farther than Debye–Waller factors let them: at 0.09 Å with limited potentials the
    image of 4.5 nm BaTiO3 [110] is 2 % of vacuum off. So waves are sampled finer than those of the coherent
    image, with potentials that reach nearly to the Nyquist frequency; at 0.06 Å that leaves 0.4 %, and so it
    would were the transmission functions cut at the band limit. Heavier columns ask for finer ones still.
    """

    def __init__(
        self,
        model: ForwardModel,
        columns: ColumnModel,
        microscope: Microscope,
        pixel: float | None = None,
        conserve: bool = True,
        taper: str = "nyquist",
    ) -> None:
        """pixel: coarsest sampling of the waves, Å, by default what the crystal asks; conserve: return what
        source envelopes take away; taper: of the potentials, of `potential.TAPERS`."""
        pixel = pixel or model.field.sampling.rigid
        field = resampled(model.field, min(pixel, *model.field.grid.pixel))
        fine = ForwardModel(field, model.energy)
        self.grid = field.grid
        thermal = Thermal(rigid=True)
        self.kernels = PhaseKernels(self.grid, columns.species, model.energy, thermal, field.table, taper)
        self.atoms = columns.atoms()
        b = np.array([s.b_iso for s in columns.species])[self.atoms.species] * microscope["b_scale"]
        self.sigma: Floats = np.sqrt(b / (8 * math.pi**2))  # (N,) thermal displacement along each axis, Å
        low, high = int(self.atoms.slice.min()), int(self.atoms.slice.max())
        self.slices = high - low + 1
        device = self.grid.device
        self._group = max(AT_ONCE // (self.grid.shape[0] * self.grid.shape[1]), 1)
        self._owner = torch.as_tensor(self.atoms.slice - low, device=device)
        self._species = torch.as_tensor(self.atoms.species, device=device)
        self._weight = torch.ones(len(self.atoms.z), dtype=torch.float64, device=device)
        p = columns.projection
        self._step = fine.step(columns, microscope)
        exit_z = p.origin + (high + 0.5) * p.plane
        self._transfer = fine.transfer(microscope, exit_z)
        self.lens = microscope.lens(field.reference_z - exit_z)
        self._spread = spread_transfer(self.grid, self.lens, self._transfer) if conserve else None
        self._blur = vibration_filter(self.grid, SPREAD_A**2, SPREAD_A**2, 0.0)
        self._response = fine.response(microscope)
        self._detect = fine.detect

    def spectrum(self, displacement: Floats) -> Tensor:
        """Return the exit-wave spectrum with atoms moved by (N, 2) y, x in Å."""
        position = torch.as_tensor(self.atoms.position + displacement, device=self.grid.device)
        wave: Tensor | None = None
        for first in range(0, self.slices, self._group):
            number = min(self._group, self.slices - first)
            mine = (self._owner >= first) & (self._owner < first + number)
            atoms = position[mine], self._owner[mine] - first, self._species[mine], self._weight[mine]
            gratings = transmission(self.kernels.phases(*atoms, number)).to(self.grid.complex_dtype)
            wave = exit_wave(gratings, range(number), self._step, wave)
        assert wave is not None
        return fft2(wave)

    def sharp(self, displacement: Floats) -> Tensor:
        """Return the intensity on the wave grid with atoms moved by (N, 2) y, x in Å."""
        spectrum = self.spectrum(displacement)
        sharp = intensity(spectrum, self._transfer)
        if self._spread is None:
            return sharp
        spread = ifft2(spectrum * self._spread).abs().square()
        return sharp + irfft2(rfft2(spread) * self._blur, self.grid.shape)

    def detect(self, sharp: Tensor) -> Tensor:
        """Return an intensity of the wave grid as the detector sees it."""
        return self._detect(sharp, self._response)

    def average(self, pairs: int, generator: np.random.Generator, workers: int = 1) -> Tensor:
        """Return the mean image over 2·pairs displaced configurations, as the detector sees it.

        workers: threads that share the configurations; the result does not depend on their number.
        """
        moves = displacement_pairs(self.atoms, self.sigma, pairs, generator)
        total = torch.zeros(self.grid.shape, dtype=self.grid.dtype, device=self.grid.device)

        def both(move: Floats) -> Tensor:
            with torch.inference_mode():
                return self.sharp(move) + self.sharp(-move)

        with ThreadPoolExecutor(workers) as pool:
            for pair in pool.map(both, moves):
                total += pair
        return self.detect(total / (2 * pairs))


def frozen_phonon_image(
    model: ForwardModel,
    columns: ColumnModel,
    microscope: Microscope,
    pairs: int,
    generator: np.random.Generator,
    workers: int = 1,
    conserve: bool = True,
) -> Tensor:
    """Return the average image over 2·pairs displaced configurations, on the image grid, vacuum = 1.

    Displacements follow B of each species times the microscope's Debye–Waller scale (independent atoms).
    workers: as in `RigidModel.average`; conserve: as in `RigidModel`.
    """
    return RigidModel(model, columns, microscope, conserve=conserve).average(pairs, generator, workers)


def diffuse_image(
    model: ForwardModel,
    columns: ColumnModel,
    microscope: Microscope,
    pairs: int,
    generator: np.random.Generator,
    workers: int = 1,
) -> Tensor:
    """Return what thermal diffuse scattering adds to the coherent image of `ForwardModel.image`."""
    full = frozen_phonon_image(model, columns, microscope, pairs, generator, workers)
    return full - model.image(columns, microscope)


def diffuse_around(
    model: ForwardModel,
    columns: ColumnModel,
    microscope: Microscope,
    pairs: int,
    generator: np.random.Generator,
    workers: int = 1,
    slope: Tensor | None = None,
) -> Diffuse:
    """Return what thermal diffuse scattering adds, and how that follows the Debye–Waller scale.

    slope: where it is known; else it is a difference under the same displacements, scaled, of `SLOPE_PAIRS`
    pairs.
    """
    image = diffuse_image(model, columns, microscope, pairs, generator, workers)
    if slope is not None:
        return Diffuse(image, slope, microscope["b_scale"], pairs)
    seed = int(generator.integers(2**63))
    scale = microscope["b_scale"]

    def few(b: float) -> Tensor:
        again = np.random.default_rng(seed)
        return diffuse_image(model, columns, microscope.with_values(b_scale=b), SLOPE_PAIRS, again, workers)

    return Diffuse(image, (few(scale + SLOPE_STEP) - few(scale)) / SLOPE_STEP, scale, pairs)
