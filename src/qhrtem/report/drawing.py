"""Shared drawing: style, image panels in Å, scale bars, column markers. No pyplot, no global state kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qhrtem.model.twin import Twin

IMAGE_MAP = "gray"
VALUE_MAP = "viridis"  # perceptually uniform, safe for colour-blind readers, as are the next two
CONFIDENCE_MAP = "cividis"
RESIDUAL_MAP = "RdBu_r"
# Okabe and Ito: eight colours that colour-blind readers tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
WARNING = "#D55E00"
PANEL_INCH = 3.3

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.7,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names come from files; a dollar sign must stay a dollar sign
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context; matplotlib's settings are as before afterwards."""
    with mpl.rc_context(_STYLE):
        yield


def panel_grid(
    twin: Twin, panels: int, *, columns: int | None = None, bar: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of the micrograph's shape; `bar`: inches kept beside each."""
    across = columns or min(panels, 3)
    down = math.ceil(panels / across)
    rows, cols = twin.match.measured.shape
    high = PANEL_INCH * min(max(rows / cols, 0.45), 1.8)
    figure = Figure(
        figsize=(across * (PANEL_INCH + bar) + 0.7, down * (high + 0.45) + 0.5), layout="constrained"
    )
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax in grid[panels:]:
        ax.remove()
    return figure, list(grid[:panels])


def show_image(ax: Axes, image: NDArray[Any], pixel_A: float, **options: Any) -> ScalarMappable:
    """Draw an image with axes in Å, pixel centres at whole multiples of the pitch, row axis downward."""
    rows, cols = image.shape
    extent = (-0.5 * pixel_A, (cols - 0.5) * pixel_A, (rows - 0.5) * pixel_A, -0.5 * pixel_A)
    mappable = ax.imshow(image, extent=extent, interpolation="nearest", **({"cmap": IMAGE_MAP} | options))
    ax.autoscale(False)  # markers at the border must not widen the panel
    ax.set_xlabel("x (Å)")
    ax.set_ylabel("y (Å)")
    return mappable


def grey_range(*images: NDArray[Any]) -> tuple[float, float]:
    """Return the intensity range shared by several images: the 0.2 and 99.8 percentiles of all pixels."""
    pixels = np.concatenate([np.asarray(i, dtype=float).ravel() for i in images])
    pixels = pixels[np.isfinite(pixels)]
    if not len(pixels):
        return 0.0, 1.0
    low, high = np.percentile(pixels, (0.2, 99.8))
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def nice_length(longest: float) -> float:
    """Return the greatest of 1, 2, 5 × 10ⁿ that does not exceed `longest` (> 0)."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= longest * (1 + 1e-9))


def scale_bar(ax: Axes, field_A: float, share: float = 0.3) -> None:
    """Draw a bar in the lower left corner of an image panel `field_A` wide, labelled in Å or nm."""
    length = nice_length(share * field_A)
    text = f"{length / 10:g} nm" if length >= 10.0 else f"{length:g} Å"
    x0, y0 = 0.05, 0.055
    ax.plot([x0, x0 + length / field_A], [y0, y0], transform=ax.transAxes, color="white", linewidth=3.0,
            solid_capstyle="butt", path_effects=[withStroke(linewidth=5.0, foreground="black")])  # fmt: skip
    ax.text(x0, y0 + 0.025, text, transform=ax.transAxes, color="white", fontsize=9, fontweight="bold",
            path_effects=[withStroke(linewidth=2.2, foreground="black")])  # fmt: skip


def outline(ax: Axes, mask: NDArray[np.bool_], pixel_A: float, color: str, dashes: str = "solid") -> None:
    """Draw the border of a pixel mask on an image panel."""
    framed = np.pad(mask.astype(float), 1)
    rows, cols = framed.shape
    x, y = (np.arange(cols) - 1) * pixel_A, (np.arange(rows) - 1) * pixel_A
    ax.contour(x, y, framed, levels=[0.5], colors=[color], linewidths=1.3, linestyles=dashes)


def backdrop(ax: Axes, twin: Twin) -> None:
    """Draw the measured image, weak enough to carry markers, with its scale bar."""
    image = twin.match.measured
    low, high = grey_range(image)
    reach = high - low
    show_image(ax, image, twin.pixel_size_A, vmin=low - 0.5 * reach, vmax=high + 0.5 * reach)
    scale_bar(ax, image.shape[1] * twin.pixel_size_A)


def spacing_A(place_A: NDArray[np.float64]) -> float:
    """Return the median distance of points (C, 2) to their nearest neighbour, Å; 2 Å for fewer than two."""
    if len(place_A) < 2:
        return 2.0
    distance, _ = cKDTree(place_A).query(place_A, k=2)
    return float(np.median(distance[:, 1]))


def marker_area(twin: Twin, share: float) -> float:
    """Return the scatter size (points²) of a marker whose diameter is `share` of the column spacing."""
    rows, cols = twin.match.measured.shape
    width = PANEL_INCH * min(1.0, 1.8 * cols / rows)  # a tall image does not fill its panel
    points = 72.0 * width * share * spacing_A(columns_xy(twin)) / (cols * twin.pixel_size_A)
    return float(np.clip(points, 1.2, 14.0) ** 2)


def column_dots(
    ax: Axes, place_A: NDArray[np.float64], value: NDArray[Any], area: float, **options: Any
) -> ScalarMappable:
    """Draw a filled marker at each place (C, 2) in Å, coloured by its value."""
    look: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.3} | options
    return ax.scatter(place_A[:, 0], place_A[:, 1], s=area, c=value, **look)


def column_rings(ax: Axes, place_A: NDArray[np.float64], area: float, color: str, width: float) -> None:
    """Draw an open marker at each place (C, 2) in Å."""
    ax.scatter(place_A[:, 0], place_A[:, 1], s=area, c="none", edgecolors=color, linewidths=width)


def columns_xy(twin: Twin) -> NDArray[np.float64]:
    """Return the column positions (C, 2) as x, y in Å."""
    return np.asarray(twin.columns.position_px[:, ::-1] * twin.pixel_size_A)


def integer_scale(values: NDArray[Any], name: str = VALUE_MAP) -> tuple[Colormap, Normalize]:
    """Return a colour map and norm that give every integer of the values a colour of its own."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 1)
    n = high - low + 1
    # A colour map has 256 entries; beyond a few dozen steps a continuous one says the same.
    if n > 40:
        return mpl.colormaps[name], Normalize(low, high)
    return mpl.colormaps[name].resampled(max(n, 2)), BoundaryNorm(np.arange(low, high + 2) - 0.5, max(n, 2))


def colour_bar(figure: Figure, mappable: ScalarMappable, ax: Any, label: str, **options: Any) -> Colorbar:
    """Add a labelled colour bar that takes its room from `ax`."""
    bar = figure.colorbar(mappable, ax=ax, **({"shrink": 0.85, "pad": 0.02, "aspect": 28} | options))
    bar.set_label(label)
    return bar
