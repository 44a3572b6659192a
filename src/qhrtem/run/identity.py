"""Identity: everything that the result of a run depends on, and in what two of them differ."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from qhrtem.errors import InputError
from qhrtem.plan import MtfTable, Plan, dump_plan
from qhrtem.program import versions

PATHS = {"image": "path", "structure": "path"}  # in a plan; the files count, not where they lie
CLOCK = ("seconds",)  # fields of a result that tell the time and nothing else
WORDS = ("notes", "provenance")  # fields of a result made of words, which may name files


@dataclass(frozen=True)
class Identity:
    """What was asked, of which files, by which program."""

    plan: str  # TOML
    inputs: dict[str, str]  # SHA-256 by role: image, structure, mtf, mask, also 1, mask of also 1, …
    versions: dict[str, str]  # of the program, its source, Python and the libraries

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return the identity of a run of this plan with the files as they are now.

        Raises InputError where a file cannot be read.
        """
        files = {"image": plan.image.path, "structure": plan.structure.path}
        if isinstance(plan.image.mtf, MtfTable):
            files["mtf"] = plan.image.mtf.path
        if plan.image.mask is not None:
            files["mask"] = plan.image.mask
        for number, further in enumerate(plan.image.also or (), 1):
            own = {f"also {number}": further.path, f"mask of also {number}": further.mask}
            files.update({role: path for role, path in own.items() if path is not None})
        return cls(dump_plan(plan), {k: file_digest(p) for k, p in files.items()}, versions())

    def record(self) -> dict[str, Any]:
        """Return the identity as JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the identity that `record` wrote."""
        return cls(record["plan"], dict(record["inputs"]), dict(record["versions"]))

    def differences(self, now: Identity) -> list[str]:
        """Return in what another identity differs from this one, one clause each: what, before → now."""
        out = list(_plan_differences(self.plan, now.plan))
        for what, before, after in _changes(self.inputs, now.inputs):
            out.append(f"{what} file (SHA-256): {_short(before)} → {_short(after)}")
        out += [f"{k}: {b} → {a}" for k, b, a in _changes(self.versions, now.versions)]
        return out

    def same_question(self, other: Identity) -> bool:
        """Return whether plan and files agree, whatever the program."""
        return not list(_plan_differences(self.plan, other.plan)) and self.inputs == other.inputs


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def result_hash(result: Any) -> str:
    """Return the SHA-256 of all that a result claims: its numbers and names, but for clocks and notes."""
    whole = hashlib.sha256()
    for piece in _pieces(result):
        whole.update(b"%d:" % len(piece) + piece)
    return whole.hexdigest()


def _pieces(value: Any) -> Iterator[bytes]:
    if is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            if f.name not in CLOCK + WORDS:
                yield f.name.encode()
                yield from _pieces(getattr(value, f.name))
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype.str}{value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield str(key).encode()
            yield from _pieces(value[key])
    elif isinstance(value, (tuple, list)):
        yield b"%d items" % len(value)
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, (float, np.floating)):
        yield float(value).hex().encode()
    else:
        yield repr(value).encode()


def _plan_differences(before: str, after: str) -> Iterator[str]:
    old, new = (_keys(tomllib.loads(text)) for text in (before, after))
    for key, a, b in _changes(old, new):
        yield f"plan {key}: {a} → {b}"


def _keys(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the values of a plan by '[table] key'; `[simulate]` says nothing to a fit."""
    out = {}
    for name, table in tables.items():
        for key, value in table.items():
            is_file = PATHS.get(name) == key or (key == "mtf" and isinstance(value, str))
            if key == "also":
                out.update(_further_keys(value))
            elif name != "simulate" and not is_file:
                out[f"[{name}] {key}"] = str(value)
    return out


def _further_keys(tables: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return the values of the further images of a plan, but for where their files lie."""
    return {
        f"[image] also {number} {key}": str(value)
        for number, table in enumerate(tables, 1)
        for key, value in table.items()
        if key != PATHS["image"]
    }


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in [*before, *(k for k in after if k not in before)]:
        a, b = before.get(key, "not given"), after.get(key, "not given")
        if a != b:
            yield key, a, b


def _short(digest: str) -> str:
    return digest[:12] if len(digest) == 64 else digest
