"""Tree-structured Parzen estimator (Bergstra et al. 2011; multivariate: Falkner et al. 2018) by Optuna."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from qhrtem.optimise.scripted import Script, Scripted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log and its notes on experimental options inside the block only."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Tpe(Scripted):
    """Optuna's sampler in batches, trials under evaluation counted as bad (constant liar)."""

    BATCH = 1

    def script(self, generator: np.random.Generator) -> Script:
        """Return one study without an end."""
        import optuna  # sets the level of its logger, so before `quiet`

        with quiet():
            sampler = optuna.samplers.TPESampler(
                multivariate=True, constant_liar=self.batch > 1, seed=int(generator.integers(2**31))
            )
            study = optuna.create_study(direction="minimize", sampler=sampler)
        self.start_points(1, generator)  # says early when the rules allow nothing
        floats, ints = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
        labels = optuna.distributions.CategoricalDistribution
        domain: dict[str, Any] = {}
        for i in self.free:
            n, name = int(self.space.levels[i]), str(i)
            if self.space.is_categorical[i]:
                domain[name] = labels(list(range(n)))
            else:
                domain[name] = ints(0, n - 1) if n else floats(0.0, 1.0)
        levels = self.free_levels
        while True:
            with quiet():
                trials = [study.ask(domain) for _ in range(self.batch)]
            raw = np.array([[t.params[str(i)] for i in self.free] for t in trials], dtype=float)
            raw = raw.reshape(len(trials), len(self.free))
            answers = yield list(np.where(levels > 0, (raw + 0.5) / np.maximum(levels, 1), raw))
            with quiet():
                for trial, answer in zip(trials, answers, strict=True):
                    if answer.ok:
                        study.tell(trial, answer.value)
                    else:
                        study.tell(trial, state=optuna.trial.TrialState.FAIL)
