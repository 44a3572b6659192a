"""Spread: over which workers the tasks of a run are spread, as the options of the command line say."""

from __future__ import annotations

from dataclasses import dataclass

from qhrtem.errors import PlanError

LOCAL = "local"  # instead of the address of a scheduler: a cluster on this machine


@dataclass(frozen=True)
class Spread:
    """How the tasks of a run are spread; the results do not depend on it."""

    workers: int = 1  # processes on this machine
    scheduler: str | None = None  # address of a Dask scheduler, or "local"
    device: str = "cpu"  # cpu, cuda or cuda:N
    cpu_allowed: bool = False  # whether the CPU may stand in for a missing or too small GPU
    algebra: int = 1  # threads of matrix algebra in each worker

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise PlanError(f"--workers must be 1 or more, got {self.workers}")
        if self.scheduler not in (None, LOCAL) and self.workers > 1:
            raise PlanError(
                "--workers counts processes on this machine; a scheduler has its own, so give one of both"
            )
