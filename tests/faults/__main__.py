"""Run the fault suite: `python -m faults` tries everything, `--quick` a part; exit 1 where a fault was found.

`--write FILE` keeps the table, also of a suite that is stopped.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from faults.bench import Bench, result_of
from faults.campaign import Outcome, campaign


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--every", type=int, help="try one in so many of the faults")
    parser.add_argument("--workers", action="store_true", help="try only faults of workers")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    # In memory where that can be: a kill leaves what was written there too, and power cuts are made up.
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="qhrtem-faults-", dir=fast) as name:
        bench = Bench(Path(name).resolve())
        run = bench.folder / "run"
        assert bench.fit(run).code == 0
        reference = result_of(run)
        every = asked.every or (31 if asked.quick else 1)
        jobs = campaign(bench, run, reference, not asked.quick, every)
        if asked.workers:
            jobs = []
        if not asked.quick:
            from faults import workers

            jobs += [workers.any_number, workers.killed_workers, workers.poison, workers.lost_scheduler]
        for job in jobs:
            outcomes.append(job())
            _say(outcomes[-1])
            if asked.write:
                asked.write.write_text(_table(outcomes), "utf-8")
    wrong = sum(len(o.faults) for o in outcomes)
    tried = sum(o.tried for o in outcomes)
    print(f"{tried} faults tried, {wrong} went wrong, {time.monotonic() - begin:.0f} s", flush=True)
    return bool(wrong)


def _say(outcome: Outcome) -> None:
    print(
        f"{outcome.name}: {outcome.tried} tried, {len(outcome.faults)} wrong {outcome.measured}", flush=True
    )
    for fault in outcome.faults[:5]:
        print(f"    {fault}", flush=True)


def _table(outcomes: list[Outcome]) -> str:
    lines = [
        "# Faults",
        "",
        "Written by `make test-faults`. A scripted fit of 8 trials, 5 checkpoints and a result runs through",
        "the real machinery of `run/` and is stopped in each of these ways; then `qhrtem resume` goes on.",
        "Held means: the same result hash as without the fault, every trial and part once in the journal,",
        "at most one evaluation redone for each crash, no file left over, the stated exit code. A power cut",
        "also takes every byte and every name that had not been synchronised. Workers, local processes and",
        "those of a Dask cluster, do 25 tiles of a simulated field; held there means the result hash of the",
        "same tiles without workers.",
        "",
        "| fault | tried | held | |",
        "|---|---|---|---|",
    ]
    for o in outcomes:
        lines.append(f"| {o.name} | {o.tried} | {o.tried - min(len(o.faults), o.tried)} | {o.measured} |")
    system = f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}"
    return "\n".join([*lines, "", f"{system}, {os.cpu_count()} cores.", ""])


if __name__ == "__main__":
    sys.exit(main())
