"""Posterior of the imaging parameters: pairs of the most correlated ones, as ellipses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.model.twin import Estimate, Twin
from qhrtem.report.drawing import PALETTE, style
from qhrtem.report.notation import plain, value_and_sigma

MOST_SHOWN = 7


def posterior_figure(twin: Twin, names: tuple[str, ...] | None = None) -> Figure:
    """One and two standard deviations of pairs of imaging parameters, and the curve of each alone.

    The posterior is Gaussian about the optimum (Laplace). names: which parameters, by the keys of
    microscope.json, those of a further image as in "c1_nm of image 2"; None: the most correlated ones of the
    first image. Raises InputError where the covariance is not stored.
    """
    if twin.imaging_errors is None or len(twin.imaging_errors.name) < 2:
        raise InputError("this result holds no covariance of imaging parameters; fit the image again")
    errors, stated = twin.imaging_errors, _stated(twin)
    sigma = np.sqrt(np.diag(errors.covariance))
    correlation = errors.covariance / np.outer(sigma, sigma)
    chosen = _chosen(errors.name, correlation, names, {e.name for e in twin.microscope})
    n = len(chosen)
    with style():
        figure = Figure(figsize=(1.45 * n + 0.6, 1.45 * n + 0.4), layout="constrained")
        grid = figure.subplots(n, n, squeeze=False)
        for a, i in enumerate(chosen):
            for b, j in enumerate(chosen):
                ax = grid[a, b]
                if b > a:
                    ax.set_axis_off()
                    continue
                estimate = stated[errors.name[j]]
                x = np.linspace(-3.2, 3.2, 121)
                if a == b:
                    ax.plot(estimate.value + x * sigma[j], np.exp(-0.5 * x**2), color=PALETTE[0])
                    ax.set_yticks([])
                    ax.set_title(value_and_sigma(estimate.value, sigma[j]), fontsize=7)
                else:
                    _ellipses(ax, (estimate.value, stated[errors.name[i]].value), errors.covariance, j, i)
                    ax.text(0.05, 0.93, f"{correlation[i, j]:+.2f}".replace("-", "−"), fontsize=7,
                            transform=ax.transAxes, va="top")  # fmt: skip
                ax.tick_params(labelsize=6, labelrotation=35)
                ax.locator_params(nbins=3)
                if a == n - 1:
                    ax.set_xlabel(_label(estimate), fontsize=7.5)
                else:
                    ax.set_xticklabels([])
                if b == 0 and a > 0:
                    ax.set_ylabel(_label(stated[errors.name[i]]), fontsize=7.5)
                elif b > 0 or a == 0:
                    ax.set_yticklabels([])
    return figure


def _stated(twin: Twin) -> dict[str, Estimate]:
    """Return the imaging parameters of all images by the names that their errors have."""
    out = {e.name: e for e in twin.microscope}
    for n, image in enumerate(twin.further, 2):
        own = (replace(e, label=f"{e.label} of image {n}") for e in image.microscope)
        out |= {f"{e.name} of image {n}": e for e in own}
    return out


def _label(estimate: Estimate) -> str:
    words = plain(estimate.label, 24).split(" ")
    label = " ".join(words[:-1]) + "\n" + words[-1] if len(words) > 2 else " ".join(words)
    return f"{label} ({plain(estimate.unit, 8) or '1'})"


def _chosen(
    names: tuple[str, ...],
    correlation: NDArray[np.float64],
    wanted: tuple[str, ...] | None,
    usual: set[str],
) -> list[int]:
    if wanted is not None:
        unknown = [w for w in wanted if w not in names]
        if unknown:
            raise InputError(f"{unknown[0]} was not refined; refined were {', '.join(names)}")
        return [names.index(w) for w in wanted]
    own = np.array([n for n, name in enumerate(names) if name in usual])
    off = np.abs(correlation - np.eye(len(names)))[np.ix_(own, own)]
    return sorted(int(own[i]) for i in np.argsort(-off.max(1))[:MOST_SHOWN])


def _ellipses(ax: Axes, middle: tuple[float, float], covariance: NDArray[np.float64], j: int, i: int) -> None:
    block = covariance[np.ix_([j, i], [j, i])]
    scale = np.sqrt(np.diag(block))
    value, axes = np.linalg.eigh(block)
    for size, alpha in ((2.0, 0.2), (1.0, 0.45)):
        turn = np.linspace(0, 2 * np.pi, 90)
        ring = size * axes @ (np.sqrt(np.maximum(value, 0))[:, None] * [np.cos(turn), np.sin(turn)])
        ax.fill(middle[0] + ring[0], middle[1] + ring[1], color=PALETTE[0], alpha=alpha, linewidth=0)
    ax.plot(*middle, "+", color="black", markersize=5)
    ax.set(
        xlim=(middle[0] - 3.2 * scale[0], middle[0] + 3.2 * scale[0]),
        ylim=(middle[1] - 3.2 * scale[1], middle[1] + 3.2 * scale[1]),
    )
