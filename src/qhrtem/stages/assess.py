"""What is known of a fitted state: the image it makes, error bars of positions, probabilities of counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import Field
from qhrtem.model.microscope import INDEX, PARAMETERS, parameter
from qhrtem.model.twin import ImagingErrors, Match, PositionErrors
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.persistence import Persistence
from qhrtem.specimen.rules import NeighbourStep, SurfaceEnergy
from qhrtem.stages.bordered import Factor
from qhrtem.stages.counts import CountRound
from qhrtem.stages.covariance import imaging_errors, position_errors
from qhrtem.stages.descent import Descent
from qhrtem.stages.joint import Refined, apply_step
from qhrtem.stages.model_error import column_error, common_error, of_images
from qhrtem.stages.move_model import MoveModel
from qhrtem.stages.objective import Bench, Misfit, State, white_noise
from qhrtem.stages.posterior import Marginals, sample
from qhrtem.stages.start import Start
from qhrtem.stages.thickness import Rival

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NEGLIGIBLE = 1e-4  # probability of column ends that a next image need not know of
NOT_RULED_OUT = 12.0  # χ² units, over the model error: odds of 400 to 1
TRADED = ("b_scale", "semi_convergence", "focal_spread", "c3")  # known before, and trade against thickness


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
    past: Persistence | None = None  # what an earlier image of the specimen says of the column ends
    decided: tuple[int, ...] = ()  # columns that an earlier round left no second option within reach


@dataclass(frozen=True)
class Assessed:
    """What is known of a fitted state; C columns of its model, those on the image claimed."""

    match: Match
    sigma: Floats  # (C, G, 2) y, x in Å, of the element groups; nan where not refined
    probability: Floats  # (C,) that the counts are exact; nan where not assessed
    positions: PositionErrors  # of the claimed columns
    imaging: ImagingErrors
    own: float  # model error as it varies between columns, over what noise makes
    shared: float  # and as columns of a kind have it in common
    refined: tuple[int, ...]  # imaging parameters that were refined
    rejected: dict[str, int]  # candidates refused, by rule
    diffuse: NDArray[np.float32]  # thermal diffuse correction on the image grid
    notes: tuple[str, ...]
    others: tuple[Match, ...] = ()  # of further images of the same area, where the first has its pixels
    ends: Persistence | None = None  # the posterior of the column ends, for a next image


def assess(
    bench: Bench, state: State, start: Start, lattice: Lattice, evidence: Evidence, seed: int
) -> Assessed:
    """Return what is known of a fitted state; seed: of the walk through the column ends left open."""
    keep = claimed(state.columns, start)
    field = bench.model.field
    images = zip(bench.misfits, bench.images(state), strict=True)
    matches = [match_of(misfit, field, field.crop(image), lattice.crystal) for misfit, image in images]
    perfect = fitted_noise(bench, evidence.refined, seed, lattice.crystal)
    place = start.field.to_detector(state.columns.group_position()[keep, 0])
    kind = tuple(state.columns.kind_of(int(c)).name for c in keep)
    pixel = lattice.pixel_size_A
    own = of_images(lambda m, p: column_error(m, pixel, p), matches, perfect)
    shared = of_images(lambda m, p: common_error(m, pixel, place, kind, p), matches, perfect)
    marginals = undecided(state.columns, evidence, own, seed)
    likelihood = count_probability(state.columns, evidence, marginals)
    whole = max(own, shared, prior_error(state, evidence.imaging))
    probability = likelihood * agreed(state.columns, evidence.rivals, whole)
    refined = replace(evidence.refined, undecided=marginals.continuous, column_error=own, common_error=shared)
    diffuse = torch.as_tensor(state.diffuse.at(state.microscope), dtype=torch.float32)
    return Assessed(
        matches[0],
        position_sigma(state, refined, start.field.pivot),
        probability,
        position_errors(refined, state.columns, keep, start.field.pivot),
        imaging_errors(refined),
        own,
        shared,
        tuple(evidence.imaging),
        dict(evidence.rejected),
        diffuse.expand(bench.model.field.image_grid.shape).cpu().numpy().copy(),
        (
            error_note(own, shared),
            _rival_note(evidence, whole),
            _coherence_note(bench, state),
        ),
        others=tuple(matches[1:]),
        ends=ends_of(state.columns, evidence, marginals),
    )


def error_note(own: float, shared: float) -> str:
    """Return what the residual says of the model, and where that went."""
    return (
        f"Misfit on the scale of a column has {own:.2f} times the variance that shot noise gives, and what "
        f"all columns of a kind have in common {shared:.2f} times. All error bars include the first, those "
        "of the imaging parameters, and of what they do to all positions, the second."
    )


def claimed(columns: ColumnModel, start: Start) -> NDArray[np.int64]:
    """Return the occupied columns on the recorded image; those beyond it only continue the crystal."""
    position = start.field.to_detector(columns.group_position()[:, 0])
    on_image = ((position > -0.5) & (position < np.array(start.field.image_shape) - 0.5)).all(1)
    return np.flatnonzero(columns.occupied & on_image)


def match_of(misfit: Misfit, field: Field, image: torch.Tensor, crystal: NDArray[np.bool_]) -> Match:
    """Return measured and simulated image (rows, cols) side by side; crystal: which pixels are specimen."""
    return Match(
        measured=field.crop(misfit.measured).numpy().copy(),
        simulated=image.numpy().astype(np.float32),
        sigma=torch.sqrt(misfit.variance(image)).numpy().astype(np.float32),
        used=field.crop(misfit.used).numpy().copy(),
        crystal=crystal.copy(),
    )


def fitted_noise(bench: Bench, refined: Refined, seed: int, crystal: NDArray[np.bool_]) -> list[list[Match]]:
    """Return every fitted image with white noise in place of what was measured, and the fit to that.

    For each draw of the noise, whose seed is given, for which the fit was linearised.
    """
    state, quadratic, field = refined.state, refined.quadratic, bench.model.field
    assert quadratic.probe is not None
    images = bench.images(state)
    steps = Factor(refined.precision).solve(quadratic.probe).T
    out = []
    for noise, step in zip(white_noise(bench, seed, len(steps)), steps, strict=True):
        after = bench.images(apply_step(state, quadratic, step))
        noisy = [
            replace(m, measured=image + n * torch.sqrt(m.variance(image)))
            for m, image, n in zip(bench.misfits, images, noise, strict=True)
        ]
        out.append([match_of(m, field, field.crop(a), crystal) for m, a in zip(noisy, after, strict=True)])
    return out


def position_sigma(state: State, refined: Refined, pivot_z: float) -> Floats:
    """Return one standard deviation (C, G, 2) y, x in Å of the element groups; nan where not refined.

    Of the mean position of each group in the frame of the image: the refined coordinate stands at the depth
    pivot_z (Å), and the mistilt moves what lies deeper or higher.
    """
    columns, q = state.columns, refined.quadratic
    p = len(q.imaging)
    out = np.full(columns.shift.shape, np.nan)
    variance = np.diag(refined.covariance)[p:].copy()
    depth = columns.group_depth()[1]
    c, group, axis = np.array(q.tangents, dtype=np.int64).reshape(-1, 3).T
    for name, which in (("tilt_y", 0), ("tilt_x", 1)):
        if INDEX[name] in q.imaging:
            t = q.imaging.index(INDEX[name])
            arm = np.where(axis == which, (depth[c, group] - pivot_z) * PARAMETERS[INDEX[name]].step, 0.0)
            # The refined coordinate and the slide down a tilted column err together.
            variance += arm**2 * refined.covariance[t, t] + 2 * arm * refined.covariance[p:, t]
    out[c, group, axis] = np.sqrt(np.maximum(variance, 0))
    return out


def undecided(columns: ColumnModel, evidence: Evidence, inflation: float, seed: int) -> Marginals:
    """Return the posterior of the column ends around the fitted ones, costs divided by the model error."""
    # The model describes moves away from the columns before the last round.
    descent = Descent(
        evidence.refined.state.columns,
        evidence.final.model,
        evidence.surface,
        evidence.support,
        evidence.past,
    )
    descent.adopt(_chosen(columns, evidence.final.model))
    return sample(descent, inflation, np.random.default_rng([seed, 4]))


def ends_of(columns: ColumnModel, evidence: Evidence, marginals: Marginals) -> Persistence:
    """Return the posterior of the column ends, as the prior of a next image; negligible ones left out."""
    parts: list[tuple[int, Ints, Ints, Floats]] = []
    for o, p in zip(evidence.final.model.options, marginals.probability, strict=True):
        worth = np.flatnonzero(p > NEGLIGIBLE)
        parts.append((o.column, o.first[worth], o.last[worth], p[worth]))
    for c in evidence.decided:
        parts.append((c, columns.first[c : c + 1], columns.last[c : c + 1], np.ones(1)))
    parts.sort(key=lambda part: part[0])
    column = np.concatenate([np.full(len(first), c, np.int64) for c, first, _, _ in parts])
    first, last, probability = (np.concatenate([part[k] for part in parts]) for k in (1, 2, 3))
    return Persistence(column, first, last, probability)


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
    out[list(evidence.decided)] = 1.0
    return out


def changed_probability(before: ColumnModel, columns: ColumnModel, ends: Persistence) -> Floats:
    """Return the probability (C,) that columns hold other atoms than before, by the posterior of their ends.

    A column whose ends are not known is 1 where it differs and 0 where it does not.
    """
    out = (before.element_counts() != columns.element_counts()).any(1).astype(float)
    held: dict[int, float] = {}
    for c, first, last, p in zip(ends.column, ends.first, ends.last, ends.probability, strict=True):
        c = int(c)
        was = _content(columns, c, int(before.first[c]), int(before.last[c]))
        same = _content(columns, c, int(first), int(last)) == was
        held[c] = held.get(c, 0.0) + (0.0 if same else float(p))
    for c, p in held.items():
        out[c] = min(p, 1.0)
    return out


def prior_error(state: State, imaging: list[int]) -> float:
    """Return how much larger errors are than claimed, by what the fit made of parameters known before (>= 1).

    A ratio of variances (Birge, Phys. Rev. 40, 207, 1932), the largest of `TRADED`. Atoms that move less make
    up for missing ones, a wider source for too many: what drives these far from what is known of them is as
    large an error in the thickness, and leaves little in the residual. imaging: numbers of free parameters.
    """
    away = state.prior_deviation()
    return max([1.0, *(float(away[i] ** 2) for i in imaging if parameter(i).name in TRADED)])


def agreed(columns: ColumnModel, rivals: tuple[Rival, ...], inflation: float) -> Floats:
    """Return the posterior share (C,) of the specimens, rivals and the fitted one, with the same counts.

    inflation: what differences of χ² are divided by; specimens differ in what all columns have in common, so
    it is the model error in common, or what parameters known before show of it.
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


def _coherence_note(bench: Bench, state: State) -> str:
    """Return how much the treatment of partial coherence matters in this image."""
    differs = bench.model.coherence_differences(state.columns, state.microscope)
    return (
        f"Partial coherence is summed over {bench.model.field.foci} foci with the source as an envelope; "
        f"the full sum over focus and source angle differs by {differs['full']:.2%} of vacuum (rms), "
        f"a quasi-coherent image by {differs['quasi-coherent']:.2%}."
    )
