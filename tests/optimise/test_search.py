"""The search as a whole: it finds optima, survives what users do to it, and resumes exactly."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise.search import TrustRegionSearch
from qhrtem.optimise.space import LinearRule, Parameter, SearchSpace

Objective = Callable[[np.ndarray], float]
BOX = SearchSpace((Parameter("a", -5, 10), Parameter("b", 0, 15)))
COUNTS = SearchSpace(tuple(Parameter(f"n{i}", 0, 20, "atoms", "integer") for i in range(4)))
MIXED = SearchSpace((*(Parameter(f"x{i}", -3, 3) for i in range(4)), *COUNTS.parameters[:2]))


def branin(x: np.ndarray) -> float:
    """Branin (Dixon and Szegö 1978): three minima of 0.397887."""
    a, b = x
    bowl = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return float(bowl + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10)


def ackley(x: np.ndarray) -> float:
    """Ackley (1987): many local minima, global minimum 0 at 0."""
    well = -20 * np.exp(-0.2 * np.sqrt(np.mean(x**2)))
    return float(well - np.exp(np.mean(np.cos(2 * np.pi * x))) + 20 + np.e)


def mixed(x: np.ndarray) -> float:
    """A bowl with coupled integers, minimum 0 at x = 1, n = (7, 12)."""
    return float(np.sum((x[:4] - 1) ** 2) + 0.3 * (x[4] - 7) ** 2 + 0.3 * (x[4] + x[5] - 19) ** 2)


def drive(search: TrustRegionSearch, objective: Objective, budget: int) -> TrustRegionSearch:
    """Spend a budget of evaluations, or all the points there are."""
    while len(search.archive) < budget and (trials := search.ask(min(8, budget - len(search.archive)))):
        for trial in trials:
            search.tell(trial.id, objective(trial.vector))
    return search


def vectors(search: TrustRegionSearch) -> list[tuple[float, ...]]:
    return [tuple(o.vector.tolist()) for o in search.archive]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("acquisition", ["thompson", "qlogei", "ucb"])
def test_branin_in_64_evaluations(acquisition: str, seed: int) -> None:
    found = drive(TrustRegionSearch(BOX, seed, acquisition=acquisition), branin, 64).best
    assert found is not None
    assert found.value < 0.397887 + 0.05
    assert found.value < min(branin(v) for v in BOX.sobol(64, np.random.default_rng(seed)))


def test_ackley_in_ten_dimensions_beats_sobol_at_every_seed() -> None:
    space = SearchSpace(tuple(Parameter(f"x{i}", -5, 10) for i in range(10)))
    reached = []
    for seed in range(3):
        found = drive(TrustRegionSearch(space, seed), ackley, 240).best
        assert found is not None
        reached.append(found.value)
        assert found.value < 0.6 * min(ackley(v) for v in space.sobol(240, np.random.default_rng(seed)))
    assert np.median(reached) < 3.0


@pytest.mark.parametrize("seed", range(2))
def test_mixed_space_finds_exact_integers(seed: int) -> None:
    search = drive(TrustRegionSearch(MIXED, seed), mixed, 200)
    assert search.best is not None
    assert search.best.vector[4:].tolist() == [7, 12]
    assert search.best.value < 0.05
    told = np.array(vectors(search))
    assert np.array_equal(told[:, 4:], np.round(told[:, 4:]))


def test_no_point_is_proposed_twice_even_where_few_exist() -> None:
    space = SearchSpace(tuple(Parameter(f"n{i}", 0, 4, "", "integer") for i in range(3)))
    search = drive(TrustRegionSearch(space, 0), lambda x: float(np.sum((x - 3) ** 2)), 1000)
    assert len(search.archive) == 125 == len(set(vectors(search)))
    assert search.ask() == ()


def test_points_told_by_others_are_not_proposed() -> None:
    space = SearchSpace((Parameter("n", 0, 9, "", "integer"),))
    search = TrustRegionSearch(space, 0)
    for n in range(0, 10, 2):
        search.add([n], float(n))
    assert {t.vector[0] for t in search.ask(10)} == {1, 3, 5, 7, 9}


@pytest.mark.parametrize("acquisition", ["thompson", "qlogei"])
@pytest.mark.parametrize("stop", [1, 6])
def test_resume_is_exact(acquisition: str, stop: int) -> None:
    def play(search: TrustRegionSearch, rounds: int) -> list[list[float]]:
        asked = []
        for _ in range(rounds):
            trials = search.ask(4)
            asked += [t.vector.tolist() for t in trials]
            for t in reversed(trials[:3]):  # out of order, and one in four stays pending
                search.tell(t.id, mixed(t.vector) if t.id % 7 else np.nan)
        return asked

    straight = TrustRegionSearch(MIXED, 3, 4, acquisition=acquisition, design=8)
    play(straight, stop)
    saved = json.loads(json.dumps(straight.state_dict(), allow_nan=False))
    resumed = TrustRegionSearch.from_state_dict(MIXED, saved)
    assert resumed.state_dict() == straight.state_dict()
    assert play(resumed, 5) == play(straight, 5)
    assert resumed.state_dict() == straight.state_dict()


def test_state_of_another_space_is_refused() -> None:
    with pytest.raises(PlanError, match="saved search has parameters"):
        TrustRegionSearch.from_state_dict(BOX, TrustRegionSearch(COUNTS, 0).state_dict())


@pytest.mark.parametrize("acquisition", ["thompson", "qlogei", "ucb"])
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(lambda x: 1.0, id="constant"),
        pytest.param(lambda x: float("nan"), id="always fails"),
        pytest.param(lambda x: branin(x) if x[0] > 0 else float("inf"), id="half fails"),
        pytest.param(lambda x: 1e300 * branin(x) if x[0] > 0 else -1e300, id="huge"),
        pytest.param(lambda x: 1e-300 * branin(x), id="tiny"),
    ],
)
def test_never_dies(objective: Objective, acquisition: str) -> None:
    search = drive(TrustRegionSearch(BOX, 0, acquisition=acquisition, design=8), objective, 40)
    assert len(search.archive) == len(set(vectors(search))) == 40


def test_failed_trials_do_not_stop_the_search_or_become_best() -> None:
    search = TrustRegionSearch(BOX, 0)
    while len(search.archive) < 72:
        for t in search.ask():
            if t.vector[1] > 10:
                search.tell(t.id, -1e9, status="failed")
            else:
                search.tell(t.id, branin(t.vector))
    assert search.best is not None
    assert search.best.value == pytest.approx(0.3979, abs=0.05)
    late = [o.failed for o in search.archive][40:]
    assert sum(late) < len(late) / 2


def test_two_identical_points_with_different_values() -> None:
    search = TrustRegionSearch(BOX, 0, design=8)
    for value in (3.0, 2.0, 2.0):
        search.add([1.0, 1.0], value)
    drive(search, branin, 40)
    assert len(search.archive) == 40


def test_a_space_of_one_point_is_asked_once() -> None:
    space = SearchSpace((Parameter("a", 2.0, 2.0), Parameter("n", 3, 3, "", "integer")))
    search = TrustRegionSearch(space, 0)
    (only,) = search.ask()
    search.tell(only.id, 1.0)
    assert only.vector.tolist() == [2.0, 3.0]
    assert search.ask() == ()


def test_tell_and_add_check_what_they_are_told() -> None:
    search = TrustRegionSearch(BOX, 0)
    trial = search.ask(1)[0]
    search.tell(trial.id, 1.0)
    with pytest.raises(KeyError, match="not pending"):
        search.tell(trial.id, 1.0)
    with pytest.raises(PlanError, match="2 finite numbers"):
        search.add([1.0, np.nan], 1.0)


def test_refined_point_replaces_the_one_asked_for() -> None:
    search = TrustRegionSearch(BOX, 0, design=8)
    trial = search.ask(1)[0]
    search.tell(trial.id, 0.397887, vector=[np.pi, 2.275])
    assert search.best is not None
    assert search.best.vector.tolist() == [np.pi, 2.275]
    resumed = TrustRegionSearch.from_state_dict(BOX, search.state_dict())
    assert trial.vector.tobytes() not in {t.vector.tobytes() for t in resumed.ask(30)}


def test_external_point_becomes_the_centre() -> None:
    search = drive(TrustRegionSearch(BOX, 0, design=8), branin, 16)
    search.add([np.pi, 2.275], 0.397887)
    assert search.region is not None
    np.testing.assert_allclose(search.region.centre, BOX.to_unit([np.pi, 2.275]))


def test_a_trusted_start_is_searched_nearby_without_a_design() -> None:
    search = TrustRegionSearch(BOX, 0, design=0, length=0.1)
    search.add([3.0, 2.5], branin(np.array([3.0, 2.5])))
    for _ in range(2):
        for trial in search.ask():
            assert np.abs(BOX.to_unit(trial.vector) - BOX.to_unit([3.0, 2.5])).max() < 0.2
            search.tell(trial.id, branin(trial.vector))
    assert search.best is not None
    assert search.best.value < 0.45


def test_rule_too_narrow_for_chance_is_followed_from_a_known_point() -> None:
    rules = (
        LinearRule("above", (-1.0, 0.0), -3.141),
        LinearRule("below", (1.0, 0.0), 3.1416),
    )
    search = TrustRegionSearch(SearchSpace(BOX.parameters, rules), 0, design=8)
    with pytest.raises(PlanError, match="above"):
        search.ask()
    search.add([3.1413, 5.0], branin(np.array([3.1413, 5.0])))
    drive(search, branin, 40)
    assert search.best is not None
    assert 3.141 <= search.best.vector[0] <= 3.1416
    assert search.best.value < 0.5


def test_collapse_restarts_elsewhere_and_remembers_the_basin() -> None:
    search = drive(TrustRegionSearch(BOX, 1, design=8), branin, 240)
    assert search.restarts >= 1
    assert len(search.basins) == search.restarts
    assert search.best is not None
    assert search.best.value == pytest.approx(0.397887, abs=1e-3)
    assert search.basins[0].value == pytest.approx(0.397887, abs=0.01)


@dataclass(frozen=True)
class Never:
    name: str = "minimum distance"

    def allows(self, vector: np.ndarray) -> bool:
        return False


def test_rule_that_rejects_everything_is_named() -> None:
    search = TrustRegionSearch(SearchSpace(BOX.parameters, (Never(),)), 0)
    with pytest.raises(PlanError, match="minimum distance"):
        search.ask()


@pytest.mark.parametrize("acquisition", ["thompson", "qlogei"])
def test_rules_hold_for_every_proposal_and_are_counted(acquisition: str) -> None:
    space = SearchSpace(BOX.parameters, (LinearRule("a below zero", (1.0, 0.0), 0.0),))
    search = drive(TrustRegionSearch(space, 0, acquisition=acquisition), branin, 64)
    assert max(v[0] for v in vectors(search)) <= 0
    assert search.rejected["a below zero"] > 0
    assert search.best is not None
    assert search.best.value < 0.5


def test_acquisition_name_is_checked_before_anything_is_spent() -> None:
    with pytest.raises(PlanError, match="thompson, qlogei, ucb, rounding"):
        TrustRegionSearch(BOX, 0, acquisition="ei")


def test_importing_the_search_does_not_import_botorch() -> None:
    code = (
        "import sys, qhrtem.optimise.search; sys.exit('botorch' in sys.modules or 'gpytorch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def two_wells(x: np.ndarray) -> float:
    """Two separate wells of depth 0 and 0.2."""
    return float(min(np.sum((x - 0.8) ** 2), 0.2 + np.sum((x - 0.2) ** 2)))


def test_several_regions_share_the_archive_and_live_on_their_own() -> None:
    space = SearchSpace(tuple(Parameter(f"x{i}", 0, 1) for i in range(4)))
    search = drive(TrustRegionSearch(space, 0, regions=3, design=6), two_wells, 200)
    assert len(search.places) == 3
    assert len({p.index for p in search.places}) == 3
    assert set(search.archive.regions) >= {0, 1, 2}
    lengths = {p.region.length for p in search.places if p.region is not None}
    assert len(lengths) > 1 or search.restarts
    assert search.best is not None
    assert search.best.value < 0.01
    with pytest.raises(PlanError, match="regions"):
        TrustRegionSearch(space, 0, regions=2, acquisition="qlogei")


def test_a_prior_mean_from_physics_saves_evaluations() -> None:
    space = SearchSpace(tuple(Parameter(f"x{i}", -3, 3) for i in range(8)))

    def truth(v: np.ndarray) -> np.ndarray:
        return np.sum((v - 1.3) ** 2, axis=-1) + 1.0

    def physics(v: np.ndarray) -> np.ndarray:
        return np.sum((v - 1.2) ** 2, axis=-1) + 1.0

    reached = []
    for prior in (physics, None):
        search = TrustRegionSearch(space, 0, prior_mean=prior, transform="log")
        reached.append(drive(search, lambda x: float(truth(x)), 56).best.value)  # type: ignore[union-attr]
    assert reached[0] < reached[1]


def test_without_a_trust_region_the_box_stays_the_whole_cube() -> None:
    search = drive(TrustRegionSearch(BOX, 0, design=8, trust_region=False), branin, 80)
    assert search.restarts == 0
    assert search.region is not None
    assert search.region.length == 4.0
    resumed = TrustRegionSearch.from_state_dict(BOX, search.state_dict())
    assert [t.vector.tolist() for t in resumed.ask()] == [t.vector.tolist() for t in search.ask()]
