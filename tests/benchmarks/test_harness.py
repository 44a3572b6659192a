"""A run ends when it should, is written down whole, and is not repeated."""

import dataclasses
import json

import numpy as np
import pytest
from optimiser import harness, report, suite
from optimiser.problem import Evaluation
from optimiser.suite import PROBLEMS, Task


def task(**changes):
    return dataclasses.replace(Task("mixed_ackley", "sobol", 0, 40, 20.0), **changes)


def run(t):
    return harness.run(PROBLEMS[t.problem].make(t.seed), t)


def test_options_of_a_method_are_read():
    assert harness.parse("hybrid:rules=False,batch=4") == ("hybrid", {"rules": False, "batch": 4})
    assert harness.parse("sobol") == ("sobol", {})


def test_a_run_stops_at_its_budget():
    found = run(task())
    assert found["ending"] == "budget"
    assert found["simulations"] == 40
    values = [row[2] for row in found["trajectory"]]
    assert values == sorted(values, reverse=True)
    assert found["value"] == values[-1]
    assert found["simulator_seconds"] <= found["seconds"]


def test_a_run_stops_when_solved():
    problem = PROBLEMS["mixed_ackley"].make(0)
    easy = dataclasses.replace(problem, depths=(9.0, 8.0, 7.0))
    found = harness.run(easy, task(simulations=500))
    assert found["ending"] == "solved"
    assert found["simulations"] < 500


def test_jacobians_count_as_many_simulations_as_they_take():
    class Bowl:
        name, pixels, space = "bowl", 3, PROBLEMS["styblinski_tang40"].make(0).space
        truth, fft_seconds = np.zeros(40), 1e-4

        def targets(self):
            return 3.0, 2.0, 1e-6

        def evaluate(self, vector, wants="value"):
            r = vector - 1
            jacobian = np.eye(40) if wants == "jacobian" else None
            return Evaluation(float(r @ r), 41 if wants == "jacobian" else 1, residual=r, jacobian=jacobian)

        def quality(self, vector):
            return PROBLEMS["styblinski_tang40"].make(0).quality(vector)

    found = harness.run(Bowl(), task(method="multistart_least_squares", simulations=2000))
    assert found["ending"] == "solved"
    assert found["simulations"] >= 41


def test_paired_methods_meet_the_same_problem():
    first, second = (run(task(method=m)) for m in ("sobol", "cma_es"))
    assert first["targets"] == second["targets"]


def test_finished_runs_are_not_repeated(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    tasks = [task(seed=s, simulations=16) for s in range(2)]
    path.write_text(json.dumps({"task": vars(tasks[0]), **run(tasks[0])}) + "\n" + '{"task": {"pro', "utf-8")
    assert harness.finished(path) == {tasks[0].key}
    path.write_text(path.read_text("utf-8") + "\n", "utf-8")
    harness.run_all([tasks[0]], path, 1)
    assert capsys.readouterr().out == ""


def test_the_table_names_losses_and_crashes(tmp_path):
    records = [
        {"task": vars(task(method=m, seed=s)), **run(task(method=m, seed=s))}
        for m in ("sobol", "cma_es")
        for s in range(2)
    ]
    records.append({"task": vars(task(method="hybrid")), "error": "ValueError: broken"})
    text = report.write(records, tmp_path).read_text("utf-8")
    assert "crashed: ValueError: broken" in text
    assert "0/1" in text
    assert (tmp_path / "figures" / "mixed_ackley.png").stat().st_size > 10_000


@pytest.mark.parametrize("quick", [True, False])
def test_every_problem_meets_the_default_method_once_a_seed(quick):
    found = list(suite.chosen(2, quick))
    assert len({t.key for t in found}) == len(found)
    for name in PROBLEMS:
        assert sum(t.problem == name and t.method == suite.MAIN for t in found) == 2


def test_the_race_leaves_out_what_came_nowhere():
    nowhere = [s(lambda task, depth: 0) for s in suite.stages()]
    near = [s(lambda task, depth: 3 if task.method == "cma_es" else 0) for s in suite.stages()]
    first = {t.method for t in nowhere[5]}
    assert {"hybrid", "cma_es", "sobol", "published"} <= first
    assert nowhere[6] == nowhere[7] == []
    assert {t.method for t in near[6]} == {t.method for t in near[7]} == {"cma_es"}
    assert max(t.seed for t in near[7]) == suite.SEEDS - 1
    assert max(t.seed for t in nowhere[-1]) == suite.MORE_SEEDS - 1


def test_cpu_time_ends_a_run_whatever_it_does():
    class Endless:
        name, pixels, space = "endless", 0, PROBLEMS["mixed_ackley"].make(0).space
        truth, fft_seconds = np.zeros(13), 1e-4

        def targets(self):
            return 3.0, 2.0, 1.0

        def evaluate(self, vector, wants="value"):
            while True:
                pass

        def quality(self, vector):
            raise AssertionError("nothing was found")

    found = harness.run(Endless(), task(seconds=0.2))
    assert found["ending"] == "budget"
    assert found["simulations"] == 0
    assert found["value"] == np.inf
    assert 0.15 < found["seconds"] < 2


def test_runs_repeat_and_all_methods_hear_of_one_start():
    first, again = (run(task(method="hybrid", seed=1)) for _ in range(2))
    assert [r[0::2] for r in first["trajectory"]] == [r[0::2] for r in again["trajectory"]]
    other = run(task(method="cma_es", seed=1))
    assert first["trajectory"][0][2] == other["trajectory"][0][2]
