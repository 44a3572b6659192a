"""Tasks for tests and benchmarks of execution: tiles of a simulated field, and some that misbehave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slabs
from crystals import projection
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import nominal
from qhrtem.model.tiles import columns_in, tiles
from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.checkpoint import COLUMN_ARRAYS, Snapshot
from qhrtem.stages.tasks import Place, Task, task

HALO_A = 5.0


@task
def tile_image(given: Snapshot, place: Place) -> Snapshot:
    """Return the noisy image of one tile of a field."""
    asked = given.facts
    field = make_field(tuple(asked["shape"]), asked["pixel"], 40.0, margin=asked["margin"])
    tile = list(tiles(field, asked["edge"], HALO_A))[asked["tile"]]
    columns = ColumnModel(projection(*slabs.BTO), **{n: given.arrays[n] for n in COLUMN_ARRAYS})
    lens = nominal(slabs.ENERGY).with_values(tilt_x=2e-3, a1_x=10.0)
    with torch.inference_mode():
        model = ForwardModel(tile.field, slabs.ENERGY)
        for _ in range(asked.get("times", 1)):
            image = tile.field.crop(model.image(columns_in(columns, tile), lens)).numpy()
    noise = np.random.default_rng([asked["seed"], asked["tile"]]).normal(0, 0.03, image.shape)
    return Snapshot({"row": tile.row, "col": tile.col}, {"image": image + noise.astype(np.float32)})


@task
def fail(given: Snapshot, place: Place) -> Snapshot:
    """Raise an error, always."""
    raise ValueError(f"tile {given.facts['tile']} is poisoned")


@task
def kill(given: Snapshot, place: Place) -> Snapshot:
    """End the worker, as long as `times` says: a file in `folder` counts."""
    asked = given.facts
    if _count(asked) <= asked["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return Snapshot({"tile": asked["tile"]}, {})


@task
def dawdle(given: Snapshot, place: Place) -> Snapshot:
    """Take `seconds`; the first to begin one with `slow` takes that instead."""
    asked = given.facts
    slow = "slow" in asked and _count(asked) == 1
    time.sleep(asked["slow"] if slow else asked["seconds"])
    return Snapshot({"tile": asked["tile"]}, {})


@task
def nothing(given: Snapshot, place: Place) -> Snapshot:
    """Return what was given."""
    return given


def _count(asked: dict[str, Any]) -> int:
    """Return how often this task has begun."""
    with (Path(asked["folder"]) / f"begun {asked['tile']}").open("a") as file:
        file.write("x")
        return file.tell()


def tile_tasks(side: int = 4, edge: float = 9.0, pixel: float = 0.18, **more: Any) -> list[Task]:
    """Return the tasks of a square field of side x side tiles of `edge` Å."""
    shape = [round(side * edge / pixel)] * 2
    island = slabs.slab(
        shape=(shape[0], shape[1]), pixel=pixel, radius=0.4 * side * edge, angle=0.1, margin=HALO_A
    )
    arrays = {n: getattr(island.columns, n) for n in COLUMN_ARRAYS}
    facts = {"shape": shape, "pixel": pixel, "margin": HALO_A, "edge": edge, "seed": 7, **more}
    return [Task.of(tile_image, {**facts, "tile": n}, arrays) for n in range(side * side)]


def misbehaving(function: Any, tile: int, **facts: Any) -> Task:
    """Return a task of one of the functions above that need no arrays."""
    return Task.of(function, {"tile": tile, **facts}, {})
