"""Journal: what a run did, one line a record, written so that a crash loses at most the line being written.

A line is {"n": number, "crc32": checksum, "record": {...}}. The number counts from 0, the checksum covers
number and record as written. A line that a crash cut short can only be the last one, so a bad last line is
dropped and a bad line before it means that the file was damaged or edited.

One process writes at a time. It holds a lock that the kernel takes back when the process ends, however it
ends, so there is no such thing as a stale lock.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qhrtem.errors import InputError
from qhrtem.run import durable
from qhrtem.run.lock import claim

_LINE = re.compile(rb'\{"n":(\d+),"crc32":"([0-9a-f]{8})","record":(\{.*\})\}')


class JournalWarning(UserWarning):
    """The last record of a journal was cut short and is left out."""


@dataclass(frozen=True)
class _Content:
    records: list[dict[str, Any]]
    sound_bytes: int  # length of the file up to and with the last sound line
    torn: bool


class Journal:
    """An open journal that no other process writes; a record is on the disk before `append` returns.

    records: those that were in it when it was opened.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a journal to append to, less a torn last line.

        Raises PlanError, naming the owner, while another process writes it, InputError where it is damaged
        and ResourceError where it cannot be written.
        """
        self.path = Path(path)
        with durable.explained(self.path):
            self._handle = claim(self.path)
        try:
            content = _scan(self.path)
            self.torn = content.torn
            self._end, self._next = content.sound_bytes, len(content.records)
            if content.torn:
                os.ftruncate(self._handle, self._end)
        except BaseException:
            self.close()
            raise
        self.records = content.records

    def append(self, record: Mapping[str, Any], sync: bool = True) -> None:
        """Add one record of JSON values; raises ValueError for NaN and infinity, TypeError for non-JSON.

        sync: wait for the disk; a record without it is there for certain once a later one is.
        """
        payload = json.dumps(dict(record), allow_nan=False, separators=(",", ":")).encode()
        line = b'{"n":%d,"crc32":"%s","record":%s}\n' % (self._next, _crc(self._next, payload), payload)
        with durable.explained(self.path):
            if os.fstat(self._handle).st_size != self._end:  # an earlier append was broken off
                os.ftruncate(self._handle, self._end)
            durable.write(self._handle, line)
            if sync:
                durable.sync(self._handle)
        self._end += len(line)
        self._next += 1

    def close(self) -> None:
        """Close the file and give the lock back; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a journal in order; reading needs no lock and disturbs no writer.

    Warns (JournalWarning) and leaves out a last line that was cut short; raises InputError where the file is
    missing or any other line is damaged, missing, repeated or out of order.
    """
    path = Path(path)
    content = _scan(path)
    if content.torn:
        warnings.warn(torn_message(path), JournalWarning, stacklevel=2)
    return content.records


def torn_message(path: Path) -> str:
    """Return the sentence that explains a dropped last record."""
    return f"{path}: the last record was cut short and is left out; the run stopped while writing it"


def _scan(path: Path) -> _Content:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the journal cannot be read ({error.strerror or error})") from error
    records: list[dict[str, Any]] = []
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        record = parse_line(data[start:end], len(records)) if end >= 0 else None
        if record is None:
            if end >= 0 and end + 1 < len(data):
                raise InputError(
                    f"{path}: line {len(records) + 1} of the journal (record {len(records)}) is damaged or "
                    "out of order; restore the file from a copy, or start the run anew"
                )
            return _Content(records, start, True)
        records.append(record)
        start = end + 1
    return _Content(records, start, False)


def parse_line(line: bytes, number: int) -> dict[str, Any] | None:
    """Return the record of a line, its end left off, None where it is damaged or not of this number."""
    match = _LINE.fullmatch(line)
    if match is None or int(match[1]) != number or match[2] != _crc(number, match[3]):
        return None
    record: dict[str, Any] = json.loads(match[3])
    return record


def _crc(number: int, payload: bytes) -> bytes:
    return b"%08x" % zlib.crc32(b"%d:%s" % (number, payload))
