"""Which methods meet which problems, and with how much to spend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
    "imaging22": Entry(imaging22, 40000, 12.0, True, "21 imaging parameters + thickness, one repeated cell"),
    "imaging22_dwf": Entry(
        partial(imaging22, name="imaging22_dwf", b_scale=WRONG_B), 40000, 12.0, True,
        "the same, Debye-Waller parameters of the model 1.5 times too large",
    ),
    "imaging22_tilt": Entry(
        partial(imaging22, name="imaging22_tilt", tilt=TILT_MRAD), 40000, 12.0, True,
        "the same, target tilted by 3 mrad, from Kirkland form factors on pixels half as large, 15 foci",
    ),
    "positions12": Entry(positions12, 1500, 3.0, True, "y and x of 6 columns"),
    "counts8_2": Entry(counts8_2, 1500, 3.0, True, "8 atom counts + defocus and vibration"),
    "counts8_2_dwf": Entry(
        partial(counts8_2, name="counts8_2_dwf", b_scale=WRONG_B), 1500, 3.0, True,
        "the same, Debye-Waller parameters of the model 1.5 times too large",
    ),
    "counts8_2_tilt": Entry(
        partial(counts8_2, name="counts8_2_tilt", tilt=TILT_MRAD), 1500, 3.0, True,
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
# One after the other without one part: what that part is worth. Where derivatives are told, the surrogate is
# not asked on these problems, so its parts are ablated where nothing but values is told.
BY_VALUES = "hybrid:gradients=False"
ABLATIONS = {
    "counts8_2": (
        "hybrid:rules=False",
        BY_VALUES,
        f"{BY_VALUES},trust_region=False",
        f"{BY_VALUES},scaled_priors=False",
        f"{BY_VALUES},rules=False",
        "rounding",
        "reparameterisation",
        "alternating",
    ),
    "imaging22": ("hybrid:sweeps=False", "hybrid:hops=False"),
}

VARIANTS = ("imaging22_dwf", "imaging22_tilt", "counts8_2_dwf", "counts8_2_tilt")
ON_VARIANTS = ("hybrid", "multistart_least_squares")
ON_ANALYTIC = ("hybrid", "trust_region", "turbo1", "logei", "cma_es", "differential_evolution", "nelder_mead",
               "tpe", "sobol")  # fmt: skip
INTEGERS = ("counts8_2", "joint")
ONLY_INTEGERS = ("rounding", "reparameterisation", "alternating", "coordinate_descent")
QUICK_METHODS = (
    "hybrid",
    "trust_region",
    "multistart_least_squares",
    "coordinate_descent",
    "cma_es",
    "published",
)
# The race: all methods meet the first seeds; one that never came near even the rough target stops there, one
# that never reached the good target after some more; the others meet all seeds, the default method more.
RACED, HEARD, SEEDS, MORE_SEEDS = 3, 5, 20, 60
# The published recipe needs 520 simulations for one collapse of its region; cut off earlier it would be
# compared with less than itself. Its models cost more than the simulations.
PUBLISHED_LONGER = 2.0
FEW_SEEDS = ("published",)  # whose every run is long


# How often a task's method has come to a target (0 rough … 2 good) of its problem so far.
Progress = Callable[["Task", int], int]


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
        return method in ABLATIONS.get(problem, ())
    if base in ONLY_INTEGERS and not integers:
        return False
    if problem in VARIANTS:
        return base in ON_VARIANTS
    if not PROBLEMS[problem].ours:
        return base in ON_ANALYTIC or base in ONLY_INTEGERS[:3]
    return True


def task(problem: str, method: str, seed: int, quick: bool = False) -> Task:
    """Return a run with its budget."""
    entry = PROBLEMS[problem]
    if quick:
        return Task(problem, method, seed, entry.simulations // 2, entry.seconds * 0.4)
    if method == "published":
        return Task(problem, method, seed, entry.simulations, entry.seconds * PUBLISHED_LONGER)
    return Task(problem, method, seed, entry.simulations, entry.seconds)


def chosen(
    seeds: int, quick: bool, problems: tuple[str, ...] = (), methods: tuple[str, ...] = ()
) -> Iterator[Task]:
    """Yield runs of some methods, seed by seed, so that an interrupted benchmark is balanced."""
    for seed in range(seeds):
        for name in problems or PROBLEMS:
            yield from (
                task(name, m, seed, quick) for m in methods or QUICK_METHODS if methods or fits(name, m)
            )


def stages() -> Iterator[Callable[[Progress], list[Task]]]:
    """Yield the stages of the whole benchmark, the most telling first; each is made from what came before."""
    ours = [n for n, e in PROBLEMS.items() if e.ours]
    every = (*OURS, *BASELINES)

    def runs(names: Iterable[str], methods: Iterable[str], seeds: range) -> list[Task]:
        return [task(n, m, s) for s in seeds for n in names for m in methods if fits(n, m)]

    yield lambda done: runs(ours, (MAIN,), range(SEEDS))
    yield lambda done: runs(ours, ("multistart_least_squares",), range(HEARD))
    yield lambda done: runs(ours, ("published",), range(RACED))
    yield lambda done: runs(("counts8_2",), ABLATIONS["counts8_2"], range(SEEDS))
    yield lambda done: runs(("imaging22",), ABLATIONS["imaging22"], range(HEARD))
    yield lambda done: runs(PROBLEMS, every, range(RACED))
    yield lambda done: [t for t in runs(PROBLEMS, every, range(HEARD)) if done(t, 0) > 0]
    yield lambda done: [
        t for t in runs(ours, every, range(SEEDS)) if done(t, 2) > 0 and t.method not in FEW_SEEDS
    ]
    yield lambda done: runs(("imaging22",), ABLATIONS["imaging22"], range(SEEDS))
    yield lambda done: runs(ours, (MAIN,), range(MORE_SEEDS))
