"""Checkpoints: a fit as a sequence of named parts, each computed once and then remembered.

A part is computed from the parts before it, and its result is handed to a `Memory` in numbers and arrays.
A fit that goes on later runs through the same sequence: what the memory holds is taken from there, and the
first part that it lacks is computed. Control flow therefore needs no state of its own.

Also the fit that was never interrupted goes on with what the snapshot says, not with the object it was made
from. Layout and precision are then the same on both ways, and so are the results, bit by bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.microscope import Microscope
from qhrtem.model.twin import Step
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.imaging import Hypothesis, Values
from qhrtem.stages.objective import OwnLens, State

Floats = NDArray[np.float64]
T = TypeVar("T")
Report = Callable[[Step], None]


@dataclass(frozen=True)
class Snapshot:
    """What a finished part leaves behind: JSON values by name, and arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Memory(Protocol):
    """Keeps the finished parts and trials of one fit."""

    def recall(self, part: str) -> Snapshot | None:
        """Return what a part left behind, None where it is not known to be finished."""
        ...

    def keep(self, part: str, snapshot: Snapshot) -> None:
        """Remember a finished part."""
        ...

    def trial(self, part: str, number: int, vector: Floats, evaluate: Callable[[Floats], Values]) -> Values:
        """Return what a trial of a part gave: as remembered, or by `evaluate`, then kept."""
        ...

    def note(self, part: str, number: int, facts: dict[str, Any]) -> None:
        """Tell those who watch about a trial, in JSON values; nothing is ever computed from it."""
        ...


class Forgetful:
    """A memory for fits that nobody will resume."""

    def recall(self, part: str) -> Snapshot | None:
        """Return None."""
        return None

    def keep(self, part: str, snapshot: Snapshot) -> None:
        """Do nothing."""

    def trial(self, part: str, number: int, vector: Floats, evaluate: Callable[[Floats], Values]) -> Values:
        """Return what `evaluate` gives."""
        return evaluate(vector)

    def note(self, part: str, number: int, facts: dict[str, Any]) -> None:
        """Do nothing."""


@dataclass
class Log:
    """Sends progress to the caller with the time since the start, and holds the history of the fit."""

    report: Report
    begin: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    done: float = 0.0  # estimated share of the work finished, of the part of it that `span` says
    span: tuple[float, float] = (0.0, 1.0)
    where: str = ""  # which part of the field is at work

    def __call__(self, stage: str, chi2: float, note: str = "") -> None:
        number = self.numbers.get(stage, 0)
        done = self.span[0] + (self.span[1] - self.span[0]) * self.done
        note = ", ".join(part for part in (self.where, note) if part)
        step = Step(stage, number, float(chi2), time.monotonic() - self.begin, note, done)
        self._add(step)
        self.report(step)

    def restore(self, steps: list[Step]) -> None:
        """Take in steps of an earlier process without reporting them; its clock goes on."""
        for step in steps:
            self._add(step)
            self.begin = time.monotonic() - step.seconds
            self.done = (step.done - self.span[0]) / (self.span[1] - self.span[0])

    def _add(self, step: Step) -> None:
        self.numbers[step.stage] = step.iteration + 1
        self.steps.append(step)


class Form(Protocol, Generic[T]):
    """How the result of a part becomes a snapshot and comes back."""

    def save(self, value: T) -> Snapshot:
        """Return the snapshot of a value."""
        ...

    def load(self, snapshot: Snapshot) -> T:
        """Return the value of a snapshot."""
        ...


@dataclass
class Parts:
    """Runs each named part of a fit once."""

    memory: Memory
    log: Log

    def __call__(self, name: str, make: Callable[[], T], form: Form[T]) -> T:
        """Return the result of a part, remembered or made now; its steps enter the history either way."""
        found = self.memory.recall(name)
        if found is not None:
            self.log.restore([step_of(s) for s in found.facts["steps"]])
            return form.load(found)
        before = len(self.log.steps)
        snapshot = form.save(make())
        steps = [_record(s) for s in self.log.steps[before:]]
        arrays = {k: np.array(v, order="C") for k, v in snapshot.arrays.items()}
        snapshot = Snapshot({**snapshot.facts, "steps": steps}, arrays)
        self.memory.keep(name, snapshot)
        return form.load(snapshot)


def _record(step: Step) -> list[Any]:
    numbers = (step.chi2, step.seconds, step.done)
    chi2, seconds, done = (float(v) if math.isfinite(v) else None for v in numbers)
    return [step.stage, step.iteration, chi2, seconds, step.note, done]


def step_of(record: list[Any]) -> Step:
    """Return the step of a history that a snapshot holds as a list."""
    stage, iteration, chi2, seconds, note, done = record
    chi2, seconds, done = (math.nan if v is None else v for v in (chi2, seconds, done))
    return Step(stage, iteration, chi2, seconds, note, done)


def snapshot_of(value: Any) -> Snapshot:
    """Return the snapshot of a dataclass of arrays, numbers, words and tuples of them."""
    facts: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for f in fields(value):
        part = getattr(value, f.name)
        if isinstance(part, np.ndarray):
            arrays[f.name] = part
        elif isinstance(part, tuple):
            facts[f.name] = list(part)
        else:  # JSON has no infinity
            facts[f.name] = str(part) if isinstance(part, float) and not math.isfinite(part) else part
    return Snapshot(facts, arrays)


def value_of(kind: type[T], snapshot: Snapshot) -> T:
    """Return the dataclass that `snapshot_of` was given."""
    parts: dict[str, Any] = dict(snapshot.arrays)
    for name, stated in kind.__annotations__.items():
        if name not in parts:
            part = snapshot.facts[name]
            if stated == "float":
                part = float(part)
            parts[name] = tuple(part) if isinstance(part, list) else part
    return kind(**parts)


class LatticeForm:
    """The registered lattice."""

    def save(self, value: Lattice) -> Snapshot:
        """Return the snapshot of a lattice."""
        return snapshot_of(value)

    def load(self, snapshot: Snapshot) -> Lattice:
        """Return the lattice of a snapshot."""
        return value_of(Lattice, snapshot)


class RankingForm:
    """Orientations of the crystal, the best first: misfit and symmetry operation (2, 2) of each."""

    def save(self, value: list[tuple[float, Floats]]) -> Snapshot:
        """Return the snapshot of a ranking."""
        misfit, symmetry = zip(*value, strict=True)
        return Snapshot({}, {"misfit": np.array(misfit), "symmetry": np.array(symmetry)})

    def load(self, snapshot: Snapshot) -> list[tuple[float, Floats]]:
        """Return the ranking of a snapshot."""
        misfit, symmetry = snapshot.arrays["misfit"], snapshot.arrays["symmetry"]
        return [(float(m), s.copy()) for m, s in zip(misfit, symmetry, strict=True)]


class HypothesisForm:
    """An orientation with its best lens."""

    def save(self, value: Hypothesis) -> Snapshot:
        """Return the snapshot of a hypothesis."""
        lens = save_microscope(value.microscope)
        facts = {**lens.facts, "origin": [float(v) for v in value.origin], "misfit": float(value.misfit)}
        return Snapshot(facts, {**lens.arrays, "frame": value.frame, "thickness": value.thickness})

    def load(self, snapshot: Snapshot) -> Hypothesis:
        """Return the hypothesis of a snapshot."""
        a, f = snapshot.arrays, snapshot.facts
        y, x = f["origin"]
        return Hypothesis(a["frame"], load_microscope(snapshot), (y, x), a["thickness"], f["misfit"])


@dataclass(frozen=True)
class Reached:
    """How far the structure has come: the state, and the number by which the next part is decided."""

    state: State
    number: float = 0.0  # cost or gain, units of χ²
    undecided: tuple[int, ...] = ()  # columns whose counts a next round should look at
    # (P,) one standard deviation of the imaging parameters, Å or rad, nan where none is known; to look at
    lens_sigma: Floats | None = None


@dataclass
class ReachedForm:
    """States of one crystal; what the parts change on the way is kept and brought back with them."""

    projection: Projection
    rejected: dict[str, int] = field(default_factory=dict)  # candidates refused, by rule
    generator: np.random.Generator | None = None  # of the thermal displacements
    view: Callable[[Reached], Snapshot] | None = None  # what those who watch are shown; never loaded

    def save(self, value: Reached) -> Snapshot:
        """Return the snapshot of a state with the counters and the generator as they are now."""
        columns = value.state.columns
        first = save_lens(OwnLens(value.state.microscope, value.state.diffuse))
        facts: dict[str, Any] = {
            **first.facts,
            "number": float(value.number),
            "rejected": dict(self.rejected),
        }
        facts["undecided"] = list(value.undecided)
        if self.generator is not None:
            facts["generator"] = self.generator.bit_generator.state
        arrays = {**first.arrays, **{n: getattr(columns, n) for n in COLUMN_ARRAYS}}
        others = [save_lens(e) for e in value.state.others]
        if others:
            facts["others"] = [s.facts for s in others]
            arrays.update({f"other_{n}_{k}": v for n, s in enumerate(others) for k, v in s.arrays.items()})
        if self.view is not None:
            shown = self.view(value)
            facts["view"], arrays = shown.facts, {**arrays, **shown.arrays}
        return Snapshot(facts, arrays)

    def load(self, snapshot: Snapshot) -> Reached:
        """Return the state of a snapshot; sets the counters and the generator."""
        self.rejected.clear()
        self.rejected.update(snapshot.facts["rejected"])
        if self.generator is not None:
            self.generator.bit_generator.state = snapshot.facts["generator"]
        columns = ColumnModel(self.projection, **{n: snapshot.arrays[n] for n in COLUMN_ARRAYS})
        others = []
        for n, facts in enumerate(snapshot.facts.get("others", [])):
            start = f"other_{n}_"
            own = {k.removeprefix(start): v for k, v in snapshot.arrays.items() if k.startswith(start)}
            others.append(load_lens(Snapshot(facts, own)))
        first = load_lens(snapshot)
        state = State(columns, first.microscope, first.diffuse, tuple(others))
        return Reached(state, snapshot.facts["number"], tuple(snapshot.facts["undecided"]))


def save_lens(own: OwnLens) -> Snapshot:
    """Return the snapshot of lens and thermal correction of an image."""
    lens = save_microscope(own.microscope)
    facts: dict[str, Any] = {**lens.facts, "diffuse_b_scale": float(own.diffuse.b_scale)}
    facts["diffuse_pairs"] = own.diffuse.pairs
    arrays = dict(lens.arrays)
    for name in DIFFUSE_IMAGES:
        part = getattr(own.diffuse, name)
        if isinstance(part, torch.Tensor):
            arrays[f"diffuse_{name}"] = part.cpu().numpy()
        else:
            facts[f"diffuse_{name}"] = float(part)
    return Snapshot(facts, arrays)


def load_lens(snapshot: Snapshot) -> OwnLens:
    """Return lens and thermal correction of a snapshot."""
    parts: list[torch.Tensor | float] = []
    for name in DIFFUSE_IMAGES:
        key = f"diffuse_{name}"
        held = snapshot.arrays.get(key)
        parts.append(snapshot.facts[key] if held is None else torch.from_numpy(held))
    at, pairs = (snapshot.facts[f"diffuse_{name}"] for name in ("b_scale", "pairs"))
    diffuse = Diffuse(parts[0], parts[1], at, pairs)
    return OwnLens(load_microscope(snapshot), diffuse)


DIFFUSE_IMAGES = ("image", "slope")
COLUMN_ARRAYS = ("kind", "cell", "anchor", "frame", "rise", "shift", "first", "last")


def save_microscope(microscope: Microscope) -> Snapshot:
    """Return the snapshot of imaging parameters with their prior."""
    m = microscope
    arrays = {"lens_values": m.values, "lens_mean": m.mean, "lens_sigma": m.sigma}
    facts: dict[str, Any] = {"energy": float(m.energy)}
    if isinstance(m.mtf, tuple):
        facts["mtf"] = [float(v) for v in m.mtf]
    else:
        arrays["mtf"] = m.mtf
    return Snapshot(facts, arrays)


def load_microscope(snapshot: Snapshot) -> Microscope:
    """Return the imaging parameters of a snapshot."""
    a, f = snapshot.arrays, snapshot.facts
    mtf = (f["mtf"][0], f["mtf"][1]) if "mtf" in f else a["mtf"]
    return Microscope(f["energy"], a["lens_values"], a["lens_mean"], a["lens_sigma"], mtf)
