"""The two surfaces of the specimen as a relief in three dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.model.twin import Twin
from qhrtem.report.drawing import VALUE_MAP, columns_xy, spacing_A, style

VIEW = {"elev": 24.0, "azim": -62.0}


def relief_figure(twin: Twin) -> Figure:
    """Entrance and exit surface as reliefs of the first and last atoms of the columns, depth along the beam.

    Raises InputError with fewer than four columns in the fitted region.
    """
    table = twin.columns
    inner = table.inside & np.isfinite(table.top_A) & np.isfinite(table.bottom_A)
    if inner.sum() < 4:
        raise InputError(f"a relief needs at least 4 columns in the fitted region, got {int(inner.sum())}")
    xy = columns_xy(twin)[inner]
    triangles = _triangulation(xy)
    with style():
        figure = Figure(figsize=(9.6, 4.2))
        figure.subplots_adjust(left=0.02, right=0.93, bottom=0.04, top=0.93, wspace=0.08)
        for n, (title, depth) in enumerate(
            (("entrance surface", table.top_A), ("exit surface", table.bottom_A))
        ):
            ax: Any = figure.add_subplot(1, 2, n + 1, projection="3d")
            # The beam comes from above: depth grows downward, and both surfaces are seen from outside.
            z = depth[inner]
            ax.plot_trisurf(triangles, z, cmap=VALUE_MAP, linewidth=0.15, edgecolor="0.25", antialiased=True)
            ax.scatter(*xy.T, z, s=3, color="black", depthshade=False)
            ax.invert_zaxis()
            ax.invert_yaxis()
            ax.view_init(elev=VIEW["elev"] if n == 0 else -VIEW["elev"], azim=VIEW["azim"])
            ax.set_box_aspect((np.ptp(xy[:, 0]), np.ptp(xy[:, 1]), 0.45 * max(np.ptp(xy, axis=0))), zoom=1.02)
            ax.set(xlabel="x (Å)", ylabel="y (Å)", zlabel="depth along the beam (Å)")
            ax.set_title(f"{title}: {np.ptp(z):.1f} Å from highest to lowest", fontsize=9)
        figure.text(0.5, 0.01, "entrance seen from above, exit from below; heights exaggerated", ha="center",
                    fontsize=8, color="0.35")  # fmt: skip
    return figure


def _triangulation(xy: NDArray[np.float64]) -> Triangulation:
    """Return triangles between neighbouring columns, without those that bridge a gap."""
    triangles = Triangulation(*xy.T)
    corners = xy[triangles.triangles]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    triangles.set_mask(edges > 3.0 * spacing_A(xy))
    return triangles
