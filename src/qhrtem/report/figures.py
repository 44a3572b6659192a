"""The figures of a report, one function each: twin in, matplotlib Figure out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.io.twin import replace_file
from qhrtem.model.twin import Twin
from qhrtem.report.drawing import (
    CONFIDENCE_MAP,
    IMAGE_MAP,
    PALETTE,
    RESIDUAL_MAP,
    VALUE_MAP,
    WARNING,
    backdrop,
    colour_bar,
    column_dots,
    column_rings,
    columns_xy,
    grey_range,
    integer_scale,
    marker_area,
    nice_length,
    outline,
    panel_grid,
    scale_bar,
    show_image,
    spacing_A,
    style,
)
from qhrtem.report.evidence import convergence_figure, residual_figure
from qhrtem.report.lens import lens_figure
from qhrtem.report.notation import chi2_text, number, percent, plain
from qhrtem.report.physics import polarisation_figure, profile_figure, strain_figure
from qhrtem.report.posterior import posterior_figure
from qhrtem.report.relief import relief_figure

# A PDF without a date is the same file for the same result.
SAVED_AS: dict[str, dict[str, Any]] = {"png": {"dpi": 150}, "pdf": {"metadata": {"CreationDate": None}}}
CERTAIN = 0.9  # columns below this probability of exact counts are ringed
RESIDUAL_SIGMA = 4.0  # end of the residual's colour scale


def match_figure(twin: Twin) -> Figure:
    """Measured and simulated image on one intensity scale, and their difference in units of the noise."""
    match, pixel = twin.match, twin.pixel_size_A
    with style():
        figure, (left, middle, right) = panel_grid(twin, 3)
        figure.set_figheight(figure.get_figheight() + 0.55)  # room for the colour bars below
        low, high = grey_range(match.measured, match.simulated)
        for ax, image, title in ((left, match.measured, "measured"), (middle, match.simulated, "simulated")):
            shown = show_image(ax, image, pixel, cmap=IMAGE_MAP, vmin=low, vmax=high)
            scale_bar(ax, image.shape[1] * pixel)
            ax.set_title(title)
        residual = (match.measured - match.simulated) / match.sigma
        difference = show_image(
            right, residual, pixel, cmap=RESIDUAL_MAP, vmin=-RESIDUAL_SIGMA, vmax=RESIDUAL_SIGMA
        )
        right.set_title(f"measured − simulated, crystal χ² = {chi2_text(twin.chi2_crystal)}")
        for ax, color in ((left, PALETTE[4]), (right, "black")):
            outline(ax, match.used, pixel, color)
            outline(ax, match.crystal & match.used, pixel, color, "dotted")
        for ax in (middle, right):
            ax.set_ylabel("")
        lines = [
            Line2D([], [], color="0.25", label="region used in the misfit"),
            Line2D([], [], color="0.25", linestyle="dotted", label="crystal within it"),
        ]
        figure.legend(handles=lines, loc="outside lower center", ncols=2)
        below = {"location": "bottom", "extend": "both", "shrink": 0.7, "aspect": 40}
        colour_bar(figure, shown, [left, middle], "intensity (vacuum = 1)", **below)
        colour_bar(figure, difference, [right], "difference (σ of noise)", **below)
    return figure


def counts_figure(twin: Twin) -> Figure:
    """Atoms of each element in every column, and the probability that a column's counts are all exact.

    Columns less certain than 90 % carry a ring; those outside the fitted region are drawn small and open.
    """
    with style():
        figure, axes = panel_grid(twin, len(twin.columns.elements) + 1, columns=2, bar=0.6)
        for ax, element in zip(axes, range(len(twin.columns.elements)), strict=False):
            _count_panel(figure, ax, twin, element)
        _confidence_panel(figure, axes[-1], twin)
        figure.legend(handles=_marker_legend(), loc="outside lower center", ncols=2)
    return figure


def _count_panel(figure: Figure, ax: Axes, twin: Twin, element: int) -> None:
    table, xy, name = twin.columns, columns_xy(twin), twin.columns.elements[element]
    n = table.counts[:, element]
    claimed, outer = (n > 0) & table.inside, (n > 0) & ~table.inside
    area = marker_area(twin, 0.62)
    cmap, norm = integer_scale(n[claimed])
    backdrop(ax, twin)
    column_rings(ax, xy[claimed & ~(table.p_exact >= CERTAIN)], 1.9 * area, WARNING, 1.2)
    dots = column_dots(ax, xy[claimed], n[claimed], area, cmap=cmap, norm=norm)
    column_rings(ax, xy[outer], 0.3 * area, "0.75", 0.7)
    bar = colour_bar(figure, dots, ax, f"{name} atoms in the column")
    bar.locator = MaxNLocator(integer=True, nbins=8)
    bar.minorticks_off()
    bar.update_ticks()
    ax.set_title(f"{name}: {int(n[claimed].sum())} atoms in {int(claimed.sum())} columns")


def _confidence_panel(figure: Figure, ax: Axes, twin: Twin) -> None:
    table, inner = twin.columns, twin.columns.inside
    backdrop(ax, twin)
    shades: dict[str, Any] = {"vmin": 0.0, "vmax": 1.0, "cmap": CONFIDENCE_MAP}
    dots = column_dots(ax, columns_xy(twin)[inner], table.p_exact[inner], marker_area(twin, 0.7), **shades)
    colour_bar(figure, dots, ax, "probability that all counts are exact")
    mean = float(np.mean(table.p_exact[inner])) if inner.any() else float("nan")
    ax.set_title(f"confidence: {percent(mean)} expected exact")


def _marker_legend() -> list[Line2D]:
    empty: dict[str, Any] = {"linestyle": "none", "marker": "o", "markerfacecolor": "none"}
    return [
        Line2D([], [], **empty, markeredgecolor=WARNING, markersize=9, label=f"p(exact) < {CERTAIN:g}"),
        Line2D([], [], **empty, markeredgecolor="0.6", markersize=4, label="outside the fitted region"),
    ]


def displacement_figure(twin: Twin) -> Figure:
    """Displacement of every column from the ideal lattice as arrows, one panel a kind, one common scale."""
    table = twin.columns
    kind, length = np.array(table.kind), np.hypot(table.displacement_A[:, 0], table.displacement_A[:, 1])
    known = table.inside & np.isfinite(length)
    longest = float(np.percentile(length[known], 95)) if known.any() else 0.0
    magnify = 0.85 * _own_spacing_A(twin) / longest if longest > 0.0 else 1.0
    kinds = list(dict.fromkeys(table.kind))
    with style():
        figure, axes = panel_grid(twin, len(kinds))
        for ax, name, color in zip(axes, kinds, PALETTE * len(kinds), strict=False):
            backdrop(ax, twin)
            chosen = (kind == name) & known
            _arrows(ax, twin, chosen, color, magnify, nice_length(max(longest, 1e-4)))
            median = 100.0 * np.median(length[chosen]) if chosen.any() else np.nan
            sigma = 100.0 * twin.pixel_size_A * table.sigma_px[chosen]
            sigma = np.median(sigma) if np.isfinite(sigma).any() else np.nan
            ax.set_title(f"{plain(name, 12)}: median {median:.1f} pm\nσ {sigma:.1f} pm per axis", loc="left")
            ax.set_xlabel(f"x (Å); arrows × {number(magnify, 2)}")
    return figure


def _arrows(
    ax: Axes, twin: Twin, chosen: NDArray[np.bool_], color: str, magnify: float, key_A: float
) -> None:
    """Draw the displacements of the chosen columns, and beside the title an arrow of known length."""
    xy, shift = columns_xy(twin)[chosen], twin.columns.displacement_A[chosen]
    arrows = ax.quiver(
        xy[:, 0], xy[:, 1], shift[:, 0], shift[:, 1], color=color, edgecolor="white", linewidth=0.4,
        angles="xy", scale_units="xy", scale=1.0 / magnify, width=0.008, headwidth=3.2, headlength=3.4,
        headaxislength=3.0, minlength=0.5,
    )  # fmt: skip
    ax.plot(xy[:, 0], xy[:, 1], ".", markersize=2.5, color=color)
    ax.quiverkey(arrows, 0.66, 1.05, key_A, f"{100 * key_A:g} pm", labelpos="E", coordinates="axes",
                 color="black", fontproperties={"size": 8})  # fmt: skip


def _own_spacing_A(twin: Twin) -> float:
    """Return the smallest typical distance between columns of one kind, Å: arrows this long do not touch."""
    kind, xy = np.array(twin.columns.kind), columns_xy(twin)
    return min((spacing_A(xy[kind == name]) for name in set(twin.columns.kind)), default=2.0)


def surfaces_figure(twin: Twin) -> Figure:
    """Depth of the first and last atom of every column, their distance, and the specimen from the side."""
    table, xy = twin.columns, columns_xy(twin)
    inner = table.inside & np.isfinite(table.top_A) & np.isfinite(table.bottom_A)
    maps = (("first atom", table.top_A, "depth (Å)"), ("last atom", table.bottom_A, "depth (Å)"),
            ("thickness", table.bottom_A - table.top_A, "last − first atom (Å)"))  # fmt: skip
    with style():
        figure, axes = panel_grid(twin, 4, columns=2, bar=0.6)
        for ax, (title, depth, label) in zip(axes, maps, strict=False):
            backdrop(ax, twin)
            dots = column_dots(ax, xy[inner], depth[inner], marker_area(twin, 0.8), cmap=VALUE_MAP)
            colour_bar(figure, dots, ax, label)
            ax.set_title(title)
        side = axes[3]
        # The steeper of the two image axes shows the wedge.
        along = _steepest(xy[inner], depth[inner])
        for color, marker, (title, depth, _) in zip(PALETTE, "v^", maps[:2], strict=False):
            side.plot(xy[inner, along], depth[inner], marker, markersize=3, color=color, label=title)
        side.axhspan(0.0, twin.thickness_A, color="0.93", zorder=-1, label="simulated depth")
        side.invert_yaxis()
        side.set_xlabel(f"{'xy'[along]} (Å)")
        side.set_ylabel("depth along the beam (Å)")
        side.set_title("seen from the side")
        side.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, handletextpad=0.3,
                    columnspacing=1.0)  # fmt: skip
    return figure


def _steepest(xy: NDArray[np.float64], depth: NDArray[np.float64]) -> int:
    """Return the axis (0: x, 1: y) along which a depth changes more, by its covariance."""
    if len(depth) < 3:
        return 0
    centred = (xy - xy.mean(axis=0)) / np.maximum(xy.std(axis=0), 1e-9)
    return int(np.abs((depth - depth.mean()) @ centred).argmax())


CLAIMING: dict[str, Callable[[Twin], Figure]] = {
    "counts": counts_figure,
    "displacement": displacement_figure,
    "surfaces": surfaces_figure,
}
# Drawn where the twin supports them: complete cages, enough neighbours, a stored covariance.
PHYSICS: dict[str, Callable[[Twin], Figure]] = {
    "polarisation": polarisation_figure,
    "profiles": profile_figure,
    "strain": strain_figure,
    "relief": relief_figure,
}
EVIDENCE: dict[str, Callable[[Twin], Figure]] = {
    "match": match_figure,
    "residual": residual_figure,
    "convergence": convergence_figure,
    "lens": lens_figure,
}
UNCERTAINTY: dict[str, Callable[[Twin], Figure]] = {"posterior": posterior_figure}


def figures_of(twin: Twin) -> dict[str, Figure]:
    """Return the figures a twin supports by name; those about the specimen only when every gate holds."""
    claims = CLAIMING | PHYSICS if twin.passed and twin.columns.kind else {}
    chosen = {"match": match_figure} | claims | EVIDENCE | UNCERTAINTY
    if not twin.history:
        del chosen["convergence"]
    if not twin.microscope:
        del chosen["lens"]
    figures = {}
    for name, draw in chosen.items():
        try:
            figures[name] = draw(twin)
        except InputError:
            if name not in PHYSICS | UNCERTAINTY:
                raise
    return figures


def save_figures(twin: Twin, folder: Path, figures: Mapping[str, Figure] | None = None) -> list[Path]:
    """Write every figure as PNG (150 dpi) and PDF into `folder` and return the paths.

    figures: those of `figures_of(twin)` where they were drawn already.
    Figures about the specimen left there by an earlier run are removed when a gate failed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = figures_of(twin) if figures is None else figures
    for name in set(CLAIMING | PHYSICS | EVIDENCE | UNCERTAINTY) - set(figures):
        for kind in SAVED_AS:
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return save_drawn(figures, folder)


def save_drawn(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures that are drawn already as PNG (150 dpi) and PDF into `folder` and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style():
        for name, figure in figures.items():
            for kind, options in SAVED_AS.items():
                path = folder / f"{name}.{kind}"
                replace_file(path, partial(figure.savefig, format=kind, **options))
                written.append(path)
    return written
