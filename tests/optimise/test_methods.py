"""Every method by name: the same conversation, no crash on bad news, no point twice, exact resume."""

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise.methods import METHODS, make, restore
from qhrtem.optimise.protocol import Optimiser, Trial
from qhrtem.optimise.space import LinearRule, Parameter, SearchSpace

MIXED = SearchSpace(
    (
        Parameter("defocus", -3, 3, "nm"),
        Parameter("dose", 0.1, 10, "", "log"),
        Parameter("count", 0, 9, "atoms", "integer"),
        Parameter.ordinal("size", (64, 96, 128, 192), "px"),
        Parameter.categorical("sense", ("up", "down", "flat")),
        Parameter("fixed", 2.0, 2.0),
    )
)
PLAIN = SearchSpace((Parameter("a", -3, 3), Parameter("b", -3, 3), Parameter("n", 0, 9, "", "integer")))
TARGET = np.array([1.0, -0.5, 6.0])
SCALE = np.array([1.0, 2.0, 0.7])
SLOW = {
    "alternating",
    "logei",
    "reparameterisation",
    "rounding",
}  # their acquisitions take tenths of a second
DERIVATIVES = {"hybrid", "multistart_least_squares"}


def mixed(x: np.ndarray) -> float:
    """A bowl with its minimum 0 at defocus 1, dose 1, count 6, size 96, sense "down"."""
    label = float(x[4] != 1)
    return float((x[0] - 1) ** 2 + np.log(x[1]) ** 2 + 0.3 * (x[2] - 6) ** 2 + (x[3] - 96) ** 2 / 1e3 + label)


def residual(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residual (3,) and Jacobian (3, 3) of a sum of squares that vanishes at TARGET."""
    return SCALE * (x - TARGET) + 0.1 * np.sin(x - TARGET), np.diag(SCALE + 0.1 * np.cos(x - TARGET))


def answer(search: Optimiser, trial: Trial) -> None:
    """Tell what the trial wants on PLAIN."""
    r, j = residual(trial.vector)
    if trial.wants == "jacobian":
        search.tell(trial.id, float(r @ r), residual=r, jacobian=j)
    else:
        search.tell(trial.id, float(r @ r))


def budget(method: str) -> int:
    return 16 if method in SLOW else 40


@pytest.fixture(params=[pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in METHODS])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_same_seed_same_trials_within_the_space_and_never_twice(method: str) -> None:
    runs = []
    for _ in range(2):
        search, asked = make(method, MIXED, seed=3, batch=4), []
        while len(asked) < budget(method):
            trials = search.ask()
            assert trials
            for t in trials:
                asked.append(t.vector.tolist())
                search.tell(t.id, mixed(t.vector))
        runs.append(asked)
    assert runs[0] == runs[1]
    points = np.array(runs[0])
    assert len(np.unique(points, axis=0)) == len(points)
    np.testing.assert_array_equal(MIXED.snap(points), points)
    assert runs[0] != [t.vector.tolist() for t in make(method, MIXED, seed=4, batch=4).ask(len(points))]


@pytest.mark.parametrize("stop", [1, 5])
def test_resume_is_exact(method: str, stop: int) -> None:
    def play(search: Optimiser, rounds: int) -> list[list[float]]:
        asked = []
        for _ in range(rounds):
            trials = search.ask(4)
            asked += [t.vector.tolist() for t in trials]
            for t in reversed(trials):  # out of order
                if t.id % 7 == 5:
                    search.tell(t.id, np.nan, status="failed")
                else:
                    answer(search, t)
        return asked

    straight = make(method, PLAIN, seed=5)
    play(straight, stop)
    waiting = straight.ask(2)  # saved with trials under evaluation
    saved = json.loads(json.dumps(straight.state_dict(), allow_nan=False))
    resumed = restore(method, PLAIN, saved)
    assert resumed.state_dict() == straight.state_dict()
    for search in (straight, resumed):
        for t in waiting:
            answer(search, t)
    assert play(resumed, 3) == play(straight, 3)


OBJECTIVES = {
    "constant": lambda x: 1.0,
    "always failing": lambda x: float("nan"),
    "half failing": lambda x: mixed(x) if x[0] > 0 else float("inf"),
    "huge": lambda x: 1e300 * mixed(x) if x[0] > 0 else -1e300,
    "tiny": lambda x: 1e-300 * mixed(x),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bad_objectives_do_not_stop_it(method: str, name: str) -> None:
    search = make(method, MIXED, seed=0, batch=4)
    told = 0
    while told < budget(method):
        trials = search.ask()
        assert trials
        for t in trials:
            search.tell(t.id, OBJECTIVES[name](t.vector))
        told += len(trials)
    best = search.best
    assert (best is None) == (name == "always failing")


def test_two_identical_points_told(method: str) -> None:
    search = make(method, PLAIN, seed=0, batch=4)
    for value in (3.0, 2.0, 2.0):
        search.add([1.0, 1.0, 4.0], value)
    for _ in range(6):
        for t in search.ask():
            assert t.vector.tolist() != [1.0, 1.0, 4.0] or t.wants == "jacobian"
            answer(search, t)
    assert search.best is not None
    assert search.best.value <= 2.0


def test_one_point_and_small_spaces_are_exhausted(method: str) -> None:
    one = SearchSpace((Parameter("a", 2.0, 2.0), Parameter("n", 3, 3, "", "integer")))
    search = make(method, one, seed=0)
    (only,) = search.ask(5)
    assert only.vector.tolist() == [2.0, 3.0]
    search.tell(only.id, 1.0)
    assert search.ask() == ()

    few = SearchSpace((Parameter("n", 0, 2, "", "integer"), Parameter("m", 0, 1, "", "integer")))
    search, seen = make(method, few, seed=0), []
    while trials := search.ask(50):  # more than there are points
        for t in trials:
            seen.append(tuple(t.vector))
            search.tell(t.id, float(t.vector.sum()))
    assert sorted(seen) == sorted({(n, m) for n in (0.0, 1.0, 2.0) for m in (0.0, 1.0)})


@dataclass(frozen=True)
class Never:
    name: str = "minimum distance"

    def allows(self, vector: np.ndarray) -> bool:
        return False


def test_rule_that_rejects_everything_is_named(method: str) -> None:
    with pytest.raises(PlanError, match="minimum distance"):
        make(method, SearchSpace(PLAIN.parameters, (Never(),)), seed=0).ask()


def test_rules_hold_or_their_violations_are_counted(method: str) -> None:
    space = SearchSpace(PLAIN.parameters, (LinearRule("thin", (0.0, 0.0, 1.0), 4.0),))
    for rules in (True, False):
        search, points = make(method, space, seed=0, batch=4, rules=rules), []
        while len(points) < budget(method):
            for t in search.ask():
                points.append(t.vector)
                answer(search, t)
        broken = int((np.array(points)[:, 2] > 4).sum())
        assert broken == search.violations["thin"]  # type: ignore[attr-defined]
        assert (broken == 0) == rules


def test_told_twice_and_unknown_trials_are_refused(method: str) -> None:
    search = make(method, PLAIN, seed=0)
    trial = search.ask(1)[0]
    answer(search, trial)
    with pytest.raises(KeyError, match="not pending"):
        answer(search, trial)


@pytest.mark.parametrize("name", sorted(set(METHODS) - SLOW))
def test_better_than_the_first_points_on_a_bowl(name: str) -> None:
    search, first = make(name, PLAIN, seed=1), np.inf
    told = 0
    while told < 120:
        for t in search.ask():
            answer(search, t)
            told += 1
            if told == 1:
                first = search.best.value  # type: ignore[union-attr]
    assert search.best is not None
    assert search.best.value < 0.9 * first
    if name in DERIVATIVES:
        np.testing.assert_allclose(search.best.vector, TARGET, atol=1e-4)


def test_unknown_names_options_and_inconsistent_answers_are_explained() -> None:
    with pytest.raises(PlanError, match="one of hybrid, trust_region"):
        make("simplex", PLAIN)
    with pytest.raises(PlanError, match="colour"):
        make("sobol", PLAIN, colour=3)
    with pytest.raises(PlanError, match="batch"):
        make("sobol", PLAIN, batch=0)
    search = make("sobol", PLAIN)
    trial = search.ask(1)[0]
    with pytest.raises(PlanError, match="residual · residual"):
        search.tell(trial.id, 1.0, residual=[1.0, 1.0])
    with pytest.raises(PlanError, match="row a residual"):
        search.tell(trial.id, 2.0, residual=[1.0, 1.0], jacobian=np.zeros((3, 3)))
    search.tell(trial.id, 2.0, residual=[1.0, 1.0], jacobian=np.full((2, 3), np.nan))
    with pytest.raises(PlanError, match="saved search has parameters"):
        restore("sobol", MIXED, search.state_dict())


def test_choosing_a_method_imports_only_what_it_needs() -> None:
    code = (
        "import sys; from qhrtem.optimise.methods import make; from qhrtem.optimise.space import *;"
        "make('sobol', SearchSpace((Parameter('a', 0, 1),))).ask();"
        "sys.exit(bool({'botorch', 'optuna', 'cmaes', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
