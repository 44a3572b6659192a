"""Imaging parameters from repeated-cell averages, found by the hybrid optimiser and refined by least squares.

What the averages determine: the lattice Fourier coefficients of the image at places of different thickness,
with the absolute scale. Thickness trades against C1 and against vibration at a single place; several
thicknesses under one lens break that. A rigid shift is free and is found by trying all of them; the thickness
at each place is enumerated, since one multislice pass yields every thickness. Two senses of a polar axis and
mirrored views are separate hypotheses, all tried, and ranked by the misfit; so are thicknesses tens of Å
apart, for dynamical scattering nearly repeats with depth. The mistilt is left where the plan has it: columns
that stand off their ideal places, as in a polar crystal, shift against each other like tilted ones, and only
a fit in which they may move can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.microscope import INDEX, PARAMETERS, Microscope, watched_rows
from qhrtem.optimise.least_squares import levenberg_marquardt
from qhrtem.optimise.methods import make
from qhrtem.optimise.protocol import Observation, Trial
from qhrtem.optimise.space import Parameter, SearchSpace
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.cell_match import CellMatch, orientations

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Values = dict[str, NDArray[np.float64]]  # what a trial gives, by name: value, residual, jacobian ...
Evaluate = Callable[[int, Floats, Callable[[Floats], Values]], Values]  # trial number, vector, objective
SEARCHED = ("c1", "a1_x", "a1_y", "b2_x", "b2_y", "a2_x", "a2_y", "vibration_xx")
CELL_ERROR = 0.05  # model error of perfect repeated cells, as a share of the contrast
OPTIMISER = "hybrid"  # of `optimise.methods`; benchmarks/optimiser/results.md says what it is compared with
JACOBIAN_TRIALS = 4  # values that a Jacobian of the searched parameters costs: thickness and origin are held
C1_RANGE_A = (-150.0, 200.0)  # searched where the plan gives no C1


@dataclass(frozen=True)
class Hypothesis:
    """One way the crystal may lie in the image, with the lens that fits it best."""

    frame: Floats  # (2, 2) crystal (x, y) in Å @ frame = field (y, x) in Å
    microscope: Microscope
    origin: tuple[float, float]  # fractional position of the first pixel in the projected cell
    thickness: Ints  # (T,) slices at each place
    misfit: float  # share of the lattice contrast left unexplained


def scan_focus(match: CellMatch, microscope: Microscope) -> list[tuple[float, float]]:
    """Return (misfit, C1 in Å) over the range of C1 that the prior allows, best first."""
    i = INDEX["c1"]
    mean, sigma = microscope.mean[i], microscope.sigma[i]
    low, high = max(C1_RANGE_A[0], mean - 3 * sigma), min(C1_RANGE_A[1], mean + 3 * sigma)
    levels = np.arange(low, high + 1, 6.0)
    return sorted((match.best(microscope.with_values(c1=float(c)))[0], float(c)) for c in levels)


def search_space(microscope: Microscope, centre_c1: float) -> SearchSpace:
    """Return the box of the global search: two prior standard deviations, C1 around the best of the scan."""
    parameters = []
    for name in SEARCHED:
        i = INDEX[name]
        p = PARAMETERS[i]
        mean, sigma = microscope.mean[i], microscope.sigma[i]
        if name == "c1":
            low, high = centre_c1 - 40, centre_c1 + 40
        elif name == "vibration_xx":
            low, high = 0.005, max(0.12, mean + 2 * sigma)
        else:
            low, high = mean - 2 * sigma, mean + 2 * sigma
        parameters.append(Parameter(name, max(low, p.low), min(high, p.high), "Å or rad"))
    return SearchSpace(tuple(parameters))


def with_searched(microscope: Microscope, vector: Floats) -> Microscope:
    """Return the microscope with the searched parameters set; vibration is isotropic at this stage."""
    changes = {n: float(v) for n, v in zip(SEARCHED, vector, strict=True)}
    changes["vibration_yy"] = changes["vibration_xx"]
    return microscope.with_values(**changes)


def search(
    match: CellMatch,
    microscope: Microscope,
    seed: int,
    budget: int,
    report: Callable[[int, float], None] = lambda trials, best: None,
    evaluate: Evaluate = lambda number, vector, objective: objective(vector),
    watch: Callable[[int, dict[str, Any]], None] = lambda number, facts: None,
) -> Hypothesis:
    """Return the best lens of one orientation: focus scan, the optimiser `OPTIMISER`, least squares.

    The objective is χ² of the cell averages plus the prior, with derivatives where the optimiser wants them;
    budget: evaluations, a Jacobian counting as `JACOBIAN_TRIALS`. evaluate: gives the values of a numbered
    trial by name, by the objective or from memory. watch: told the number of each trial and what came of it.
    """

    def objective(vector: Floats) -> Values:
        residual, _ = cell_residual(match, microscope, vector, False)
        return {"value": np.array(residual @ residual)}

    def derivatives(vector: Floats) -> Values:
        residual, jacobian = cell_residual(match, microscope, vector, True)
        assert jacobian is not None
        return {"residual": residual, "jacobian": jacobian}

    scan = scan_focus(match, microscope)
    space = search_space(microscope, scan[0][1])
    optimiser = make(OPTIMISER, space, seed)
    start = np.array([microscope[n] for n in SEARCHED])
    for _, c1 in scan[:3]:
        start[0] = np.clip(c1, space.low[0], space.high[0])
        optimiser.add(start.copy(), float(objective(start)["value"]))
    trials = 0
    while trials < budget:
        asked = optimiser.ask()
        if not asked:
            break
        for trial in asked:
            before = optimiser.best
            if trial.wants != "jacobian":
                value, jacobian = float(evaluate(trial.id, trial.vector, objective)["value"]), None
                optimiser.tell(trial.id, value)
                trials += 1
            else:
                values = evaluate(trial.id, trial.vector, derivatives)
                residual, jacobian = values["residual"], values["jacobian"]
                value = float(residual @ residual)
                optimiser.tell(trial.id, value, residual=residual, jacobian=jacobian)
                trials += JACOBIAN_TRIALS
            watch(trial.id, _seen(space, trial, before, value, jacobian))
        best = optimiser.best
        assert best is not None
        report(trials, match.best(with_searched(microscope, best.vector))[0])
    best = optimiser.best
    assert best is not None
    vector, _ = _polish(match, microscope, best.vector)
    final = with_searched(microscope, vector)
    misfit, origin, thickness = match.best(final)
    return Hypothesis(match.frame, final, origin, thickness, misfit)


def _seen(
    space: SearchSpace, trial: Trial, before: Observation | None, value: float, jacobian: Floats | None
) -> dict[str, Any]:
    """Return what there is to see of a trial: χ², how far it lies from the best before it, its parameters.

    The distance is the share of the search box by which the parameter that moves most has moved. The standard
    deviations are those of the quadratic model there, prior included, where there is a Jacobian (m, d).
    """
    step = None
    if before is not None:
        apart = np.abs(space.to_unit(trial.vector) - space.to_unit(before.vector))
        step = round(float(apart.max()), 6)
    sigma = np.full(len(SEARCHED), np.nan)
    if jacobian is not None:
        try:
            sigma = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
        except np.linalg.LinAlgError:
            pass  # flat in some direction: nothing is known of it
    rows = watched_rows([INDEX[n] for n in SEARCHED], trial.vector, sigma)
    finite = value if np.isfinite(value) else None
    return {"chi2": finite, "step": step, "origin": trial.origin, "lens": rows}


def cell_residual(
    match: CellMatch, microscope: Microscope, vector: Floats, derivatives: bool
) -> tuple[Floats, Floats | None]:
    """Return the residual (m,) at searched parameters, prior included, and its Jacobian (m, d) or None.

    In standard deviations: `CELL_ERROR` of the contrast, spread over all coefficients, and the prior's.

    Thickness and origin are those that fit best; the origin is a nuisance, so what it could explain is
    projected out of the derivatives (Golub and Pereyra, SIAM J. Numer. Anal. 10, 413, 1973).
    """
    index = [INDEX[n] for n in SEARCHED]
    step = np.array([PARAMETERS[i].step for i in index])
    sigma = microscope.sigma[index]
    lens = with_searched(microscope, vector)
    _, origin, thickness = match.best(lens)

    def data(x: Floats, at: Floats) -> Floats:
        r = match.residual(with_searched(microscope, x), at, thickness)
        return r * np.sqrt(len(r)) / CELL_ERROR

    at = np.array(origin)
    r = data(vector, at)
    shifts = np.stack([(data(vector, at + 1e-3 * e) - r) / 1e-3 for e in np.eye(2)], axis=1)
    at = at - np.linalg.lstsq(shifts, r, rcond=None)[0]
    moved = data(vector, at)
    if moved @ moved < r @ r:
        r = moved
    else:
        at = np.array(origin)
    residual = np.concatenate([r, (np.asarray(vector) - microscope.mean[index]) / sigma])
    if not derivatives:
        return residual, None
    h = 0.2 * step
    columns = [(data(vector + h[i] * e, at) - r) / h[i] for i, e in enumerate(np.eye(len(step)))]
    basis, _ = np.linalg.qr(shifts)
    jacobian = np.stack(columns, axis=1)
    return residual, np.concatenate([jacobian - basis @ (basis.T @ jacobian), np.diag(1 / sigma)])


def _polish(match: CellMatch, microscope: Microscope, vector: Floats) -> tuple[Floats, float]:
    """Least squares from a point, thickness held, then enumerated again; the better vector and its value."""
    space = search_space(microscope, float(vector[0]))
    index = [INDEX[n] for n in SEARCHED]
    step = np.array([PARAMETERS[i].step for i in index])
    sigma = microscope.sigma[index]
    noise = CELL_ERROR
    best = np.asarray(vector, dtype=float), float(np.log(match.best(with_searched(microscope, vector))[0]))
    for _ in range(3):
        misfit, origin, thickness = match.best(with_searched(microscope, best[0]))

        def residual(x: Floats, thickness: Ints = thickness) -> Floats:
            lens = with_searched(microscope, x[: len(step)] * step)
            return match.residual(lens, x[len(step) :], thickness) / noise

        def model(x: Floats, residual: Callable[[Floats], Floats] = residual) -> tuple[Floats, Floats]:
            r = residual(x)
            h = np.concatenate([np.full(len(step), 0.2), np.full(2, 1e-3)])
            jacobian = np.stack(
                [(residual(x + h[i] * e) - r) / h[i] for i, e in enumerate(np.eye(len(x)))], axis=1
            )
            return r, jacobian

        fit = levenberg_marquardt(
            model,
            np.concatenate([best[0] / step, origin]),
            lower=np.concatenate([space.low / step, np.full(2, -np.inf)]),
            upper=np.concatenate([space.high / step, np.full(2, np.inf)]),
            prior_mean=np.concatenate([microscope.mean[index] / step, np.zeros(2)]),
            prior_sigma=np.concatenate([sigma / step, np.full(2, np.inf)]),
            max_evaluations=12,
        )
        vector = fit.x[: len(step)] * step
        value = float(np.log(match.best(with_searched(microscope, vector))[0]))
        if value > best[1] - 1e-3:
            return min(best, (vector, value), key=lambda b: b[1])
        best = vector, value
    return best


def rank_orientations(
    averages: CellAverages, projection: Projection, lattice: Lattice, microscope: Microscope
) -> list[tuple[float, CellMatch]]:
    """Return the distinct orientations with the misfit of their focus scan, best first."""
    found: list[tuple[float, CellMatch]] = []
    for symmetry in orientations(projection):
        match = CellMatch(averages, projection, lattice.frame * averages.pixel_A, symmetry, microscope.energy)
        scan = scan_focus(match, microscope)
        # Orientations that the projected structure cannot tell apart give one image; the first stands for
        # them.
        if not any(abs(scan[0][0] - f) < 1e-4 * f for f, _ in found):
            found.append((scan[0][0], match))
    return sorted(found, key=lambda f: f[0])


def thickness_at(points: Floats, averages: CellAverages, hypothesis: Hypothesis, plane: float) -> Floats:
    """Return the thickness (Å) at points (N, 2) row, col by smooth weighting of the places' values."""
    distance = np.linalg.norm(points[:, None] - averages.centre[None], axis=-1)
    spacing = 1.0
    if len(averages.centre) > 1:
        apart = np.linalg.norm(averages.centre[None] - averages.centre[:, None], axis=-1)
        spacing = max(float(np.sort(apart, axis=1)[:, 1].mean()), 1.0)
    near = np.exp(-0.5 * (distance / spacing) ** 2) + 1e-6 / (1 + (distance / spacing) ** 2)
    return (near * hypothesis.thickness).sum(1) / near.sum(1) * plane
