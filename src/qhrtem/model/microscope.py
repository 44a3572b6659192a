"""Microscope: the imaging parameters of one micrograph, as one vector with names, units and priors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.physics.aberrations import delocalisation
from qhrtem.physics.lens import Lens


@dataclass(frozen=True)
class ImagingParameter:
    """One refinable imaging parameter: internal unit, typical step, prior and the way users write it."""

    name: str
    label: str
    unit: str  # as written for users
    factor: float  # internal value × factor = user value
    step: float  # internal change that alters an image by about one percent
    mean: float  # prior mean, internal unit
    sigma: float  # prior standard deviation, internal unit
    low: float
    high: float
    structural: bool = False  # acts on the exit wave rather than on the lens

    @property
    def key(self) -> str:
        """Name with its unit as users meet it, e.g. "c1_nm"."""
        unit = self.unit.replace("²", "2").replace("µ", "u")
        return f"{self.name}_{unit}" if unit else self.name


# A tuned lens moves 1 Å detail by up to this much; windows and margins allow for it.
TUNED_DELOCALISATION_A = 1.5
# Priors describe a tuned aberration-corrected instrument; the plan overrides what the user knows. The image
# does not tell a semi-convergence below 0.03 mrad from none, and a refinement would stand still there.
PARAMETERS: tuple[ImagingParameter, ...] = (
    ImagingParameter("c1", "C1", "nm", 0.1, 2.0, 50.0, 60.0, -400, 400),
    ImagingParameter("a1_x", "A1 x", "nm", 0.1, 2.0, 0.0, 15.0, -100, 100),
    ImagingParameter("a1_y", "A1 y", "nm", 0.1, 2.0, 0.0, 15.0, -100, 100),
    ImagingParameter("b2_x", "B2 x", "nm", 0.1, 20.0, 0.0, 200.0, -2000, 2000),
    ImagingParameter("b2_y", "B2 y", "nm", 0.1, 20.0, 0.0, 200.0, -2000, 2000),
    ImagingParameter("a2_x", "A2 x", "nm", 0.1, 40.0, 0.0, 300.0, -3000, 3000),
    ImagingParameter("a2_y", "A2 y", "nm", 0.1, 40.0, 0.0, 300.0, -3000, 3000),
    ImagingParameter("c3", "C3", "µm", 1e-4, 3000.0, -1.5e5, 1.0e4, -5e5, 2e7),
    ImagingParameter("s3_x", "S3 x", "µm", 1e-4, 1000.0, 0.0, 2000.0, -1e5, 1e5),
    ImagingParameter("s3_y", "S3 y", "µm", 1e-4, 1000.0, 0.0, 2000.0, -1e5, 1e5),
    ImagingParameter("a3_x", "A3 x", "µm", 1e-4, 2000.0, 0.0, 4000.0, -1e5, 1e5),
    ImagingParameter("a3_y", "A3 y", "µm", 1e-4, 2000.0, 0.0, 4000.0, -1e5, 1e5),
    ImagingParameter("c5", "C5", "mm", 1e-7, 2e6, 0.0, 1e6, -1e9, 1e9),
    ImagingParameter("focal_spread", "focal spread", "nm", 0.1, 1.0, 30.0, 3.0, 1.0, 200),
    ImagingParameter("semi_convergence", "semi-convergence", "mrad", 1e3, 5e-5, 3e-4, 1e-4, 3e-5, 3e-3),
    ImagingParameter("vibration_xx", "vibration variance xx", "pm²", 1e4, 0.004, 0.05, 0.03, 0.0, 1.0),
    ImagingParameter("vibration_yy", "vibration variance yy", "pm²", 1e4, 0.004, 0.05, 0.03, 0.0, 1.0),
    ImagingParameter("vibration_xy", "vibration covariance xy", "pm²", 1e4, 0.004, 0.0, 0.015, -0.5, 0.5),
    ImagingParameter("tilt_x", "mistilt x", "mrad", 1e3, 3e-4, 0.0, 3e-3, -0.02, 0.02, True),
    ImagingParameter("tilt_y", "mistilt y", "mrad", 1e3, 3e-4, 0.0, 3e-3, -0.02, 0.02, True),
    ImagingParameter("b_scale", "Debye-Waller scale", "", 1.0, 0.05, 1.0, 0.1, 0.2, 3.0, True),
    ImagingParameter("absorption", "absorption scale", "", 1.0, 0.1, 1.0, 0.15, 0.0, 5.0, True),
    ImagingParameter("scale", "intensity scale", "", 1.0, 0.01, 1.0, 0.002, 0.5, 2.0),
    ImagingParameter("shift_x", "image shift x", "pm", 100.0, 0.01, 0.0, 0.2, -3, 3),
    ImagingParameter("shift_y", "image shift y", "pm", 100.0, 0.01, 0.0, 0.2, -3, 3),
)
NAMES = tuple(p.name for p in PARAMETERS)
INDEX = {name: i for i, name in enumerate(NAMES)}
# What belongs to the specimen and not to the exposure: several images of one area have it in common.
SPECIMEN = tuple(i for i, p in enumerate(PARAMETERS) if p.structural)


def numbered(name: str, image: int) -> int:
    """Return the number of an imaging parameter of one of several images, counted from 0.

    A fit to several images numbers the parameters of the first as `INDEX` does, those of the second from
    `len(PARAMETERS)` on, and so forth. What belongs to the specimen has the number it has in the first image.
    """
    own = INDEX[name]
    return own if own in SPECIMEN else image * len(PARAMETERS) + own


def parameter(number: int) -> ImagingParameter:
    """Return the imaging parameter that a number means, of whichever image."""
    return PARAMETERS[number % len(PARAMETERS)]


def image_of(number: int) -> int:
    """Return which image a number belongs to, 0 the first."""
    return number // len(PARAMETERS)


def acting_on(imaging: list[int], image: int) -> list[int]:
    """Return the places in a list of numbers of those parameters that change one of several images."""
    return [a for a, i in enumerate(imaging) if image_of(i) == image or i in SPECIMEN]


Mtf = tuple[float, float] | NDArray[np.float64]  # (a, b), or samples (2, N): q in cycles/pixel, value


class Imaging:
    """What plain and differentiable imaging parameters share; `energy` (eV) and values by name."""

    energy: float
    mtf: Mtf

    def __getitem__(self, name: str) -> Any:
        raise NotImplementedError

    def coefficients(self, extra_focus: float = 0.0) -> dict[str, complex | Tensor]:
        """Return the aberration coefficients in Å for `physics.aberrations`; extra_focus (Å) adds to C1."""
        pairs = {"A1": "a1", "B2": "b2", "A2": "a2", "S3": "s3", "A3": "a3"}
        out = {name: _complex(self[f"{key}_x"], self[f"{key}_y"]) for name, key in pairs.items()}
        return {"C1": self["c1"] + extra_focus, **out, "C3": self["c3"], "C5": self["c5"]}

    def lens(self, extra_focus: float = 0.0) -> Lens:
        """Return the lens; extra_focus (Å) adds to C1."""
        return Lens(
            self.energy, self.coefficients(extra_focus), self["focal_spread"], self["semi_convergence"]
        )


def _complex(x: Any, y: Any) -> complex | Tensor:
    return torch.complex(x, y) if isinstance(x, Tensor) else complex(x, y)


@dataclass(frozen=True)
class MicroscopeTensor(Imaging):
    """Imaging parameters as one tensor, to differentiate an image by them."""

    energy: float  # eV
    values: Tensor  # (P,) float64 in the order of PARAMETERS
    mtf: Mtf = (1.0, 1.0)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[INDEX[name]]


@dataclass(frozen=True)
class Microscope(Imaging):
    """Imaging parameters of one micrograph (Å, rad; C1 refers to the lower face of the simulated box)."""

    energy: float  # eV
    values: NDArray[np.float64]  # (P,) in the order of PARAMETERS
    mean: NDArray[np.float64]  # (P,) prior means
    sigma: NDArray[np.float64]  # (P,) prior standard deviations; 0 = held fixed
    mtf: Mtf = (1.0, 1.0)

    def __getitem__(self, name: str) -> float:
        return float(self.values[INDEX[name]])

    def differentiable(self) -> MicroscopeTensor:
        """Return the same values as a tensor that records gradients."""
        return MicroscopeTensor(
            self.energy, torch.tensor(self.values, dtype=torch.float64, requires_grad=True), self.mtf
        )

    def with_values(self, **changes: float) -> Microscope:
        """Return the microscope with some parameters changed."""
        values = self.values.copy()
        for name, value in changes.items():
            values[INDEX[name]] = value
        return replace(self, values=values)

    def with_vector(self, index: list[int], value: NDArray[np.float64]) -> Microscope:
        """Return the microscope with parameters `index` set to `value`."""
        values = self.values.copy()
        values[index] = value
        return replace(self, values=values)

    def delocalisation(self) -> float:
        """Return how far (Å) the lens carries 1 Å detail sideways beyond that of a well-tuned instrument."""
        return max(0.0, delocalisation(self.energy, self.coefficients()) - TUNED_DELOCALISATION_A)

    def free(self) -> list[int]:
        """Return the indices of parameters that may be refined (prior sigma above zero)."""
        return [i for i in range(len(PARAMETERS)) if self.sigma[i] > 0]


def nominal(energy: float) -> Microscope:
    """Return a microscope at the prior means of `PARAMETERS`; energy in eV."""
    mean = np.array([p.mean for p in PARAMETERS])
    return Microscope(energy, mean.copy(), mean, np.array([p.sigma for p in PARAMETERS]))


def watched_rows(
    index: list[int], values: NDArray[np.float64], sigma: NDArray[np.float64]
) -> list[list[str | float | None]]:
    """Return [key, label, unit, value, standard deviation] of imaging parameters, as users write them.

    index: (P,) into PARAMETERS; values, sigma: (P,) Å or rad. JSON values; None for what is not known.
    """
    rows: list[list[str | float | None]] = []
    for i, value, sd in zip(index, values, sigma, strict=True):
        p = PARAMETERS[i]
        numbers = (float(v) * p.factor for v in (value, sd))
        rows.append(
            [p.key, p.label, p.unit, *(float(f"{v:.7g}") if np.isfinite(v) else None for v in numbers)]
        )
    return rows
