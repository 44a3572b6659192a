"""Crew: workers of one kind of machinery, as the dispatcher sees them.

What the machinery tells arrives as events. A worker may come and go at any time; it greets before it is given
anything, and does one task at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qhrtem.run.handshake import Credentials
from qhrtem.stages.tasks import Place


@dataclass(frozen=True)
class Greeted:
    """A worker is there; where it cannot even say what it is, the reason stands in place of that."""

    worker: str  # name, unique among those that were ever there
    credentials: Credentials | str


@dataclass(frozen=True)
class Left:
    """A worker is gone, with all that it was doing."""

    worker: str
    why: str


@dataclass(frozen=True)
class Done:
    """A ticket is done."""

    ticket: int
    result: bytes  # a parcel


@dataclass(frozen=True)
class Failed:
    """The task of a ticket raised an error; the worker goes on."""

    ticket: int
    why: str


Event = Greeted | Left | Done | Failed


class Crew(Protocol):
    """Workers that come, do what they are given, and go."""

    @property
    def expecting(self) -> bool:
        """Whether workers may still come that have not been refused."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """Return what has happened, waiting so long for it at most.

        Raises Interrupted where the machinery itself is lost, ResourceError where it cannot make workers.
        """
        ...

    def give(self, ticket: int, worker: str, work: bytes, place: Place) -> None:
        """Give a worker a task (a parcel) under a number that its end will be reported with."""
        ...

    def refuse(self, worker: str) -> None:
        """Let a worker go that will not be used."""
        ...

    def close(self) -> None:
        """Let all workers go; a second call does nothing."""
        ...
