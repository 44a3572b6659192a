"""The forward model: columns and microscope to an image on the detector's own pixels.

The field is simulated in the frame of the detector: atoms are placed at their sub-pixel positions on the
detector grid (or an integer oversampling of it), so no image is ever interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.grid import Grid, fft2, irfft2, is_smooth, resample_half, rfft2
from qhrtem.model.microscope import Microscope
from qhrtem.physics.coherence import Transfer, focal_transfer, intensity
from qhrtem.physics.detector import half_frequencies, mtf_filter, mtf_from_samples, vibration_filter
from qhrtem.physics.multislice import all_waves, exit_wave, propagator, transmission
from qhrtem.physics.potential import PhaseKernels, Thermal
from qhrtem.specimen.columns import AtomList, ColumnModel

# Coarsest sampling of the waves: at 0.09 Å the image of 4.5 nm BaTiO3 [110] is converged to 0.04 % rms.
WAVE_PIXEL_A = 0.09
MARGIN_A = 6.0  # simulated beyond the image, so that neighbours outside and wrap-around do not show
RATIOS = (
    (1, 2),
    (2, 3),
    (3, 4),
    (1, 1),
    (5, 4),
    (4, 3),
    (3, 2),
    (5, 3),
    (2, 1),
    (5, 2),
    (3, 1),
    (4, 1),
    (5, 1),
    (6, 1),
)


@dataclass(frozen=True)
class Field:
    """The simulated area: an image of some pixels embedded in a larger periodic area.

    Waves and images are sampled differently over the same extent: `ratio` wave pixels per detector pixel.
    """

    grid: Grid  # sampling of waves
    image_grid: Grid  # sampling of images: the detector's pixels
    image_shape: tuple[int, int]  # detector pixels (rows, columns) that were recorded
    pad: tuple[int, int]  # image-grid pixels before the first recorded one
    ratio: tuple[int, int]  # wave pixels per detector pixel as a fraction
    reference_z: float  # Å, the plane that C1 refers to
    foci: int = 7
    table: str = "lobato"

    @property
    def detector_pixel(self) -> float:
        """Detector pitch in Å."""
        return self.image_grid.pixel[0]

    def to_detector(self, position: np.ndarray) -> np.ndarray:
        """Return (row, col) in image pixels of field positions (..., 2) y, x in Å."""
        return np.asarray(position) / self.detector_pixel - np.array(self.pad)

    def to_field(self, pixel: np.ndarray) -> np.ndarray:
        """Return field positions (..., 2) y, x in Å of image pixels (row, col)."""
        return (np.asarray(pixel) + np.array(self.pad)) * self.detector_pixel

    def crop(self, image: Tensor) -> Tensor:
        """Return the recorded part (..., rows, cols) of images on the image grid."""
        (py, px), (ny, nx) = self.pad, self.image_shape
        return image[..., py : py + ny, px : px + nx]

    def embed(self, image: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Return a recorded image placed on the image grid, `fill` elsewhere."""
        out = np.full(self.image_grid.shape, fill, dtype=np.asarray(image).dtype)
        (py, px), (ny, nx) = self.pad, self.image_shape
        out[py : py + ny, px : px + nx] = image
        return out


def make_field(
    image_shape: tuple[int, int],
    pixel: float,
    reference_z: float,
    device: str = "cpu",
    margin: float = MARGIN_A,
) -> Field:
    """Return the field around an image of `image_shape` pixels with pitch `pixel` (Å)."""
    if not 0.01 <= pixel <= 0.5:
        raise InputError(
            f"pixel size must be within 0.01 to 0.5 Å for atomic columns, got {pixel:g} Å; "
            "was it given in nm?"
        )
    up, down = next(r for r in RATIOS if pixel * r[1] / r[0] <= WAVE_PIXEL_A)
    pad = math.ceil(margin / pixel)
    sizes = [paired_size(n + 2 * pad, up, down) for n in image_shape]
    wave = Grid(
        (sizes[0] * up // down, sizes[1] * up // down), (pixel * down / up, pixel * down / up), device
    )
    image = Grid((sizes[0], sizes[1]), (pixel, pixel), device)
    return Field(wave, image, image_shape, (pad, pad), (up, down), reference_z)


def paired_size(n: int, up: int, down: int) -> int:
    """Return the smallest image-grid size >= n whose wave grid (up/down) is even and quick to transform."""
    size = -(-n // (2 * down)) * 2 * down
    while not (is_smooth(size * up // down) and size * up // down % 2 == 0):
        size += 2 * down
    return size


@dataclass(frozen=True)
class Stack:
    """Transmission functions of a specimen: the distinct ones, and which one each slice uses."""

    gratings: Tensor  # (U, rows, columns)
    order: tuple[int, ...]  # (S,) index into gratings
    first_slice: int
    exit_z: float  # Å, lower face of the last slice


class ForwardModel:
    """Exit waves and images of column models on one field; keeps phase kernels and recent stacks."""

    def __init__(self, field: Field, energy: float) -> None:
        self.field = field
        self.energy = energy
        self._kernels: dict[tuple[object, ...], PhaseKernels] = {}

    def kernels(self, columns: ColumnModel, thermal: Thermal) -> PhaseKernels:
        """Return the phase kernels of the model's species."""
        key = (columns.species, thermal)
        if key not in self._kernels:
            if len(self._kernels) > 4:
                self._kernels.clear()
            self._kernels[key] = PhaseKernels(
                self.field.grid, columns.species, self.energy, thermal, self.field.table
            )
        return self._kernels[key]

    def stack(self, columns: ColumnModel, thermal: Thermal) -> Stack:
        """Return the transmission functions; slices that hold the same atoms are computed once."""
        atoms = columns.atoms()
        if not len(atoms.z):
            raise InputError("the column model holds no atoms; nothing to simulate")
        low, high = int(atoms.slice.min()), int(atoms.slice.max())
        contents: dict[bytes, int] = {}
        order, pick, owner = [], [], []
        by_slice = np.argsort(atoms.slice, kind="stable")
        edges = np.searchsorted(atoms.slice[by_slice], np.arange(low, high + 2))
        for j in range(high - low + 1):
            members = by_slice[edges[j] : edges[j + 1]]
            key = np.stack([atoms.column[members], atoms.group[members]]).tobytes()
            if key not in contents:
                contents[key] = len(contents)
                pick.append(members)
                owner.append(np.full(len(members), contents[key]))
            order.append(contents[key])
        phases = self.phases(
            columns, thermal, atoms, np.concatenate(pick), np.concatenate(owner), len(contents)
        )
        p = columns.projection
        exit_z = p.origin + (high + 0.5) * p.plane
        return Stack(transmission(phases).to(self.field.grid.complex_dtype), tuple(order), low, exit_z)

    def phases(
        self,
        columns: ColumnModel,
        thermal: Thermal,
        atoms: AtomList,
        pick: np.ndarray,
        owner: np.ndarray,
        n: int,
    ) -> Tensor:
        """Return the phase (n, rows, columns) of atoms `pick` of a list, each put into slice `owner`."""
        grid = self.field.grid
        return self.kernels(columns, thermal).phases(
            torch.as_tensor(atoms.position[pick], device=grid.device),
            torch.as_tensor(owner, device=grid.device),
            torch.as_tensor(atoms.species[pick], device=grid.device),
            torch.ones(len(pick), dtype=torch.float64, device=grid.device),
            n,
        )

    def step(self, columns: ColumnModel, microscope: Microscope) -> Tensor:
        """Return the propagator of one slice."""
        tilt = (microscope["tilt_x"], microscope["tilt_y"])
        return propagator(self.field.grid, columns.projection.plane, self.energy, tilt)

    def exit_spectrum(self, columns: ColumnModel, microscope: Microscope) -> tuple[Tensor, float]:
        """Return the Fourier transform of the exit wave and the depth (Å) of the exit plane."""
        stack = self.stack(columns, thermal_of(microscope))
        return fft2(exit_wave(stack.gratings, stack.order, self.step(columns, microscope))), stack.exit_z

    def waves(self, columns: ColumnModel, microscope: Microscope) -> tuple[Stack, Tensor]:
        """Return the stack and the waves in front of every slice and behind the last."""
        stack = self.stack(columns, thermal_of(microscope))
        return stack, all_waves(stack.gratings, stack.order, self.step(columns, microscope))

    def transfer(self, microscope: Microscope, exit_z: float, grid: Grid | None = None) -> Transfer:
        """Return the lens transfer for a wave at depth exit_z, on the field's grid or a window of it."""
        grid = grid or self.field.grid
        distance = self.field.reference_z - exit_z
        base = focal_transfer(
            grid,
            self.energy,
            microscope.coefficients(distance),
            microscope["focal_spread"],
            microscope["semi_convergence"],
            self.field.foci,
        )
        # The frame that moves with tilted columns slides on through the vacuum below the exit plane.
        ky, kx = grid.frequencies()
        slide = (
            2
            * math.pi
            * distance
            * (kx * math.tan(microscope["tilt_x"]) + ky * math.tan(microscope["tilt_y"]))
        )
        keep = torch.polar(torch.ones_like(slide), slide).to(grid.complex_dtype)
        return Transfer(base.functions * keep, base.weights)

    def response(self, microscope: Microscope, grid: Grid | None = None) -> Tensor:
        """Return the linear response after the lens: vibration, shift, MTF and intensity scale."""
        grid = grid or self.field.image_grid
        m = microscope
        out = vibration_filter(grid, m["vibration_yy"], m["vibration_xx"], m["vibration_xy"]) * m["scale"]
        if isinstance(m.mtf, tuple):
            out = out * mtf_filter(grid, m.mtf[0], m.mtf[1])
        else:
            q, value = (torch.as_tensor(v, device=grid.device) for v in m.mtf)
            out = out * mtf_from_samples(grid, q, value)
        ky, kx = half_frequencies(grid)
        phase = -2 * math.pi * (kx * m["shift_x"] + ky * m["shift_y"])
        return (out * torch.polar(torch.ones_like(phase), phase)).to(grid.complex_dtype)

    def image_of(self, spectrum: Tensor, exit_z: float, microscope: Microscope) -> Tensor:
        """Return the image on the image grid, vacuum = 1, of an exit-wave spectrum."""
        return self.detect(intensity(spectrum, self.transfer(microscope, exit_z)), self.response(microscope))

    def detect(self, sharp: Tensor, response: Tensor) -> Tensor:
        """Return intensities (..., wave rows, columns) as the detector sees them, on its own pixels."""
        up, down = self.field.ratio
        source = (sharp.shape[-2], sharp.shape[-1])
        target = (source[0] * down // up, source[1] * down // up)
        return irfft2(resample_half(rfft2(sharp), source, target) * response, target)

    def image(self, columns: ColumnModel, microscope: Microscope) -> Tensor:
        """Return the image on the image grid, vacuum = 1, of a column model."""
        spectrum, exit_z = self.exit_spectrum(columns, microscope)
        return self.image_of(spectrum, exit_z, microscope)


def thermal_of(microscope: Microscope) -> Thermal:
    """Return how thermal motion enters the coherent wave for these imaging parameters."""
    return Thermal(round(microscope["b_scale"], 6), round(microscope["absorption"], 6))
