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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.grid import fft2
from qhrtem.model.forward import ForwardModel
from qhrtem.model.microscope import Microscope
from qhrtem.physics.coherence import intensity
from qhrtem.physics.multislice import exit_wave, transmission
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.columns import AtomList, ColumnModel

Floats = NDArray[np.float64]


def displacement_pairs(atoms: AtomList, sigma: Floats, pairs: int, generator: np.random.Generator) -> Floats:
    """Return displacements (pairs, N, 2) in Å; each stands for itself and its negative.

    sigma: (N,) standard deviation along each axis, Å. Over the pairs every coordinate has the exact second
    moment σ², and up to `pairs` coordinates of one column are orthogonal to each other.
    """
    out = np.empty((pairs, len(sigma), 2))
    for column in np.unique(atoms.column):
        mine = np.flatnonzero(atoms.column == column)
        coordinates = 2 * len(mine)
        blocks = []
        for start in range(0, coordinates, pairs):
            draw = generator.standard_normal((pairs, min(pairs, coordinates - start)))
            q, r = np.linalg.qr(draw)
            blocks.append(q * np.sign(np.diag(r)) * math.sqrt(pairs))
        out[:, mine] = np.concatenate(blocks, axis=1).reshape(pairs, len(mine), 2)
    return out * sigma[None, :, None]


def frozen_phonon_image(
    model: ForwardModel,
    columns: ColumnModel,
    microscope: Microscope,
    pairs: int,
    generator: np.random.Generator,
) -> Tensor:
    """Return the average image over 2·pairs displaced configurations, on the image grid, vacuum = 1.

    Displacements follow B of each species times the microscope's Debye–Waller scale (independent atoms).
    """
    atoms = columns.atoms()
    b = np.array([s.b_iso for s in columns.species])[atoms.species] * microscope["b_scale"]
    moves = displacement_pairs(atoms, np.sqrt(b / (8 * math.pi**2)), pairs, generator)
    kernels = model.kernels(columns, Thermal(rigid=True))
    grid = model.field.grid
    low, high = int(atoms.slice.min()), int(atoms.slice.max())
    owner = torch.as_tensor(atoms.slice - low)
    species = torch.as_tensor(atoms.species)
    weight = torch.ones(len(atoms.z), dtype=torch.float64)
    p = columns.projection
    exit_z = p.origin + (high + 0.5) * p.plane
    step = model.step(columns, microscope)
    transfer = model.transfer(microscope, exit_z)
    total = torch.zeros(grid.shape, dtype=grid.dtype)
    slices = high - low + 1
    for u in moves:
        for sign in (1, -1):
            position = torch.as_tensor(atoms.position + sign * u)
            phases = kernels.phases(position, owner, species, weight, slices)
            gratings = transmission(phases).to(grid.complex_dtype)
            total += intensity(fft2(exit_wave(gratings, range(slices), step)), transfer)
    return model.detect(total / (2 * pairs), model.response(microscope))


def diffuse_image(
    model: ForwardModel,
    columns: ColumnModel,
    microscope: Microscope,
    pairs: int,
    generator: np.random.Generator,
) -> Tensor:
    """Return what thermal diffuse scattering adds to the coherent image of `ForwardModel.image`."""
    full = frozen_phonon_image(model, columns, microscope, pairs, generator)
    return full - model.image(columns, microscope)
