"""A run under way, made of records and arrays, for what follows runs and shows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qhrtem.run.folder import RunFolder, create_run
from qhrtem.run.journal import Journal
from qhrtem.run.lock import owner
from qhrtem.run.store import Store
from qhrtem.stages.checkpoint import Snapshot

ROWS, COLS = 40, 60


def begin(path: Path, words: str = "note") -> tuple[RunFolder, Journal, Store]:
    """Return a run that has begun, its journal open and locked; words: text in every place that has one."""
    folder = create_run(path)
    folder.write_plan(f"# {words}\n")
    journal = Journal(folder.journal)
    first = {"event": "begin", "owner": owner(), "plan": words, "versions": {"qhrtem": words}, "threads": 1}
    journal.append(first)
    return folder, journal, Store(folder.checkpoints, journal)


def step(journal: Journal, stage: str, chi2: float | None, seconds: float, note: str, done: float) -> None:
    """Append a step."""
    record = {"event": "step", "stage": stage, "iteration": 0, "chi2": chi2}
    journal.append({**record, "seconds": seconds, "note": note, "done": done}, sync=False)


def lens(value: float, sigma: float | None = 0.02) -> list[list[Any]]:
    """Return rows of imaging parameters."""
    return [["c1_nm", "C1", "nm", value, sigma], ["c3_um", "C3", "µm", -15.0, None]]


def images(seed: int) -> dict[str, np.ndarray]:
    """Return measured and simulated image and the pixels used."""
    rng = np.random.default_rng(seed)
    simulated = (1 + 0.3 * np.sin(np.arange(COLS) / 3) * np.ones((ROWS, 1))).astype(np.float32)
    measured = (simulated + 0.05 * rng.standard_normal(simulated.shape)).astype(np.float32)
    used = np.zeros(simulated.shape, dtype=bool)
    used[3:-3, 3:-3] = True
    return {"image": simulated, "measured": measured, "used": used}


def part(store: Store, name: str, seed: int, chi2: float, seconds: float, words: str = "note") -> None:
    """Keep a state with its images."""
    view = {"lens": lens(5.0 + 0.1 * seed), "electrons": 400.0, "readout_variance": 0.0}
    facts = {
        "number": chi2,
        "rejected": {words: 7 * seed},
        "undecided": [1, 2, 3],
        "steps": [["counts", seed, chi2, seconds, words, 0.5]],
        "view": {**view, "field_A": [4.0, 6.0], "columns": 12},
    }
    store.keep(name, Snapshot(facts, {**images(seed), "lens_values": np.arange(3.0)}))


def history(journal: Journal, store: Store, words: str = "note") -> None:
    """Write what a run writes in its first minutes."""
    step(journal, "calibrate", None, 0.5, words, 0.04)
    for n in range(5):
        store.note(
            "imaging 0", n, {"chi2": 9.0 / (n + 1), "step": 0.5**n, "origin": "refined", "lens": lens(n)}
        )
        step(journal, "imaging", 0.03 / (n + 1), 1.0 + n, f"trial {n}", 0.1)
    for n in range(3):
        step(journal, "counts", 1.5 - 0.1 * n, 10.0 + n, words, 0.3)
        part(store, f"counts {n}", n, 1.5 - 0.1 * n, 10.0 + n, words)


@contextmanager
def under_way(path: Path, words: str = "note") -> Iterator[tuple[RunFolder, Journal, Store]]:
    """Give a run with a history whose lock this process holds."""
    folder, journal, store = begin(path, words)
    try:
        history(journal, store, words)
        yield folder, journal, store
    finally:
        journal.close()
