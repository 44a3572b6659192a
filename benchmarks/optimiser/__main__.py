"""Run the benchmark: python -m optimiser --help.

Appends to the results file, so that an interrupted benchmark goes on where it stopped; then writes the table
and the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m optimiser", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="main methods, half the simulations, 0.4 the time"
    )
    parser.add_argument("--seeds", type=int, help="paired seeds of the methods chosen (quick: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--problems", nargs="*", default=(), metavar="NAME")
    parser.add_argument("--methods", nargs="*", default=(), metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument(
        "--runs", type=Path, help="results file (default: runs.jsonl in build/bench-optimiser[-full])"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of results.md and figures (default: beside this file, quick: build)"
    )
    parser.add_argument("--report", action="store_true", help="only write the table and the pictures")
    options = parser.parse_args()

    from optimiser import harness, report, suite

    unknown = [p for p in options.problems if p not in suite.PROBLEMS]
    if unknown:
        parser.error(f"unknown problem {', '.join(unknown)}; known are {', '.join(suite.PROBLEMS)}")
    build = HERE.parents[1] / "build" / ("bench-optimiser" if options.quick else "bench-optimiser-full")
    out = options.out or (build if options.quick else HERE)
    runs = options.runs or (options.out or build) / "runs.jsonl"
    if options.report:
        pass
    elif options.quick or options.methods or options.problems or options.seeds:
        seeds = options.seeds or (3 if options.quick else suite.SEEDS)
        tasks = suite.chosen(seeds, options.quick, tuple(options.problems), tuple(options.methods))
        harness.run_all(tasks, runs, options.jobs)
    else:
        for stage in suite.stages():
            harness.run_all(stage(harness.progress(runs)), runs, options.jobs)
    print(report.write(harness.load(runs), out))


if __name__ == "__main__":
    main()
