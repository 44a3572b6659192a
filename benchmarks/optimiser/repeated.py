"""imaging-22: the parameters of the published first stage on one repeated cell of BaTiO3 [110].

Every seed has a truth of its own: an exit wave of Dr. Probe, 16, 32 or 48 slices thick, seen through a lens
drawn from the bounds, recorded at 10⁴ e/Å² and averaged over the 12 cells of the field. One multislice pass
yields the wave behind every slice; it is kept while only the lens changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optimiser.lens import Lens, detect, resampled, vibration_response
from optimiser.problem import Evaluation, Floats, Quality, Wants, chi2_targets, integer_quality
from optimiser.reference import DOSE, ENERGY, data, noisy
from optimiser.rules import ConfinedDetail, lens_keys
from optimiser.work import Work
from qhrtem.grid import Grid, fft2, ifft2
from qhrtem.optimise.space import Kind, Parameter, SearchSpace
from qhrtem.physics.multislice import propagator, transmission
from qhrtem.physics.potential import PhaseKernels, Species, Thermal

EDGE = (4.036, 5.64836897)  # Å, y along [001], x along [1-10]; the period along the beam is the same as x
SLICES_PER_PERIOD = 4
SHAPE = (36, 48)  # 0.112 x 0.118 Å
FINE = (72, 96)
MOST_SLICES = 60
CELLS = 12  # averaged
FOCI, FINE_FOCI = 7, 25  # of the model and of the truth
INSIDE = 0.1  # truths keep this share of a range away from its bounds
TRUE_DISPLACEMENT = 4.5  # Å at 1 Å detail, most
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
        self, shape: tuple[int, int] = SHAPE, b_scale: float = 1.0, table: str = "lobato", foci: int = FOCI
    ) -> None:
        self.grid = Grid(shape, (EDGE[0] / shape[0], EDGE[1] / shape[1]))
        self.lens = Lens(self.grid, ENERGY, foci)
        self.work = Work(shape[0] * shape[1], MOST_SLICES)
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
            self.work.propagated(1)
        return kept[SLICES_PER_PERIOD + slices]

    def images(
        self,
        slices: Sequence[int],
        tilt: tuple[float, float],
        absorption: float,
        aberrations: dict[str, complex],
        focal_spread: float,
        semi_convergence: float,
        vibration: tuple[float, float, float],
    ) -> Tensor:
        """Return the images (N, rows, columns) behind N numbers of slices, vacuum = 1.

        Å, rad and degrees as in `reference.Imaging`.
        """
        self.spectrum(tilt, absorption, max(slices))
        spectra = torch.stack([self.spectrum(tilt, absorption, n) for n in slices])
        return self.recorded(spectra, aberrations, focal_spread, semi_convergence, vibration)

    def recorded(
        self,
        spectra: Tensor,
        aberrations: dict[str, complex],
        focal_spread: float,
        semi_convergence: float,
        vibration: tuple[float, float, float],
    ) -> Tensor:
        """Return the images (N, rows, columns) of exit-wave spectra of that shape."""
        functions, weights = self.lens.transfer(aberrations, focal_spread, semi_convergence)
        waves = ifft2(spectra[:, None] * functions)
        sharp = torch.einsum("f,nfyx->nyx", weights, waves.real**2 + waves.imag**2)
        self.work.transforms(len(spectra) * (len(weights) + 1))  # two of real images count as one
        return detect(sharp, vibration_response(self.grid, vibration), self.grid.shape)


# name, low, high, unit, unit in Å or rad, step of differences. Widths are those of the published recipe (Tang
# et al., arXiv 2603.19943, 2026), but: absorption scales the thermal-diffuse form factor over the same factor
# of five, vibration reaches 35 pm, and thickness 60 slices.
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
    ("A2_x", -50, 50, "nm", 10.0, 0.8),
    ("A2_y", -50, 50, "nm", 10.0, 0.8),
    ("C3", -15, -5, "µm", 1e4, 0.06),
    ("S3_x", -10, 10, "µm", 1e4, 0.02),
    ("S3_y", -10, 10, "µm", 1e4, 0.02),
    ("A3_x", -10, 10, "µm", 1e4, 0.04),
    ("A3_y", -10, 10, "µm", 1e4, 0.04),
    ("C5", 2, 10, "mm", 1e7, 0.05),
    ("focal_spread", 2, 4, "nm", 10.0, 0.02),
    ("semi_convergence", 0.1, 0.5, "mrad", 1e-3, 0.01),
)
INDEX = {p[0]: i for i, p in enumerate(PARAMETERS)}
FACTOR = np.array([p[4] for p in PARAMETERS])
LENS = slice(INDEX["C1"], INDEX["C5"] + 1)
KEYS = lens_keys(("C1", "A1", "B2", "A2", "C3", "S3", "A3", "C5"))
MOST_DISPLACEMENT = 6.0  # Å at 1 Å detail, about twice what the true lens does


KIND: tuple[Kind, Kind] = ("continuous", "integer")
RULE = ConfinedDetail(ENERGY, KEYS, LENS.start, tuple(FACTOR[LENS]), MOST_DISPLACEMENT)


def settings(vector: Floats) -> dict[str, Any]:
    """Return a vector as arguments of `Cell.images`, without the thickness."""
    v = dict(zip(INDEX, vector * FACTOR, strict=True))
    aberrations: dict[str, complex] = {}
    for (name, unit), value in zip(KEYS, vector[LENS] * FACTOR[LENS], strict=True):
        aberrations[name] = aberrations.get(name, 0) + unit * value
    return {
        "tilt": (v["tilt_x"], v["tilt_y"]),
        "absorption": v["absorption"],
        "aberrations": aberrations,
        "focal_spread": v["focal_spread"],
        "semi_convergence": v["semi_convergence"],
        "vibration": (v["vibration_1"], v["vibration_2"], v["vibration_angle"]),
    }


def draw(generator: np.random.Generator, tilt: float) -> tuple[Floats, Floats, Floats]:
    """Return a truth (22,) with lower and upper bounds (22,), none of them centred on it.

    Parameters are uniform within the published bounds, a margin left out, as far as the lens carries detail
    sideways by no more than `TRUE_DISPLACEMENT`. The specimen is aligned, or tilted by `tilt` mrad in a
    random direction, and as thick as one of Dr. Probe's waves; bounds of tilts are moved so
    that these, too, lie anywhere between them. Absorption is Dr. Probe's.
    """
    low, high = (np.array([float(p[k]) for p in PARAMETERS]) for k in (1, 2))
    width = high - low
    while True:
        truth = low + width * generator.uniform(INSIDE, 1 - INSIDE, len(low))
        if RULE.displacement(truth) <= TRUE_DISPLACEMENT:
            break
    truth[INDEX["thickness"]] = SLICES_PER_PERIOD * generator.choice(data()["cell_wave_periods"])
    truth[INDEX["absorption"]] = 1.0
    angle = generator.uniform(0, 2 * np.pi)
    axes = [INDEX["tilt_x"], INDEX["tilt_y"]]
    along = np.array([np.cos(angle), np.sin(angle)])
    truth[axes] = tilt * along
    low[axes] = truth[axes] - width[axes] * generator.uniform(INSIDE, 1 - INSIDE, 2)
    high[axes] = low[axes] + width[axes]
    return truth, low, high


def make_space(low: Floats, high: Floats) -> SearchSpace:
    """Return the 22 parameters with the rule on delocalisation; one pass yields every thickness."""
    parameters = tuple(
        Parameter(p[0], a, b, p[3], KIND[p[0] == "thickness"], swept=p[0] == "thickness")
        for p, a, b in zip(PARAMETERS, low, high, strict=True)
    )
    return SearchSpace(parameters, (RULE,))


@dataclass(frozen=True)
class Imaging22:
    """χ² of a repeated-cell image over 22 parameters, one of them an integer."""

    name: str
    space: SearchSpace
    cell: Cell
    measured: Tensor
    sigma: Tensor  # one standard deviation of a pixel
    truth: Floats
    fft_seconds: float = 35e-6

    @property
    def pixels(self) -> int:
        """Compared pixels."""
        return self.measured.numel()

    def targets(self) -> tuple[float, float, float]:
        """Return the χ² to be reached."""
        return chi2_targets(self, self.pixels)

    def residuals(self, vector: Floats, slices: Sequence[int]) -> Floats:
        """Return the weighted residuals (N, m) for N thicknesses, all else as in a vector."""
        model = self.cell.images(slices, **settings(vector))
        return ((model - self.measured) / self.sigma).reshape(len(slices), -1).double().numpy()

    def residual(self, vector: Floats) -> Floats:
        """Return the weighted residual (m,)."""
        found: Floats = self.residuals(vector, (round(vector[INDEX["thickness"]]),))[0]
        return found

    def evaluate(self, vector: Floats, wants: Wants = "value") -> Evaluation:
        """Return χ²; a Jacobian by forward differences takes one more image a parameter.

        Levels of the thickness take one image each, but one pass for all.
        """
        before = self.cell.work.now
        if wants == "levels":
            every = self.residuals(vector, range(1, MOST_SLICES + 1))
            at = round(vector[INDEX["thickness"]]) - 1
            levels = np.einsum("nm,nm->n", every, every)
            spent = self.cell.work.since(before)
            return Evaluation(float(levels[at]), len(every), *spent, every[at], levels=levels)
        r = self.residual(vector)
        if wants != "jacobian":
            return Evaluation(float(r @ r), 1, *self.cell.work.since(before), r)
        jacobian = np.empty((r.size, len(vector)))
        # The lens first, while the wave of this point is kept.
        for i in reversed(range(len(vector))):
            step = PARAMETERS[i][5] * (-1 if vector[i] + PARAMETERS[i][5] > self.space.high[i] else 1)
            moved = vector.copy()
            moved[i] += step
            jacobian[:, i] = (self.residual(moved) - r) / step
        return Evaluation(float(r @ r), 1 + len(vector), *self.cell.work.since(before), r, jacobian)

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
def probe() -> Cell:
    """Return the optics that record Dr. Probe's waves, on its own pixels."""
    shape = data()["cell_waves"].shape[1:]
    return Cell((shape[0], shape[1]), foci=FINE_FOCI)


@lru_cache
def fine() -> Cell:
    """Return another route to an image: Kirkland's table, pixels half as large, more foci."""
    return Cell(FINE, table="kirkland", foci=FINE_FOCI)


def clean(truth: Floats, tilted: bool) -> Floats:
    """Return the noise-free image (36, 48): Dr. Probe's wave, or our own where the specimen is tilted."""
    slices, view = round(truth[INDEX["thickness"]]), settings(truth)
    if tilted:
        return resampled(fine().images((slices,), **view)[0].numpy(), SHAPE)
    periods = list(data()["cell_wave_periods"])
    wave = torch.as_tensor(data()["cell_waves"][periods.index(slices // SLICES_PER_PERIOD)])
    lens = {k: v for k, v in view.items() if k not in ("tilt", "absorption")}
    return resampled(probe().recorded(fft2(wave)[None], **lens)[0].numpy(), SHAPE)


@lru_cache(maxsize=4)
def imaging22(seed: int, name: str = "imaging22", b_scale: float = 1.0, tilt: float = 0.0) -> Imaging22:
    """Return the problem of a seed, which draws truth, bounds and noise.

    b_scale: by how much the model's Debye-Waller parameters are wrong; tilt: mrad, in a random direction.
    """
    truth, low, high = draw(np.random.default_rng([seed, 0x7275]), tilt)
    exact = clean(truth, tilt > 0)
    electrons = DOSE * CELLS * EDGE[0] * EDGE[1] / (SHAPE[0] * SHAPE[1])
    measured = torch.as_tensor(noisy(exact, electrons, seed), dtype=torch.float32)
    sigma = torch.as_tensor(np.sqrt(exact / electrons), dtype=torch.float32)
    return Imaging22(name, make_space(low, high), Cell(b_scale=b_scale), measured, sigma, truth)
