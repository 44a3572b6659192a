"""What every optimiser offers: ask for trials, tell what they were worth.

An optimiser here minimises one number over a `SearchSpace`. It never calls the objective, so trials can be
evaluated anywhere, in any order, and the conversation can be saved between any two sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Status = Literal["done", "failed"]
Origin = Literal["design", "model", "added"]


@dataclass(frozen=True)
class Trial:
    """A point that the optimiser wants evaluated."""

    id: int  # unique in one search, counts up from 0
    vector: NDArray[np.float64]  # (d,) natural units, integers whole; read-only
    origin: Origin  # space-filling design, or chosen by the model


@dataclass(frozen=True)
class Observation:
    """A point with the value that came back for it."""

    id: int  # id of its trial
    vector: NDArray[np.float64]  # (d,) natural units, as evaluated; read-only
    value: float  # to be minimised; nan for a failed trial
    origin: Origin

    @property
    def failed(self) -> bool:
        """True when the evaluation gave no number."""
        return not np.isfinite(self.value)


class Optimiser(Protocol):
    """The interface that the trust-region search and every baseline share."""

    def ask(self, q: int | None = None) -> tuple[Trial, ...]:
        """Return up to q new trials; none means that no untried point is left."""
        ...

    def tell(
        self, trial_id: int, value: float, status: Status = "done", vector: NDArray[np.float64] | None = None
    ) -> None:
        """Record the value of a pending trial."""
        ...

    @property
    def best(self) -> Observation | None:
        """The lowest value so far, None before the first finite one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later process needs to go on, in JSON types."""
        ...
