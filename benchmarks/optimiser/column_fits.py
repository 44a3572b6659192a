"""positions-12, counts 8 + 2 and joint: atoms of an island of BaTiO3 [110] from its image at 10⁴ e/Å².

Every seed has an island and a lens of its own (`truth`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optimiser.island import DETECTOR, EXTENT, PLANE, Column, Island, View, columns, ideal
from optimiser.problem import Evaluation, Floats, Quality, Wants, chi2_targets, integer_quality
from optimiser.reference import DOSE, Imaging, noisy
from optimiser.rules import MinimumDistance, NeighbourStep
from optimiser.truth import Scene, draw_columns, draw_imaging, exits, image
from qhrtem.optimise.rules import LinearRule, Rule
from qhrtem.optimise.space import Parameter, SearchSpace

ELECTRONS = DOSE * EXTENT[0] * EXTENT[1] / DETECTOR**2  # per detector pixel
RANGE_PM = 25.0  # displacements from the ideal lattice
HIGHEST_STEP = 12.0  # Å between exits of columns up to `STEP_REACH` apart
STEP_REACH = 4.3  # Å
LEAST_SHARE = 0.75  # of the ideal distance of two projected columns
NEIGHBOURS = 3.0  # Å
THICKNESS_ERROR = 0.2  # relative, within which the mean thickness is known from the imaging stage,
THICKNESS_OFF = 0.15  # and by which that knowledge is wrong, at most
RANGE_A = 11.5  # exits of columns lie within this of the mean exit as it is thought to be: two periods
MIDDLE = (13.5, 12.0)  # Å, y and x, in the middle of the island
# name: low, high, unit, Å in one unit, step of differences
LENS = {
    "C1": (1.0, 11.0, "nm", 10.0, 0.04),
    "A1_x": (-5.0, 5.0, "nm", 10.0, 0.04),
    "A1_y": (-5.0, 5.0, "nm", 10.0, 0.04),
    "vibration": (10.0, 35.0, "pm", 0.01, 0.2),
}


@dataclass(frozen=True)
class ColumnFit:
    """χ² of an image over atom counts, displacements and a few imaging parameters."""

    name: str
    space: SearchSpace
    island: Island
    measured: Floats  # (n, n)
    sigma: Floats  # (n, n) one standard deviation of a pixel
    truth: Floats
    counted: bool
    moved: bool
    lens: tuple[str, ...]
    known: Imaging
    true_counts: Floats  # (C,)
    true_shifts: Floats  # (C, 2) Å
    fft_seconds: float = 250e-6

    @property
    def pixels(self) -> int:
        """Compared pixels."""
        return self.measured.size

    def targets(self) -> tuple[float, float, float]:
        """Return the χ² to be reached."""
        return chi2_targets(self, self.pixels)

    def unpack(self, vector: Floats) -> tuple[Floats, Floats, tuple[dict[str, complex], float, float, float]]:
        """Return counts (C,), shifts (C, 2) in Å and lens arguments of a vector."""
        n = len(self.island.free)
        v, counts, shifts = vector, self.true_counts, self.true_shifts
        if self.counted:
            counts, v = np.round(v[:n]), v[n:]
        if self.moved:
            shifts, v = v[: 2 * n].reshape(n, 2) / 100, v[2 * n :]
        aberrations, vibration = dict(self.known.aberrations), self.known.vibration[0]
        a1 = complex(aberrations.get("A1", 0))
        for name, value in zip(self.lens, v, strict=True):
            inner = value * LENS[name][3]
            if name == "C1":
                aberrations["C1"] = inner
            elif name == "A1_x":
                a1 = complex(inner, a1.imag)
            elif name == "A1_y":
                a1 = complex(a1.real, inner)
            else:
                vibration = inner
        aberrations["A1"] = a1
        return (
            counts,
            shifts,
            (aberrations, self.known.focal_spread, self.known.semi_convergence, vibration),
        )

    def residual(self, vector: Floats) -> Floats:
        """Return the weighted residual (m,)."""
        counts, shifts, lens = self.unpack(vector)
        model = self.island.image(counts.astype(np.int64), shifts, *lens).double().numpy()
        return ((model - self.measured) / self.sigma).ravel()

    def evaluate(self, vector: Floats, wants: Wants = "value") -> Evaluation:
        """Return χ²; derivatives of a column are computed in a window, one image each all the same."""
        before = self.island.work.now
        r = self.residual(vector)
        if wants != "jacobian":
            return Evaluation(float(r @ r), 1, *self.island.work.since(before), r)
        counts, shifts, lens = self.unpack(vector)
        by_atom, by_shift = self.island.derivatives(
            counts.astype(np.int64), shifts, *lens, count=self.counted, position=self.moved
        )
        parts = []
        if self.counted:
            parts.append(by_atom)
        if self.moved:
            parts.append(by_shift.reshape(-1, *self.sigma.shape) / 100)
        rows = [(p / self.sigma).reshape(len(p), -1) for p in parts]
        for k, name in enumerate(self.lens):
            i = len(vector) - len(self.lens) + k
            step = LENS[name][4] * (-1 if vector[i] + LENS[name][4] > LENS[name][1] else 1)
            moved = vector.copy()
            moved[i] += step
            rows.append(((self.residual(moved) - r) / step)[None])
        spent = self.island.work.since(before)
        return Evaluation(float(r @ r), 1 + len(vector), *spent, r, np.concatenate(rows).T)

    def quality(self, vector: Floats) -> Quality:
        """Return position and lens errors and the shares of right counts."""
        errors = {}
        n, at = len(self.island.free), len(self.island.free) if self.counted else 0
        d = vector - self.truth
        if self.moved:
            errors["position rms (pm)"] = float(np.sqrt((d[at : at + 2 * n] ** 2).mean()))
        for k, name in enumerate(self.lens):
            errors[f"{name} ({LENS[name][2]})"] = abs(float(d[len(d) - len(self.lens) + k]))
        return Quality(errors, *integer_quality(self.space, vector, self.truth))


def nearest(n: int, elements: tuple[tuple[str, int], ...]) -> list[int]:
    """Return the n columns of some kinds (element, spacing in slices) nearest to the middle of the island."""
    order = np.argsort(np.hypot(*(ideal() - np.array(MIDDLE)).T), kind="stable")
    kinds = [(c.element, c.spacing) for c in columns()]
    return [int(i) for i in order if kinds[i] in elements][:n]


def one_titanium_a_cell() -> list[int]:
    """Return every second titanium column, one for each of the 4 x 6 cells."""
    found = [i for i, c in enumerate(columns()) if c.element == "Ti"]
    rank = np.lexsort((ideal()[found, 1], np.round(ideal()[found, 0])))
    return [found[k] for k in rank[::2]]


def true_lens(name: str, known: Imaging) -> float:
    """Return what a lens parameter of `LENS` was, in its unit."""
    a1 = complex(known.aberrations.get("A1", 0))
    inner = {
        "C1": complex(known.aberrations["C1"]).real,
        "A1_x": a1.real,
        "A1_y": a1.imag,
        "vibration": known.vibration[0],
    }
    return inner[name] / LENS[name][3]


def neighbour_pairs(points: Floats, free: int) -> np.ndarray:
    """Return pairs (N, 2) of points closer than `NEIGHBOURS`, at least one of the first `free` among them."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    a, b = np.nonzero(np.triu(apart < NEIGHBOURS, 1))
    # Ba and O of one Ba-O column are no neighbours.
    keep = (a < free) & (apart[a, b] > 1.0)
    return np.stack([a[keep], b[keep]], axis=1)


def make_rules(
    free: list[int], every: tuple[Column, ...], off: float, counted: bool, moved: bool
) -> tuple[Rule, ...]:
    """Return what physics forbids: high steps, a wrong mean thickness, columns too close.

    every: all columns as they are; off: by which share the mean thickness is thought larger than it is.
    """
    rules: list[Rule] = []
    n, lens = len(free), 0
    others = [i for i in range(len(every)) if i not in free]
    points = np.concatenate([ideal()[free], [(every[i].y, every[i].x) for i in others]])
    pairs = neighbour_pairs(points, n)
    if counted:
        first = np.array([every[i].first for i in free]) * PLANE
        spacing = np.array([every[i].spacing for i in free]) * PLANE
        wide = np.linalg.norm(points[:n, None] - points[None, :n], axis=-1)
        a, b = np.nonzero(np.triu(wide < STEP_REACH, 1))
        rules.append(NeighbourStep(np.stack([a, b], axis=1), first, spacing, HIGHEST_STEP))
    d = (n if counted else 0) + (2 * n if moved else 0)
    if counted:
        total = (1 + off) * sum(every[i].count * every[i].spacing for i in free)
        weight = tuple(float(every[i].spacing) for i in free)
        for sign, name in ((1.0, "mean thickness, most"), (-1.0, "mean thickness, least")):
            bound = sign * total * (1 + sign * THICKNESS_ERROR)
            rules.append(LinearRule(name, tuple(sign * w for w in weight) + (0.0,) * (d - n + lens), bound))
    if moved:
        least = LEAST_SHARE * np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        rules.append(MinimumDistance(pairs, least, points, n, n if counted else 0))
    return tuple(rules)


def make_space(
    free: list[int], every: tuple[Column, ...], off: float, counted: bool, moved: bool, lens: tuple[str, ...]
) -> SearchSpace:
    """Return counts, displacements and lens parameters with their rules; see `make_rules`."""
    chosen = tuple(every[i] for i in free)
    parameters = []
    if counted:
        middle = (1 + off) * float(exits(chosen).mean())
        for k, c in enumerate(chosen):
            ends = [(middle + e - c.first * PLANE) / (c.spacing * PLANE) + 1 for e in (-RANGE_A, RANGE_A)]
            low, high = np.clip([math.ceil(ends[0]), math.floor(ends[1])], 1, c.most)
            parameters.append(Parameter(f"n {c.element}{k}", low, high, "atoms", "integer"))
    if moved:
        parameters += [
            Parameter(f"{axis} {c.element}{k}", -RANGE_PM, RANGE_PM, "pm")
            for k, c in enumerate(chosen)
            for axis in ("y", "x")
        ]
    parameters += [Parameter(n, *LENS[n][:3]) for n in lens]
    rules = tuple(
        LinearRule(r.name, r.coefficients + (0.0,) * (len(parameters) - len(r.coefficients)), r.bound)
        if isinstance(r, LinearRule)
        else r
        for r in make_rules(free, every, off, counted, moved)
    )
    return SearchSpace(tuple(parameters), rules)


def fit(
    name: str,
    seed: int,
    free: list[int],
    counted: bool,
    moved: bool,
    lens: tuple[str, ...],
    whole: bool = False,
    b_scale: float = 1.0,
    tilt: float = 0.0,
) -> ColumnFit:
    """Return the problem of a seed, which draws island, lens, direction of the tilt and noise.

    b_scale: of the model; tilt: mrad, of the specimen alone, unknown to the model, Kirkland's table.
    """
    generator = np.random.default_rng([seed, 0x7275])
    while True:
        scene = Scene(draw_columns(generator), draw_imaging(generator))
        off = generator.uniform(-THICKNESS_OFF, THICKNESS_OFF)
        counts = np.array([float(scene.columns[i].count) for i in free])
        shifts = np.array([(scene.columns[i].y, scene.columns[i].x) for i in free]) - ideal()[free]
        parts = [counts] * counted + [100 * shifts.ravel()] * moved
        truth = np.array([*(v for p in parts for v in p), *(true_lens(n, scene.imaging) for n in lens)])
        space = make_space(free, scene.columns, off, counted, moved, lens)
        if space.refused_by(truth) is None and (space.snap(truth) == truth).all():
            break
    angle = generator.uniform(0, 2 * np.pi)
    leaning = (1e-3 * tilt * np.cos(angle), 1e-3 * tilt * np.sin(angle))
    exact = image(scene, leaning, "kirkland") if tilt else image(scene)
    view = View.whole() if whole else View.around(*MIDDLE)
    measured, sigma = view.cut(noisy(exact, ELECTRONS, seed)), np.sqrt(view.cut(exact) / ELECTRONS)
    island = Island(view, free, b_scale, atoms=scene.columns)
    found = (truth, counted, moved, lens, scene.imaging, counts, shifts)
    return ColumnFit(name, space, island, measured, sigma, *found, fft_seconds=500e-6 if whole else 250e-6)


SINGLE = (("Ba", 4), ("Ti", 4), ("O", 2))


@lru_cache(maxsize=2)
def positions12(seed: int, name: str = "positions12") -> ColumnFit:
    """y and x of six columns; counts and lens known."""
    return fit(name, seed, nearest(6, SINGLE), False, True, ())


@lru_cache(maxsize=4)
def counts8_2(seed: int, name: str = "counts8_2", b_scale: float = 1.0, tilt: float = 0.0) -> ColumnFit:
    """Atom counts of eight columns, defocus and vibration; entrance ends and positions known."""
    return fit(name, seed, nearest(8, SINGLE), True, False, ("C1", "vibration"), False, b_scale, tilt)


@lru_cache(maxsize=2)
def joint(seed: int, name: str = "joint") -> ColumnFit:
    """Counts and positions of one titanium column in each of 6 x 4 cells, defocus and twofold astigmatism."""
    return fit(name, seed, one_titanium_a_cell(), True, True, ("C1", "A1_x", "A1_y"), True)
