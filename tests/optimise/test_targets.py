"""The scale on which the surrogate learns, and the way back."""

import numpy as np
import pytest

from qhrtem.errors import PlanError
from qhrtem.optimise import targets
from qhrtem.optimise.targets import Target

VALUES = np.random.default_rng(0).lognormal(2.0, 1.0, 60)


@pytest.mark.parametrize("name", targets.TRANSFORMS)
@pytest.mark.parametrize("with_prior", [False, True])
def test_gains_rank_values_and_lead_back_to_them(name: str, with_prior: bool) -> None:
    prior = VALUES * np.random.default_rng(1).uniform(0.9, 1.1, 60) if with_prior else None
    target = Target.of(VALUES, name, prior)
    assert target.transform == name
    inside = target.gains > target.gains.min() + 1e-9  # the bad tail is drawn in
    assert inside.sum() > 50
    expected = targets.TRANSFORMS[name](VALUES)
    np.testing.assert_allclose(target.transformed(target.gains + target.offset)[inside], expected[inside])
    assert target.gains.std() == pytest.approx(1.0)
    if prior is not None:
        np.testing.assert_allclose(target.prior_offset(prior), target.offset)


def test_a_good_prior_leaves_less_to_learn() -> None:
    rough = VALUES * np.random.default_rng(1).normal(1.0, 0.02, 60)
    assert Target.of(VALUES, "log", rough).scale < 0.05 * Target.of(VALUES, "log").scale


def test_gains_do_not_depend_on_the_objectives_unit() -> None:
    small, large = Target.of(1e-200 * VALUES), Target.of(1e250 * VALUES)
    np.testing.assert_allclose(small.gains, large.gains)


def test_logarithms_of_values_that_have_none_are_left_out() -> None:
    assert Target.of(VALUES - VALUES.min() - 1.0, "log").transform == "identity"
    assert Target.of(VALUES - VALUES.min(), "chi2").transform == "chi2"
    with pytest.raises(PlanError, match="identity, log, chi2"):
        targets.checked("sqrt")


def test_a_prior_cannot_promise_the_moon() -> None:
    target = Target.of(VALUES, "log", VALUES * 1.3)
    assert target.prior_offset(np.array([-5.0])) == target.prior_offset(
        np.array([targets.PROMISE * VALUES.min()])
    )
    assert np.isfinite(target.prior_offset(np.array([np.nan, np.inf]))).all()


def test_equal_values_have_no_gain() -> None:
    assert not Target.of(np.full(5, 3.0)).gains.any()
    assert not Target.of(np.zeros(5)).gains.any()
