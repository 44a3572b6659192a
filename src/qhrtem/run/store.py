"""Store: the memory of a run, as records in its journal and arrays in its folder.

An array is a file named by the SHA-256 of its content; it is written once and never changed. A part of the
fit is finished once the record that names its arrays is in the journal. An array that is missing or does not
match its name makes its part unfinished again, and the part is computed anew from those before it. Where that
gives the same arrays, all later parts stay valid; otherwise they are dropped too.

Results of tasks depend on the content of the task alone, so they are kept by its key, in no order: a file of
the same bytes that a worker sends, and a record that names it.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError
from qhrtem.run import durable
from qhrtem.run.journal import Journal
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.imaging import Values
from qhrtem.stages.parcel import from_bytes, to_bytes

Floats = NDArray[np.float64]
SUFFIX, PARCEL = ".npy", ".parcel"
ARRAY = "sha256:"  # before the digest of an array in a record of a trial


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged and its part will be computed anew."""


class Store:
    """Keeps finished parts, trials and results of tasks in a run.

    See `qhrtem.stages.checkpoint.Memory` and `qhrtem.run.execution.Shelf`.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        """folder: of the arrays; the records that the journal was opened with say what is finished.

        Warns (CheckpointWarning) for each part whose arrays are damaged.
        """
        self._folder, self._journal = folder, journal
        self._records: dict[str, dict[str, Any]] = {}  # by part, in the order they were finished
        self._asked: dict[tuple[str, int], list[float]] = {}
        self._told: dict[tuple[str, int], dict[str, float | str]] = {}
        self._noted: set[tuple[str, int]] = set()
        self._results: dict[str, str] = {}  # digest of the parcel, by key of the task
        for record in journal.records:
            self._learn(record)
        self.damaged = {n for n, r in self._records.items() if not self._sound(n, r)}

    @property
    def finished(self) -> list[str]:
        """Names of the parts that will not be computed again, in order."""
        return [n for n in self._records if n not in self.damaged]

    def steps(self) -> list[list[Any]]:
        """Return the history that the finished parts hold, as `stages.checkpoint` writes it."""
        return [step for name in self.finished for step in self._records[name]["facts"]["steps"]]

    def recall(self, part: str) -> Snapshot | None:
        """Return what a part left behind, None where it is not finished or its arrays are damaged."""
        if part not in self._records or part in self.damaged:
            return None
        record = self._records[part]
        return Snapshot(record["facts"], {k: self._read(v) for k, v in record["arrays"].items()})

    def keep(self, part: str, snapshot: Snapshot) -> None:
        """Put a finished part on the disk; raises ResourceError where the disk refuses."""
        arrays = {name: self._write(array) for name, array in snapshot.arrays.items()}
        before = self._records.get(part)
        self.damaged.discard(part)  # its arrays, if they are the same as before, are whole again
        if before is not None:
            if (before["arrays"], _timeless(before["facts"])) == (arrays, _timeless(snapshot.facts)):
                return  # all that was built on it holds
            warnings.warn(
                f"'{part}' came out otherwise than before; what was computed after it is computed anew",
                CheckpointWarning,
                stacklevel=2,
            )
        record = {"event": "part", "part": part, "facts": snapshot.facts, "arrays": arrays}
        self._journal.append(record)
        self._learn(record)

    def trial(self, part: str, number: int, vector: Floats, evaluate: Callable[[Floats], Values]) -> Values:
        """Return what a trial gave, from the journal where it holds one for the same vector.

        A trial whose arrays are damaged is evaluated again.
        """
        key, numbers = (part, number), [float(v) for v in vector]
        if self._asked.get(key) == numbers and key in self._told:
            try:
                return {name: self._unpacked(v) for name, v in self._told[key].items()}
            except (InputError, OSError, ValueError) as error:
                warnings.warn(
                    f"trial {number} of '{part}' is damaged ({error})", CheckpointWarning, stacklevel=2
                )
        ask = {"event": "ask", "part": part, "trial": number, "vector": numbers}
        if self._asked.get(key) != numbers:
            self._journal.append(ask, sync=False)
            self._learn(ask)
        begin = time.monotonic()
        values = {name: np.asarray(v, dtype=np.float64) for name, v in evaluate(vector).items()}
        tell = {
            "event": "tell",
            "part": part,
            "trial": number,
            "values": {name: self._packed(v) for name, v in values.items()},
            "seconds": round(time.monotonic() - begin, 4),
        }
        self._journal.append(tell)
        self._learn(tell)
        return values

    def note(self, part: str, number: int, facts: dict[str, Any]) -> None:
        """Put what those who watch want to know of a trial into the journal, once."""
        if (part, number) not in self._noted:
            record = {"event": "note", "part": part, "trial": number, **facts}
            self._journal.append(record, sync=False)
            self._learn(record)

    def result(self, key: str) -> Snapshot | None:
        """Return the result of a task, None where it is not known or damaged."""
        if key not in self._results:
            return None
        try:
            return from_bytes(self._read_bytes(self._results[key] + PARCEL))
        except (InputError, OSError) as error:
            warnings.warn(
                f"result of task {key[:12]} is damaged ({error}); it is computed again",
                CheckpointWarning,
                stacklevel=2,
            )
            del self._results[key]
            return None

    def keep_result(self, key: str, result: Snapshot) -> None:
        """Put the result of a task on the disk; raises ResourceError where the disk refuses."""
        digest = self._write_bytes(to_bytes(result), PARCEL)
        if self._results.get(key) != digest:
            record = {"event": "result", "task": key, "parcel": digest}
            self._journal.append(record)
            self._learn(record)

    def _packed(self, array: Floats) -> float | str:
        """Return a number as itself (or its name, if it is not finite), an array as its digest."""
        if array.ndim:
            return ARRAY + self._write(np.array(array, order="C"))
        number = float(array)
        return number if math.isfinite(number) else str(number)

    def _unpacked(self, packed: float | str) -> Floats:
        if isinstance(packed, str) and packed.startswith(ARRAY):
            return self._read(packed.removeprefix(ARRAY))
        return np.array(float(packed))

    def _learn(self, record: dict[str, Any]) -> None:
        event = record.get("event")
        if event == "part":
            names = list(self._records)
            if record["part"] in names:  # a second record replaces the first and all that followed it
                for name in names[names.index(record["part"]) :]:
                    del self._records[name]
            self._records[record["part"]] = record
        elif event == "ask":
            key = (record["part"], record["trial"])
            self._asked[key] = record["vector"]
            self._told.pop(key, None)
        elif event == "tell":
            self._told[record["part"], record["trial"]] = record["values"]
        elif event == "note":
            self._noted.add((record["part"], record["trial"]))
        elif event == "result":
            self._results[record["task"]] = record["parcel"]

    def _sound(self, name: str, record: dict[str, Any]) -> bool:
        for array in record["arrays"].values():
            try:
                self._read(array)
            except (InputError, OSError, ValueError) as error:
                warnings.warn(
                    f"checkpoint '{name}' is damaged ({error}); the run goes on from the one before",
                    CheckpointWarning,
                    stacklevel=3,
                )
                return False
        return True

    def _write(self, array: NDArray[Any]) -> str:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self._write_bytes(buffer.getvalue(), SUFFIX)

    def _write_bytes(self, data: bytes, suffix: str) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / (digest + suffix)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            durable.write_atomic(path, data)
        return digest

    def _read(self, digest: str) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(io.BytesIO(self._read_bytes(digest + SUFFIX)), allow_pickle=False)
        return loaded

    def _read_bytes(self, name: str) -> bytes:
        data = (self._folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
            raise InputError(f"{name} does not match its checksum")
        return data


def _timeless(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without the clock of their steps."""
    steps = [[*s[:3], *s[4:]] for s in facts.get("steps", ())]
    return {**facts, "steps": steps}
