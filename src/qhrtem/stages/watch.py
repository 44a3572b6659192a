"""What those who watch a fit are shown of each state that it reaches; nothing is computed from it.

It goes into the snapshots of the states and is left out when they are loaded, so it can change no result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.model.microscope import INDEX, PARAMETERS, image_of, watched_rows
from qhrtem.stages.assess import claimed
from qhrtem.stages.checkpoint import Reached, Snapshot
from qhrtem.stages.objective import Bench
from qhrtem.stages.result import exit_focus
from qhrtem.stages.start import Start

Floats = NDArray[np.float64]
HIDDEN = ("shift_x", "shift_y")  # where the specimen lies in its box


@dataclass(frozen=True)
class View:
    """Shows states of one contender: its images on the detector's pixels, and its imaging parameters."""

    bench: Bench
    start: Start

    def __call__(self, reached: Reached) -> Snapshot:
        """Return measured and simulated image, the pixels that count, noise and the imaging parameters.

        facts: `lens` as `watched_rows` writes it, C1 from the exit plane; `electrons` of vacuum per pixel and
        `readout_variance` (vacuum²), which give the noise; `field_A` along rows and columns; how many
        `columns` are on the image.
        """
        state, misfit, field = reached.state, self.bench.misfit, self.bench.model.field
        keep = claimed(state.columns, self.start)
        lens = state.microscope.values.copy()
        if len(keep):
            lens[INDEX["c1"]] = exit_focus(state, self.start, keep)
        free = [i for i in state.microscope.free() if PARAMETERS[i].name not in HIDDEN]
        sigma = np.full(len(lens), np.nan) if reached.lens_sigma is None else reached.lens_sigma
        facts = {
            "lens": watched_rows(free, lens[free], sigma[free]),
            "electrons": float(misfit.electrons),
            "readout_variance": float(misfit.readout_variance),
            "field_A": [float(n * field.detector_pixel) for n in field.image_shape],
            "columns": len(keep),
        }
        images = {"image": self.bench.image(state), "measured": misfit.measured, "used": misfit.used}
        return Snapshot(facts, {name: field.crop(image).cpu().numpy() for name, image in images.items()})


def lens_sigma(imaging: list[int], steps: Floats) -> Floats:
    """Return standard deviations (P,) of all imaging parameters, Å or rad, nan where not known.

    imaging: (F,) numbers of those that were free; steps: (F,) their standard deviations in units of their
    steps. Of the first image, where there are several.
    """
    out = np.full(len(PARAMETERS), np.nan)
    for i, sigma in zip(imaging, steps, strict=True):
        if image_of(i) == 0:
            out[i] = sigma * PARAMETERS[i].step
    return out
