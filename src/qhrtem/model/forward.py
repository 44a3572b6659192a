"""The forward model: columns and microscope to an image on the detector's own pixels.

The field is simulated in the frame of the detector: atoms are placed at their sub-pixel positions on the
detector grid (or an integer oversampling of it), so no image is ever interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.grid import Grid, fft2, irfft2, is_smooth, resample_half, rfft2
from qhrtem.model.microscope import Imaging, Microscope
from qhrtem.model.sampling import COARSEST, Sampling
from qhrtem.physics.coherence import (
    Transfer,
    focal_transfer,
    full_intensity,
    intensity,
    quasi_coherent_transfer,
)
from qhrtem.physics.detector import half_frequencies, mtf_filter, mtf_from_samples, vibration_filter
from qhrtem.physics.multislice import all_waves, exit_wave, propagator, transmission
from qhrtem.physics.potential import PhaseKernels, Species, Thermal
from qhrtem.specimen.columns import AtomList, ColumnModel

KERNELS_KEPT = 5  # thermal states: the present one, and either side of it in two parameters
MARGIN_A = 6.0  # simulated beyond the image, so that neighbours outside and wrap-around do not show
# Imaging parameters that act behind the lens, on its intensity alone (`ForwardModel.response`).
RECORDING = ("vibration_xx", "vibration_yy", "vibration_xy", "scale", "shift_x", "shift_y")
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
    (8, 1),
    (9, 1),
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
    pivot_z: float | None = None  # Å, where the mistilt leaves columns in place; the reference plane if None
    sampling: Sampling = COARSEST  # the coarsest that serves the crystal

    @property
    def pivot(self) -> float:
        """Depth (Å) of the plane in which columns stand where the model has them, however tilted."""
        return self.reference_z if self.pivot_z is None else self.pivot_z

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

    def middle(self) -> np.ndarray:
        """Return the middle (2,) y, x in Å of the recorded image."""
        return self.to_field((np.array(self.image_shape) - 1) / 2)

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
    dtype: torch.dtype = torch.float32,
    pivot_z: float | None = None,
    sampling: Sampling = COARSEST,
) -> Field:
    """Return the field around an image of `image_shape` pixels with pitch `pixel` (Å).

    sampling: coarsest that serves the crystal (`sampling.sampling_of`), by default one of light atoms.
    """
    if not 0.01 <= pixel <= 0.5:
        raise InputError(
            f"pixel size must be within 0.01 to 0.5 Å for atomic columns, got {pixel:g} Å; "
            "was it given in nm?"
        )
    up, down = coarsest(pixel, sampling.wave)
    pad = math.ceil(margin / pixel)
    whole = math.lcm(down, coarsest(pixel, sampling.change)[1])
    sizes = [paired_size(n + 2 * pad, up * whole // down, whole) for n in image_shape]
    wave = Grid(
        (sizes[0] * up // down, sizes[1] * up // down), (pixel * down / up, pixel * down / up), device, dtype
    )
    image = Grid((sizes[0], sizes[1]), (pixel, pixel), device, dtype)
    return Field(
        *(wave, image, image_shape, (pad, pad), (up, down), reference_z),
        pivot_z=pivot_z,
        sampling=sampling,
    )


def coarsest(pixel: float, wave_pixel: float) -> tuple[int, int]:
    """Return the smallest ratio of wave pixels to image pixels (`pixel`, Å) of at most `wave_pixel` Å."""
    return next((up, down) for up, down in RATIOS if pixel * down / up <= wave_pixel)


def resampled(field: Field, pixel: float) -> Field:
    """Return the same field with waves sampled no coarser than `pixel` Å; images stay as they are."""
    rows, cols = field.image_grid.shape
    pitch = field.image_grid.pixel
    for up, down in RATIOS:
        fits = not (rows * up % (2 * down) or cols * up % (2 * down))
        if fits and max(pitch) * down / up <= pixel:
            grid = Grid(
                (rows * up // down, cols * up // down),
                (pitch[0] * down / up, pitch[1] * down / up),
                field.grid.device,
                field.grid.dtype,
            )
            return replace(field, grid=grid, ratio=(up, down))
    raise InputError(f"image pixels of {max(pitch):g} Å are too coarse for waves of {pixel:g} Å or finer")


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
    """Exit waves and images of column models on one field.

    Keeps the phase kernels of recent thermal states and the transmission functions of the last structure,
    in which neither mistilt nor lens changes anything.

    Every method takes plain imaging parameters (`Microscope`) or differentiable ones (`MicroscopeTensor`).
    """

    def __init__(self, field: Field, energy: float) -> None:
        self.field = field
        self.energy = energy
        self._kernels: dict[tuple[Species, ...], dict[Thermal, PhaseKernels]] = {}
        self._last: tuple[ColumnModel, Thermal, Stack] | None = None

    @cached_property
    def coarse(self) -> ForwardModel:
        """The same model with waves sampled as coarsely as changes of an image allow, and no finer."""
        field = resampled(self.field, self.field.sampling.change)
        return self if field.grid.pixel <= self.field.grid.pixel else ForwardModel(field, self.energy)

    def kernels(self, columns: ColumnModel, thermal: Thermal) -> PhaseKernels:
        """Return the phase kernels of the model's species."""
        recent = self._kernels.setdefault(columns.species, {})
        if differentiable(thermal):
            plain = self.kernels(columns, Thermal()) if not recent else next(iter(recent.values()))
            return plain.with_thermal(thermal)
        if thermal not in recent:
            grid, table = self.field.grid, self.field.table
            made = (
                next(iter(recent.values())).with_thermal(thermal)
                if recent
                else PhaseKernels(grid, columns.species, self.energy, thermal, table)
            )
            if len(recent) == KERNELS_KEPT:
                del recent[next(iter(recent))]
            recent[thermal] = made
        return recent[thermal]

    def stack(
        self,
        columns: ColumnModel,
        thermal: Thermal,
        shift: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Stack:
        """Return the transmission functions; slices that hold the same atoms are computed once.

        shift: (C, G, 2) y, x in Å, instead of the model's own displacements. ends: (C, 2) occupancy of the
        first and last atom of each column, instead of one.
        """
        if shift is not None or ends is not None or differentiable(thermal):
            return self._stack(columns, thermal, shift, ends)
        kept = self._last
        if kept is None or kept[0] is not columns or kept[1] != thermal:
            self._last = kept = (columns, thermal, self._stack(columns, thermal, None, None))
        return kept[2]

    def _stack(
        self, columns: ColumnModel, thermal: Thermal, shift: Tensor | None, ends: Tensor | None
    ) -> Stack:
        atoms = columns.atoms()
        if not len(atoms.z):
            raise InputError("the column model holds no atoms; nothing to simulate")
        low, high = int(atoms.slice.min()), int(atoms.slice.max())
        contents: dict[bytes, int] = {}
        order, pick, owner = [], [], []
        by_slice = np.argsort(atoms.slice, kind="stable")
        edges = np.searchsorted(atoms.slice[by_slice], np.arange(low, high + 2))
        # With relaxed ends a slice also depends on which of its atoms are ends.
        terminal = terminal_atoms(columns, atoms) if ends is not None else np.zeros(len(atoms.z), np.int64)
        for j in range(high - low + 1):
            members = by_slice[edges[j] : edges[j + 1]]
            key = np.stack([atoms.column[members], atoms.group[members], terminal[members]]).tobytes()
            if key not in contents:
                contents[key] = len(contents)
                pick.append(members)
                owner.append(np.full(len(members), contents[key]))
            order.append(contents[key])
        chosen, into = np.concatenate(pick), np.concatenate(owner)
        phases = self.phases(columns, thermal, atoms, chosen, into, len(contents), shift, ends)
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
        shift: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Return the phase (n, rows, columns) of atoms `pick` of a list, each put into slice `owner`."""
        device = self.field.grid.device
        position = torch.as_tensor(atoms.position[pick], device=device)
        weight = torch.ones(len(pick), dtype=torch.float64, device=device)
        if shift is not None:
            own = columns.shift[atoms.column[pick], atoms.group[pick]]
            column, group = (torch.as_tensor(v[pick], device=device) for v in (atoms.column, atoms.group))
            position = position - torch.as_tensor(own, device=device) + shift[column, group]
        if ends is not None:
            column = torch.as_tensor(atoms.column[pick], device=device)
            terminal = torch.as_tensor(terminal_atoms(columns, atoms)[pick], device=device)
            # A lone atom is both ends at once: bit 1 the first, bit 2 the last.
            weight = torch.where((terminal & 1).bool(), weight * ends[column, 0], weight)
            weight = torch.where((terminal & 2).bool(), weight * ends[column, 1], weight)
        return self.kernels(columns, thermal).phases(
            position,
            torch.as_tensor(owner, device=device),
            torch.as_tensor(atoms.species[pick], device=device),
            weight,
            n,
        )

    def step(self, columns: ColumnModel, microscope: Imaging) -> Tensor:
        """Return the propagator of one slice."""
        tilt = (microscope["tilt_x"], microscope["tilt_y"])
        return propagator(self.field.grid, columns.projection.plane, self.energy, tilt)

    def exit_spectrum(
        self,
        columns: ColumnModel,
        microscope: Imaging,
        shift: Tensor | None = None,
        ends: Tensor | None = None,
        checkpoint_every: int | None = None,
    ) -> tuple[Tensor, float]:
        """Return the Fourier transform of the exit wave and the depth (Å) of the exit plane."""
        stack = self.stack(columns, thermal_of(microscope), shift, ends)
        step = self.step(columns, microscope)
        wave = exit_wave(stack.gratings, stack.order, step, checkpoint_every=checkpoint_every)
        return fft2(wave), stack.exit_z

    def waves(self, columns: ColumnModel, microscope: Microscope) -> tuple[Stack, Tensor]:
        """Return the stack and the waves in front of every slice and behind the last."""
        stack = self.stack(columns, thermal_of(microscope))
        return stack, all_waves(stack.gratings, stack.order, self.step(columns, microscope))

    def transfer(self, microscope: Imaging, exit_z: float, grid: Grid | None = None) -> Transfer:
        """Return the lens transfer for a wave at depth exit_z, on the field's grid or a window of it."""
        grid = grid or self.field.grid
        distance = self.field.reference_z - exit_z
        base = focal_transfer(grid, microscope.lens(distance), self.field.foci)
        tx, ty = (torch.as_tensor(microscope[t], device=grid.device) for t in ("tilt_x", "tilt_y"))
        if not tx.requires_grad and float(tx) == float(ty) == 0:
            return base
        # The frame that moves with tilted columns slides back to where they stand in place.
        ky, kx = grid.frequencies()
        slide = 2 * math.pi * (self.field.pivot - exit_z) * (kx * torch.tan(tx) + ky * torch.tan(ty))
        keep = torch.polar(torch.ones_like(slide), slide).to(grid.complex_dtype)
        return Transfer(base.functions * keep, base.weights)

    def response(self, microscope: Imaging, grid: Grid | None = None) -> Tensor:
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
        return torch.polar(out, phase).to(grid.complex_dtype)

    def image_of(self, spectrum: Tensor, exit_z: float, microscope: Imaging) -> Tensor:
        """Return the image on the image grid, vacuum = 1, of an exit-wave spectrum."""
        return self.detect(self.sharp_of(spectrum, exit_z, microscope), self.response(microscope))

    def sharp_of(self, spectrum: Tensor, exit_z: float, microscope: Imaging) -> Tensor:
        """Return the intensity behind the lens on the wave grid, as no detector has seen it yet."""
        return intensity(spectrum, self.transfer(microscope, exit_z))

    def detect(self, sharp: Tensor, response: Tensor) -> Tensor:
        """Return intensities (..., wave rows, columns) as the detector sees them, on its own pixels."""
        up, down = self.field.ratio
        source = (sharp.shape[-2], sharp.shape[-1])
        target = (source[0] * down // up, source[1] * down // up)
        return irfft2(resample_half(rfft2(sharp), source, target) * response, target)

    def image(
        self,
        columns: ColumnModel,
        microscope: Imaging,
        shift: Tensor | None = None,
        ends: Tensor | None = None,
        checkpoint_every: int | None = None,
    ) -> Tensor:
        """Return the image on the image grid, vacuum = 1, of a column model.

        Differentiable by shift (C, G, 2) in Å, ends (C, 2) occupancies and the values of a
        `MicroscopeTensor`. checkpoint_every: slices between stored waves, to trade memory of the gradient for
        time.
        """
        spectrum, exit_z = self.exit_spectrum(columns, microscope, shift, ends, checkpoint_every)
        return self.image_of(spectrum, exit_z, microscope)

    def coherence_differences(
        self, columns: ColumnModel, microscope: Microscope, foci: int = 11, source: int = 3
    ) -> dict[str, float]:
        """Return the rms by which other models of partial coherence differ from this one, of vacuum = 1.

        "full": the sum over `foci` and source² angles, which this model approximates; "quasi-coherent": a
        single wave damped by both envelopes. Over the recorded image.
        """
        spectrum, exit_z = self.exit_spectrum(columns, microscope)
        grid, response = self.field.grid, self.response(microscope)
        lens = microscope.lens(self.field.reference_z - exit_z)
        own = intensity(spectrum, focal_transfer(grid, lens, self.field.foci))
        others = {
            "full": full_intensity(spectrum, grid, lens, foci, source),
            "quasi-coherent": intensity(spectrum, quasi_coherent_transfer(grid, lens)),
        }
        return {
            name: float(self.field.crop(self.detect(other - own, response)).square().mean().sqrt())
            for name, other in others.items()
        }


def terminal_atoms(columns: ColumnModel, atoms: AtomList) -> np.ndarray:
    """Return (N,) which atoms end their column: 1 the first, 2 the last, 3 both, 0 neither."""
    first = atoms.site == columns.first[atoms.column]
    last = atoms.site == columns.last[atoms.column]
    return first.astype(np.int64) + 2 * last.astype(np.int64)


def thermal_of(microscope: Imaging) -> Thermal:
    """Return how thermal motion enters the coherent wave for these imaging parameters."""
    b_scale, absorption = microscope["b_scale"], microscope["absorption"]
    if isinstance(b_scale, Tensor):
        return Thermal(b_scale, absorption)
    return Thermal(round(b_scale, 6), round(absorption, 6))


def differentiable(thermal: Thermal) -> bool:
    """Return whether a thermal state holds tensors rather than numbers."""
    return any(isinstance(v, Tensor) for v in (thermal.b_scale, thermal.absorption_scale))
