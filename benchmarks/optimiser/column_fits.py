"""positions-12, counts 8 + 2 and joint: atoms of the Dr. Probe island from its image at 10⁴ e/Å²."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optimiser.island import DETECTOR, EXTENT, PLANE, Island, View, columns, ideal
from optimiser.lens import resampled
from optimiser.problem import Evaluation, Floats, Quality, Wants, chi2_targets, integer_quality
from optimiser.reference import DOSE, Imaging, data, imaging, noisy
from optimiser.rules import MinimumDistance, NeighbourStep
from qhrtem.optimise.rules import LinearRule, Rule
from qhrtem.optimise.space import Parameter, SearchSpace

ELECTRONS = DOSE * EXTENT[0] * EXTENT[1] / DETECTOR**2  # per detector pixel
RANGE_PM = 25.0  # displacements from the ideal lattice
HIGHEST_STEP = 12.0  # Å between exits of columns up to `STEP_REACH` apart
STEP_REACH = 4.3  # Å
LEAST_SHARE = 0.75  # of the ideal distance of two projected columns
NEIGHBOURS = 3.0  # Å
THICKNESS_ERROR = 0.2  # relative, of the mean thickness known from the imaging stage
MIDDLE = (13.5, 12.0)  # Å, y and x, in the middle of the island
# name: low, high, unit, Å in one unit, step of differences
LENS = {
    "C1": (2.0, 10.0, "nm", 10.0, 0.04),
    "A1_x": (-5.0, 5.0, "nm", 10.0, 0.04),
    "A1_y": (-5.0, 5.0, "nm", 10.0, 0.04),
    "vibration": (15.0, 35.0, "pm", 0.01, 0.2),
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
        r = self.residual(vector)
        if wants != "jacobian":
            return Evaluation(float(r @ r), 1, r)
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
        return Evaluation(float(r @ r), 1 + len(vector), r, np.concatenate(rows).T)

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


def make_rules(free: list[int], counted: bool, moved: bool) -> tuple[Rule, ...]:
    """Return what physics forbids: high steps, a wrong mean thickness, columns too close."""
    rules: list[Rule] = []
    n, lens = len(free), 0
    every = columns()
    points = ideal()[[*free, *(i for i in range(len(every)) if i not in free)]]
    pairs = neighbour_pairs(points, n)
    if counted:
        first = np.array([every[i].first for i in free]) * PLANE
        spacing = np.array([every[i].spacing for i in free]) * PLANE
        wide = np.linalg.norm(points[:n, None] - points[None, :n], axis=-1)
        a, b = np.nonzero(np.triu(wide < STEP_REACH, 1))
        rules.append(NeighbourStep(np.stack([a, b], axis=1), first, spacing, HIGHEST_STEP))
    d = (n if counted else 0) + (2 * n if moved else 0)
    if counted:
        total = sum(every[i].count * every[i].spacing for i in free)
        weight = tuple(float(every[i].spacing) for i in free)
        for sign, name in ((1.0, "mean thickness, most"), (-1.0, "mean thickness, least")):
            bound = sign * total * (1 + sign * THICKNESS_ERROR)
            rules.append(LinearRule(name, tuple(sign * w for w in weight) + (0.0,) * (d - n + lens), bound))
    if moved:
        least = LEAST_SHARE * np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        rules.append(MinimumDistance(pairs, least, points, n, n if counted else 0))
    return tuple(rules)


def make_space(free: list[int], counted: bool, moved: bool, lens: tuple[str, ...]) -> SearchSpace:
    """Return counts, displacements and lens parameters with their rules."""
    chosen = [columns()[i] for i in free]
    parameters = []
    if counted:
        parameters += [
            Parameter(f"n {c.element}{k}", 1, c.most, "atoms", "integer") for k, c in enumerate(chosen)
        ]
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
        for r in make_rules(free, counted, moved)
    )
    return SearchSpace(tuple(parameters), rules)


@lru_cache
def _island(free: tuple[int, ...], whole: bool, b_scale: float) -> Island:
    return Island(View.whole() if whole else View.around(*MIDDLE), free, b_scale)


@lru_cache
def _clean(image: str, tilt: tuple[float, float] | None) -> Floats:
    """Noise-free target (160, 160); with a tilt (mrad) from an independent route: Kirkland's table on finer
    pixels, summed over more foci."""
    if tilt is None:
        return np.asarray(data()[image], dtype=float)
    s = imaging(image)
    fine = Island(View.whole(), (), 1.0, (1e-3 * tilt[0], 1e-3 * tilt[1]), "kirkland", 15, 2.0)
    sharp = fine.image(
        np.zeros(0, np.int64),
        np.zeros((0, 2)),
        s.aberrations,
        s.focal_spread,
        s.semi_convergence,
        s.vibration[0],
    )
    return resampled(sharp.double().numpy(), (DETECTOR, DETECTOR))


def _fit(
    name: str,
    seed: int | None,
    image: str,
    free: list[int],
    counted: bool,
    moved: bool,
    lens: tuple[str, ...],
    whole: bool = False,
    b_scale: float = 1.0,
    tilt: tuple[float, float] | None = None,
) -> ColumnFit:
    """Return a problem; b_scale: of the model; tilt: mrad, of the target alone, unknown to the model."""
    island, known = _island(tuple(free), whole, b_scale), imaging(image)
    clean = _clean(image, tilt)
    measured = island.view.cut(noisy(clean, ELECTRONS, seed))
    counts = np.array([float(c.count) for c in island.free])
    shifts = np.array([(c.y, c.x) for c in island.free]) - ideal()[free]
    truth = np.concatenate(
        [
            counts if counted else np.empty(0),
            100 * shifts.ravel() if moved else np.empty(0),
            np.array([true_lens(n, known) for n in lens]),
        ]
    )
    sigma = np.sqrt(island.view.cut(clean) / ELECTRONS)
    space = make_space(free, counted, moved, lens)
    return ColumnFit(name, space, island, measured, sigma, truth, counted, moved, lens, known, counts, shifts)


SINGLE = (("Ba", 4), ("Ti", 4), ("O", 2))


def positions12(seed: int | None, name: str = "positions12") -> ColumnFit:
    """y and x of six columns; counts and lens known."""
    return _fit(name, seed, "surface_full_abs_abr", nearest(6, SINGLE), False, True, ())


def counts8_2(
    seed: int | None,
    name: str = "counts8_2",
    b_scale: float = 1.0,
    tilt: tuple[float, float] | None = None,
) -> ColumnFit:
    """Atom counts of eight columns, defocus and vibration; entrance ends and positions known."""
    free = nearest(8, SINGLE)
    return _fit(name, seed, "surface_focal_abs", free, True, False, ("C1", "vibration"), False, b_scale, tilt)


def joint(seed: int | None, name: str = "joint") -> ColumnFit:
    """Counts and positions of one titanium column in each of 6 x 4 cells, defocus and twofold astigmatism."""
    free = one_titanium_a_cell()
    return _fit(name, seed, "surface_full_abs_abr", free, True, True, ("C1", "A1_x", "A1_y"), True)
