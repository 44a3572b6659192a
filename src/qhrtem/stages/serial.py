"""Serial: the executor that needs nothing, for small work and for whoever has no workers."""

from __future__ import annotations

from collections.abc import Iterable

from qhrtem.errors import Interrupted
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.parcel import from_bytes, to_bytes
from qhrtem.stages.tasks import (
    TRIES,
    Place,
    Quarantined,
    Result,
    Results,
    Task,
    Tell,
    describe,
    distinct,
    perform,
)


class Serial:
    """Does tasks here, one after another, as they come.

    Each task and each result goes through its bytes, as on the way to a worker, so that layout and precision
    are the same; `round_trip=False` leaves that out.
    """

    width = 1

    def __init__(
        self, place: Place | None = None, round_trip: bool = True, tell: Tell = lambda record: None
    ) -> None:
        self._place = place or Place()
        self._round_trip, self._tell = round_trip, tell

    def run(self, tasks: Iterable[Task]) -> Results:
        """Yield key and result of each task in the order given; see `stages.tasks.Executor`."""
        for task in distinct(tasks):
            yield task.key, self._tried(task)

    def close(self) -> None:
        """Do nothing."""

    def _tried(self, task: Task) -> Result:
        errors: list[str] = []
        record = {"event": "task", "task": task.key, "function": task.function, "worker": "here"}
        while len(errors) < TRIES:
            self._tell({**record, "state": "begun"})
            try:
                result = self._once(task)
            except Interrupted:
                raise
            except Exception as error:
                errors.append(f"worker here: {describe(error)}")
                state = "failed" if len(errors) < TRIES else "given up"
                self._tell({**record, "state": state, "why": describe(error)})
            else:
                self._tell({**record, "state": "done"})
                return result
        return Quarantined(task.function, tuple(errors))

    def _once(self, task: Task) -> Snapshot:
        if not self._round_trip:
            return perform(task, self._place)
        return from_bytes(to_bytes(perform(Task.from_bytes(task.to_bytes()), self._place)))
