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
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope
from qhrtem.model.twin import Atoms, ColumnTable, Estimate, Fitted, Gate, Match, Step, Twin
from qhrtem.plan import Plan
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import atomic_number, shortest_distance
from qhrtem.specimen.rules import MinimumDistance, NeighbourStep, SurfaceEnergy
from qhrtem.stages.counts import CountRound
from qhrtem.stages.covariance import imaging_errors, position_errors
from qhrtem.stages.descent import Descent
from qhrtem.stages.joint import Refined
from qhrtem.stages.model_error import column_error, common_error
from qhrtem.stages.move_model import MoveModel
from qhrtem.stages.objective import Bench, State
from qhrtem.stages.posterior import Marginals, sample
from qhrtem.stages.start import Start
from qhrtem.stages.thickness import Rival

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_B_RATIO = 2.5  # between fitted Debye–Waller factors and those of the CIF
STRAINED = 5.0  # prior standard deviations of an imaging parameter that are worth a note
NOT_RULED_OUT = 12.0  # χ² units, over the model error: odds of 400 to 1


@dataclass(frozen=True)
class Evidence:
    """What the uncertainties are computed from."""

    imaging: list[int]
    refined: Refined
    final: CountRound
    surface: SurfaceEnergy
    support: NeighbourStep
    rejected: dict[str, int]
    rivals: tuple[Rival, ...] = ()  # other thicknesses of the whole specimen, other places of the crystal


def make_twin(
    plan: Plan,
    bench: Bench,
    state: State,
    start: Start,
    lattice: Lattice,
    micrograph: Micrograph,
    evidence: Evidence,
    history: tuple[Step, ...],
    notes: tuple[str, ...],
) -> Twin:
    """Return the twin of a fitted state."""
    keep = claimed(state.columns, start)
    image = bench.image(state)
    match = _match(bench, image, lattice)
    own, shared = _model_errors(match, lattice.pixel_size_A, state, start, keep)
    marginals = undecided(state.columns, evidence, own, plan.run.seed)
    likelihood = count_probability(state.columns, evidence, marginals)
    probability = likelihood * agreed(state.columns, evidence.rivals, max(own, shared))
    refined = replace(evidence.refined, undecided=marginals.continuous, column_error=own, common_error=shared)
    evidence = replace(evidence, refined=refined)
    sigma = position_sigma(state, evidence.refined, keep)
    table = _table(state, start, keep, sigma, probability)
    chi2 = _chi2(match, match.crystal)
    vacuum = _chi2(match, ~match.crystal)
    return Twin(
        columns=table,
        atoms=_atoms(state, start, keep, sigma),
        microscope=_estimates(state, start, evidence, keep),
        match=match,
        pixel_size_A=lattice.pixel_size_A,
        lattice_px=state.columns.projection.vectors @ state.columns.frame / lattice.pixel_size_A,
        thickness_A=float(table.bottom_A.max() - table.top_A.min()),
        chi2_crystal=chi2,
        chi2_vacuum=vacuum,
        gates=_gates(match, chi2, state, keep),
        history=history,
        rules=dict(evidence.rejected),
        notes=(
            *notes,
            _error_note(own, shared),
            _rival_note(evidence, max(own, shared)),
            _coherence_note(bench, state),
            *_strained_note(state, evidence.imaging),
        ),
        provenance=_provenance(plan, micrograph),
        position_errors=position_errors(evidence.refined, state.columns, keep, start.field.reference_z),
        imaging_errors=imaging_errors(evidence.refined),
        fitted=_fitted(bench, state, keep),
    )


def _fitted(bench: Bench, state: State, keep: NDArray[np.int64]) -> Fitted:
    field = bench.model.field
    diffuse = torch.as_tensor(state.diffuse, dtype=torch.float32).expand(field.image_grid.shape)
    return Fitted(state.columns, keep, state.microscope, field, diffuse.cpu().numpy().copy())


def _error_note(own: float, shared: float) -> str:
    """Return what the residual says of the model, and where that went."""
    return (
        f"Misfit on the scale of a column has {own:.2f} times the variance that shot noise gives, and what "
        f"all columns of a kind have in common {shared:.2f} times. All error bars include the first, those "
        "of the imaging parameters, and of what they do to all positions, the second."
    )


def _coherence_note(bench: Bench, state: State) -> str:
    """Return how much the treatment of partial coherence matters in this image."""
    differs = bench.model.coherence_differences(state.columns, state.microscope)
    return (
        f"Partial coherence is summed over {bench.model.field.foci} foci with the source as an envelope; "
        f"the full sum over focus and source angle differs by {differs['full']:.2%} of vacuum (rms), "
        f"a quasi-coherent image by {differs['quasi-coherent']:.2%}."
    )


def claimed(columns: ColumnModel, start: Start) -> NDArray[np.int64]:
    """Return the occupied columns on the recorded image; those beyond it only continue the crystal."""
    position = start.field.to_detector(columns.group_position()[:, 0])
    on_image = ((position > -0.5) & (position < np.array(start.field.image_shape) - 0.5)).all(1)
    return np.flatnonzero(columns.occupied & on_image)


def _match(bench: Bench, image: torch.Tensor, lattice: Lattice) -> Match:
    crop = bench.model.field.crop
    misfit = bench.misfit
    return Match(
        measured=crop(misfit.measured).numpy().copy(),
        simulated=crop(image).numpy().astype(np.float32),
        sigma=torch.sqrt(crop(misfit.variance(image))).numpy().astype(np.float32),
        used=crop(misfit.used).numpy().copy(),
        crystal=lattice.crystal.copy(),
    )


def _chi2(match: Match, where: NDArray[np.bool_]) -> float:
    pick = match.used & where
    if not pick.any():
        return float("nan")
    r = (match.measured - match.simulated)[pick] / match.sigma[pick]
    return float((r.astype(float) ** 2).mean())


def _model_errors(match: Match, pixel: float, state: State, start: Start, keep: Ints) -> tuple[float, float]:
    """Return the model error as it varies between columns and as they have it in common."""
    place = start.field.to_detector(state.columns.group_position()[keep, 0])
    kind = tuple(state.columns.kind_of(int(c)).name for c in keep)
    return column_error(match, pixel), common_error(match, pixel, place, kind)


def position_sigma(state: State, refined: Refined, keep: Ints) -> Floats:
    """Return one standard deviation (C, G, 2) y, x in Å of the element groups; nan where not refined.

    Of the mean position of each group in the frame of the image, a rigid shift of the whole specimen apart:
    the mistilt moves what lies deeper or higher than the specimen's mean depth.
    """
    columns, q = state.columns, refined.quadratic
    p = len(q.imaging)
    out = np.full(columns.shift.shape, np.nan)
    variance = np.diag(refined.covariance)[p:].copy()
    depth = columns.group_depth()[1]
    mean = np.nanmean(depth[keep])
    c, group, axis = np.array(q.tangents, dtype=np.int64).reshape(-1, 3).T
    for name, which in (("tilt_y", 0), ("tilt_x", 1)):
        if INDEX[name] in q.imaging:
            t = q.imaging.index(INDEX[name])
            arm = np.where(axis == which, (depth[c, group] - mean) * PARAMETERS[INDEX[name]].step, 0.0)
            # The refined coordinate and the slide down a tilted column err together.
            variance += arm**2 * refined.covariance[t, t] + 2 * arm * refined.covariance[p:, t]
    out[c, group, axis] = np.sqrt(np.maximum(variance, 0))
    return out


def undecided(columns: ColumnModel, evidence: Evidence, inflation: float, seed: int) -> Marginals:
    """Return the posterior of the column ends around the fitted ones, costs divided by the model error."""
    # The model describes moves away from the columns before the last round.
    descent = Descent(
        evidence.refined.state.columns, evidence.final.model, evidence.surface, evidence.support
    )
    descent.adopt(_chosen(columns, evidence.final.model))
    return sample(descent, inflation, np.random.default_rng([seed, 4]))


def count_probability(columns: ColumnModel, evidence: Evidence, marginals: Marginals) -> Floats:
    """Return the probability (C,) that the counts of each column are exact, the specimen as thick as it is.

    The share of the posterior over column ends that has these counts.
    """
    model = evidence.final.model
    chosen = _chosen(columns, model)
    out = np.full(len(columns), np.nan)
    for n, o in enumerate(model.options):
        ends = zip(o.first, o.last, strict=True)
        counts = [_content(columns, o.column, int(first), int(last)) for first, last in ends]
        same = np.array([c == counts[chosen[n]] for c in counts])
        out[o.column] = min(float(marginals.probability[n][same].sum()), 1.0)
    return out


def agreed(columns: ColumnModel, rivals: tuple[Rival, ...], inflation: float) -> Floats:
    """Return the posterior share (C,) of the specimens, rivals and the fitted one, with the same counts.

    inflation: what differences of χ² are divided by; specimens differ in what all columns have in common, so
    it is the model error in common.
    """
    counts = columns.element_counts()
    same, total = np.ones(len(columns)), 1.0
    for rival in rivals:
        weight = float(np.exp(-0.5 * max(rival.behind, 0.0) / inflation))
        same += weight * rival.agrees(counts)
        total += weight
    return np.asarray(same / total)


def _rival_note(evidence: Evidence, inflation: float) -> str:
    """Return which other specimens the image does not rule out."""
    open_ = [r for r in evidence.rivals if r.behind / inflation < NOT_RULED_OUT]
    if not open_:
        return "No specimen of another thickness, and no other place of the crystal, comes near in χ²."
    listed = ", ".join(f"{r.name} (Δχ² {r.behind:.0f})" for r in open_)
    return f"Specimens that the image does not rule out: {listed}; the count probabilities include them."


def _chosen(columns: ColumnModel, model: MoveModel) -> Ints:
    """Return the option of each column of the model that leads to the ends it has now."""
    out = np.zeros(len(model.options), dtype=np.int64)
    for n, o in enumerate(model.options):
        match = np.flatnonzero((o.first == columns.first[o.column]) & (o.last == columns.last[o.column]))
        out[n] = match[0] if len(match) else 0
    return out


def _content(columns: ColumnModel, c: int, first: int, last: int) -> tuple[int, ...]:
    kind = columns.kind_of(c)
    sites = len(kind.sites)
    groups = [kind.sites[s % sites].group for s in range(first, last + 1)]
    return tuple(groups.count(g) for g in range(len(kind.groups)))


def _slide(state: State, start: Start, z: Floats) -> Floats:
    """Offset y, x (Å) from the position in the tilted frame at the reference plane to that at depth z."""
    tilt = np.array([state.microscope["tilt_y"], state.microscope["tilt_x"]])
    return -np.tan(tilt) * (start.field.reference_z - z)[:, None]


def _table(
    state: State, start: Start, keep: NDArray[np.int64], sigma: Floats, probability: Floats
) -> ColumnTable:
    columns, field = state.columns, start.field
    elements = columns.projection.elements
    groups = columns.group_position()
    number, depth = columns.group_depth()
    slides = [_slide(state, start, depth[:, g]) for g in range(number.shape[1])]
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
    sd = sigma[c, heaviest]
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
        p_exact=np.nan_to_num(probability, nan=0.0)[keep],
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


def _atoms(state: State, start: Start, keep: NDArray[np.int64], sigma: Floats) -> Atoms:
    columns = state.columns
    atoms = columns.atoms()
    place = np.full(len(columns), -1)
    place[keep] = np.arange(len(keep))
    order = np.lexsort((atoms.z, place[atoms.column]))
    xy = (atoms.position + _slide(state, start, atoms.z))[order]
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
    state: State, start: Start, evidence: Evidence, keep: NDArray[np.int64]
) -> tuple[Estimate, ...]:
    q = evidence.refined.quadratic
    sd = np.sqrt(np.diag(evidence.refined.covariance))[: len(q.imaging)]
    sigma = {i: float(s) * PARAMETERS[i].step for i, s in zip(q.imaging, sd, strict=True)}
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
        unit = p.unit.replace("²", "2").replace("µ", "u")
        out.append(
            Estimate(
                f"{p.name}_{unit}" if unit else p.name,
                p.label,
                value * p.factor,
                sigma[i] * p.factor if i in sigma else float("nan"),
                p.unit,
                i in sigma,
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
            2.0,
            chi2 <= 2.0,
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


def _strained_note(state: State, imaging: list[int]) -> tuple[str, ...]:
    """Return which imaging parameters came out far from what plan and microscope let expect."""
    lens = state.microscope
    away = {PARAMETERS[i].label: (lens.values[i] - lens.mean[i]) / lens.sigma[i] for i in imaging}
    far = [f"{name} ({z:+.0f} prior σ)" for name, z in away.items() if abs(z) > STRAINED]
    if not far:
        return ()
    return (
        f"Far from what was expected: {', '.join(far)}. Either the plan states it wrongly, or a wrong "
        "structure bends it.",
    )


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
