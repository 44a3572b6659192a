"""Dr. Probe's way from an exit wave to an image, to compare with it number by number.

Its quadratures, filters and resampling as data for the functions of this package (J. Barthel,
Ultramicroscopy 193 (2018) 1; program wavimg 1.0.4). It gives the spreads as 1/e half widths and cuts them at
twice that, and behind the lens a filter ends the spectrum.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.errors import InputError
from qhrtem.grid import Grid, ifft2
from qhrtem.physics.aberrations import TERMS
from qhrtem.physics.coherence import (
    Samples,
    focal_transfer,
    full_intensity,
    image_waves,
    intensity,
    quasi_coherent_transfer,
    tcc_intensity,
)
from qhrtem.physics.detector import (
    Resampling,
    apply,
    bicubic,
    half_frequencies,
    mtf_from_samples,
    pixel_sinc,
    vibration_filter,
)
from qhrtem.physics.electron import PLANCK_C_EV_A, REST_ENERGY_EV, wavelength
from qhrtem.physics.lens import Aperture, Lens

Floats = NDArray[np.float64]
FOCAL, FULL, LINEAR, TCC, QUASI_COHERENT = 1, 2, 3, 4, 6  # coherence models by Dr. Probe's number
CUT = 2.0  # distributions end at this many 1/e half widths
SOURCE_LINE = 11  # source angles along a diameter
OPEN_MRAD = 2500.0  # an aperture radius that means none
MTF_SAMPLES = 2001
# (m, n) of χ = (2π/λ) Σ (1/m) |w|^(m-n) Re[conj(a) w^n] by index; 0 is an image shift.
ORDERS = (
    *((1, 1), (2, 0), (2, 2), (3, 1), (3, 3), (4, 0), (4, 2), (4, 4), (5, 1), (5, 3), (5, 5)),
    *((6, 0), (6, 2), (6, 4), (6, 6)),
)


@dataclass(frozen=True)
class Settings:
    """The parameters of one image of wavimg."""

    model: int  # coherence model, one of the numbers above
    lens: Lens  # its focal_spread is 1/√2 of Dr. Probe's 1/e half width
    shift: tuple[float, float] = (0.0, 0.0)  # (x, y) in Å, aberration of index 0
    vibration: tuple[float, float, float] = (0.0, 0.0, 0.0)  # rms along two axes (Å), angle from +x (rad)
    mtf: Floats | None = None  # (N,) values at q/Nyquist equally spaced over 0..1; with the sinc of the pixel
    resampling: Resampling | None = None
    complex_wave: bool = False  # the coherent image wave instead of the intensity


def energy_of(high_tension: float) -> float:
    """Return the energy (eV) at which `wavelength` is what wavimg computes at a high tension (V).

    It uses h·c = 12.39842447 keV·Å and m₀c² = 511 keV; the difference is 8e-7 of λ.
    """
    kilovolt = high_tension / 1e3
    momentum = PLANCK_C_EV_A / (12.39842447 / math.sqrt(kilovolt * (2 * 511 + kilovolt)))  # pc, eV
    return math.hypot(momentum, REST_ENERGY_EV) - REST_ENERGY_EV


def object_tilt(thickness: Floats, tilt: tuple[float, float]) -> tuple[Floats, tuple[float, float]]:
    """Return (thickness, mistilt) that give `multislice.propagator` the phase of Dr. Probe's object tilt.

    It takes -(π/λ) Δz cos|t| (|w - t|² - |t|²), so less thickness and t where this package has tan t.
    thickness: Å; tilt: (x, y), rad.
    """
    scale = math.cos(math.hypot(*tilt))
    return np.asarray(thickness) * scale, (math.atan(tilt[0]), math.atan(tilt[1]))


def information_limit(spread: float, vibration: float, lam: float) -> float:
    """Return g_i in 1/Å, infinite without spread and vibration.

    spread: 1/e half width of focus, Å; vibration: the larger rms, Å; lam: λ, Å.
    """
    limit = (8 / (math.pi * lam * spread) ** 2) ** 0.25 if spread else math.inf
    return min(limit, 1 / (math.pi * vibration)) if vibration else limit


def focus_samples(spread: float, limit: float, lam: float) -> Samples:
    """Return wavimg's equidistant focus rule over ±2 half widths; offsets in standard deviations.

    spread: 1/e half width, Å; limit: g_i, 1/Å; lam: λ, Å.
    """
    if spread == 0:
        return Samples(np.zeros(1), np.ones(1))
    n = 1 + int(CUT * spread * lam * (3 * limit) ** 2 / 2)
    z = np.linspace(-CUT, CUT, 2 * n + 1)
    weight = np.exp(-(z**2))
    return Samples(math.sqrt(2) * z, weight / weight.sum())


def source_samples() -> Samples:
    """Return wavimg's rule for the source: a square grid within two half widths."""
    line = np.linspace(-CUT, CUT, SOURCE_LINE)
    x, y = (a.ravel() for a in np.meshgrid(line, line))
    keep = x**2 + y**2 <= CUT**2 * (1 + 1e-9)
    weight = np.exp(-(x**2 + y**2)) * keep
    return Samples(np.stack([x, y], -1)[keep], weight[keep] / weight.sum())


def information_filter(grid: Grid, limit: float) -> Tensor:
    """Return ½ - ½ tanh((g - 2.5 g_i)/(0.2 g_i)), layout of a real transform; g_y from the x pixel too."""
    ky, kx = half_frequencies(grid)
    g = torch.sqrt(kx**2 + (ky * grid.pixel[0] / grid.pixel[1]) ** 2)
    return 0.5 - 0.5 * torch.tanh((g - 2.5 * limit) / (0.2 * limit))


def linear_image(spectrum: Tensor, function: Tensor) -> Tensor:
    """Return the linear image of model 3: T(g) T*(0) + T(0) T*(-g), whose mean is 2|ψ₀|².

    spectrum: (rows, columns) of the exit wave; function: transfer function damped by both envelopes.
    """
    t = spectrum * function
    return 2 * (ifft2(t) * t[0, 0].conj()).real / t.numel()


def wavimg(spectrum: Tensor, grid: Grid, settings: Settings) -> Tensor:
    """Return the image (rows, columns), vacuum = 1, as wavimg computes it from an exit-wave spectrum.

    spectrum: (rows, columns) on `grid`. The image has the grid of the resampling where there is one.
    Raises `InputError` for a coherence model that is none.
    """
    lens, lam = settings.lens, wavelength(settings.lens.energy)
    ky, kx = grid.frequencies()
    if any(settings.shift):
        spectrum = spectrum * torch.exp(-2j * math.pi * (kx * settings.shift[0] + ky * settings.shift[1]))
    spread = math.sqrt(2) * float(lens.focal_spread)
    limit = information_limit(spread, max(settings.vibration[:2]), lam)
    foci = focus_samples(spread, limit, lam)
    if settings.complex_wave:
        return image_waves(spectrum, quasi_coherent_transfer(grid, lens))[0]
    if settings.model == FOCAL:
        image = intensity(spectrum, focal_transfer(grid, lens, foci, cross=False))
    elif settings.model == FULL:
        image = full_intensity(spectrum, grid, lens, foci, source_samples())
    elif settings.model == LINEAR:
        image = linear_image(spectrum, quasi_coherent_transfer(grid, lens).functions[0])
    elif settings.model == TCC:
        image = tcc_intensity(spectrum, grid, lens)
    elif settings.model == QUASI_COHERENT:
        image = intensity(spectrum, quasi_coherent_transfer(grid, lens))
    else:
        raise InputError(f"coherence model must be one of 1, 2, 3, 4 and 6, got {settings.model}")
    if settings.resampling is not None:
        image = bicubic(image, grid, settings.resampling)
        grid = settings.resampling.grid(grid)
    return torch.abs(behind_the_lens(image, grid, settings, limit if spread else math.inf))


def behind_the_lens(image: Tensor, grid: Grid, settings: Settings, limit: float) -> Tensor:
    """Return an image after the information-limit filter, vibration and MTF; limit: g_i in 1/Å."""
    response = torch.ones((), dtype=torch.float64)
    if math.sqrt(2) / (2 * grid.pixel[1]) >= 3 * limit:
        response = response * information_filter(grid, limit)
    major, minor, angle = settings.vibration
    c, s = math.cos(angle), math.sin(angle)
    p, q = major**2, minor**2
    response = response * vibration_filter(
        grid, p * s * s + q * c * c, p * c * c + q * s * s, (p - q) * c * s
    )
    if settings.mtf is not None:
        value = torch.tensor(settings.mtf, dtype=torch.float64)
        cycles = torch.linspace(0, 0.5, len(value), dtype=torch.float64)
        response = response * mtf_from_samples(grid, cycles, value) * pixel_sinc(grid)
    return apply(image, response.to(image.dtype))


def settings_of(record: Mapping[str, Any]) -> Settings:
    """Return the settings of one image record (nm, mrad, degrees, Dr. Probe's notation) in our units.

    Raises `InputError` for an aberration or an MTF that cannot be read.
    """
    aberrations, shift = _aberrations(record.get("aberrations_nm", {}))
    opening = record.get("objective_aperture") or {}
    aperture = None
    if opening and 0 < opening["radius_mrad"] < OPEN_MRAD:
        centre = (1e-3 * opening.get("center_x_mrad", 0.0), 1e-3 * opening.get("center_y_mrad", 0.0))
        smoothness = opening.get("relative_edge_smoothness", 0.03)
        aperture = Aperture(1e-3 * opening["radius_mrad"], smoothness, centre)
    tilt = record.get("beam_tilt_mrad", (0.0, 0.0))
    lens = Lens(
        energy_of(1e3 * record["high_tension_kV"]),
        aberrations,
        10 * record.get("focus_spread_1e_nm", 0.0) / math.sqrt(2),
        1e-3 * record.get("semi_convergence_1e_mrad", 0.0),
        aperture,
        (1e-3 * tilt[0], 1e-3 * tilt[1]),
    )
    vibration = record.get("vibration_rms", 0.0)
    major, minor, angle = vibration if isinstance(vibration, list) else (vibration, vibration, 0.0)
    r = record.get("resampling", "none")
    resampling = None
    if isinstance(r, Mapping):
        offset = (r.get("ox", 0.0), r.get("oy", 0.0))
        turn = math.radians(r.get("rot_deg", 0.0))
        resampling = Resampling((r["ny"], r["nx"]), 10 * r["sampling_nm"], offset, turn)
    mtf = record.get("mtf", "none")
    return Settings(
        record["coherence_model"],
        lens,
        shift,
        (10 * major, 10 * minor, math.radians(angle)),
        None if mtf in ("none", None) else mtf_values(mtf),
        resampling,
        "wave" in record.get("output", ""),
    )


def _aberrations(given: Mapping[str, Any]) -> tuple[dict[str, complex], tuple[float, float]]:
    """Return coefficients (Å) by our names, and the image shift (Å); given: nm by index."""
    names = {(p + q, abs(p - q)): name for name, (_, p, q) in TERMS.items()}
    out: dict[str, complex] = {}
    shift = (0.0, 0.0)
    for index, (x, y) in given.items():
        if not 0 <= int(index) < len(ORDERS):
            raise InputError(f"aberration index must be within 0 to {len(ORDERS) - 1}, got {index}")
        m, n = ORDERS[int(index)]
        if m == 1:
            shift = (10 * x, 10 * y)
            continue
        name = names[m, n]
        weight, p, q = TERMS[name]
        # We write weight·Re[c w^p w̄^q]: conj(a) leads where p > q, a where q > p; a round one has no y.
        out[name] = complex(10 * x, 0.0 if p == q else (-10 * y if p > q else 10 * y)) / (m * weight)
    return out, shift


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{"exp": np.exp, "sqrt": np.sqrt, "cos": np.cos, "sin": np.sin, "tanh": np.tanh, "abs": np.abs},
}


def mtf_values(text: str) -> Floats:
    """Return a modulation transfer function given as "MTF(q)=EXPRESSION, …" at q/Nyquist over 0..1.

    EXPRESSION: arithmetic in q (frequency over Nyquist), numbers, pi, exp, sqrt, cos, sin, tanh, abs; a space
    between two factors multiplies. Raises `InputError` for anything else.
    """
    found = re.search(r"MTF\s*\(q\)\s*=\s*([^,;]+)", text)
    try:
        if found is None:
            raise ValueError("it holds no MTF(q)=…")
        expression = re.split(r"\s(?:with|where|for|at)\s", found[1])[0].strip().replace("^", "**")
        expression = re.sub(r"(?<=[\w.)])\s+(?=[\w(])|(?<=[\d)])(?=q\b)", "*", expression)
        tree = ast.parse(expression, mode="eval")
        value = _evaluate(tree.body, np.linspace(0, 1, MTF_SAMPLES))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the MTF must be written as MTF(q)=EXPRESSION, got {text!r} ({error})") from None
    return np.broadcast_to(np.asarray(value, dtype=np.float64), MTF_SAMPLES)


def _evaluate(node: ast.expr, q: Floats) -> Any:
    """Return the value of an arithmetic expression in q."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in ("q", "pi"):
        return q if node.id == "q" else math.pi
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left, q), _evaluate(node.right, q))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand, q))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
        return _FUNCTIONS[node.func.id](*(_evaluate(a, q) for a in node.args))
    raise ValueError(f"cannot read {ast.unparse(node)}")
