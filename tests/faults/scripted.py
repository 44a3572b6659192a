"""A fit of milliseconds over the real run machinery: parts, trials, state, generator and result.

What it computes has no meaning, but each number depends on all that came before it, so that a part lost,
doubled or restored wrongly changes the result. Each evaluation is noted in a file that no fault touches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.model.diffuse import Diffuse
from qhrtem.model.micrograph import RawImage
from qhrtem.model.microscope import nominal
from qhrtem.model.twin import Atoms, ColumnTable, Estimate, Gate, Match, Step, Twin
from qhrtem.plan import Plan
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import Crystal, project
from qhrtem.stages.checkpoint import (
    Forgetful,
    Log,
    Memory,
    Parts,
    RankingForm,
    Reached,
    ReachedForm,
)
from qhrtem.stages.objective import State
from qhrtem.stages.tasks import Executor

Floats = NDArray[np.float64]
TRIALS, ROUNDS = 8, 4


class Scripted:
    """The stand-in for `qhrtem.stages.pipeline.fit_image`."""

    def __init__(
        self, notes: Path, pause: float = 0.0, hook: Callable[[str], None] = lambda what: None
    ) -> None:
        """notes: file that lists evaluations; pause: seconds each takes; hook: told of each beforehand."""
        self.notes, self.pause, self.hook = notes, pause, hook

    def __call__(
        self,
        plan: Plan,
        raw: RawImage,
        crystal: Crystal,
        progress: Callable[[Step], None],
        memory: Memory | None = None,
        executor: Executor | None = None,
    ) -> Twin:
        log = Log(progress)
        memory = memory or Forgetful()
        parts = Parts(memory, log)
        projection = project(crystal, plan.structure.zone_axis)
        best = parts("search", lambda: self._search(plan, memory, log), RankingForm())[0]
        form = ReachedForm(projection, {}, np.random.default_rng([plan.run.seed, 1]))
        empty = lattice_columns(projection, np.zeros(2), best[1], (0.0, 0.0, 14.0, 14.0))
        full = empty.filled(np.full(len(empty), 10.0), np.full(len(empty), 40.0))
        reached = Reached(State(full, nominal(3e5)), best[0])
        for number in range(ROUNDS):
            work = self._round(number, reached, form, log)
            reached = parts(f"round {number}", work, form)
        self._evaluated("joint")
        return _twin(raw, reached, form, log)

    def _search(self, plan: Plan, memory: Memory, log: Log) -> list[tuple[float, Floats]]:
        rng = np.random.default_rng(plan.run.seed)
        vector, value = rng.normal(size=4), 1.0
        log.done = 0.1  # as the real parts do, for the steps that follow too
        for number in range(TRIALS):

            def objective(v: Floats, number: int = number) -> dict[str, Floats]:
                self._evaluated(f"trial {number}")
                return {"value": np.sin(v @ v) + 1 / 3, "slope": 1 / (v + 7)}

            values = memory.trial("search", number, vector, objective)
            value = float(values["value"]) + float(values["slope"].sum())
            vector = np.tanh(vector * value + rng.normal(size=4))
            log("imaging", value)
        return [(value, np.eye(2) + 1e-3 * vector.reshape(2, 2))]

    def _round(self, number: int, before: Reached, form: ReachedForm, log: Log) -> Callable[[], Reached]:
        def work() -> Reached:
            self._evaluated(f"round {number}")
            assert form.generator is not None
            columns = before.state.columns
            shift = columns.shift * before.number + 0.01 * form.generator.standard_normal(columns.shift.shape)
            last = columns.last + form.generator.integers(-1, 2, len(columns))
            form.rejected["support"] = form.rejected.get("support", 0) + int(last.sum() % 7)
            state = replace(before.state, columns=replace(columns, shift=shift, last=last))
            if number % 2:
                state = replace(
                    state, diffuse=Diffuse(torch.from_numpy(np.cos(shift[:6, :, 0]).astype(np.float32)))
                )
            log.done += 0.1 * (number % 2)
            log("counts", float(np.abs(shift).sum()), f"round {number}")
            return Reached(state, before.number + float(shift.sum()))

        return work

    def _evaluated(self, what: str) -> None:
        self.hook(what)
        if self.pause:
            time.sleep(self.pause)
        handle = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{what}\n".encode())
        os.close(handle)


def _twin(raw: RawImage, reached: Reached, form: ReachedForm, log: Log) -> Twin:
    columns = reached.state.columns
    n, elements = len(columns), columns.projection.elements
    position = columns.group_position()[:, 0] / 0.112
    log("joint", reached.number)
    image = raw.counts.astype(np.float32)
    everywhere = np.ones(image.shape, dtype=bool)
    assert form.generator is not None
    return Twin(
        columns=ColumnTable(
            kind=tuple(columns.kind_of(c).name for c in range(n)),
            elements=elements,
            counts=columns.element_counts(),
            position_px=position,
            sigma_px=np.full((n, 2), 0.1),
            element_position_px=np.repeat(position[:, None], len(elements), axis=1),
            displacement_A=columns.shift[:, 0],
            p_exact=form.generator.random(n),
            top_A=columns.surfaces()[0],
            bottom_A=columns.surfaces()[1],
            inside=np.ones(n, dtype=bool),
        ),
        atoms=Atoms(
            element=("Ti",) * n,
            position_A=np.column_stack([position * 0.112, np.arange(n) * 2.0]),
            occupancy=np.ones(n),
            b_iso_A2=np.ones(n),
            sigma_A=np.full((n, 3), 0.01),
            column=np.arange(n),
        ),
        microscope=(Estimate("c1_nm", "C1", reached.number, 0.1, "nm", True),),
        match=Match(image, image, np.ones_like(image), everywhere, everywhere),
        pixel_size_A=0.112,
        lattice_px=np.eye(2) * 30.0,
        thickness_A=40.0,
        chi2_crystal=1.0,
        chi2_vacuum=1.0,
        gates=(Gate("crystal misfit", 1.0, 2.0, True, "Of no meaning."),),
        history=tuple(log.steps),
        rules=dict(form.rejected),
    )
