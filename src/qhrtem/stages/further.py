"""Further images of the same area: on the absolute scale, laid on the first, each with its own lens.

Between exposures a specimen drifts and the lens changes; the structure stays. A further image is therefore
compared with what the structure found in the first makes under every C1 that may be, at every drift. Columns
repeat, so drifts that differ by a lattice vector look alike: the leading ones each get a lens of their own
and are compared on the pixels that they have in common. An image whose place stays open is left out, and the
result says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft, ndimage

from qhrtem.calibrate.intensity import find_vacuum, mean_pitch, normalise, planned_pitch
from qhrtem.calibrate.lattice import Lattice
from qhrtem.errors import InputError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import INDEX, SPECIMEN, Microscope
from qhrtem.plan import FurtherPlan, ImagePlan, Plan
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.calibration import calibrate
from qhrtem.stages.cell_match import orientations
from qhrtem.stages.checkpoint import Parts, Reached, ReachedForm, Snapshot
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.imaging import C1_RANGE_A
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, Misfit, OwnLens, State, make_misfit
from qhrtem.stages.result import Placed
from qhrtem.stages.start import planned_microscope, stated_pixel
from qhrtem.stages.structure import EARLY, SHIFT, Contender, free_lens
from qhrtem.stages.thermal import PHONON_PAIRS, corrected

T = TypeVar("T", bound=np.generic)
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SAME_PITCH = 0.01  # relative difference of stated pixel sizes up to which images belong together
MOST_SLIP_A = 0.3  # at a corner of the field, between the lattices of two images that lie alike
SLIP_SIGMAS = 4.0  # standard deviations of the registered lattices by which they may differ besides
CARRIED_SIGMA = 0.02  # relative, of a vacuum level taken over from another exposure
SET_C1_SIGMA_A = 20.0  # how well a change of C1 that was set is known
C1_STEP_A = 6.0
DRIFT_SIGMA_A = 1.0  # of what is left of a drift after whole pixels
STATED_DRIFT_A = 1.5  # a stated drift is right to so much
LEAST_OVERLAP = 0.4  # share of the first image that a further one must show
MOST_PLACES = 5  # drifts that are compared with a lens of their own
APART_A = 1.0  # least distance between two of them
OPEN = 25.0  # χ² units by which the best place must lead: odds of 3·10⁵ to 1
LEAST_EXPLAINED = 0.5  # share of the contrast that the structure must explain


@dataclass(frozen=True)
class Further:
    """A further image on the absolute scale, not yet laid on the first."""

    number: int  # 2 for the second image
    path: str
    plan: Plan  # that of the first image with its own [image] and C1
    micrograph: Micrograph
    c1_step_A: float | None  # change of C1 from the first image, if it was set
    drift_px: tuple[float, float] | None  # rows, columns, if it was stated

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return f"image {self.number}"


@dataclass(frozen=True)
class Laid:
    """A further image laid on the first, with the lens that suits it."""

    state: State  # structure of the first image, lens of this one
    whole: tuple[int, int]  # rows, columns by which the specimen lies farther along, to a whole pixel
    lead: float  # χ² units by which the next best place is behind, inf where there is none


@dataclass(frozen=True)
class _Try:
    """A further image at one of the places it may have, lens fitted."""

    bench: Bench
    state: State
    whole: tuple[int, int]

    def drift_A(self) -> Floats:
        """Return the drift (2,) along rows and columns."""
        rest = [self.state.microscope[name] for name in ("shift_y", "shift_x")]
        return np.array(self.whole) * self.bench.model.field.detector_pixel + rest


def own_plans(plan: Plan, number: int) -> list[tuple[Plan, float | None, tuple[float, float] | None]]:
    """Return for each of some further images its plan, the set change of C1 (Å) and the stated drift (px).

    Frames of the first image's series come first, then the tables of [[image.also]]. What is stated of C1
    belongs to the first image alone.
    """
    image = plan.image.model_copy(update={"frames": None, "focus_step_nm": None, "also": None})
    elsewhere = plan.microscope.model_copy(update={"c1_nm": None})
    entries = plan.image.also or ()
    out: list[tuple[Plan, float | None, tuple[float, float] | None]] = []
    for n in range(1, number - len(entries) + 1):
        step = plan.image.focus_step_nm
        own = plan.model_copy(update={"image": image, "microscope": elsewhere})
        out.append((own, None if step is None else 10 * n * step, None))
    for entry in entries:
        lens = plan.microscope.model_copy(update={"c1_nm": entry.c1_nm})
        own = plan.model_copy(update={"image": _own_image(image, entry), "microscope": lens})
        out.append((own, None, entry.drift_px))
    return out


def _own_image(image: ImagePlan, entry: FurtherPlan) -> ImagePlan:
    """Return the [image] table of a further image: its own keys over those of the first."""
    own = {k: v for k, v in entry if v is not None and k in ImagePlan.model_fields}
    return image.model_copy(update={"mask": None, "exclude": None, **own})


def calibrated(
    plan: Plan, raw: RawImage, first: Micrograph, lattice: Lattice, projection: Projection, parts: Parts
) -> list[Further]:
    """Return the further images of a raw image on the absolute scale; first, lattice: those of the first.

    Raises InputError where one has other pixels, or shows the crystal otherwise than the first.
    """
    out = []
    plans = own_plans(plan, len(raw.also))
    for number, (own, (its, step, drift)) in enumerate(zip(raw.also, plans, strict=True), 2):
        _require_same_pixels(raw, own, plan, its, number)
        carried = its.image.vacuum_counts is None and not find_vacuum(own.counts).any()
        if carried:
            level = {"vacuum_counts": _level(raw, first)}
            its = its.model_copy(update={"image": its.image.model_copy(update=level)})
        micrograph = _on_its_scale(its, own, lattice, projection, parts, number)
        if carried:
            note = f"no vacuum was found; that of the first image was taken over, to {CARRIED_SIGMA:.0%}."
            micrograph = replace(micrograph, scale_sigma=CARRIED_SIGMA, notes=(*micrograph.notes, note))
        out.append(Further(number, own.path, its, micrograph, step, drift))
    return out


def _level(raw: RawImage, micrograph: Micrograph) -> float:
    """Return the vacuum level in counts that a micrograph was normalised by."""
    span = micrograph.gain * micrograph.electrons_per_pixel
    return float(np.median(raw.counts - (micrograph.intensity - 1) * span))


def _on_its_scale(
    its: Plan, own: RawImage, lattice: Lattice, projection: Projection, parts: Parts, number: int
) -> Micrograph:
    """Return a further image on the absolute scale; its lattice, where it is found, lies as in the first.

    Few electrons may show no lattice; whether the structure of the first image is there is tested later.
    """
    try:
        micrograph, found = calibrate(its, own, projection, parts, f"calibrate image {number}")
    except InputError:
        micrograph = normalise(own, its.image, mean_pitch(stated_pixel(its, own)))
        note = "its lattice could not be registered by itself; that of the first image was taken."
        return replace(micrograph, notes=(*micrograph.notes, note))
    _require_same_lattice(lattice, found, projection, own.path, number)
    return micrograph


def _require_same_pixels(first: RawImage, raw: RawImage, plan: Plan, its: Plan, number: int) -> None:
    a, b = first.counts.shape, raw.counts.shape
    if a != b:
        raise InputError(
            f"{raw.path}: image {number} must have the {a[0]} × {a[1]} pixels of the first image, got "
            f"{b[0]} × {b[1]}; was it binned or cut? Give images of one camera setting"
        )
    pitch = mean_pitch(planned_pitch(plan.image, first)), mean_pitch(planned_pitch(its.image, raw))
    stated = mean_pitch(first.pixel_size_A), mean_pitch(raw.pixel_size_A)
    for mine, other in (pitch, stated):
        if abs(other / mine - 1) > SAME_PITCH:
            raise InputError(
                f"{raw.path}: image {number} must have the pixel size of the first image, {mine:.4g} Å, "
                f"within 1 %, got {other:.4g} Å; was it taken at another magnification? Fit it on its own"
            )


def _require_same_lattice(
    first: Lattice, other: Lattice, projection: Projection, path: str, number: int
) -> None:
    """Raise InputError where the lattices of two images do not lie alike."""
    half = np.array(first.crystal.shape) / 2
    corners = np.array([half, half * [1, -1]])
    # A lattice may be described in several ways; the one nearest to that of the first image counts.
    turned = [
        corners @ (np.linalg.inv(first.frame) @ s @ other.frame) - corners for s in orientations(projection)
    ]
    slip = min(float(np.linalg.norm(t, axis=1).max()) for t in turned) * first.pixel_size_A
    radius = float(np.linalg.norm(half)) * first.pixel_size_A
    errors = [
        v
        for lattice in (first, other)
        for v in (lattice.pixel_size_sigma_A / lattice.pixel_size_A, np.radians(lattice.rotation_sigma_deg))
        if np.isfinite(v)
    ]
    allowed = MOST_SLIP_A + SLIP_SIGMAS * radius * float(np.linalg.norm(errors))
    if slip > allowed:
        raise InputError(
            f"{path}: the crystal in image {number} must lie as in the first image, to {allowed:.1f} Å at "
            f"the corners of the field, got {slip:.1f} Å (pixel size {other.pixel_size_A:.4f} against "
            f"{first.pixel_size_A:.4f} Å, rotation {other.rotation_deg:.2f}° against "
            f"{first.rotation_deg:.2f}°); is it of another area or magnification? Fit it on its own"
        )


def together(
    reference: Contender, state: State, further: list[Further], lattice: Lattice, parts: Parts
) -> tuple[Contender, tuple[Placed, ...], tuple[str, ...]]:
    """Return the further images joined to the first as one contender, where they lie, and notes.

    reference, state: the first image and what has been found in it. Raises InputError where an image does not
    show the structure.
    """
    exposures, misfits, placed, notes = [], [], [], []
    for image in further:
        form = LaidForm(ReachedForm(state.columns.projection))
        job = partial(lay, reference, state, image, parts)
        laid = parts(f"{reference.name}lay image {image.number}", job, form)
        misfit = misfit_at(reference, image.micrograph, laid.whole, laid.state.microscope)
        if laid.lead < OPEN:
            notes.append(
                f"{image.name.capitalize()} ({image.path}) was left out: two places for it on the first "
                f"image differ by Δχ² = {laid.lead:.0f} only; state drift_px to use it."
            )
            continue
        _require_explained(reference, laid, misfit, lattice, image)
        values = laid.state.microscope.values.copy()
        values[list(SPECIMEN)] = state.microscope.values[list(SPECIMEN)]
        exposures.append(OwnLens(replace(laid.state.microscope, values=values), laid.state.diffuse))
        misfits.append(misfit)
        placed.append(Placed(image.path, laid.whole))
        notes += [f"{image.name.capitalize()}: {note}" for note in image.micrograph.notes]
    bench = replace(reference.bench, others=tuple(misfits))
    all_of_it = replace(state, others=tuple(exposures))
    name = f"{reference.name}joint "
    return replace(reference, bench=bench, state=all_of_it, name=name), tuple(placed), tuple(notes)


def misfit_at(
    reference: Contender, micrograph: Micrograph, whole: tuple[int, int], lens: Microscope
) -> Misfit:
    """Return the misfit of a further image on the grid of the first, moved back by whole pixels.

    What counts is what the first image uses too: only there the structure is known.
    """
    bench = reference.bench
    moved = replace(
        micrograph,
        intensity=displaced(micrograph.intensity, whole, 1.0),
        valid=displaced(micrograph.valid, whole, False),
    )
    misfit = make_misfit(moved, bench.model.field, BORDER_A + lens.delocalisation())
    return replace(misfit, used=misfit.used & bench.misfit.used)


def displaced(image: NDArray[T], whole: tuple[int, int], fill: float) -> NDArray[T]:
    """Return image[row + whole[0], col + whole[1]], `fill` where that is outside."""
    out = np.full_like(image, fill)
    target, source = [], []
    for n, d in zip(image.shape, whole, strict=True):
        target.append(slice(max(-d, 0), min(n - d, n)))
        source.append(slice(max(d, 0), min(n + d, n)))
    if all(s.stop > s.start for s in target):
        out[tuple(target)] = image[tuple(source)]
    return out


def lay(reference: Contender, state: State, image: Further, parts: Parts) -> Laid:
    """Return a further image laid on the first where it fits best, lens and thermal correction its own."""
    lens = first_lens(state, image)
    tried: list[_Try] = []
    for whole, c1 in places(reference, state, image, lens):
        start = State(state.columns, lens.with_values(c1=c1), state.diffuse)
        misfit = misfit_at(reference, image.micrograph, whole, start.microscope)
        bench = Bench(reference.bench.model, misfit, reference.bench.workers)
        found = refine(bench, start, free_lens(start, (*EARLY, *SHIFT)), [], 4).state
        tried.append(_Try(bench, found, whole))
    if not tried:
        raise InputError(
            f"{image.path}: {image.name} must show at least {100 * LEAST_OVERLAP:.0f} % of the area of the "
            "first image; is it of another area?"
        )
    best, lead = _leading(tried)
    bench, found, whole = tried[best].bench, tried[best].state, tried[best].whole
    found = corrected(bench, found, PHONON_PAIRS[0], np.random.default_rng(0))
    found = refine(bench, found, free_lens(found, (*EARLY, *SHIFT)), [], 3).state
    place = f"moved by {whole[0]:+d} rows, {whole[1]:+d} columns"
    said = f"{image.name}: {place}, C1 {found.microscope['c1'] / 10:+.1f} nm"
    parts.log("lens", bench.chi2(found), said)
    return Laid(found, whole, np.inf if image.drift_px is not None else lead)


def first_lens(state: State, image: Further) -> Microscope:
    """Return the lens that a further image is begun with: that of the first, with priors of its own."""
    own = planned_microscope(image.plan, image.micrograph.scale_sigma, image.micrograph.transfer)
    mean, sigma, values = own.mean.copy(), own.sigma.copy(), state.microscope.values.copy()
    if image.c1_step_A is not None:
        mean[INDEX["c1"]] = state.microscope["c1"] + image.c1_step_A
        sigma[INDEX["c1"]] = SET_C1_SIGMA_A
    for name in SHIFT:
        values[INDEX[name]], mean[INDEX[name]], sigma[INDEX[name]] = 0.0, 0.0, DRIFT_SIGMA_A
    values[INDEX["scale"]] = 1.0
    mtf = own.mtf if image.plan.image.mtf is not None else state.microscope.mtf
    return Microscope(own.energy, values, mean, sigma, mtf)


def places(
    reference: Contender, state: State, image: Further, lens: Microscope
) -> list[tuple[tuple[int, int], float]]:
    """Return the drifts (whole rows and columns) that an image may have, each with its C1 (Å), best first."""
    field, pixel = reference.bench.model.field, reference.bench.model.field.detector_pixel
    i = INDEX["c1"]
    low, high = lens.mean[i] - 3 * lens.sigma[i], lens.mean[i] + 3 * lens.sigma[i]
    low, high = max(low, C1_RANGE_A[0]), min(high, C1_RANGE_A[1])
    window = field.crop(reference.bench.misfit.used).numpy()
    overlay = Overlay(image.micrograph.intensity, image.micrograph.valid, window)
    levels = np.arange(low, high + 1, C1_STEP_A)
    best = np.full(overlay.shape, -np.inf)
    focus = np.zeros(overlay.shape)
    for c1 in levels:
        shown = field.crop(reference.bench.image(State(state.columns, lens.with_values(c1=float(c1)))))
        found = overlay.gain(shown.double().numpy())
        better = found > best
        best[better], focus[better] = found[better], c1
    if image.drift_px is not None:
        away = np.hypot(*(d - s for d, s in zip(overlay.drifts(), image.drift_px, strict=True))) * pixel
        best[away > STATED_DRIFT_A] = -np.inf
    reach = 2 * int(np.ceil(APART_A / pixel)) + 1
    peak = (best == ndimage.maximum_filter(best, reach, mode="wrap")) & np.isfinite(best)
    rows, cols = overlay.drifts()
    order = sorted(np.argwhere(peak).tolist(), key=lambda n: -float(best[tuple(n)]))[:MOST_PLACES]
    return [((int(rows[r, 0]), int(cols[0, c])), float(focus[r, c])) for r, c in order]


class Overlay:
    """How much better than vacuum a simulated image describes a measured one at every whole drift."""

    def __init__(self, measured: Floats, valid: Bools, window: Bools) -> None:
        """measured, valid: the image, vacuum = 1; window: where the simulated image is known."""
        size = tuple(fft.next_fast_len(2 * n, real=True) for n in measured.shape)
        self.shape: tuple[int, int] = (size[0], size[1])
        self.window = window
        use = valid & np.isfinite(measured)
        self.used = self._spectrum(use)
        self.linear = self._spectrum(np.where(use, measured - 1.0, 0.0))
        self.number = self._back(self.used * self._spectrum(window).conj())

    def drifts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the drift (rows, 1) and (1, columns) in pixels that each place of a gain stands for."""
        rows, cols = (((np.arange(n) + n // 2) % n) - n // 2 for n in self.shape)
        return rows[:, None], cols[None, :]

    def gain(self, simulated: Floats) -> Floats:
        """Return Σ (measured − 1)² − (measured − simulated)² over what overlaps at each drift.

        A sum, so that much explained counts for more than a little; minus infinity where the images hardly
        overlap.
        """
        known = np.where(self.window, simulated - 1.0, 0.0)
        cross = self._back(self.linear * self._spectrum(known).conj())
        own = self._back(self.used * self._spectrum(known**2).conj())
        enough = self.number >= LEAST_OVERLAP * self.window.sum()
        return np.where(enough, 2 * cross - own, -np.inf)

    def _spectrum(self, image: NDArray[np.generic]) -> NDArray[np.complex128]:
        return np.asarray(fft.rfft2(image.astype(float), self.shape))

    def _back(self, spectrum: NDArray[np.complex128]) -> Floats:
        return np.asarray(fft.irfft2(spectrum, self.shape))


def _leading(tried: list[_Try]) -> tuple[int, float]:
    """Return which place is the best, and by how much χ² it leads, each pair on the pixels both use."""
    best = 0
    for n in range(1, len(tried)):
        if _behind(tried[n], tried[best]) < 0:
            best = n
    place = [t.drift_A() for t in tried]
    # Neighbouring starts may have come to the same place.
    others = [n for n in range(len(tried)) if np.linalg.norm(place[n] - place[best]) > APART_A / 2]
    return best, max(min((_behind(tried[n], tried[best]) for n in others), default=np.inf), 0.0)


def _behind(other: _Try, best: _Try) -> float:
    """Return how much more χ² one place has than another on the pixels of the image that both use.

    Where these are few, on all pixels that either uses: those beyond its own are to it as vacuum.
    """
    costs, fewest = [], LEAST_OVERLAP * min(other.bench.misfit.pixels, best.bench.misfit.pixels)
    for mine, its in ((other, best), (best, other)):
        # The other's pixels, seen where this one has put the image.
        apart = (mine.whole[0] - its.whole[0], mine.whole[1] - its.whole[1])
        used = torch.from_numpy(displaced(its.bench.misfit.used.numpy(), apart, False))
        image, misfit = mine.bench.image(mine.state), mine.bench.misfit
        both = replace(misfit, used=misfit.used & used)
        beyond = misfit.cost(torch.ones_like(image)) if both.pixels < fewest else 0.0
        costs.append((misfit if both.pixels < fewest else both).cost(image) - beyond)
    return costs[0] - costs[1]


def _require_explained(
    reference: Contender, laid: Laid, misfit: Misfit, lattice: Lattice, image: Further
) -> None:
    """Raise InputError where the structure of the first image does not show in a further one."""
    field = reference.bench.model.field
    shown = reference.bench.image(laid.state)
    used = field.crop(misfit.used).numpy() & lattice.crystal
    measured, model, variance = (
        field.crop(v).double().numpy()[used] for v in (misfit.measured, shown, misfit.variance(shown))
    )
    noise = float(variance.mean())
    contrast = float(measured.var()) - noise
    left = max(float(((measured - model) ** 2).mean()) - noise, 0.0)
    if contrast <= 0 or left > (1 - LEAST_EXPLAINED) * contrast:
        share = f"{100 * left / contrast:.0f} % of its contrast" if contrast > 0 else "nothing but noise"
        raise InputError(
            f"{image.path}: {image.name} must show the area and the structure of the first image; wherever "
            f"it is laid, that leaves {share} unexplained, at most {100 * (1 - LEAST_EXPLAINED):.0f} % may "
            "be; has the specimen changed, or is it of another place?"
        )


@dataclass(frozen=True)
class LaidForm:
    """A further image laid on the first, as a snapshot."""

    form: ReachedForm

    def save(self, value: Laid) -> Snapshot:
        """Return the snapshot of an image's lens and place."""
        inner = self.form.save(Reached(value.state))
        lead = float(value.lead) if np.isfinite(value.lead) else None
        return Snapshot({**inner.facts, "whole": list(value.whole), "lead": lead}, inner.arrays)

    def load(self, snapshot: Snapshot) -> Laid:
        """Return what a snapshot holds."""
        inner = self.form.load(snapshot)
        (row, col), lead = snapshot.facts["whole"], snapshot.facts["lead"]
        return Laid(inner.state, (int(row), int(col)), np.inf if lead is None else lead)
