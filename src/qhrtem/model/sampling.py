"""How coarsely waves may be sampled, measured on single columns of a crystal.

The heavier the atoms of a column and the closer they follow each other, the farther it scatters: on waves
that serve BaTiO3 along [110], what an atom of gold does to an image is wrong by a tenth. Waves therefore pass
through each kind of column alone, sampled finer and finer, until they come out as very fine ones do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhrtem.grid import Grid, fft2
from qhrtem.physics.multislice import all_waves, propagator, transmission
from qhrtem.physics.potential import PhaseKernels, Thermal
from qhrtem.specimen.crystal import ColumnKind, Projection

# Pixels to choose from, the first where nothing is known: of waves of images, of waves of what single columns
# change in an image, and of waves through rigid atoms, which scatter farther than Debye–Waller factors let
# them.
WAVE_PIXELS_A = (0.09, 0.08, 0.07, 0.06)
CHANGE_PIXELS_A = (0.11, 0.10, 0.09, 0.08, 0.07, 0.06)
RIGID_PIXELS_A = (0.06, 0.052, 0.045, 0.038, 0.032)
SMEARED_REFERENCE_A, RIGID_REFERENCE_A = 0.045, 0.025
# Largest error of what a column scatters. Images are compared to the last electron; of a change, a fit asks
# only where to go and how sure it is. Rigid atoms in a row channel more than any that are displaced.
WAVE_ERROR, CHANGE_ERROR, RIGID_ERROR = 0.003, 0.02, 0.045
DEPTH_A = 50.0  # of the column
WIDTH_A = 10.0  # of the periodic area around it
SEEN = 1.25  # 1/Å, spatial frequency up to which a lens passes what is compared


@dataclass(frozen=True)
class Sampling:
    """Coarsest pixels of waves, Å."""

    wave: float = WAVE_PIXELS_A[0]  # of images
    change: float = CHANGE_PIXELS_A[0]  # of what single columns change in them
    rigid: float = RIGID_PIXELS_A[0]  # through rigid atoms


COARSEST = Sampling()
SMEARED, RIGID = Thermal(), Thermal(rigid=True)


def sampling_of(projection: Projection, energy: float) -> Sampling:
    """Return the coarsest sampling on which every kind of column scatters as it should; energy in eV.

    Where none does, the finest there is.
    """

    def coarsest(thermal: Thermal, reference: float, pixels: Sequence[float], error: float) -> float:
        fine = [scattered(projection, kind, energy, reference, thermal) for kind in projection.kinds]
        for pixel in pixels[:-1]:
            waves = (scattered(projection, kind, energy, pixel, thermal) for kind in projection.kinds)
            if all(apart(w, f) <= error for w, f in zip(waves, fine, strict=True)):
                return pixel
        return pixels[-1]

    return Sampling(
        coarsest(SMEARED, SMEARED_REFERENCE_A, WAVE_PIXELS_A, WAVE_ERROR),
        coarsest(SMEARED, SMEARED_REFERENCE_A, CHANGE_PIXELS_A, CHANGE_ERROR),
        coarsest(RIGID, RIGID_REFERENCE_A, RIGID_PIXELS_A, RIGID_ERROR),
    )


def apart(waves: Tensor, reference: Tensor) -> float:
    """Return the largest distance of waves (S, B) behind slices, of the largest norm of the reference."""
    return float((waves - reference).norm(dim=1).max() / reference.norm(dim=1).max())


def scattered(
    projection: Projection, kind: ColumnKind, energy: float, pixel: float, thermal: Thermal = SMEARED
) -> Tensor:
    """Return what a lone column scatters, (S, B): the change of its waves with its position.

    Behind each slice, the Fourier coefficients of the wave up to the frequency `SEEN` times that frequency
    (1/Å). pixel: of the waves, Å, or a little more.
    """
    n = 2 * math.floor(WIDTH_A / (2 * pixel))
    grid = Grid((n, n), (WIDTH_A / n, WIDTH_A / n))
    periods = max(round(DEPTH_A / projection.period), 1)
    species = tuple(dict.fromkeys(kind.groups))
    taper = "nyquist" if thermal.rigid else "soft"
    kernels = PhaseKernels(grid, species, energy, thermal, "lobato", taper)
    gratings = transmission(_phases(projection, kind, kernels)).to(grid.complex_dtype)
    step = propagator(grid, projection.plane, energy, (0.0, 0.0))
    reach = math.floor(SEEN * WIDTH_A)
    beams = torch.arange(-reach, reach + 1)
    frequency = torch.hypot(beams[:, None].double(), beams.double()) / WIDTH_A
    weight = torch.where(frequency <= SEEN, frequency, 0.0)
    behind = all_waves(gratings, tuple(range(len(gratings))) * periods, step)[1:]
    return (fft2(behind)[:, beams[:, None], beams] * weight / n**2).flatten(1)


def _phases(projection: Projection, kind: ColumnKind, kernels: PhaseKernels) -> Tensor:
    """Return the phase (slices of a period, n, n) of a column in the middle of the grid of kernels."""
    z = np.array([site.z for site in kind.sites])
    group = np.array([site.group for site in kind.sites])
    index = np.array([kernels.species.index(g) for g in kind.groups])
    return kernels.phases(
        torch.as_tensor(WIDTH_A / 2 + kind.offset[group, ::-1].copy()),
        torch.as_tensor(projection.slice_of(z) % projection.slices),
        torch.as_tensor(index[group]),
        torch.ones(len(z), dtype=torch.float64),
        projection.slices,
    )
