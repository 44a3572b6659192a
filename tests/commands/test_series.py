"""`fit` of a series and `watch`: frames in, one run folder out; the physics is a stand-in."""

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from qhrtem.cli import app
from qhrtem.errors import Interrupted
from qhrtem.io.series_file import read_series
from qhrtem.run.journal import read_journal
from serieses import make_frame, make_series
from twins import make_twin

SHAPE = (64, 64)


class StandIn:
    """A series whose frames are made up; it stops before a frame where asked to."""

    first = make_twin(2, 3)
    stop_before = None

    def __init__(self):
        self.frames, self.sources, self.faults = [make_frame(0, [0, 1, 2])], [], []

    def begin(self, plan, exposure, crystal, progress, memory, executor=None):
        self.sources.append(exposure.raw.path)
        return self

    def add(self, exposure):
        if exposure.number == self.stop_before:
            raise Interrupted("stopped by SIGTERM")
        self.sources.append(exposure.raw.path)
        self.faults.append(exposure.fault)
        frame = make_frame(exposure.number, [0, 1])
        self.frames.append(frame)
        return frame, ()

    def result(self, interval, dropped=()):
        from dataclasses import replace

        return replace(
            make_series(),
            frames=tuple(self.frames),
            events=(),
            interval_s=interval,
            dropped=dropped,
            notes=(),
        )


@pytest.fixture
def stand_in(monkeypatch):
    it = StandIn()
    monkeypatch.setattr("qhrtem.stages.series.begin_series", it.begin)
    monkeypatch.setattr("qhrtem.report.figures.figures_of", lambda twin: None)
    monkeypatch.setattr("qhrtem.report.figures.save_figures", lambda twin, folder, drawn: None)
    monkeypatch.setattr("qhrtem.report.page.write_report", lambda twin, folder, drawn: None)
    monkeypatch.setattr("qhrtem.run.watch.POLL_S", 0.01)
    return it


@pytest.fixture
def plan(tmp_path):
    from qhrtem.cli import DEMO_PLAN

    text = DEMO_PLAN.read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("path = ", "mtf"))]
    cif = DEMO_PLAN.parent / "BaTiO3.cif"
    out = []
    for line in lines:
        out.append(line)
        if line.strip() == "[structure]":
            out.append(f'path = "{cif}"')
        if line.strip() == "[image]":
            out.append(f'path = "{tmp_path / "stack.tif"}"')
    path = tmp_path / "plan.toml"
    path.write_text("\n".join(out) + "\n[series]\ninterval_s = 0.5\nidle_s = 0.05\n", "utf-8")
    return path


def image(seed):
    return np.random.default_rng(seed).poisson(200, SHAPE).astype(np.float32)


def stack(path, frames):
    tifffile.imwrite(path, np.stack(frames), photometric="minisblack")


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_a_stack_becomes_a_series(stand_in, plan, tmp_path):
    stack(tmp_path / "stack.tif", [image(n) for n in range(5)])
    run("fit", plan, "--out", tmp_path / "run")
    series = read_series(tmp_path / "run")
    assert [f.number for f in series.frames] == [0, 1, 2, 3, 4]
    assert series.interval_s == 0.5
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"series.h5", "events.csv", "result.h5"}
    assert read_journal(tmp_path / "run" / "journal.jsonl")[-1]["event"] == "finished"


def test_frames_are_chosen_by_the_plan(stand_in, plan, tmp_path):
    stack(tmp_path / "stack.tif", [image(n) for n in range(6)])
    plan.write_text(plan.read_text("utf-8") + "first = 2\nlast = 4\n", "utf-8")
    run("fit", plan, "--out", tmp_path / "run")
    assert stand_in.sources == [f"stack.tif, frame {n}" for n in (2, 3, 4)]


def test_more_frames_than_there_are(stand_in, plan, tmp_path):
    stack(tmp_path / "stack.tif", [image(n) for n in range(5)])
    plan.write_text(plan.read_text("utf-8") + "last = 9\n", "utf-8")
    result = run("fit", plan, "--out", tmp_path / "run", code=3)
    assert "the file holds 5 (0 to 4)" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_a_blank_frame_is_passed_on_with_its_fault(stand_in, plan, tmp_path):
    frames = [image(n) for n in range(5)]
    frames[2] = np.full(SHAPE, 7.0, np.float32)
    stack(tmp_path / "stack.tif", frames)
    run("fit", plan, "--out", tmp_path / "run")
    assert [bool(f) for f in stand_in.faults] == [False, True, False, False]
    assert "constant" in stand_in.faults[1]


def test_an_interrupted_series_goes_on(stand_in, plan, tmp_path):
    stack(tmp_path / "stack.tif", [image(n) for n in range(5)])
    stand_in.stop_before = 3
    run("fit", plan, "--out", tmp_path / "run", code=75)
    stand_in.stop_before = None
    stand_in.frames, stand_in.sources = stand_in.frames[:1], []
    run("resume", tmp_path / "run")
    assert [f.number for f in read_series(tmp_path / "run").frames] == [0, 1, 2, 3, 4]
    again = run("resume", tmp_path / "run")
    assert "nothing was left to do" in " ".join(again.output.split())


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    return path


def test_watch_takes_the_files_of_a_folder(stand_in, plan, tmp_path, folder):
    for n in (10, 9, 8):
        tifffile.imwrite(folder / f"f{n}.tif", image(n))
    (folder / "notes.txt").write_text("no frame")
    run("watch", folder, "--plan", plan, "--out", tmp_path / "run")
    assert stand_in.sources == ["f8.tif", "f9.tif", "f10.tif"]
    records = read_journal(tmp_path / "run" / "journal.jsonl")
    assert [r["file"] for r in records if r["event"] == "frame"] == stand_in.sources


def test_watch_says_when_it_falls_behind(stand_in, plan, tmp_path, folder):
    for n in range(5):
        tifffile.imwrite(folder / f"{n}.tif", image(n))
    result = run("watch", folder, "--plan", plan, "--out", tmp_path / "run")
    assert "the fit is behind: 4 more frames are waiting" in " ".join(result.output.split())


def test_left_out_frames_are_listed(stand_in, plan, tmp_path, folder):
    for n in range(4):
        tifffile.imwrite(folder / f"{n}.tif", image(n))
    run("watch", folder, "--plan", plan, "--out", tmp_path / "run", "--drop")
    assert stand_in.sources == ["3.tif"]
    assert read_series(tmp_path / "run").dropped == ("0.tif", "1.tif", "2.tif")


def test_a_resumed_watch_takes_the_same_files(stand_in, plan, tmp_path, folder):
    for n in range(4):
        tifffile.imwrite(folder / f"{n}.tif", image(n))
    stand_in.stop_before = 2
    run("watch", folder, "--plan", plan, "--out", tmp_path / "run", code=75)
    tifffile.imwrite(folder / "00.tif", image(99))  # named as if it came first
    stand_in.stop_before, stand_in.sources = None, []
    stand_in.frames = stand_in.frames[:1]
    run("resume", tmp_path / "run")
    assert stand_in.sources == ["0.tif", "1.tif", "2.tif", "00.tif", "3.tif"]


def test_watch_needs_a_folder(plan, tmp_path):
    result = run("watch", tmp_path / "none", "--plan", plan, "--out", tmp_path / "run", code=2)
    assert "is no folder" in " ".join(result.output.split())
