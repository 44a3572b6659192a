"""Series: frames of one specimen, the first fitted from nothing, each of the others from those before it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.intensity import mean_pitch, normalise
from qhrtem.calibrate.lattice import Lattice
from qhrtem.errors import InputError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import PARAMETERS
from qhrtem.model.series import Event, Frame, Series
from qhrtem.model.twin import Twin
from qhrtem.plan import ImagePlan, Plan
from qhrtem.specimen.crystal import Crystal
from qhrtem.stages.assess import changed_probability, claimed
from qhrtem.stages.atlas import sites
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.checkpoint import Log, Memory, Parts, Reached, Report
from qhrtem.stages.events import Site, Watch
from qhrtem.stages.follow import Followed, Known, carried, follow, known_from
from qhrtem.stages.objective import threads_here
from qhrtem.stages.pipeline import fit_image
from qhrtem.stages.result import make_twin
from qhrtem.stages.series_forms import FittedFrame, FrameForm
from qhrtem.stages.start import stated_pixel
from qhrtem.stages.tasks import Executor
from qhrtem.stages.tiling import MOST_COLUMNS
from qhrtem.stages.watch import View

Floats = NDArray[np.float64]
SHOWN = tuple(p for p in PARAMETERS if p.name not in ("shift_x", "shift_y"))
AMBIGUOUS = 12.0  # χ² units behind the best: another drift that a frame does not rule out
INSIDE_A = 2.0  # from the border of the image, sites of which a frame says whether they hold a column


@dataclass(frozen=True)
class Exposure:
    """One image of a series as it came."""

    number: int  # in the series, from 0
    raw: RawImage
    digest: str  # SHA-256 of its counts
    fault: str = ""  # why it is no usable image; `raw` is then without meaning


@dataclass
class Following:
    """A series in progress: what is known, what was claimed, what happened."""

    plan: Plan
    first: Twin
    lattice: Lattice
    image: ImagePlan  # how frames are put on the absolute scale
    level: float  # counts of vacuum in the first frame
    known: Known
    parts: Parts
    frames: list[Frame] = field(default_factory=list)
    watch: Watch = field(default_factory=Watch)

    def add(self, exposure: Exposure) -> tuple[Frame, tuple[Event, ...]]:
        """Return what the next frame claims, and the events in it."""
        form = FrameForm(self.known, exposure.digest)
        job = partial(self._fitted, exposure)
        done = self.parts(f"frame {exposure.number}", job, form)
        self.known = done.known
        return done.frame, self._seen(done.frame)

    def _seen(self, frame: Frame) -> tuple[Event, ...]:
        self.frames.append(frame)
        return self.watch.see(frame, vacant(self.known), self.known.field.detector_pixel)

    def _fitted(self, exposure: Exposure) -> FittedFrame:
        """Return what is known after a frame, and its claims or why there are none."""
        log, begin = self.parts.log, time.monotonic()
        try:
            if exposure.fault:
                raise InputError(exposure.fault)
            micrograph = self._normalised(exposure.raw)
            if micrograph.intensity.shape != self.known.field.image_shape:
                rows, cols = micrograph.intensity.shape
                need = "{} × {}".format(*self.known.field.image_shape)
                raise InputError(f"frames must have {need} pixels like the first, got {rows} × {cols}")
        except InputError as error:
            return self._refused(exposure, str(error), time.monotonic() - begin)
        tell: Callable[[str, float, str], None] = lambda stage, chi2, note: log(  # noqa: E731
            f"frame {exposure.number}", chi2, ", ".join(w for w in (stage, note) if w)
        )
        done = follow(
            self.known,
            micrograph,
            self.lattice,
            self.plan.run.seed,
            exposure.number,
            threads_here(),
            tell,
        )
        twin = make_twin(self.plan, done.state, done.start, done.lattice, micrograph, done.assessed, (), ())
        if not twin.passed:
            failed = [g for g in twin.gates if not g.passed]
            words = "; ".join(f"{g.name} {g.value:.3g} (limit {g.limit:.3g})" for g in failed)
            return self._refused(exposure, words, time.monotonic() - begin)
        known = carried(self.known, done)
        changed = self._changed(done)
        frame = frame_of(exposure, twin, known, self.known.whole, changed, time.monotonic() - begin)
        frame = replace(frame, drift_behind=done.drift.behind)
        shown = Reached(done.state, lens_sigma=_lens_sigma(done))
        return FittedFrame(known, frame, View(done.bench, done.start)(shown))

    def _normalised(self, raw: RawImage) -> Micrograph:
        pitch = mean_pitch(stated_pixel(self.plan, raw))
        try:
            return normalise(raw, self.image, pitch)
        except InputError:
            if self.image.vacuum_counts is not None:
                raise
            # The crystal may have covered the vacuum: then the level of the first frame holds.
            return normalise(raw, self.image.model_copy(update={"vacuum_counts": self.level}), pitch)

    def _changed(self, done: Followed) -> Floats:
        """Return the probability (C,) that the claimed columns hold others than they did before."""
        assert done.assessed.ends is not None
        # The first model of the frame has the columns as they were in the frame before.
        probability = changed_probability(done.start.columns, done.state.columns, done.assessed.ends)
        return probability[claimed(done.state.columns, done.start)]

    def _refused(self, exposure: Exposure, why: str, seconds: float) -> FittedFrame:
        drift = self.known.drift_A[::-1].copy()
        nothing = blank(exposure, len(self.first.columns.elements), drift, why, seconds)
        return FittedFrame(replace(self.known, waiting=self.known.waiting + 1), nothing)

    def result(self, interval: float, dropped: tuple[str, ...] = ()) -> Series:
        """Return the series so far; interval: s from frame to frame, nan where unknown."""
        kinds = tuple(k.name for k in self.known.state.columns.projection.kinds)
        return Series(
            kinds,
            self.first.columns.elements,
            tuple(p.key for p in SHOWN),
            tuple(p.unit for p in SHOWN),
            self.first.pixel_size_A,
            interval,
            tuple(self.frames),
            self.watch.events,
            dropped,
            _notes(self.frames),
        )


def begin_series(
    plan: Plan,
    exposure: Exposure,
    crystal: Crystal,
    progress: Report,
    memory: Memory,
    executor: Executor | None = None,
) -> Following:
    """Return a series after its first frame.

    Raises what `fit_image` raises, and `InputError` where the field is one that is cut into tiles.
    """
    twin = fit_image(plan, exposure.raw, crystal, progress, memory, executor)
    fitted = twin.fitted
    assert fitted is not None
    if len(fitted.columns) > MOST_COLUMNS:
        raise InputError(
            f"{exposure.raw.path}: a series may show at most {MOST_COLUMNS} columns, margin included, got "
            f"{len(fitted.columns)}; cut out a smaller part of the frames"
        )
    remembered = Parts(memory, Log(lambda step: None))
    micrograph, lattice = calibrate(plan, exposure.raw, fitted.columns.projection, remembered)
    span = micrograph.electrons_per_pixel * micrograph.gain
    offset = float(np.median(exposure.raw.counts - micrograph.intensity * span))
    image = plan.image.model_copy(
        update={"gain_counts_per_electron": micrograph.gain, "offset_counts": offset}
    )
    known = known_from(twin)
    # How many frames will come is not known, so neither is the share of the work that is done.
    parts = Parts(memory, Log(progress, time.monotonic() - twin.history[-1].seconds, done=math.nan))
    out = Following(plan, twin, lattice, image, offset + span, known, parts)
    out._seen(
        frame_of(exposure, twin, known, 1.0, np.zeros(len(twin.columns.kind)), twin.history[-1].seconds)
    )
    return out


def _lens_sigma(done: Followed) -> Floats:
    """Return one standard deviation (P,) of all imaging parameters, Å or rad, nan where not refined."""
    width = done.assessed.imaging.sigma()
    return np.array([width.get(p.key, math.nan) / p.factor for p in PARAMETERS])


def frame_of(
    exposure: Exposure, twin: Twin, known: Known, whole: float, changed: Floats, seconds: float
) -> Frame:
    """Return what a fitted frame claims.

    whole: probability of the specimen as a whole, where `twin` does not hold it; changed: (C,) that the
    counts of a column are others than before.
    """
    fitted, table = twin.fitted, twin.columns
    assert fitted is not None
    columns, keep = fitted.columns, fitted.claimed
    values = {e.name: (e.value, e.sigma) for e in twin.microscope}
    lens = np.array([values[p.key] for p in SHOWN])
    return Frame(
        exposure.number,
        exposure.raw.path,
        known.drift_A[::-1].copy(),
        math.inf,
        sites(columns)[keep],
        table.counts,
        table.p_exact * whole,
        changed,
        table.position_px,
        table.sigma_px,
        table.displacement_A,
        columns.site_depth(keep, columns.first[keep]),
        columns.site_depth(keep, columns.last[keep]),
        table.inside,
        lens[:, 0].copy(),
        lens[:, 1].copy(),
        twin.chi2_crystal,
        seconds,
    )


def blank(exposure: Exposure, elements: int, drift: Floats, why: str, seconds: float) -> Frame:
    """Return a frame that claims nothing, and why; drift: (2,) x, y of the last one that does."""
    pair, one = np.zeros((0, 2)), np.zeros(0)
    lens = np.full(len(SHOWN), np.nan)
    return Frame(
        exposure.number,
        exposure.raw.path,
        drift,
        math.nan,
        np.zeros((0, 3), np.int64),
        np.zeros((0, elements), np.int64),
        *(one, one, pair, pair, pair, one, one, np.zeros(0, dtype=bool)),
        lens,
        lens.copy(),
        math.nan,
        seconds,
        why,
    )


def vacant(known: Known) -> set[Site]:
    """Return the sites well inside the last image that hold no atoms."""
    columns, field = known.state.columns, known.field
    place = field.to_detector(columns.anchor)
    margin = INSIDE_A / field.detector_pixel
    well = ((place > margin) & (place < np.array(field.image_shape) - 1 - margin)).all(1)
    return {(int(k), int(i), int(j)) for k, i, j in sites(columns)[well & ~columns.occupied]}


def _notes(frames: list[Frame]) -> tuple[str, ...]:
    """Return what a user must know of the frames as a whole."""
    out = []
    refused = [f.number for f in frames if f.refused]
    if refused:
        out.append(f"{len(refused)} of {len(frames)} frames claim nothing: {_listed(refused)}.")
    loose = [f.number for f in frames if f.drift_behind < AMBIGUOUS]
    if loose:
        out.append(
            f"In {len(loose)} of {len(frames)} frames another drift fits as well (Δχ² below {AMBIGUOUS:g}); "
            f"the likelier was taken, and columns may have changed places: {_listed(loose)}."
        )
    return tuple(out)


def _listed(numbers: list[int], most: int = 12) -> str:
    more = len(numbers) - most
    return ", ".join(map(str, numbers[:most])) + (f" and {more} more" if more > 0 else "")
