"""imaging-22: the parameters of the published first stage on one repeated cell of BaTiO3 [110].

The target is Dr. Probe's image of a crystal 32 slices thick, recorded at 10⁴ e/Å² and averaged over the 12
cells of the field. One multislice pass yields the wave behind every slice; it is kept while only the lens
changes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from optimiser.lens import Lens, detect, intensity, resampled, vibration_response
from optimiser.problem import Evaluation, Floats, Quality, Wants, chi2_targets, integer_quality
from optimiser.reference import DOSE, ENERGY, data, imaging, noisy
from optimiser.rules import ConfinedDetail, lens_keys
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.optimise.space import Parameter, SearchSpace
from qhrtem.physics.multislice import propagator, transmission
from qhrtem.physics.potential import PhaseKernels, Species, Thermal

EDGE = (4.036, 5.64836897)  # Å, y along [001], x along [1-10]; the period along the beam is the same as x
SLICES_PER_PERIOD = 4
SHAPE = (36, 48)  # 0.112 x 0.118 Å
FINE = (72, 96)
MOST_SLICES = 50
CELLS = 12  # averaged
IMAGE = "cell_focal_abs_t8_vibaniso"
TRUE_SLICES = 32
SPECIES = (("Ba", 0.5), ("Ti", 0.6), ("O", 0.75))  # element, B in Å²
# element, x, y in cell edges, slice
ATOMS = (
    ("Ba", 0.0, 0.0, 0),
    ("Ti", 0.5, 0.5224, 0),
    ("O", 0.5, 0.9756, 0),
    ("O", 0.25, 0.4895, 1),
    ("O", 0.75, 0.4895, 1),
    ("Ba", 0.5, 0.0, 2),
    ("Ti", 0.0, 0.5224, 2),
    ("O", 0.0, 0.9756, 2),
    ("O", 0.25, 0.4895, 3),
    ("O", 0.75, 0.4895, 3),
)


class Cell:
    """Images of the perfect crystal through any lens."""

    def __init__(
        self, shape: tuple[int, int] = SHAPE, b_scale: float = 1.0, table: str = "lobato", foci: int = 7
    ) -> None:
        self.grid = Grid(shape, (EDGE[0] / shape[0], EDGE[1] / shape[1]))
        self.lens = Lens(self.grid, ENERGY, foci)
        species = tuple(Species(e, b) for e, b in SPECIES)
        kernels = PhaseKernels(self.grid, species, ENERGY, Thermal(b_scale), table)
        names = [e for e, _ in SPECIES]
        phase = kernels.phases(
            torch.tensor([[y * EDGE[0], x * EDGE[1]] for _, x, y, _ in ATOMS], dtype=torch.float64),
            torch.tensor([j for *_, j in ATOMS]),
            torch.tensor([names.index(e) for e, *_ in ATOMS]),
            torch.ones(len(ATOMS), dtype=torch.float64),
            SLICES_PER_PERIOD,
        )
        self.elastic, self.absorbed = phase.real.float(), phase.imag.float()
        self._waves: OrderedDict[tuple[float, float, float], list[Tensor]] = OrderedDict()

    def spectrum(self, tilt: tuple[float, float], absorption: float, slices: int) -> Tensor:
        """Return the exit-wave spectrum behind `slices` slices; tilt: (x, y) in rad."""
        key = (*tilt, absorption)
        if key not in self._waves:
            distinct = transmission(torch.complex(self.elastic, absorption * self.absorbed))
            first = propagator(self.grid, EDGE[1] / SLICES_PER_PERIOD, ENERGY, tilt)
            self._waves[key] = [*distinct, first]
            if len(self._waves) > 8:
                self._waves.popitem(last=False)
        self._waves.move_to_end(key)
        kept = self._waves[key]
        gratings, propagate, spectra = (
            kept[:SLICES_PER_PERIOD],
            kept[SLICES_PER_PERIOD],
            kept[SLICES_PER_PERIOD + 1 :],
        )
        wave = ifft2(spectra[-1]) if spectra else torch.ones(self.grid.shape, dtype=torch.complex64)
        for n in range(len(spectra), slices):
            kept.append(fft2(wave * gratings[n % SLICES_PER_PERIOD]) * propagate)
            wave = ifft2(kept[-1])
        return kept[SLICES_PER_PERIOD + slices]

    def image(
        self,
        slices: int,
        tilt: tuple[float, float],
        absorption: float,
        aberrations: dict[str, complex],
        focal_spread: float,
        semi_convergence: float,
        vibration: tuple[float, float, float],
    ) -> Tensor:
        """Return the image, vacuum = 1; Å, rad and degrees as in `reference.Imaging`."""
        spectrum = self.spectrum(tilt, absorption, slices)
        functions, weights = self.lens.transfer(aberrations, focal_spread, semi_convergence)
        sharp = intensity(spectrum, functions, weights)
        return detect(sharp, vibration_response(self.grid, vibration), self.grid.shape)


# name, low, high, unit, unit in Å or rad, step of differences. Bounds of the published recipe (Tang et al.,
# arXiv 2603.19943, 2026), but: absorption scales the thermal-diffuse form factor over the same factor of
# five; A2 reaches ±60 nm and vibration 35 pm, as the target has 50 nm and 30 pm; C5 spans 8 mm around zero,
# which the target has.
PARAMETERS = (
    ("thickness", 1, MOST_SLICES, "slices", 1.0, 1.0),
    ("absorption", 0.3, 1.5, "", 1.0, 0.02),
    ("tilt_x", -10, 10, "mrad", 1e-3, 0.06),
    ("tilt_y", -10, 10, "mrad", 1e-3, 0.06),
    ("vibration_1", 15, 35, "pm", 1e-2, 0.2),
    ("vibration_2", 15, 35, "pm", 1e-2, 0.2),
    ("vibration_angle", 0, 90, "deg", 1.0, 2.0),
    ("C1", 0, 10, "nm", 10.0, 0.04),
    ("A1_x", -5, 5, "nm", 10.0, 0.04),
    ("A1_y", -5, 5, "nm", 10.0, 0.04),
    ("B2_x", -50, 50, "nm", 10.0, 0.4),
    ("B2_y", -50, 50, "nm", 10.0, 0.4),
    ("A2_x", -60, 60, "nm", 10.0, 0.8),
    ("A2_y", -60, 60, "nm", 10.0, 0.8),
    ("C3", -15, -5, "µm", 1e4, 0.06),
    ("S3_x", -10, 10, "µm", 1e4, 0.02),
    ("S3_y", -10, 10, "µm", 1e4, 0.02),
    ("A3_x", -10, 10, "µm", 1e4, 0.04),
    ("A3_y", -10, 10, "µm", 1e4, 0.04),
    ("C5", -4, 4, "mm", 1e7, 0.05),
    ("focal_spread", 2, 4, "nm", 10.0, 0.02),
    ("semi_convergence", 0.1, 0.5, "mrad", 1e-3, 0.01),
)
INDEX = {p[0]: i for i, p in enumerate(PARAMETERS)}
FACTOR = np.array([p[4] for p in PARAMETERS])
LENS = slice(INDEX["C1"], INDEX["C5"] + 1)
KEYS = lens_keys(("C1", "A1", "B2", "A2", "C3", "S3", "A3", "C5"))
MOST_DISPLACEMENT = 6.0  # Å at 1 Å detail, about twice what the true lens does


def settings(vector: Floats) -> dict[str, object]:
    """Return a vector as arguments of `Cell.image`."""
    v = dict(zip(INDEX, vector * FACTOR, strict=True))
    aberrations: dict[str, complex] = {}
    for (name, unit), value in zip(KEYS, vector[LENS] * FACTOR[LENS], strict=True):
        aberrations[name] = aberrations.get(name, 0) + unit * value
    return {
        "slices": round(v["thickness"]),
        "tilt": (v["tilt_x"], v["tilt_y"]),
        "absorption": v["absorption"],
        "aberrations": aberrations,
        "focal_spread": v["focal_spread"],
        "semi_convergence": v["semi_convergence"],
        "vibration": (v["vibration_1"], v["vibration_2"], v["vibration_angle"]),
    }


def true_vector(tilt: tuple[float, float] = (0.0, 0.0)) -> Floats:
    """Return the parameters that the target was made with; tilt in mrad."""
    s = imaging(IMAGE)
    value = {
        "thickness": TRUE_SLICES,
        "absorption": 1.0,
        "tilt_x": tilt[0],
        "tilt_y": tilt[1],
        "vibration_1": 100 * s.vibration[0],
        "vibration_2": 100 * s.vibration[1],
        "vibration_angle": s.vibration[2],
        "focal_spread": s.focal_spread / 10,
        "semi_convergence": 1e3 * s.semi_convergence,
    }
    for name, c in s.aberrations.items():
        if name in INDEX:
            value[name] = c.real / FACTOR[INDEX[name]]
        else:
            value |= {
                f"{name}_{a}": part / FACTOR[INDEX[f"{name}_x"]]
                for a, part in zip("xy", (c.real, c.imag), strict=True)
            }
    return np.array([value.get(p[0], 0.0) for p in PARAMETERS])


def make_space() -> SearchSpace:
    """Return the 22 parameters with the rule on delocalisation."""
    parameters = tuple(
        Parameter(n, low, high, unit, "integer" if n == "thickness" else "continuous")
        for n, low, high, unit, *_ in PARAMETERS
    )
    rule = ConfinedDetail(ENERGY, KEYS, LENS.start, tuple(FACTOR[LENS]), MOST_DISPLACEMENT)
    return SearchSpace(parameters, (rule,))


@dataclass(frozen=True)
class Imaging22:
    """χ² of a repeated-cell image over 22 parameters, one of them an integer."""

    name: str
    space: SearchSpace
    cell: Cell
    measured: Tensor
    sigma: Tensor  # one standard deviation of a pixel
    truth: Floats

    @property
    def pixels(self) -> int:
        """Compared pixels."""
        return self.measured.numel()

    def targets(self) -> tuple[float, float, float]:
        """Return the χ² to be reached."""
        return chi2_targets(self, self.pixels)

    def residual(self, vector: Floats) -> Floats:
        """Return the weighted residual (m,)."""
        model = self.cell.image(**settings(vector))  # type: ignore[arg-type]
        return ((model - self.measured) / self.sigma).ravel().double().numpy()

    def evaluate(self, vector: Floats, wants: Wants = "value") -> Evaluation:
        """Return χ²; a Jacobian by forward differences takes one more image a parameter."""
        r = self.residual(vector)
        if wants != "jacobian":
            return Evaluation(float(r @ r), 1, r)
        jacobian = np.empty((r.size, len(vector)))
        # The lens first, while the wave of this point is kept.
        for i in reversed(range(len(vector))):
            step = PARAMETERS[i][5] * (-1 if vector[i] + PARAMETERS[i][5] > PARAMETERS[i][2] else 1)
            moved = vector.copy()
            moved[i] += step
            jacobian[:, i] = (self.residual(moved) - r) / step
        return Evaluation(float(r @ r), 1 + len(vector), r, jacobian)

    def quality(self, vector: Floats) -> Quality:
        """Return errors of what the later stages depend on, and whether the thickness is right."""
        d = vector - self.truth
        errors = {
            f"{n} ({PARAMETERS[INDEX[n]][3]})": abs(float(d[INDEX[n]])) for n in ("thickness", "C1", "C3")
        }
        errors["A1 (nm)"] = float(np.hypot(d[INDEX["A1_x"]], d[INDEX["A1_y"]]))
        errors["B2 (nm)"] = float(np.hypot(d[INDEX["B2_x"]], d[INDEX["B2_y"]]))
        errors["tilt (mrad)"] = float(np.hypot(d[INDEX["tilt_x"]], d[INDEX["tilt_y"]]))
        return Quality(errors, *integer_quality(self.space, vector, self.truth))


@lru_cache
def _cell(b_scale: float) -> Cell:
    return Cell(b_scale=b_scale)


@lru_cache
def _clean(tilt: tuple[float, float] | None) -> Floats:
    """Noise-free target; with a tilt (mrad) from an independent route: Kirkland's table, finer sampling."""
    if tilt is None:
        return resampled(data()[IMAGE], SHAPE)
    fine = Cell(FINE, table="kirkland", foci=15)
    return resampled(fine.image(**settings(true_vector(tilt))).numpy(), SHAPE)  # type: ignore[arg-type]


def imaging22(
    seed: int | None,
    name: str = "imaging22",
    b_scale: float = 1.0,
    tilt: tuple[float, float] | None = None,
) -> Imaging22:
    """Return the problem with the noise of a seed (None: without noise).

    b_scale: by how much the model's Debye-Waller parameters are wrong; tilt: mrad, of the target.
    """
    clean = _clean(tilt)
    electrons = DOSE * CELLS * EDGE[0] * EDGE[1] / (SHAPE[0] * SHAPE[1])
    measured = torch.as_tensor(noisy(clean, electrons, seed), dtype=torch.float32)
    sigma = torch.as_tensor(np.sqrt(clean / electrons), dtype=torch.float32)
    truth = true_vector(tilt or (0.0, 0.0))
    return Imaging22(name, make_space(), _cell(b_scale), measured, sigma, truth)
