"""The page of `qhrtem inspect`: image, masks, indexed spectrum and the account; opens offline."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qhrtem.calibrate.candidates import FINEST_A
from qhrtem.calibrate.noise import NYQUIST, NoiseSpectrum
from qhrtem.calibrate.reflections import reflections
from qhrtem.calibrate.spectrum import PEAK_POWER
from qhrtem.calibrate.survey import Survey
from qhrtem.io.twin import write_text
from qhrtem.report.drawing import IMAGE_MAP, PALETTE, style
from qhrtem.report.inspection import Account
from qhrtem.report.page import _policy, _template
from qhrtem.specimen.crystal import project

LABELLED = 14  # strongest reflections that carry their indices
SEEN = "#56d9b0"
SHOWN = 1200  # pixels along an edge beyond which an image is drawn from every second pixel and so on


def write_page(found: Survey, said: Account, path: Path) -> None:
    """Write the page (atomically)."""
    write_text(Path(path), page_text(found, said))


def page_text(found: Survey, said: Account) -> str:
    """Return the page as HTML; every string from outside is escaped, nothing is loaded from anywhere."""
    sheet = _template("report.css")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_template("inspection.html.j2")).render(
        policy=_policy(sheet, ()),
        sheet=Markup(sheet),  # our own
        said=said,
        name=Path(said.title).name,
        figure=_png(figure_of(found)),
    )


def figure_of(found: Survey) -> Figure:
    """Return the image with what was found in it beside its spectrum with indexed spots."""
    with style():
        figure = Figure(figsize=(11.0, 5.4 if found.noise is None else 8.6), layout="constrained")
        if found.noise is None:
            left, right = figure.subplots(1, 2)
        else:
            grid = figure.add_gridspec(2, 2, height_ratios=(1.8, 1.0))
            left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
            _draw_noise(found.noise, figure.add_subplot(grid[1, :]))
        _draw_image(found, left)
        _draw_spectrum(found, right)
    return figure


def _draw_noise(noise: NoiseSpectrum, ax: Axes) -> None:
    """Draw the power of the vacuum's noise over that at q = 0, and what it says of the camera."""
    base = noise.level + noise.floor
    ax.errorbar(
        noise.q, noise.power / base, 2 * noise.sigma / base, fmt="o", ms=3.5, lw=1, color=PALETTE[0],
        label="noise of the vacuum, ± 2 σ",
    )  # fmt: skip
    q = np.linspace(0, NYQUIST, 201)
    curve = (noise.level * noise.at(q) ** 2 + noise.floor) / base
    if noise.transfer is None:
        ax.plot(q, curve, color=PALETTE[1], label="white: it does not show the camera's MTF")
    else:
        ax.plot(q, curve, color=PALETTE[1], label="NTF², fitted")
        ax.plot(q, noise.at(q), color=PALETTE[3], ls="--", label="NTF; the camera's MTF lies at or below")
    ax.set_xlim(0, NYQUIST)
    ax.set_ylim(0, None)
    ax.set_title("Noise of the vacuum")
    ax.set_xlabel("frequency (cycles per pixel)")
    ax.set_ylabel("power over that at low frequency" if noise.transfer else "power over its mean")
    ax.legend(loc="lower left", ncols=3)


def _draw_image(found: Survey, ax: Axes) -> None:
    counts = found.raw.counts
    low, high = np.percentile(counts[np.isfinite(counts)], [0.5, 99.5])
    rows, cols = counts.shape
    step = max(1, max(rows, cols) // SHOWN)
    extent = (-0.5, cols - 0.5, rows - 0.5, -0.5)
    pitch = found.lattice.pitch_A if found.lattice is not None else found.pitch_A
    aspect = 1.0 if pitch is None else pitch[0] / pitch[1]
    ax.imshow(counts[::step, ::step], cmap=IMAGE_MAP, vmin=low, vmax=high, extent=extent, aspect=aspect)
    names = []
    masks = [
        ("crystal", found.lattice.crystal if found.lattice is not None else None, PALETTE[1], "-"),
        ("vacuum", found.micrograph.vacuum if found.micrograph is not None else None, PALETTE[5], "-"),
        ("left out", found.foreign, PALETTE[3], "--"),
        ("ruled out by the plan", None if found.raw.usable is None else ~found.raw.usable, PALETTE[7], ":"),
    ]
    for name, mask, colour, line in masks:
        if mask is not None and mask.any():
            # A frame of nothing closes outlines at the image's edge.
            closed = np.pad(mask[::step, ::step].astype(float), 1)
            y = np.arange(-1, closed.shape[0] - 1) * step
            x = np.arange(-1, closed.shape[1] - 1) * step
            ax.contour(x, y, closed, [0.5], colors=colour, linewidths=1.4, linestyles=line)
            ax.plot([], [], color=colour, linestyle=line, label=name)
            names.append(name)
    bad = np.argwhere(~found.defects.valid)
    if 0 < len(bad) <= 4000:
        ax.plot(bad[:, 1], bad[:, 0], ".", ms=2.5, color=PALETTE[4], label=f"{len(bad)} unusable pixels")
        names.append("unusable")
    if names:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4)
    ax.set_xlim(-0.5, cols - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_title("Image as the file holds it")
    ax.set_xlabel("column (pixels)")
    ax.set_ylabel("row (pixels)")


def _draw_spectrum(found: Survey, ax: Axes) -> None:
    spectrum = found.spectrum
    ax.set_title("Power spectrum over its background")
    ax.set_xlabel("cycles per pixel, along columns")
    ax.set_ylabel("cycles per pixel, along rows")
    if spectrum is None:
        ax.text(0.5, 0.5, "too small for a spectrum", ha="center", va="center")
        return
    power = np.log10(np.maximum(spectrum.snr, 0.3))
    step = max(1, spectrum.n // SHOWN)
    # Only what holds spots, with some room around it.
    frequency, _ = found.information_limit()
    reach = 0.5 if not np.isfinite(frequency) else min(0.5, 1.35 * frequency)
    n = spectrum.n
    kept = power[: n // step * step, : n // step * step]
    kept = kept.reshape(n // step, step, n // step, step).max((1, 3))
    half = 0.5 / n
    ax.imshow(
        kept, cmap="magma", vmin=0, vmax=max(2.0, float(kept.max()) * 0.85),
        extent=(-0.5 - half, 0.5 - half, 0.5 - half, -0.5 - half),
    )  # fmt: skip
    ax.set_xlim(-reach, reach)
    ax.set_ylim(reach, -reach)
    if found.lattice is not None and found.crystal is not None and found.zone is not None:
        refl = reflections(project(found.crystal, found.zone), FINEST_A)
        f = refl.g @ np.linalg.inv(found.lattice.frame).T
        power_at = np.nan_to_num(spectrum.at(f))
        seen = power_at > PEAK_POWER
        asked = refl.strength > 0.06
        for sign in (1, -1):
            ax.scatter(sign * f[seen, 1], sign * f[seen, 0], s=70, facecolors="none", edgecolors=SEEN, lw=1.1,
                       label="on the lattice, seen" if sign > 0 else None)  # fmt: skip
            miss = ~seen & asked & (np.abs(f) < reach).all(1)
            ax.scatter(sign * f[miss, 1], sign * f[miss, 0], s=40, marker="x", color="#9aa4ad", lw=0.9,
                       label="on the lattice, not seen" if sign > 0 else None)  # fmt: skip
        for k in np.argsort(-power_at)[:LABELLED]:
            if seen[k]:
                ax.annotate(
                    " ".join(str(i) for i in refl.index[k]), (f[k, 1], f[k, 0]), (6, 5),
                    textcoords="offset points", color="white", fontsize=7,
                )  # fmt: skip
    elif found.peaks is not None and len(found.peaks.snr):
        f = found.peaks.frequency
        for sign in (1, -1):
            ax.scatter(sign * f[:, 1], sign * f[:, 0], s=70, facecolors="none", edgecolors="#56d9b0", lw=1.1,
                       label="spots" if sign > 0 else None)  # fmt: skip
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
