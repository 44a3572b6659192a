"""Figures that let a reader judge the fit: convergence of the search and what is left in the residual."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from qhrtem.model.twin import Step, Twin
from qhrtem.report.drawing import PALETTE, VALUE_MAP, colour_bar, style
from qhrtem.report.notation import number, plain, power_of_ten

OF_AVERAGES = ("calibrate", "imaging")  # stages whose misfit is that of cell averages, not of the field
HISTOGRAM_SIGMA = 6.0
RESOLVED = 1.3  # 1/Å; reflections beyond are too dense to mark
STRONG = 5.0  # radial mean power from which the axis turns logarithmic
LEAST_PIXELS = 50  # below this a histogram says nothing


def convergence_figure(twin: Twin) -> Figure:
    """Misfit of every recorded step against wall time, coloured by stage, with the best so far of each stage.

    The misfit of cell averages, which tells imaging parameters apart, and the reduced χ² of the field are
    different quantities: each has its own axes.
    """
    stages = [(stage, tuple(group)) for stage, group in groupby(twin.history, key=lambda s: s.stage)]
    averages = [(stage, steps) for stage, steps in stages if stage in OF_AVERAGES and _finite(steps).size]
    field = [(stage, steps) for stage, steps in stages if stage not in OF_AVERAGES]
    panels = [panel for panel in (averages, field) if panel] or [stages]
    names = dict.fromkeys(stage for panel in panels for stage, _ in panel)
    colors = {stage: PALETTE[n % 7] for n, stage in enumerate(names)}
    with style():
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        width = [1.0, 2.6] if len(panels) > 1 else [1.0]
        axes = figure.subplots(1, len(panels), width_ratios=width, squeeze=False)[0]
        for ax, panel in zip(axes, panels, strict=True):
            _course(ax, panel, colors)
            ax.set_xlabel("time (s)")
            if panel is averages:
                ax.set_ylabel("misfit of cell averages (1)")
                ax.xaxis.set_major_locator(MaxNLocator(3))
            else:
                ax.set_ylabel("reduced χ² (1)")
                if ax.get_yscale() == "log":
                    ax.axhline(1.0, color="0.4", linewidth=0.9, linestyle="dashed", label="noise alone")
        # On top, outside: no curve can run under it.
        handles = {str(h.get_label()): h for ax in figure.axes for h in ax.get_legend_handles_labels()[0]}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4)
    return figure


def _course(ax: Axes, stages: list[tuple[str, tuple[Step, ...]]], colors: dict[str, str]) -> None:
    """Draw the misfit of stages that share one quantity, and the best so far of them all."""
    every = [s for _, steps in stages for s in steps]
    best = np.fmin.accumulate([s.chi2 for s in every])
    ax.step([s.seconds for s in every], best, where="post", color="0.7", linewidth=0.9)
    for stage, steps in stages:
        seconds, chi2 = np.array([s.seconds for s in steps]), np.array([s.chi2 for s in steps])
        ax.plot(seconds, chi2, ".", color=colors[stage], markersize=4, alpha=0.55)
        best = np.fmin.accumulate(chi2)
        ax.step(seconds, best, where="post", color=colors[stage], linewidth=1.8, label=plain(stage, 24))
        ax.axvline(seconds[0], color="0.85", linewidth=0.7, zorder=0)
    value = _finite(every)
    if len(value) and value.min() > 0.0:
        ax.set_yscale("log")
        _plain_log_ticks(ax, float(value.min()), float(value.max()))


def _finite(steps: Sequence[Step]) -> NDArray[np.float64]:
    """Return the finite misfits of steps."""
    value = np.array([s.chi2 for s in steps], dtype=np.float64)
    return value[np.isfinite(value)]


def _plain_log_ticks(ax: Axes, low: float, high: float) -> None:
    """Label a logarithmic axis with ordinary numbers, also when it spans less than a decade."""
    narrow = high / low < 30.0
    ax.yaxis.set_major_locator(LogLocator(10.0, subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if narrow else (1.0,)))
    if high / low < 1.8:
        ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def residual_figure(twin: Twin) -> Figure:
    """Histogram of the normalised residual against the unit Gaussian, and its power spectrum."""
    match = twin.match
    residual = np.asarray((match.measured - match.simulated) / match.sigma, dtype=np.float64)
    with style():
        figure = Figure(figsize=(11.0, 3.7), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _histogram(left, residual, match.used & match.crystal, match.used & ~match.crystal)
        power, qx, qy = power_spectrum(residual, match.used, twin.pixel_size_A)
        radius, mean, error = radial_mean(power, qx, qy)
        middle.fill_between(radius, mean - error, mean + error, color=PALETTE[0], alpha=0.3, linewidth=0)
        middle.plot(radius, mean, color=PALETTE[0], label="residual")
        middle.axhline(1.0, color="0.3", linestyle="dashed", label="white noise")
        ticks = reflections(twin.lattice_px, twin.pixel_size_A, min(float(radius[-1]), RESOLVED))
        middle.plot(ticks, np.full(len(ticks), 0.02), "|", color=PALETTE[1], markersize=9,
                    transform=middle.get_xaxis_transform(), label="lattice reflections")  # fmt: skip
        middle.set(xlabel="spatial frequency (1/Å)", ylabel="power (white noise = 1)", title="radial mean")
        middle.set_xlim(0.0, float(radius[-1]))
        top = float(np.nanmax(mean))
        if top > STRONG:
            middle.set_yscale("log")
            middle.set_ylim(0.1, 30.0 * top)
            _decades(middle)
        else:
            middle.set_ylim(0.0, max(1.6, 1.45 * top))
        middle.legend(loc="upper right")
        extent = (float(qx[0]), float(qx[-1]), float(qy[-1]), float(qy[0]))
        shades = {"cmap": VALUE_MAP, "vmin": 0.0, "vmax": 5.0, "interpolation": "nearest"}
        image = right.imshow(power, extent=extent, **shades)
        right.set(xlabel="spatial frequency x (1/Å)", ylabel="spatial frequency y (1/Å)")
        right.set_title("power spectrum")
        colour_bar(figure, image, right, "power (white noise = 1)", extend="max")
    return figure


def _histogram(
    ax: Axes, residual: NDArray[np.float64], crystal: NDArray[np.bool_], vacuum: NDArray[np.bool_]
) -> None:
    edges = np.linspace(-HISTOGRAM_SIGMA, HISTOGRAM_SIGMA, 61)
    middle = 0.5 * (edges[1:] + edges[:-1])
    ax.plot(middle, np.exp(-0.5 * middle**2) / np.sqrt(2 * np.pi), color="0.3", linestyle="dashed",
            label="unit Gaussian")  # fmt: skip
    for mask, name, color in ((crystal, "crystal", PALETTE[0]), (vacuum, "vacuum", PALETTE[1])):
        value = residual[mask & np.isfinite(residual)]
        if len(value) < LEAST_PIXELS:
            continue
        density, _ = np.histogram(np.clip(value, edges[0], edges[-1]), edges, density=True)
        text = f"{name}: mean {number(value.mean(), 2)}, s.d. {value.std():.3f}"
        ax.stairs(np.where(density > 0, density, np.nan), edges, color=color, linewidth=1.4, label=text)
    ax.set_yscale("log")
    ax.set_ylim(1e-6, 40.0)
    _decades(ax)
    ax.set(xlabel="residual (σ of noise)", ylabel="probability density (1/σ)", title="pixel values")
    ax.legend(loc="upper center", borderaxespad=0.2, labelspacing=0.25)


def _decades(ax: Axes) -> None:
    """Label a logarithmic axis at powers of ten."""
    ax.yaxis.set_major_locator(LogLocator(10.0, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: power_of_ten(v)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def power_spectrum(
    residual: NDArray[np.float64], used: NDArray[np.bool_], pixel_A: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the power (1 for unit white noise) over the used pixels, and q_x, q_y in 1/Å, zero centred."""
    rows, cols = np.nonzero(used)
    box = np.s_[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1] if len(rows) else np.s_[:, :]
    weight = used[box] * np.outer(*(np.hanning(n + 2)[1:-1] for n in used[box].shape))
    field = np.where(used[box], np.nan_to_num(residual[box]), 0.0) * weight
    power = np.abs(np.fft.fft2(field)) ** 2 / max(float((weight**2).sum()), 1e-30)
    qy, qx = (np.fft.fftshift(np.fft.fftfreq(n, pixel_A)) for n in power.shape)
    return np.fft.fftshift(power), qx, qy


def radial_mean(
    power: NDArray[np.float64], qx: NDArray[np.float64], qy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return spatial frequency (1/Å), mean power in rings and its standard error, up to Nyquist."""
    nyquist = min(-qx[0], -qy[0])
    step = 1.5 * max(qx[1] - qx[0], qy[1] - qy[0])
    rings = max(int(nyquist / step), 2)
    edges = np.linspace(0.0, nyquist, rings + 1)
    index = np.digitize(np.hypot(qx[None, :], qy[:, None]).ravel(), edges) - 1
    keep = index < rings
    index, value = index[keep], power.ravel()[keep]
    n = np.maximum(np.bincount(index, minlength=rings), 1)
    mean = np.bincount(index, value, rings) / n
    spread = np.sqrt(np.maximum(np.bincount(index, value**2, rings) / n - mean**2, 0.0))
    # Neighbouring samples share information through the window, a real residual gives every value twice.
    return 0.5 * (edges[1:] + edges[:-1]), mean, spread / np.sqrt(np.maximum(n / 4.5, 1.0))


def reflections(lattice_px: NDArray[np.float64], pixel_A: float, limit: float) -> NDArray[np.float64]:
    """Return the lengths (1/Å) of the projected lattice's reciprocal vectors up to `limit`, each once."""
    reciprocal = np.linalg.inv(np.asarray(lattice_px) * pixel_A).T
    order = np.arange(-12, 13)
    h, k = (x.ravel() for x in np.meshgrid(order, order))
    length = np.hypot(*(h[:, None] * reciprocal[0] + k[:, None] * reciprocal[1]).T)
    return np.unique(np.round(length[(length > 0) & (length < limit)], 4))
