"""Plain BoTorch: SingleTaskGP with its default priors and LogEI over the whole cube (Ament et al. 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.optimise.conversation import Conversation, Proposal
from qhrtem.optimise.space import SearchSpace

Vector = NDArray[np.float64]
DESIGN_PER_DIMENSION, DESIGN_MIN = 2, 8  # Sobol points before the first model
POINTS = 300  # lowest values that the model learns from: its cost grows with their cube
COLD_STEPS, WARM_STEPS = 50, 5  # iterations of L-BFGS for the hyperparameters, at first and after
CLIMB_STEPS = 30  # and for the acquisition
RESTARTS, RAW = 4, 128  # of the acquisition's optimisation
NEARBY = 64  # perturbations tried where the optimum itself was proposed before or is forbidden
NUDGE = 0.05  # their standard deviation, unit cube


class LogEi(Conversation):
    """Global Bayesian optimisation, one point at a time; several are chosen given those before."""

    BATCH = 1

    def __init__(
        self, space: SearchSpace, seed: int = 0, batch: int | None = None, *, rules: bool = True
    ) -> None:
        """See `Conversation`."""
        super().__init__(space, seed, batch, rules=rules)
        self._hyper: dict[str, Any] = {}  # the last model's raw hyperparameters, by their BoTorch names

    def _propose(self, q: int, generator: np.random.Generator) -> list[Proposal]:
        d = self.space.dimension
        design = max(DESIGN_MIN, DESIGN_PER_DIMENSION * d) - len(self.archive) - len(self._pending)
        values = np.array([o.value for o in self.archive if not o.failed])
        if design > 0 or len(values) < 3:
            fresh = np.random.default_rng([self.seed, 1 << 32])  # the same sequence in every ask
            drawn = self._sobol(max(DESIGN_MIN, DESIGN_PER_DIMENSION * d), fresh)
            taken = [v for v in drawn if self._key(v) not in self._seen][:q]
            return [Proposal(v, "design") for v in taken if self._claim(v)]
        return [Proposal(v, "model") for v in self._from_model(q, generator)]

    def _from_model(self, q: int, generator: np.random.Generator) -> list[Vector]:
        """Return up to q points that the acquisition prefers, snapped."""
        import torch
        from botorch.acquisition.analytic import LogExpectedImprovement
        from botorch.acquisition.logei import qLogExpectedImprovement
        from botorch.exceptions import ModelFittingError
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf
        from gpytorch.mlls import ExactMarginalLogLikelihood

        from qhrtem.optimise.mixed import seeded  # first: it imports BoTorch without its warnings

        done = sorted((o for o in self.archive if not o.failed), key=lambda o: o.value)[:POINTS]
        x = torch.as_tensor(self.space.encode(self.space.to_unit(np.array([o.vector for o in done]))))
        y = -torch.tensor([o.value for o in done], dtype=torch.float64)
        scale = y.abs().max().clamp_min(np.finfo(float).tiny)
        y = (y / scale)[:, None]
        picked: list[Vector] = []
        with seeded(generator):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if float(y.std()) < 1e-14:
                    y = y + 1e-6 * torch.randn_like(y)  # values all equal cannot be standardised
                model = SingleTaskGP(x, y)
                options = {"options": {"maxiter": WARM_STEPS if self._hyper else COLD_STEPS}}
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        if name in self._hyper:
                            parameter.copy_(torch.tensor(self._hyper[name], dtype=torch.float64))
                try:
                    fit_gpytorch_mll(
                        ExactMarginalLogLikelihood(model.likelihood, model),
                        optimizer_kwargs=options,
                        pick_best_of_all_attempts=True,
                        max_attempts=1,
                    )
                except (ModelFittingError, RuntimeError):
                    model.eval()  # the hyperparameters it began with serve
                self._hyper = {name: p.detach().tolist() for name, p in model.named_parameters()}
            bounds = torch.stack([torch.zeros(x.shape[1]), torch.ones(x.shape[1])]).to(torch.float64)
            busy = [self.space.encode(self.space.to_unit(t.vector)) for t in self.pending]
            for _ in range(q):
                waiting = busy + [self.space.encode(self.space.to_unit(v)) for v in picked]
                criterion = (
                    qLogExpectedImprovement(model, y.max(), X_pending=torch.as_tensor(np.array(waiting)))
                    if waiting
                    else LogExpectedImprovement(model, y.max())
                )
                end, _ = optimize_acqf(
                    criterion, bounds, 1, RESTARTS, RAW, options={"maxiter": CLIMB_STEPS, "batch_limit": 4}
                )
                point = self._nearest(self.space.decode(end[0].detach().numpy()), generator)
                if point is None:
                    break
                picked.append(point)
        return picked

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state in JSON types, without the space."""
        return {**super().state_dict(), "hyperparameters": self._hyper}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._hyper = dict(state["hyperparameters"])

    def _nearest(self, unit: Vector, generator: np.random.Generator) -> Vector | None:
        """Return the first acceptable vector among a point (d,) and random ones ever farther from it."""
        for k in range(NEARBY + 1):
            shift = NUDGE * np.sqrt(k / 8) * generator.standard_normal(len(unit)) if k else 0.0
            moved = np.clip(unit + shift, 0.0, 1.0)
            if self._accept(moved):
                return self.space.from_unit(moved)
        return None
