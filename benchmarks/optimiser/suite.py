"""Which methods meet which problems, and with how much to spend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from optimiser.analytic import ackley20, mixed_ackley, styblinski_tang40
from optimiser.column_fits import counts8_2, joint, positions12
from optimiser.problem import Problem
from optimiser.repeated import imaging22

TILT_MRAD = 3.0
WRONG_B = 1.5


@dataclass(frozen=True)
class Entry:
    """A problem with what a run may spend on it, whichever ends first."""

    make: Callable[[int], Problem]
    simulations: int
    seconds: float  # CPU time of one thread
    ours: bool = True
    note: str = ""


PROBLEMS: dict[str, Entry] = {
    "ackley20": Entry(ackley20, 1000, 4.0, False, "20 continuous; minimum moved at random"),
    "mixed_ackley": Entry(mixed_ackley, 500, 4.0, False, "10 binary + 3 continuous"),
    "styblinski_tang40": Entry(styblinski_tang40, 1000, 4.0, False, "40 continuous"),
    "imaging22": Entry(imaging22, 40000, 15.0, True, "21 imaging parameters + thickness, one repeated cell"),
    "imaging22_dwf": Entry(
        partial(imaging22, name="imaging22_dwf", b_scale=WRONG_B), 40000, 15.0, True,
        "the same, Debye-Waller parameters of the model 1.5 times too large",
    ),
    "imaging22_tilt": Entry(
        partial(imaging22, name="imaging22_tilt", tilt=TILT_MRAD), 40000, 15.0, True,
        "the same, target tilted by 3 mrad, from Kirkland form factors on pixels half as large, 15 foci",
    ),
    "positions12": Entry(positions12, 1500, 5.0, True, "y and x of 6 columns"),
    "counts8_2": Entry(counts8_2, 1500, 5.0, True, "8 atom counts + defocus and vibration"),
    "counts8_2_dwf": Entry(
        partial(counts8_2, name="counts8_2_dwf", b_scale=WRONG_B), 1500, 5.0, True,
        "the same, Debye-Waller parameters of the model 1.5 times too large",
    ),
    "counts8_2_tilt": Entry(
        partial(counts8_2, name="counts8_2_tilt", tilt=TILT_MRAD), 1500, 5.0, True,
        "the same, target tilted by 3 mrad unknown to the model, Kirkland form factors, finer, 15 foci",
    ),
    "joint": Entry(joint, 3000, 8.0, True, "24 counts, 48 positions, C1 and A1 over 6 x 4 cells"),
}  # fmt: skip

MAIN = "hybrid"  # what the stages use
OURS = (
    "hybrid", "trust_region", "trust_region_qlogei", "trust_region_m", "rounding", "reparameterisation",
    "alternating",
)  # fmt: skip
BASELINES = (
    "multistart_least_squares", "coordinate_descent", "cma_es", "differential_evolution", "nelder_mead",
    "tpe", "logei", "turbo1", "sobol", "published",
)  # fmt: skip
# One after the other without one part: what that part is worth.
ABLATIONS = tuple(f"hybrid:{part}=False" for part in ("trust_region", "rules", "gradients", "scaled_priors"))

VARIANTS = ("imaging22_dwf", "imaging22_tilt", "counts8_2_dwf", "counts8_2_tilt")
ON_VARIANTS = ("hybrid", "multistart_least_squares")
ON_ANALYTIC = ("hybrid", "trust_region", "turbo1", "logei", "cma_es", "differential_evolution", "nelder_mead",
               "tpe", "sobol")  # fmt: skip
ABLATED = ("imaging22", "counts8_2", "joint")
INTEGERS = ("counts8_2", "joint")
ONLY_INTEGERS = ("rounding", "reparameterisation", "alternating", "coordinate_descent")
# The published recipe needs 520 simulations for one collapse; cut off earlier it would be compared with less
# than itself. Its models cost more than the simulations.
PUBLISHED_SECONDS = 30.0
PUBLISHED_LONG = "imaging22"
# Where one seed showed no method of a kind near the rough target, a few more say so as well as twenty.
FEW_SEEDS = 5
HARD_SEEDS = 3
ANALYTIC_SEEDS = 3
ABLATION_SEEDS = {"imaging22": 5, "counts8_2": 10, "joint": 5}
HARD = ("imaging22", "joint")
EVERY_SEED = ("hybrid", "multistart_least_squares")
EVERY_SEED_WHERE_QUICK = ("trust_region", "coordinate_descent", "cma_es", "published")
QUICK_METHODS = (
    "hybrid",
    "trust_region",
    "multistart_least_squares",
    "coordinate_descent",
    "cma_es",
    "published",
)


@dataclass(frozen=True)
class Task:
    """One run."""

    problem: str
    method: str  # name, or name:option=value,…
    seed: int
    simulations: int
    seconds: float

    @property
    def key(self) -> tuple[str, str, int, int, float]:
        """What makes two runs the same."""
        return self.problem, self.method, self.seed, self.simulations, self.seconds


def fits(problem: str, method: str) -> bool:
    """Return whether a method makes sense on a problem."""
    base = method.split(":")[0]
    integers = problem.startswith(("counts", "joint", "mixed"))
    if ":" in method:
        return problem in ABLATED
    if base in ONLY_INTEGERS and not integers:
        return False
    if problem in VARIANTS:
        return base in ON_VARIANTS
    if not PROBLEMS[problem].ours:
        return base in ON_ANALYTIC or base in ONLY_INTEGERS[:3]
    return True


def most_seeds(problem: str, method: str) -> float:
    """Return how many seeds a method is worth on a problem."""
    if ":" in method:
        return ABLATION_SEEDS[problem]
    if method in EVERY_SEED and PROBLEMS[problem].ours:
        return math.inf
    if not PROBLEMS[problem].ours:
        return ANALYTIC_SEEDS
    if method in EVERY_SEED_WHERE_QUICK:
        return FEW_SEEDS if problem in HARD else math.inf
    return HARD_SEEDS if problem in HARD else FEW_SEEDS


def tasks(
    seeds: int, quick: bool, problems: tuple[str, ...] = (), methods: tuple[str, ...] = ()
) -> Iterator[Task]:
    """Yield the runs, seed by seed, so that an interrupted benchmark is balanced."""
    chosen = methods or (QUICK_METHODS if quick else (*OURS, *BASELINES, *ABLATIONS))
    for seed in range(seeds):
        for name in problems or PROBLEMS:
            entry = PROBLEMS[name]
            for method in chosen:
                if not fits(name, method) or seed >= most_seeds(name, method):
                    continue
                simulations, seconds = entry.simulations, entry.seconds
                if quick:
                    simulations, seconds = simulations // 2, seconds * 0.4
                elif method == "published" and name == PUBLISHED_LONG:
                    seconds = max(seconds, PUBLISHED_SECONDS)
                yield Task(name, method, seed, simulations, seconds)
