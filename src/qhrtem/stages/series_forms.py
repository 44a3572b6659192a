"""How the frames of a series are kept in a run and come back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from qhrtem.errors import PlanError
from qhrtem.model.series import Frame
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.persistence import Persistence
from qhrtem.stages.atlas import Atlas
from qhrtem.stages.checkpoint import COLUMN_ARRAYS, Reached, ReachedForm, Snapshot, snapshot_of, value_of
from qhrtem.stages.follow import Known
from qhrtem.stages.tile_forms import joined, part_of

ENDS = ("column", "first", "last", "probability")


@dataclass(frozen=True)
class FittedFrame:
    """A frame at its end."""

    known: Known  # after it
    frame: Frame  # what it claims
    view: Snapshot | None = None  # what those who watch are shown; never loaded


@dataclass(frozen=True)
class FrameForm:
    """What is known after a frame, and what it claims."""

    before: Known  # field and crystal are those of all frames
    digest: str  # SHA-256 of the frame's counts

    def save(self, value: FittedFrame) -> Snapshot:
        """Return the snapshot; what a refused frame leaves as it was is not written again."""
        known, frame = value.known, value.frame
        parts = {"frame": snapshot_of(frame)}
        if not frame.refused:
            parts["state"] = ReachedForm(self._projection).save(Reached(known.state))
            atlas = {n: getattr(known.atlas.columns, n) for n in COLUMN_ARRAYS}
            parts["atlas"] = Snapshot({}, atlas)
            parts["ends"] = Snapshot({}, {n: getattr(known.ends, n) for n in ENDS})
            parts["known"] = Snapshot({}, {"drift": known.drift_A})
        whole = joined(**parts)
        facts = {**whole.facts, "digest": self.digest, "waiting": known.waiting}
        arrays = whole.arrays
        if value.view is not None:
            facts["view"], arrays = value.view.facts, {**arrays, **value.view.arrays}
        return Snapshot(facts, arrays)

    def load(self, snapshot: Snapshot) -> FittedFrame:
        """Return the value of a snapshot; raises PlanError where it is of another image."""
        if snapshot.facts["digest"] != self.digest:
            raise PlanError(
                "a frame of the series is not the one that was fitted before: its counts differ; put the "
                "old file back, or begin a new run"
            )
        frame = value_of(Frame, part_of(snapshot, "frame"))
        known = replace(self.before, waiting=snapshot.facts["waiting"])
        if frame.refused:
            return FittedFrame(known, frame)
        state = ReachedForm(self._projection).load(part_of(snapshot, "state")).state
        atlas = ColumnModel(self._projection, **part_of(snapshot, "atlas").arrays)
        column, first, last, probability = (part_of(snapshot, "ends").arrays[n] for n in ENDS)
        ends = Persistence(column, first, last, probability)
        drift = part_of(snapshot, "known").arrays["drift"]
        known = replace(known, state=state, atlas=Atlas(atlas), ends=ends, drift_A=drift)
        return FittedFrame(known, frame)

    @property
    def _projection(self) -> Any:
        return self.before.state.columns.projection
