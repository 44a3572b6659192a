"""Records of a journal as the messages that a page draws from; JSON values, no more than is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qhrtem.run.follow import Owner

Record = dict[str, Any]


@dataclass
class Account:
    """What the records so far have said; give it each record once, in order."""

    owner: Owner | None = None  # who is, or was last, at work
    last: Record | None = None
    pictures: dict[str, Record] = field(default_factory=dict)  # part records that hold images, by their id
    chi2: float | None = None  # of the last step
    seconds: float = 0.0  # of the run at that step
    begun: str = ""  # what tells this journal from any other
    steps: int = 0  # since the last part

    def messages(self, record: Record) -> Iterator[Record]:
        """Take a record in and return what a page is told of it."""
        event = record.get("event")
        if self.last is None:
            self.begun = str(record.get("owner", ""))
        self.last = record
        if event in ("begin", "resume"):
            self.owner = Owner.of(record)
            yield _session(record)
        elif event == "step":
            self.chi2 = record.get("chi2")
            self.seconds = float(record.get("seconds") or 0.0)
            self.steps += 1
            yield {"kind": "step", **_only(record, STEP)}
        elif event == "note":
            yield {"kind": "trial", "seconds": self.seconds, **_only(record, TRIAL)}
        elif event == "part":
            if not self.steps:  # a child has the parts of its parent, and their steps in them
                yield from self._steps(record)
            self.steps = 0
            yield self._part(record)
        elif event == "stopped":
            yield {"kind": "stopped", "reason": str(record.get("reason", ""))}
        elif event == "finished":
            yield {"kind": "finished", "passed": bool(record.get("passed")), "picture": FINAL}

    def _steps(self, record: Record) -> Iterator[Record]:
        """Return the steps that a part holds as messages."""
        for stage, iteration, chi2, seconds, note, done in record.get("facts", {}).get("steps") or []:
            self.chi2, self.seconds = chi2, float(seconds or 0.0)
            values = (stage, iteration, chi2, seconds, note, done)
            yield {"kind": "step", **dict(zip(STEP, values, strict=True))}

    def _part(self, record: Record) -> Record:
        facts, arrays = record.get("facts", {}), record.get("arrays", {})
        steps = facts.get("steps") or []
        out: Record = {
            "kind": "part",
            "part": record.get("part"),
            "stage": steps[-1][0] if steps else None,
            "chi2": steps[-1][2] if steps else None,
            "seconds": self.seconds,
        }
        for name in ("rejected", "misfit", "pixel_size_A", "rotation_deg"):
            if name in facts:
                out[name] = facts[name]
        if "undecided" in facts:
            out["undecided"] = len(facts["undecided"])
        view = facts.get("view")
        if isinstance(view, dict):
            out |= _only(view, ("lens", "columns", "field_A"))
            if set(SHOWN) <= set(arrays):
                # Arrays are named by their content, so a picture is too.
                content = "".join(str(arrays[name]) for name in SHOWN)
                out["picture"] = hashlib.sha256(content.encode()).hexdigest()[:16]
                self.pictures[out["picture"]] = record
        return out


FINAL = "final"  # the picture of a finished run
SHOWN = ("image", "measured", "used")  # arrays of a state that make a picture
STEP = ("stage", "iteration", "chi2", "seconds", "note", "done")
TRIAL = ("part", "trial", "chi2", "step", "origin", "lens")


def _session(record: Record) -> Record:
    out = {"kind": "session", **_only(record, ("event", "owner", "parent", "differences", "finished_parts"))}
    if record.get("event") == "begin":
        out |= _only(record, ("plan", "versions", "threads"))
    return out


def _only(record: Record, names: tuple[str, ...]) -> Record:
    return {name: record[name] for name in names if name in record}
