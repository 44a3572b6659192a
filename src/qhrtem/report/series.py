"""A series as pictures: its course in time, and maps of the specimen as a movie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.animation import FFMpegWriter, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from qhrtem.model.series import Frame, Series
from qhrtem.report.drawing import PALETTE, WARNING, colour_bar, integer_scale, style

MARKS = {"appears": "^", "leaves": "v", "gains atoms": "P", "loses atoms": "X", "moves": "o"}
FRAMES_A_SECOND = 5


def course_figure(series: Series) -> Figure:
    """Misfit, lens, drift and events of a series against time; refused frames are left out."""
    held = [f for f in series.frames if not f.refused]
    time, unit = _time(series, held)
    with style():
        figure = Figure(figsize=(7.2, 8.4), layout="constrained")
        misfit, count, lens, tilt, drift, events = figure.subplots(3, 2).ravel()
        misfit.plot(time, [f.chi2_crystal for f in held], ".-", color=PALETTE[0])
        misfit.set_ylabel("reduced χ² of the crystal")
        count.plot(time, [int(f.inside.sum()) for f in held], ".-", color=PALETTE[0])
        count.set_ylabel("columns well inside the image")
        _lens_panel(
            lens, series, held, {"c1_nm": "C1", "a1_x_nm": "A1 x", "a1_y_nm": "A1 y"}, "aberration (nm)"
        )
        _lens_panel(tilt, series, held, {"tilt_x_mrad": "x", "tilt_y_mrad": "y"}, "mistilt (mrad)")
        path = np.array([f.drift_A for f in held]).reshape(-1, 2)
        for k, name in enumerate("xy"):
            drift.plot(time, path[:, k], ".-", color=PALETTE[k], label=name)
        drift.legend(fontsize="x-small")
        drift.set_ylabel("drift since the first frame (Å)")
        _event_panel(events, series)
        for ax in figure.axes:
            ax.set_xlabel(unit)
    return figure


def _lens_panel(ax: Axes, series: Series, held: list[Frame], names: dict[str, str], title: str) -> None:
    """Draw imaging parameters with their standard deviations; names: label by the key of the parameter."""
    time, _ = _time(series, held)
    for n, (key, label) in enumerate(names.items()):
        if key in series.lens_name:
            k = series.lens_name.index(key)
            value, sigma = (np.array([getattr(f, it)[k] for f in held]) for it in ("lens", "lens_sigma"))
            ax.errorbar(time, value, np.nan_to_num(sigma), fmt=".-", color=PALETTE[n], label=label, lw=0.8)
    if ax.containers:
        ax.legend(fontsize="x-small")
    ax.set_ylabel(title)


def _event_panel(ax: Axes, series: Series) -> None:
    """Draw how many events each frame shows, by kind."""
    bottom = np.zeros(len(series.frames))
    time, _ = _time(series, list(series.frames))
    width = 0.8 * (time[1] - time[0]) if len(time) > 1 else 0.8
    place = {f.number: n for n, f in enumerate(series.frames)}
    for n, kind in enumerate(MARKS):
        count = np.zeros(len(series.frames))
        for e in series.events:
            if e.kind == kind:
                count[place[e.frame]] += 1
        if count.any():
            ax.bar(time, count, width, bottom, color=PALETTE[n], label=kind)
            bottom += count
    if bottom.any():
        ax.legend(fontsize="x-small")
    ax.set_ylabel("events")


def _time(series: Series, frames: list[Frame]) -> tuple[NDArray[np.float64], str]:
    number = np.array([f.number for f in frames], dtype=float)
    if np.isfinite(series.interval_s):
        return number * series.interval_s, "time (s)"
    return number, "frame"


def write_movie(series: Series, folder: Path) -> Path:
    """Write the maps of all frames as series.mp4 where FFmpeg is installed, else series.gif; return its path.

    Every frame shows the specimen where it was in the first image: atoms in each column, and events.
    """
    held = [f for f in series.frames if not f.refused]
    pixel = series.pixel_size_A
    place = [f.position_px[:, ::-1] * pixel - f.drift_A for f in held]
    every = np.concatenate(place)
    low, high = every.min(0) - 2, every.max(0) + 2
    most = np.concatenate([f.counts.sum(1) for f in held])
    mp4 = FFMpegWriter.isAvailable()
    path = folder / ("series.mp4" if mp4 else "series.gif")
    writer = FFMpegWriter(FRAMES_A_SECOND) if mp4 else PillowWriter(FRAMES_A_SECOND)
    with style():
        width, height = high - low
        figure = Figure(figsize=(5.4, 4.0 * height / width + 0.9), layout="constrained")
        with writer.saving(figure, str(path), 100):
            for frame, xy in zip(held, place, strict=True):
                figure.clear()
                _map(figure, series, frame, xy, (low, high), most)
                writer.grab_frame()
    return path


def _map(
    figure: Figure,
    series: Series,
    frame: Frame,
    xy: NDArray[np.float64],
    limits: tuple[NDArray[np.float64], NDArray[np.float64]],
    most: NDArray[np.int64],
) -> None:
    """Draw the columns of one frame; xy: (C, 2) Å in the frame of the first image."""
    low, high = limits
    ax = figure.add_subplot()
    cmap, norm = integer_scale(most)
    inner = frame.inside
    x, y = xy.T
    dots = ax.scatter(x[inner], y[inner], c=frame.counts[inner].sum(1), cmap=cmap, norm=norm, s=26, lw=0)
    ax.scatter(x[~inner], y[~inner], s=4, color="0.75", lw=0)
    where = {tuple(map(int, s)): n for n, s in enumerate(frame.site)}
    for kind, mark in MARKS.items():
        mine = [
            where[e.site]
            for e in series.events
            if e.frame == frame.number and e.kind == kind and e.site in where
        ]
        if mine:
            face = "none" if mark in "ov^" else WARNING
            ax.scatter(x[mine], y[mine], s=90, marker=mark, facecolors=face, edgecolors=WARNING)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    ax.set_aspect("equal")
    ax.set_xlabel("x (Å)")
    ax.set_ylabel("y (Å)")
    time, unit = _time(series, [frame])
    said = f"{time[0]:.3g} s" if unit.startswith("time") else f"frame {frame.number}"
    ax.set_title(f"{said}, {int(inner.sum())} columns")
    colour_bar(figure, dots, ax, "atoms in the column")
