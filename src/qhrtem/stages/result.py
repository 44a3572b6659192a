"""What is claimed: the fitted state as a digital twin, with uncertainties and quality gates."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, SPECIMEN, Microscope, image_of, parameter
from qhrtem.model.twin import (
    Atoms,
    ColumnTable,
    Estimate,
    Fitted,
    FurtherImage,
    Gate,
    Match,
    Step,
    Twin,
)
from qhrtem.plan import Plan
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import atomic_number, shortest_distance
from qhrtem.specimen.rules import MinimumDistance
from qhrtem.stages.assess import Assessed, claimed
from qhrtem.stages.covariance import whose
from qhrtem.stages.features import feature_note, region_note, unexplained
from qhrtem.stages.objective import State
from qhrtem.stages.start import Start

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_B_RATIO = 2.5  # between fitted Debye–Waller factors and those of the CIF
MOST_CHI2 = 2.0  # reduced, of the crystal
SHARED = tuple(PARAMETERS[i].key for i in SPECIMEN)  # what images of one area have in common
MOST_RESIDUAL = 12.0  # variance of the residual on the scale of a column, over that of fitted noise
MOST_FEATURES = 0.15  # share of the crystal
BENT, MOST_BENT = 4.0, 1.0  # prior standard deviations, and parameters beyond them before a refusal
STEADY = ("c3", "s3_x", "s3_y", "a3_x", "a3_y", "focal_spread", "b_scale")  # what an instrument keeps
STRAINED = 5.0  # prior standard deviations of an imaging parameter that are worth a note


@dataclass(frozen=True)
class Placed:
    """Where a further image lies on the first."""

    path: str
    whole: tuple[int, int]  # rows, columns by which the specimen lies farther along in it, to a whole pixel


def make_twin(
    plan: Plan,
    state: State,
    start: Start,
    lattice: Lattice,
    micrograph: Micrograph,
    assessed: Assessed,
    history: tuple[Step, ...],
    notes: tuple[str, ...],
    bend: Floats | None = None,
    placed: tuple[Placed, ...] = (),
) -> Twin:
    """Return the twin of a fitted state.

    bend: (2, 2) rad/Å, change of the mistilt (y, x) along the rows and columns of the field, None where
    there is none; the mistilt of the state is that in the middle. placed: the further images that it was
    fitted to as well.
    """
    keep = claimed(state.columns, start)
    tilt = mistilts(state, start, bend)
    table = _table(state, start, keep, tilt, assessed)
    match, pixel = assessed.match, lattice.pixel_size_A
    features, beyond = unexplained(match, pixel)
    table = replace(table, inside=table.inside & ~_within(beyond, table.position_px))
    share = float((beyond & match.crystal).sum() / max(match.crystal.sum(), 1))
    chi2 = _chi2(match, match.crystal)
    vacuum = _chi2(match, ~match.crystal)
    further = _further(state, start, assessed, keep, placed)
    return Twin(
        columns=table,
        atoms=_atoms(state, start, keep, tilt, assessed.sigma),
        microscope=_estimates(state, start, assessed, keep)[0],
        match=match,
        pixel_size_A=lattice.pixel_size_A,
        lattice_px=state.columns.projection.vectors @ state.columns.frame / lattice.pixel_size_A,
        thickness_A=float(table.bottom_A.max() - table.top_A.min()),
        chi2_crystal=chi2,
        chi2_vacuum=vacuum,
        gates=(
            *_gates(match, chi2, state, keep),
            *_residual_gates(assessed.own, share),
            _bent_gate(state, assessed.refined),
            *_further_gate(further),
        ),
        history=history,
        rules=assessed.rejected,
        notes=(
            *notes,
            *assessed.notes,
            *region_note(match, pixel),
            *feature_note(features),
            *_strained_note(state, assessed.refined),
            *_further_note(further),
        ),
        provenance=_provenance(plan, micrograph),
        position_errors=assessed.positions,
        imaging_errors=assessed.imaging,
        fitted=Fitted(state.columns, keep, state.microscope, start.field, assessed.diffuse, bend),
        further=further,
    )


def mistilts(state: State, start: Start, bend: Floats | None) -> Floats:
    """Return the mistilt (C, 2) y, x in rad at every column."""
    tilt = np.array([state.microscope["tilt_y"], state.microscope["tilt_x"]])
    if bend is None:
        return np.tile(tilt, (len(state.columns), 1))
    return tilt + (state.columns.anchor - start.field.middle()) @ bend.T


def _chi2(match: Match, where: NDArray[np.bool_]) -> float:
    pick = match.used & where
    if not pick.any():
        return float("nan")
    r = (match.measured - match.simulated)[pick] / match.sigma[pick]
    return float((r.astype(float) ** 2).mean())


def _slide(tilt: Floats, start: Start, z: Floats) -> Floats:
    """Offset y, x (Å) from the position in the tilted frame at the pivot plane to that at depth z."""
    return -np.tan(tilt) * (start.field.pivot - z)[:, None]


def _table(
    state: State, start: Start, keep: NDArray[np.int64], tilt: Floats, assessed: Assessed
) -> ColumnTable:
    columns, field = state.columns, start.field
    elements = columns.projection.elements
    groups = columns.group_position()
    number, depth = columns.group_depth()
    slides = [_slide(tilt, start, depth[:, g]) for g in range(number.shape[1])]
    true = groups + np.stack(slides, axis=1)
    true[number == 0] = np.nan
    heaviest = np.where(number[:, 0] > 0, 0, np.argmax(number > 0, axis=1))
    c = np.arange(len(columns))
    position = true[c, heaviest]
    by_element = np.full((len(columns), len(elements), 2), np.nan)
    for k, kind in enumerate(columns.projection.kinds):
        mine = np.flatnonzero(columns.kind == k)
        for e, element in enumerate(elements):
            having = [g for g, s in enumerate(kind.groups) if s.element == element]
            if having:
                weight = number[mine][:, having]
                total = (np.nan_to_num(true[mine][:, having]) * weight[..., None]).sum(1)
                mean = total / np.where(weight.sum(1) > 0, weight.sum(1), np.nan)[:, None]
                by_element[mine, e] = mean
    displacement = _displacement(columns, position, keep[start.eligible[keep]])
    pixel = field.detector_pixel
    sd = assessed.sigma[c, heaviest]
    top_atom = columns.site_depth(c, columns.first)
    bottom_atom = columns.site_depth(c, columns.last)
    return ColumnTable(
        kind=tuple(columns.kind_of(int(i)).name for i in keep),
        elements=elements,
        counts=columns.element_counts()[keep],
        position_px=field.to_detector(position)[keep],
        sigma_px=(sd / pixel)[keep],
        element_position_px=field.to_detector(by_element)[keep],
        displacement_A=displacement[keep][:, ::-1].copy(),
        p_exact=np.nan_to_num(assessed.probability, nan=0.0)[keep],
        top_A=(top_atom - top_atom[keep].min())[keep],
        bottom_A=(bottom_atom - top_atom[keep].min())[keep],
        inside=start.eligible[keep]
        & _well_inside(field.to_detector(position)[keep], field.image_shape, pixel),
    )


def _well_inside(position: Floats, shape: tuple[int, int], pixel: float) -> NDArray[np.bool_]:
    margin = 2.0 / pixel
    limit = np.array(shape) - 1 - margin
    return np.asarray(((position > margin) & (position < limit)).all(axis=1))


def _displacement(columns: ColumnModel, position: Floats, seen: NDArray[np.int64]) -> Floats:
    """Displacement y, x (Å) from the lattice that best fits the seen columns of the heaviest kind."""
    weight = [max(atomic_number(s.element) for s in k.groups) for k in columns.projection.kinds]
    reference = seen[columns.kind[seen] == int(np.argmax(weight))]
    design = np.column_stack([columns.anchor, np.ones(len(columns))])
    solution = np.zeros((3, 2))
    residual = position - columns.anchor
    good = reference
    for _ in range(3):
        solution = np.linalg.lstsq(design[good], residual[good], rcond=None)[0]
        error = np.linalg.norm(residual[reference] - design[reference] @ solution, axis=1)
        good = reference[error <= 3 * np.median(error) + 1e-3]
    return np.asarray(residual - design @ solution)


def _atoms(state: State, start: Start, keep: NDArray[np.int64], tilt: Floats, sigma: Floats) -> Atoms:
    columns = state.columns
    atoms = columns.atoms()
    place = np.full(len(columns), -1)
    place[keep] = np.arange(len(keep))
    order = np.lexsort((atoms.z, place[atoms.column]))
    xy = (atoms.position + _slide(tilt[atoms.column], start, atoms.z))[order]
    z = atoms.z[order]
    species = [columns.species[i] for i in atoms.species[order]]
    sd = sigma[atoms.column, atoms.group][order]
    origin = start.field.to_field(np.zeros(2))
    b = state.microscope["b_scale"]
    return Atoms(
        element=tuple(s.element for s in species),
        position_A=np.column_stack([xy[:, 1] - origin[1], xy[:, 0] - origin[0], z - z.min()]),
        occupancy=np.array([s.occupancy for s in species]),
        b_iso_A2=np.array([s.b_iso * b for s in species]),
        sigma_A=np.column_stack([sd[:, 1], sd[:, 0], np.full(len(z), columns.projection.plane / 2)]),
        column=place[atoms.column[order]],
    )


def exit_focus(state: State, start: Start, keep: NDArray[np.int64]) -> float:
    """Return C1 (Å) from the exit plane of the specimen, as users expect; fitted from a plane of the box."""
    columns = state.columns
    deepest = columns.slice_of(columns.site_depth(keep, columns.last[keep])).max()
    exit_z = columns.projection.origin + (deepest + 0.5) * columns.projection.plane
    return float(state.microscope["c1"] + start.field.reference_z - exit_z)


def _estimates(
    state: State, start: Start, assessed: Assessed, keep: NDArray[np.int64]
) -> list[tuple[Estimate, ...]]:
    """Return the imaging parameters of every image, the first first."""
    every = assessed.imaging.sigma()
    out = [_lens(state, start, keep, every)]
    for n, view in enumerate(state.views()[1:], 2):
        own = f" of image {n}"
        named = {k.removesuffix(own): s for k, s in every.items() if k.endswith(own)}
        shared = {k: s for k, s in every.items() if k in SHARED}
        out.append(_lens(view, start, keep, shared | named))
    return out


def _lens(
    state: State, start: Start, keep: NDArray[np.int64], sigma: dict[str, float]
) -> tuple[Estimate, ...]:
    """Return the imaging parameters of one image; sigma: of those refined, by their keys."""
    m: Microscope = state.microscope
    out = [Estimate("high_tension_kV", "high tension", m.energy / 1e3, float("nan"), "kV", False)]
    for p in PARAMETERS:
        i = INDEX[p.name]
        if p.name in ("shift_x", "shift_y"):
            continue
        note, value = "", m.values[i]
        if p.name == "c1":
            value = exit_focus(state, start, keep)
            note = ("overfocus" if value > 0 else "underfocus") + ", exit plane"
        elif p.name == "absorption":
            note = "effective, the rest returns as diffuse intensity"
        out.append(
            Estimate(
                p.key,
                p.label,
                value * p.factor,
                sigma.get(p.key, float("nan")),
                p.unit,
                p.key in sigma,
                note,
            )
        )
    return tuple(out)


def _gates(match: Match, chi2: float, state: State, keep: NDArray[np.int64]) -> tuple[Gate, ...]:
    columns = state.columns
    scale = float(state.microscope["b_scale"])
    ratio = max(scale, 1 / scale) if scale > 0 else float("inf")
    where = match.used & match.crystal
    r2 = (match.measured - match.simulated)[where].astype(float) ** 2
    unexplained = np.sqrt(max(float((r2 - match.sigma[where].astype(float) ** 2).mean()), 0.0))
    contrast = float(match.simulated[where].std())
    share = unexplained / max(contrast, 1e-6)
    distance = MinimumDistance(0.6 * shortest_distance(columns.projection.crystal))
    close = int(distance.broken(columns)[keep].sum())
    return (
        Gate(
            "unexplained contrast",
            share,
            0.25,
            share <= 0.25,
            "Misfit beyond noise, as a share of the crystal's contrast; a wrong model leaves more.",
        ),
        Gate(
            "reduced chi-square of the crystal",
            chi2,
            MOST_CHI2,
            chi2 <= MOST_CHI2,
            "Squared misfit over the noise expected; one for a perfect model.",
        ),
        Gate("columns", float(len(keep)), 6.0, len(keep) >= 6, "Columns needed for a registered lattice."),
        Gate(
            "columns with atoms too close",
            float(close),
            0.0,
            close == 0,
            "Atoms nearer than 0.6 times the crystal's shortest distance mean that positions went astray.",
        ),
        Gate(
            "Debye-Waller factors against the CIF",
            ratio,
            MOST_B_RATIO,
            ratio <= MOST_B_RATIO,
            "Fitted over stated B, or its inverse; a wrong thickness bends B, so does a wrong B in the CIF.",
        ),
    )


def _residual_gates(own: float, share: float) -> tuple[Gate, ...]:
    return (
        Gate(
            "residual on the scale of a column",
            own,
            MOST_RESIDUAL,
            own <= MOST_RESIDUAL,
            "Power of the residual as wide as a column, over what noise leaves; a wrong crystal leaves more.",
        ),
        Gate(
            "unexplained features",
            share,
            MOST_FEATURES,
            share <= MOST_FEATURES,
            "Share of the crystal where something else than the crystal is in the image.",
        ),
    )


def _bent_gate(state: State, imaging: tuple[int, ...]) -> Gate:
    """Return the gate on how many imaging parameters left what is known of them."""
    away = state.prior_deviation()
    beyond = [image_of(i) for i in imaging if parameter(i).name in STEADY and abs(away[i]) > BENT]
    bent = int(np.bincount(beyond, minlength=1).max())  # in the image where most are
    return Gate(
        "imaging parameters far from expectation",
        float(bent),
        MOST_BENT,
        bent <= MOST_BENT,
        f"Of C3, S3, A3, focal spread and Debye-Waller factors, beyond {BENT:g} prior standard deviations. A "
        "wrong plan bends one of them, a wrong thickness several at once.",
    )


def _within(mask: NDArray[np.bool_], place: Floats) -> NDArray[np.bool_]:
    """Return which places (C, 2) row, col lie in a mask [row, col]."""
    row, col = np.clip(np.round(place).astype(int), 0, np.array(mask.shape) - 1).T
    return np.asarray(mask[row, col])


def _strained_note(state: State, imaging: tuple[int, ...]) -> tuple[str, ...]:
    """Return which imaging parameters came out far from what plan and microscope let expect."""
    away = state.prior_deviation()
    far = [
        f"{parameter(i).label}{whose(i)} ({away[i]:+.0f} prior σ)" for i in imaging if abs(away[i]) > STRAINED
    ]
    if not far:
        return ()
    return (
        f"Far from what was expected: {', '.join(far)}. Either the plan states it wrongly, or a wrong "
        "structure bends it.",
    )


def _further(
    state: State, start: Start, assessed: Assessed, keep: Ints, placed: tuple[Placed, ...]
) -> tuple[FurtherImage, ...]:
    """Return what is said of each further image."""
    out = []
    lenses, pixel = _estimates(state, start, assessed, keep)[1:], start.field.detector_pixel
    views, base = state.views()[1:], state.microscope
    for p, view, lens, match in zip(placed, views, lenses, assessed.others, strict=True):
        # The lens carries what was left of the drift after whole pixels.
        rest = [(view.microscope[n] - base[n]) / pixel for n in ("shift_y", "shift_x")]
        drift = (p.whole[0] + rest[0], p.whole[1] + rest[1])
        overlap = float(match.used.sum() / max(assessed.match.used.sum(), 1))
        out.append(FurtherImage(p.path, drift, lens, _chi2(match, match.crystal), overlap))
    return tuple(out)


def _further_gate(further: tuple[FurtherImage, ...]) -> tuple[Gate, ...]:
    """Return the gate on how well the worst of the further images is described."""
    if not further:
        return ()
    worst = max(f.chi2_crystal for f in further)
    return (
        Gate(
            "reduced chi-square of further images",
            worst,
            MOST_CHI2,
            worst <= MOST_CHI2,
            "Of the worst of them, over the crystal; another area or a change of the specimen leaves more.",
        ),
    )


def _further_note(further: tuple[FurtherImage, ...]) -> tuple[str, ...]:
    """Return one sentence on each further image."""
    out = []
    for n, f in enumerate(further, 2):
        c1 = next(e for e in f.microscope if e.name == "c1_nm")
        out.append(
            f"Image {n} ({f.path}) was fitted together with the first: moved by {f.drift_px[0]:+.2f} rows "
            f"and {f.drift_px[1]:+.2f} columns, C1 = {c1.value:+.2f} ± {c1.sigma:.2f} nm, reduced χ² of the "
            f"crystal {f.chi2_crystal:.3f} over {100 * f.overlap:.0f} % of the first image's pixels."
        )
    return tuple(out)


def _provenance(plan: Plan, micrograph: Micrograph) -> dict[str, str]:
    digest = hashlib.sha256(np.ascontiguousarray(micrograph.intensity).tobytes()).hexdigest()
    return {
        "qhrtem": version("qhrtem"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "seed": str(plan.run.seed),
        "image_sha256": digest,
        "zone_axis": " ".join(str(v) for v in plan.structure.zone_axis),
    }
