"""What every optimiser offers: ask for trials, tell what they were worth.

An optimiser here minimises one number over a `SearchSpace`. It never calls the objective, so trials can be
evaluated anywhere, in any order, and the conversation can be saved between any two sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Status = Literal["done", "failed"]
Origin = Literal["design", "model", "refined", "added"]
Wants = Literal["value", "residual", "jacobian", "levels"]


@dataclass(frozen=True)
class Trial:
    """A point that the optimiser wants evaluated."""

    id: int  # unique in one search, counts up from 0
    vector: NDArray[np.float64]  # (d,) natural units, integers whole; read-only
    origin: Origin  # space-filling design, chosen by a model, or a step of a local method
    # The most that is of use. "jacobian" includes the residual, "residual" the value; "levels" are the values
    # at every level of the swept parameter, all else as in the vector.
    wants: Wants = "value"


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
    """The interface that every method in `methods.METHODS` shares."""

    def ask(self, q: int | None = None) -> tuple[Trial, ...]:
        """Return up to q new trials.

        None while trials are pending means that those must be told first; none without pending trials means
        that no untried point is left. No point is proposed twice; one that was only added, or that was the
        best level of a sweep, may be, for its Jacobian.
        """
        ...

    def tell(
        self,
        trial_id: int,
        value: float,
        status: Status = "done",
        vector: ArrayLike | None = None,
        gradient: ArrayLike | None = None,
        residual: ArrayLike | None = None,
        jacobian: ArrayLike | None = None,
        seconds: float | None = None,
        levels: ArrayLike | None = None,
    ) -> None:
        """Record the outcome of a pending trial; more or less than it wanted may be told.

        vector: (d,) natural units where the evaluation moved the point. gradient: (d,) of the value.
        residual: (m,) with value = residual · residual. jacobian: (m, d) of the residual; derivatives are
        per natural unit, for integers those of the relaxed quantity. seconds: what the evaluation took.
        levels: (n,) values at the levels of the swept parameter, nan where one failed; the trial then counts
        as evaluated at the best of them.
        """
        ...

    def add(self, vector: ArrayLike, value: float) -> Observation:
        """Record a point (d,) that was not asked for."""
        ...

    @property
    def best(self) -> Observation | None:
        """The lowest value so far, None before the first finite one."""
        ...

    @property
    def pending(self) -> tuple[Trial, ...]:
        """Trials asked for and not yet told."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything a later process needs to go on, in JSON types."""
        ...
