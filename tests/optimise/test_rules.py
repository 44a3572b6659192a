"""Rules can be listed, switched and accounted for."""

from dataclasses import dataclass

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise.rules import LinearRule, RuleBook
from qhrtem.optimise.space import Parameter, SearchSpace


@dataclass(frozen=True)
class Even:
    name: str = "even"

    def allows(self, vector: np.ndarray) -> bool:
        return int(vector[0]) % 2 == 0


BELOW = LinearRule("below 5", (1.0,), 4.5)


def test_the_first_rule_to_refuse_is_charged() -> None:
    book = RuleBook((Even(), BELOW))
    verdicts = [book.refused_by(np.array([float(n)])) for n in range(8)]
    assert verdicts == [None, "even", None, "even", None, "even", "below 5", "even"]
    even, below = book.records()
    assert (even.tested, even.rejected, below.tested, below.rejected) == (8, 4, 4, 1)
    assert even.seconds > 0


def test_a_rule_that_is_off_neither_refuses_nor_is_tested() -> None:
    book = RuleBook((Even(), BELOW), off=("even",))
    assert [r.name for r in book] == ["below 5"]
    assert book.refused_by(np.array([3.0])) is None
    assert not book.records()[0].on
    assert book.records()[0].tested == 0
    book.switch("even", True)
    assert book.refused_by(np.array([3.0])) == "even"


def test_switching_reaches_the_space() -> None:
    space = SearchSpace((Parameter("n", 0, 9, "", "integer"),), (Even(), BELOW))
    assert sorted(space.sobol(20, np.random.default_rng(0))[:, 0]) == [0, 2, 4]
    space.book.switch("below 5", False)
    assert sorted(space.sobol(20, np.random.default_rng(0))[:, 0]) == [0, 2, 4, 6, 8]


def test_names_are_checked() -> None:
    with pytest.raises(PlanError, match="even more than once"):
        RuleBook((Even(), Even()))
    with pytest.raises(PlanError, match="'odd'; the rules are: even"):
        RuleBook((Even(),)).switch("odd", False)
