"""Repeated cells against the averages of an image: which thickness, origin and orientation explain them.

One multislice pass yields every thickness, and a Fourier coefficient every origin, so both are enumerated for
each lens. Where they turn out ambiguous, other origins and thicknesses are named for a search of their own.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from qhrtem.model.microscope import Microscope
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.cell import RepeatedCell

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
THICKEST_A = 130.0
RASTER = 24  # origins tried along either lattice vector
ELSEWHERE = 6.0  # another origin or thickness is tried with a lens of its own if no worse than so many times
BASIN_A = 10.0  # places of one field differ from their mean by this, other basins by twice as much


def orientations(projection: Projection) -> list[Floats]:
    """Return the 2 × 2 symmetries of the bare projected lattice as maps of crystal-frame vectors."""
    v = projection.vectors
    metric = v @ v.T
    out = []
    for n in np.ndindex(3, 3, 3, 3):
        m = np.array(n).reshape(2, 2) - 1
        if abs(round(float(np.linalg.det(m)))) == 1 and np.allclose(
            m @ metric @ m.T, metric, rtol=0.03, atol=0.15
        ):
            out.append(np.linalg.inv(v) @ (m @ v))
    # The identity first, then rotations, then mirrors.
    return sorted(out, key=lambda s: (-round(float(np.linalg.det(s))), -round(float(np.trace(s)), 3)))


class CellMatch:
    """Misfit of a repeated-cell simulation to the cell averages for one orientation."""

    def __init__(
        self, averages: CellAverages, projection: Projection, frame: Floats, symmetry: Floats, energy: float
    ) -> None:
        self.averages, self.projection, self.symmetry = averages, projection, symmetry
        self.frame = symmetry @ frame
        slices = int(THICKEST_A / projection.plane)
        self.cell = RepeatedCell(projection, self.frame, energy, slices)
        self.thickness = np.arange(2, slices + 1, max(1, round(1.4 / projection.plane)))
        # The measured reflections in the indices of the turned lattice.
        v = projection.vectors
        turn = np.round(v @ symmetry @ np.linalg.inv(v)).astype(np.int64)
        self.index = averages.index @ turn.T
        self._key: object = None
        grid = (np.arange(RASTER) / RASTER)[:, None] * np.ones(RASTER)[None, :]
        self.raster = np.stack([grid.ravel(), grid.T.ravel()], axis=1)
        value = averages.value
        self.norm = (averages.weight[1:] * np.abs(value[:, 1:]) ** 2).sum(1)

    def coefficients(self, microscope: Microscope, thickness: Ints) -> NDArray[np.complex128]:
        """Return simulated coefficients (T, K) with vibration and MTF, the cell origin at the first pixel."""
        key = tuple(microscope[n] for n in ("tilt_x", "tilt_y", "b_scale", "absorption"))
        if key != self._key:
            self._spectra, self._key = self.cell.spectra(microscope), key
        centre = self._centre()
        image = self.cell.image_coefficients(self._spectra, thickness, microscope, centre).numpy()
        rows, cols = image.shape[1:]
        h = self.index * np.array(self.cell.repeat)
        picked = image[:, h[:, 0] % rows, h[:, 1] % cols]
        ky, kx = self.averages.frequency.T
        m = microscope
        quad = m["vibration_yy"] * ky**2 + m["vibration_xx"] * kx**2 + 2 * m["vibration_xy"] * kx * ky
        return picked * (np.exp(-2 * np.pi**2 * quad) * self._mtf(m) * m["scale"])

    def _mtf(self, m: Microscope) -> Floats:
        q = np.linalg.norm(self.averages.frequency, axis=1) * self.averages.pixel_A
        if isinstance(m.mtf, tuple):
            a, b = m.mtf
            return (1 - a) / (1 + (q / b) ** 2) + a
        return np.interp(q, m.mtf[0], m.mtf[1])

    def _centre(self) -> float:
        """Thickness (slices) at whose exit face C1 is quoted while the specimen is not yet known."""
        return round(40.0 / self.projection.plane)

    def best(self, microscope: Microscope) -> tuple[float, tuple[float, float], Ints]:
        """Return the misfit, the origin and the thicknesses (slices) that fit best for one lens."""
        model = self.coefficients(microscope, self.thickness)
        origin = np.zeros(2)
        raster = self.raster
        for size in (1 / RASTER, 0.1 / RASTER):
            misfit = self._compare(model, raster)
            total = misfit.min(1).mean(0)
            i = int(total.argmin())
            origin = raster[i]
            step = (np.arange(-12, 13) * size / 10)[:, None] * np.ones(25)[None, :]
            raster = origin + np.stack([step.ravel(), step.T.ravel()], axis=1)
        return (
            float(total[i]),
            (float(origin[0]), float(origin[1])),
            self.thickness[misfit[:, :, i].argmin(1)],
        )

    def _compare(self, model: NDArray[np.complex128], raster: Floats) -> Floats:
        """Return the misfit (T, N, R) of T places to N simulated thicknesses (N, K) at R origins."""
        value, w = self.averages.value, self.averages.weight
        power = (w * np.abs(model) ** 2).sum(1)[None, :] + (w * np.abs(value) ** 2).sum(1)[:, None]
        cross = (w * value.conj())[:, None, :] * model[None]  # (T, N, K)
        phase = np.exp(2j * np.pi * (self.index @ raster.T))  # (K, R)
        overlap = (cross.reshape(-1, cross.shape[-1]) @ phase).real.reshape(*cross.shape[:2], -1)
        return np.asarray((power[:, :, None] - 2 * overlap) / self.norm[:, None, None])

    def elsewhere(self, microscope: Microscope, origin: tuple[float, float]) -> list[tuple[float, float]]:
        """Return other origins that explain the averages nearly as well, best first, C1 free near its value.

        Columns of different kinds change places there, as Sr and TiO of thin SrTiO3 along [001]. Translations
        that leave the projected structure as it is are not among them.
        """
        misfit = np.min([self._misfits(m).min(1).mean(0) for m in refocused(microscope)], axis=0)
        square = misfit.reshape(RASTER, RASTER)
        low = square == ndimage.minimum_filter(square, RASTER // 6 + 1, mode="wrap")
        best = misfit.min()
        out: list[tuple[float, float]] = []
        values: list[float] = []
        for i in np.argsort(misfit):
            apart = np.abs((self.raster[i] - np.array(origin) + 0.5) % 1 - 0.5).max()
            if misfit[i] > ELSEWHERE * best:
                break
            same = any(abs(misfit[i] - v) < 1e-3 * v for v in (best, *values))
            if low.ravel()[i] and apart > 2 / RASTER and not same:
                out.append((float(self.raster[i, 0]), float(self.raster[i, 1])))
                values.append(float(misfit[i]))
        return out

    def other_basins(self, microscope: Microscope, thickness: Ints) -> list[float]:
        """Return other mean thicknesses (slices) that explain the averages nearly as well, best first.

        C1 is free near its value, and so is the origin; thickness: (T,) of the places, as known so far.
        """
        reach = max(1, round(BASIN_A / self.projection.plane / np.diff(self.thickness).mean()))
        profile = np.full(len(self.thickness), np.inf)
        for lens in refocused(microscope):
            near = ndimage.minimum_filter1d(self._misfits(lens), 2 * reach + 1, axis=1)
            profile = np.minimum(profile, near.mean(0).min(1))
        taken = [int(np.abs(self.thickness - thickness.mean()).argmin())]
        low = profile == ndimage.minimum_filter1d(profile, 2 * reach + 1)
        for n in np.argsort(profile):
            if profile[n] > ELSEWHERE * profile.min():
                break
            if low[n] and min(abs(n - m) for m in taken) > 2 * reach:
                taken.append(int(n))
        return [float(self.thickness[n]) for n in taken[1:]]

    def _misfits(self, microscope: Microscope) -> Floats:
        """Return the misfit (T, N, R) of the places to every thickness at every origin of the raster."""
        return self._compare(self.coefficients(microscope, self.thickness), self.raster)

    def near(self, origin: tuple[float, float]) -> CellMatch:
        """Return the same match with origins confined to a neighbourhood."""
        out = copy(self)
        apart = np.abs((self.raster - np.array(origin) + 0.5) % 1 - 0.5).max(1)
        out.raster = self.raster[apart < 3 / RASTER]
        return out

    def about(self, thickness: float) -> CellMatch:
        """Return the same match with thicknesses confined to the basin around a mean one (slices)."""
        out = copy(self)
        apart = np.abs(self.thickness - thickness) * self.projection.plane
        out.thickness = self.thickness[apart < 1.5 * BASIN_A]
        return out

    def residual(self, microscope: Microscope, origin: Floats, thickness: Ints) -> Floats:
        """Return weighted differences (2·T·K,), so that their mean square over places is the misfit."""
        levels, inverse = np.unique(thickness, return_inverse=True)
        model = self.coefficients(microscope, levels)[inverse]
        model = model * np.exp(2j * np.pi * (self.index @ origin))
        d = np.sqrt(self.averages.weight) * (model - self.averages.value) / np.sqrt(self.norm)[:, None]
        return np.concatenate([d.real.ravel(), d.imag.ravel()]) / np.sqrt(len(thickness))


def refocused(microscope: Microscope) -> list[Microscope]:
    """Return the microscope at some C1 around its own: what another origin or thickness wants first."""
    return [microscope.with_values(c1=microscope["c1"] + d) for d in np.arange(-30.0, 31.0, 6.0)]
