"""Handshake: what a worker says of itself before it is given work, and why it may be refused.

A worker with another version of anything that computes would give other numbers without a word, so it is not
used. Each GPU serves one worker.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from qhrtem.program import versions
from qhrtem.run.process import algebra_threads, prepare
from qhrtem.stages.tasks import Place


@dataclass(frozen=True)
class Credentials:
    """What a worker says of itself."""

    host: str
    pid: int
    versions: dict[str, str]  # of the program, its source, Python and the libraries
    dtype: str  # real dtype that torch uses where none is named
    algebra: int  # threads of matrix algebra: sums are split between them
    threads: int  # that a task may start for work on columns
    gpus: dict[str, str]  # those it sees: name for torch, by identity of the card
    processor: str  # machine and widest vector unit: the last bits may differ between two kinds

    @classmethod
    def of_this_process(cls, threads: int, algebra: int = 1) -> Self:
        """Return the credentials of this process, prepared for work with so many threads."""
        prepare(algebra)
        seen = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
        return cls(
            socket.gethostname(),
            os.getpid(),
            versions(),
            str(torch.get_default_dtype()),
            algebra_threads(),
            threads,
            {str(torch.cuda.get_device_properties(n).uuid): f"cuda:{n}" for n in seen},
            f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        )

    def record(self) -> dict[str, Any]:
        """Return the credentials as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the credentials that `record` wrote."""
        return cls(**record)


@dataclass(frozen=True)
class Terms:
    """What a worker must be like, and what it is then given."""

    versions: dict[str, str]
    dtype: str
    algebra: int = 1
    device: str = "cpu"  # cpu or cuda
    cpu_allowed: bool = False  # whether a worker without a GPU may serve where GPUs are asked for

    @classmethod
    def of_this_process(cls, algebra: int = 1, device: str = "cpu", cpu_allowed: bool = False) -> Self:
        """Return the terms under which a worker computes what this process would."""
        return cls(versions(), str(torch.get_default_dtype()), algebra, device, cpu_allowed)

    def differences(self, worker: Credentials) -> list[str]:
        """Return in what a worker differs from what it must be, one clause each."""
        names = [*self.versions, *(k for k in worker.versions if k not in self.versions)]
        out = [
            f"{k} {worker.versions.get(k, 'missing')} instead of {self.versions.get(k, 'none')}"
            for k in names
            if worker.versions.get(k) != self.versions.get(k)
        ]
        if worker.dtype != self.dtype:
            out.append(f"{worker.dtype} instead of {self.dtype}")
        if worker.algebra != self.algebra:
            out.append(f"{worker.algebra} threads of matrix algebra instead of {self.algebra}")
        return out

    def place(self, worker: Credentials, taken: Collection[str]) -> tuple[Place, str] | None:
        """Return where a worker's tasks run and the identity of its GPU ("" for none), None for nowhere.

        taken: identities of the GPUs that serve other workers.
        """
        if self.device == "cuda":
            for card, name in worker.gpus.items():
                if card not in taken:
                    return Place(name, worker.threads, cpu_allowed=self.cpu_allowed), card
            if not self.cpu_allowed:
                return None
        return Place("cpu", worker.threads), ""
