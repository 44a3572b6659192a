"""A sweep is told once and counts at its best level that the rules allow."""

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise.conversation import Conversation
from qhrtem.optimise.hybrid import HybridSearch
from qhrtem.optimise.methods import METHODS, make
from qhrtem.optimise.space import LinearRule, Parameter, SearchSpace

THICK = SearchSpace((Parameter("x", -1, 1), Parameter("n", 3, 8, "slices", "integer", swept=True)))


def first(space: SearchSpace = THICK) -> tuple[Conversation, int, np.ndarray]:
    search = make("sobol", space, 0)
    trial = search.ask(1)[0]
    return search, trial.id, np.array(trial.vector)  # type: ignore[return-value]


def test_the_trial_counts_at_its_best_level() -> None:
    search, number, vector = first()
    search.tell(number, 9.0, levels=[9, 9, np.nan, 1.5, 9, 9])
    assert search.best is not None
    assert search.best.value == 1.5
    np.testing.assert_array_equal(search.best.vector, [vector[0], 6])
    assert not search.pending


def test_a_level_that_a_rule_forbids_is_passed_over() -> None:
    rule = LinearRule("thin", (0.0, 1.0), 5.0)
    search, number, _ = first(SearchSpace(THICK.parameters, (rule,)))
    search.tell(number, 9.0, levels=[7, 6, 5, 1.5, 2, 3])
    assert search.best is not None
    assert (search.best.value, search.best.vector[1]) == (5.0, 5.0)


def test_no_level_with_a_value_leaves_the_trial_as_it_is() -> None:
    search, number, _ = first()
    search.tell(number, 4.0, levels=[np.nan] * 6)
    assert search.best is not None
    assert search.best.value == 4.0
    other, number, _ = first()
    other.tell(number, np.nan, levels=[np.inf] * 6)
    assert other.best is None
    assert len(other.archive) == 1


def test_levels_must_be_as_many_as_the_parameter_has() -> None:
    search, number, _ = first()
    with pytest.raises(PlanError, match="each of the 6 levels"):
        search.tell(number, 4.0, levels=[1.0, 2.0])
    plain, number, _ = first(SearchSpace((Parameter("x", -1, 1),)))
    with pytest.raises(PlanError, match="mark the parameter as swept"):
        plain.tell(number, 4.0, levels=[1.0])


def test_what_can_be_swept_is_checked() -> None:
    with pytest.raises(PlanError, match="only a discrete parameter can be swept"):
        Parameter("x", 0, 1, swept=True)
    n = [Parameter(name, 0, 3, "", "integer", swept=True) for name in "ab"]
    with pytest.raises(PlanError, match="at most one parameter can be swept, got a, b"):
        SearchSpace(tuple(n))
    assert SearchSpace((Parameter("n", 2, 2, "", "integer", swept=True),)).swept is None


@pytest.mark.parametrize("answer", ["all nan", "some nan", "constant", "huge"])
def test_bad_sweeps_stop_nothing(answer: str) -> None:
    def levels(x: float) -> np.ndarray:
        n = np.arange(3, 9)
        values = {"constant": 0.0 * n + 1, "huge": 1e300 * (x**2 + n)}.get(answer, x**2 + (n - 5.0) ** 2)
        return np.where((answer == "all nan") | ((answer == "some nan") & (n % 2 == 1)), np.nan, values)

    search = HybridSearch(THICK, 0)
    for _ in range(40):
        for t in search.ask():
            every = levels(float(t.vector[0]))
            value = float(every[int(t.vector[1]) - 3])
            root = np.sqrt(np.abs(value)) * np.ones(1)
            search.tell(
                t.id,
                value,
                residual=root if np.isfinite(value) else None,
                jacobian=np.zeros((1, 2)) if t.wants == "jacobian" and np.isfinite(value) else None,
                levels=every if t.wants == "levels" else None,
            )
    assert (search.best is None) == (answer == "all nan")
    assert len(search.archive) >= 40


def test_methods_that_know_no_sweeps_never_ask_for_one() -> None:
    for name in METHODS:
        if name in ("hybrid", "rounding", "reparameterisation", "alternating", "logei"):
            continue
        assert all(t.wants != "levels" for t in make(name, THICK, 0, 4).ask())
