"""The lens figure: the aberration phase over scattering angle and the imaging parameters as a table."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MultipleLocator

from qhrtem.grid import Grid
from qhrtem.model.twin import Estimate, Twin
from qhrtem.physics.aberrations import ROUND, TERMS, chi
from qhrtem.physics.electron import wavelength
from qhrtem.report.drawing import colour_bar, style
from qhrtem.report.notation import number, plain, value_and_sigma

LENGTH_A = {"pm": 0.01, "Å": 1.0, "A": 1.0, "nm": 10.0, "µm": 1e4, "μm": 1e4, "um": 1e4, "mm": 1e7}
HIGHEST_Q = 1.25  # 1/Å, edge of the phase plate where the pixel pitch allows it
ROWS_SHOWN = 30


def coefficients(microscope: tuple[Estimate, ...]) -> dict[str, complex]:
    """Return the aberration coefficients in Å by name (C1, A1, ...), as real + i·imaginary parts.

    Taken from estimates whose key starts with the coefficient, with `_x` or `_y` for the two parts:
    c1_nm, a1_x_nm, b2_y, ...; anything else, or a unit that is not a length, is left out.
    """
    found: dict[str, complex] = {}
    for estimate in microscope:
        parts = re.fullmatch(r"([a-ds r][1-5])(?:_([xy]))?(?:_[A-Za-zµμÅ]+)?", estimate.name, re.IGNORECASE)
        if not parts or parts[1].upper() not in TERMS or estimate.unit not in LENGTH_A:
            continue
        name = parts[1].upper()
        if not math.isfinite(estimate.value) or (parts[2] is None) != (name in ROUND):
            continue
        turn = 1j if parts[2] and parts[2].lower() == "y" else 1.0
        found[name] = found.get(name, 0j) + turn * estimate.value * LENGTH_A[estimate.unit]
    return found


def high_tension_eV(twin: Twin) -> float | None:
    """Return the beam energy in eV if an estimate or the provenance states `high_tension_kV`."""
    for estimate in twin.microscope:
        if estimate.name == "high_tension_kV" and math.isfinite(estimate.value):
            return 1e3 * estimate.value
    try:
        return 1e3 * float(twin.provenance.get("high_tension_kV", ""))
    except ValueError:
        return None


def lens_figure(twin: Twin) -> Figure:
    """Aberration phase χ (image wave factor exp(−iχ)) over scattering angle, and the parameter table.

    The phase plate needs C1 and the high tension; without them only the table is drawn.
    """
    lens, energy = coefficients(twin.microscope), high_tension_eV(twin)
    plate = "C1" in lens and energy is not None
    listed = twin.microscope[:ROWS_SHOWN]
    height = max(4.2, 0.235 * (len(listed) + 2) + 0.4)
    with style():
        figure = Figure(figsize=(10.4 if plate else 6.4, height), layout="constrained")
        if plate and energy is not None:
            left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
            _phase_plate(figure, left, lens, energy, twin.pixel_size_A)
        else:
            right = figure.subplots()
        _table(right, listed, len(twin.microscope) - len(listed))
    return figure


def _phase_plate(figure: Figure, ax: Axes, lens: dict[str, complex], energy: float, pixel_A: float) -> None:
    q = min(HIGHEST_Q, 0.5 / pixel_A)
    samples = 320
    grid = Grid((samples, samples), (0.5 / q, 0.5 / q), dtype=torch.float64)
    phase = np.fft.fftshift(chi(grid, energy, lens).numpy())
    angle = 1e3 * wavelength(energy) * np.fft.fftshift(np.fft.fftfreq(samples, 0.5 / q))
    radius = np.hypot(angle[None, :], angle[:, None])
    inside = radius <= -angle[0]
    wrapped = np.where(inside, np.angle(np.exp(1j * phase)), np.nan)
    edge = -float(angle[0])
    image = ax.imshow(wrapped, extent=(-edge, edge, edge, -edge), cmap="twilight", vmin=-np.pi, vmax=np.pi,
                      interpolation="nearest")  # fmt: skip
    uneven = phase - sum_round(lens, energy, radius)
    contours = ax.contour(angle, angle, np.where(inside, np.abs(uneven), np.nan), levels=[np.pi / 4],
                          colors=["white"], linewidths=1.2)  # fmt: skip
    contours.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    if len(contours.allsegs[0]):
        ax.plot([], [], color="white", linewidth=1.2, label="non-round part reaches π/4",
                path_effects=[withStroke(linewidth=2.6, foreground="black")])  # fmt: skip
    for spacing in (2.0, 1.0, 0.8):
        ring = 1e3 * wavelength(energy) / spacing
        if ring <= edge * 1.001:
            turn = np.linspace(0, 2 * np.pi, 200)
            ax.plot(ring * np.cos(turn), ring * np.sin(turn), ":", color="black", linewidth=0.7)
            ax.text(0.0, -ring + 0.012 * edge, f"{spacing:g} Å", ha="center", va="top", fontsize=7.5,
                    path_effects=[withStroke(linewidth=2.0, foreground="white")])  # fmt: skip
    ax.set(xlabel="scattering angle x (mrad)", ylabel="scattering angle y (mrad)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(10.0))
        axis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
    ax.set_title(f"aberration phase at {number(energy / 1e3)} kV")
    bar = colour_bar(figure, image, ax, "χ modulo 2π (rad)", shrink=0.7)
    bar.set_ticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], labels=["−π", "−π/2", "0", "π/2", "π"])
    if len(contours.allsegs[0]):
        figure.legend(loc="outside lower left")


def sum_round(lens: dict[str, complex], energy: float, radius_mrad: np.ndarray) -> np.ndarray:
    """Return the part of χ (rad) due to C1, C3 and C5 at scattering angles in mrad."""
    w = 1e-3 * radius_mrad
    total = np.zeros_like(w)
    for name in ROUND:
        weight, p, q = TERMS[name]
        total = total + weight * lens.get(name, 0j).real * w ** (p + q)
    return np.asarray(2 * math.pi / wavelength(energy) * total)


def _table(ax: Axes, listed: tuple[Estimate, ...], hidden: int) -> None:
    """Write the parameters as rows of text; positions are fractions of the axes."""
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(listed) + 2.2, -0.2))
    places = (0.0, 0.54, 0.56, 0.65)
    for x, text, side in zip(places, ("parameter", "value ± s.d.", "unit", ""), "lrll", strict=True):
        ax.text(x, 0.4, text, ha="left" if side == "l" else "right", va="center", fontweight="bold")
    ax.plot([0, 1], [1.0, 1.0], color="black", linewidth=0.8)
    for row, e in enumerate(listed, start=1):
        note = plain(e.note, 30) if e.refined else "held fixed"
        color = "black" if e.refined else "0.4"
        cells = (plain(e.label, 26), value_and_sigma(e.value, e.sigma), plain(e.unit, 8), note)
        for x, text, side in zip(places, cells, "lrll", strict=True):
            ax.text(x, row + 0.6, text, ha="left" if side == "l" else "right", va="center", color=color,
                    fontsize=8.2)  # fmt: skip
    if hidden > 0:
        ax.text(0.0, len(listed) + 1.6, f"and {hidden} more in microscope.json", va="center", color="0.4")
