"""Tasks of a real run: spread as the options say, kept in the run folder, not done again by a resume."""

import pytest
from typer.testing import CliRunner

import work
from qhrtem.cli import DEMO_PLAN, app
from qhrtem.errors import Interrupted
from qhrtem.run.journal import read_journal
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import gather
from twins import make_twin

TILES = 4


class Spreading:
    """A stand-in for the pipeline that is made of tasks; it stops after so many results."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after

    def __call__(self, plan, raw, crystal, progress, memory, executor):
        tiles = work.tile_tasks(2, seed=plan.run.seed)
        executor = executor or Serial()
        if self.stop_after is not None:
            running = executor.run(tiles)
            for _ in range(self.stop_after):
                next(running)
            running.close()
            raise Interrupted("the Dask scheduler does not answer any more; start it again")
        results = gather(executor, tiles)
        self.images = [results[t.key].arrays["image"] for t in tiles]
        return make_twin(2, 3)


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.setattr("qhrtem.report.figures.figures_of", lambda twin: None)
    monkeypatch.setattr("qhrtem.report.figures.save_figures", lambda twin, folder, drawn: None)
    monkeypatch.setattr("qhrtem.report.page.write_report", lambda twin, folder, drawn: None)

    def install(stand_in):
        monkeypatch.setattr("qhrtem.stages.pipeline.fit_image", stand_in)
        return stand_in

    return install


@pytest.fixture
def here(monkeypatch):
    """Let this process do what workers would, which costs less."""
    monkeypatch.setattr("qhrtem.run.execution._executor", lambda spread, tell: Serial(tell=tell))


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def records_of(folder, event):
    return [r for r in read_journal(folder / "journal.jsonl") if r["event"] == event]


def test_a_lost_scheduler_leaves_a_run_that_resumes_and_does_nothing_twice(fit, here, tmp_path):
    whole, folder = fit(Spreading()), tmp_path / "run"
    run("fit", DEMO_PLAN, "--out", tmp_path / "whole")
    fit(Spreading(2))
    stopped = run("fit", DEMO_PLAN, "--out", folder, "--workers", 2, code=75)
    words = " ".join(stopped.stderr.split())
    assert "start it again; then go on with `qhrtem resume" in words
    assert len(list((folder / "unfinished").glob("*.parcel"))) == len(records_of(folder, "result")) == 2
    resumed = fit(Spreading())
    run("resume", folder, "--workers", 2)
    assert [i.tobytes() for i in resumed.images] == [i.tobytes() for i in whole.images]
    begun = [r for r in records_of(folder, "task") if r["state"] == "begun"]
    assert len({r["task"] for r in begun}) == len(begun) == TILES
    assert not (folder / "unfinished").exists()


def test_a_damaged_result_is_computed_again(fit, here, tmp_path):
    folder = tmp_path / "run"
    fit(Spreading(3))
    run("fit", DEMO_PLAN, "--out", folder, "--workers", 2, code=75)
    parcel = sorted((folder / "unfinished").glob("*.parcel"))[0]
    parcel.write_bytes(parcel.read_bytes()[:-1] + b"!")
    fit(Spreading())
    assert "is damaged" in " ".join(run("resume", folder, "--workers", 2).stderr.split())
    assert len([r for r in records_of(folder, "task") if r["state"] == "begun"]) == TILES + 1


@pytest.mark.slow
def test_workers_make_no_difference(fit, tmp_path):
    alone = fit(Spreading())
    run("fit", DEMO_PLAN, "--out", tmp_path / "alone")
    together = fit(Spreading())
    run("fit", DEMO_PLAN, "--out", tmp_path / "run", "--workers", "2")
    assert [i.tobytes() for i in together.images] == [i.tobytes() for i in alone.images]
    assert {r["worker"] for r in records_of(tmp_path / "run", "task")} <= {"local-1", "local-2"}
    # Who has nothing to spread starts no worker.
    fit(lambda *args: make_twin(2, 3))
    run("fit", DEMO_PLAN, "--out", tmp_path / "small", "--workers", "2")
    assert not records_of(tmp_path / "small", "worker")


def test_options_are_refused_before_anything_is_written(fit, tmp_path, monkeypatch):
    fit(Spreading())
    out = tmp_path / "run"
    assert "--workers must be 1" in run("fit", DEMO_PLAN, "--out", out, "--workers", "0", code=2).stderr
    words = ("--workers", "3", "--scheduler", "tcp://127.0.0.1:9")
    assert "give one of both" in run("fit", DEMO_PLAN, "--out", out, *words, code=2).stderr
    assert not out.exists()
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    monkeypatch.setattr("qhrtem.run.dask.CONNECT_SECONDS", 0.2)
    refused = run("fit", DEMO_PLAN, "--out", out, *words[2:], code=5)
    assert "no Dask scheduler answers there" in " ".join(refused.stderr.split())
    assert not out.exists()
