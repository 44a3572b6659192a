"""Figures of the physics in a twin: polar displacements over the image, profiles with bands, strain."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.report.drawing import (
    PALETTE,
    RESIDUAL_MAP,
    VALUE_MAP,
    backdrop,
    colour_bar,
    column_dots,
    marker_area,
    nice_length,
    panel_grid,
    spacing_A,
    style,
)
from qhrtem.report.notation import number
from qhrtem.science.charges import charges_of
from qhrtem.science.estimates import JointEstimate
from qhrtem.science.polarisation import CellMap, off_centring, polarisation
from qhrtem.science.profiles import Profile, distance_to_edge, profile, thickness_at
from qhrtem.science.strain import strain_map

PM = 100.0  # pm in one Å
THICKNESS_BIN_A = 2.0


def polarisation_figure(twin: Twin, found: CellMap | None = None) -> Figure:
    """Off-centring of the polar cation as arrows over the image, coloured by length, and its error bars.

    found: another map of the same twin, for instance of `polarisation`. Raises InputError where the twin has
    no complete cage.
    """
    found = found or off_centring(twin)
    factor, unit = _shown(found)
    length = np.linalg.norm(found.value, axis=1)
    sigma = np.sqrt((found.sigma**2).mean(1))
    longest = float(np.percentile(length, 95))
    reach = 0.9 * spacing_A(found.xy_A) / max(longest, 1e-12)
    with style():
        figure, (left, right) = panel_grid(twin, 2, bar=0.6)
        backdrop(left, twin)
        arrows = left.quiver(
            *found.xy_A.T, *found.value.T, factor * length, cmap=VALUE_MAP, pivot="middle", angles="xy",
            scale_units="xy", scale=1 / reach, width=0.011, headwidth=3.2, headlength=3.4, headaxislength=3.0,
            edgecolor="black", linewidth=0.35, minlength=0.3,
        )  # fmt: skip
        colour_bar(figure, arrows, left, f"length ({unit})")
        key = nice_length(max(longest, 1e-9) * factor) / factor
        left.quiverkey(arrows, 0.72, 1.04, key, f"{factor * key:g} {unit}", labelpos="E", coordinates="axes",
                       color="black", fontproperties={"size": 8})  # fmt: skip
        left.set_title(found.name, loc="left")
        backdrop(right, twin)
        dots = column_dots(
            right, found.xy_A, length / np.maximum(sigma, 1e-12), marker_area(twin, 0.9), cmap="cividis"
        )
        colour_bar(figure, dots, right, "length over its standard deviation (1)")
        right.set_title(f"σ {number(factor * float(np.median(sigma)), 2)} {unit} per axis", loc="left")
        figure.supxlabel(found.note, fontsize=7.5, color="0.35")
    return figure


def profile_figure(twin: Twin) -> Figure:
    """Polar displacement (and polarisation, where charges are known) towards the edge and against thickness.

    Component along the mean direction. Dark band: one standard deviation; light lines: the part of it that
    all cells share. Raises InputError where the twin has no complete cage.
    """
    maps = [off_centring(twin)]
    if charges_of(twin.columns.elements) is not None:
        try:
            maps.append(polarisation(twin))
        except InputError:
            pass  # a field may hold complete cages and no complete cell
    with style():
        figure = Figure(figsize=(8.2, 3.0 * len(maps) + 0.4), layout="constrained")
        grid = figure.subplots(len(maps), 2, squeeze=False)
        for row, found in zip(grid, maps, strict=True):
            direction = found.principal_direction()
            along = found.along(direction)
            factor, unit = _shown(found)
            try:
                coordinate = distance_to_edge(twin, found.xy_A)
                course = profile(coordinate, along, "distance to the edge (Å)")
                _profile(row[0], course, coordinate, along, factor)
            except InputError as reason:
                row[0].set_axis_off()
                row[0].text(0.5, 0.5, str(reason), wrap=True, ha="center", va="center", color="0.4")
            thick = thickness_at(twin, found.column)
            course = profile(thick, along, "distance from first to last atom (Å)", THICKNESS_BIN_A)
            _profile(row[1], course, thick, along, factor)
            angle = np.degrees(np.arctan2(-direction[1], direction[0]))
            row[0].set_ylabel(f"{found.name} ({unit})")
            flat, chance = along.flatness()
            row[0].set_title(f"along {number(angle, 3)}° from x, counter-clockwise", loc="left", fontsize=8.5)
            row[1].set_title(f"a constant: χ²/dof {number(flat, 3)}, p {number(chance, 2)}", loc="left",
                             fontsize=8.5)  # fmt: skip
        handles, labels = grid[-1, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _profile(
    ax: Axes, course: Profile, coordinate: NDArray[np.float64], along: JointEstimate, factor: float
) -> None:
    estimate = course.estimate
    value, sigma = factor * estimate.value, factor * estimate.sigma
    common = factor * estimate.common_sigma
    ax.axhline(0.0, color="0.6", linewidth=0.7)
    ax.plot(coordinate, factor * along.value, ".", color="0.6", markersize=3.5, label="single cells")
    band: dict[str, Any] = {"color": PALETTE[0], "alpha": 0.3, "linewidth": 0}
    ax.fill_between(course.centre, value - sigma, value + sigma, **band, label="mean ± σ")
    for sign in (-1, 1):
        ax.plot(course.centre, value + sign * common, ":", color=PALETTE[1], linewidth=1.0,
                label="σ shared by all cells" if sign > 0 else None)  # fmt: skip
    ax.plot(course.centre, value, "-o", color=PALETTE[0], markersize=3.5, linewidth=1.3, label="mean")
    ax.set_xlabel(course.abscissa)


def _shown(found: CellMap) -> tuple[float, str]:
    return (PM, "pm") if found.vectors.unit == "Å" else (1.0, found.vectors.unit)


def strain_figure(twin: Twin) -> Figure:
    """Strain of the heaviest sublattice against the image's mean, and its axial ratio, with their errors.

    Raises InputError where too few columns have their four neighbours.
    """
    found = strain_map(twin)
    percent = [(found.exx, "ε xx (%)"), (found.eyy, "ε yy (%)"), (found.exy, "ε xy (%)")]
    most = max(float(np.abs(100 * e.value).max()) for e, _ in percent)
    with style():
        figure, axes = panel_grid(twin, 4, columns=2, bar=0.6)
        for ax, (estimate, label) in zip(axes, percent, strict=False):
            _dots(figure, ax, twin, found.xy_A, 100 * estimate.value, label, -most, most)
            sigma = 100 * float(np.median(estimate.sigma))
            ax.set_title(f"σ {number(sigma, 2)} % per column", loc="left")
        ratio = found.ratio
        middle, reach = float(np.mean(ratio.value)), float(np.abs(ratio.value - ratio.value.mean()).max())
        label = "axial ratio of the projected cell (1)"
        _dots(figure, axes[3], twin, found.xy_A, ratio.value, label, middle - reach, middle + reach)
        mean = ratio.mean()
        axes[3].set_title(f"mean {mean.value[0]:.4f} ± {mean.sigma[0]:.4f}", loc="left")
    return figure


def _dots(
    figure: Figure, ax: Axes, twin: Twin, xy: NDArray[np.float64], value: NDArray[np.float64], label: str,
    low: float, high: float,
) -> None:  # fmt: skip
    backdrop(ax, twin)
    dots = column_dots(ax, xy, value, marker_area(twin, 0.95), cmap=RESIDUAL_MAP, vmin=low, vmax=high)
    colour_bar(figure, dots, ax, label)
