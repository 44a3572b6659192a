"""The command line: what each command does with good and bad input, its one line of error and its exit code.

The fit itself is replaced by a stand-in that returns a synthetic result, and the report, which takes seconds
to draw, by one that leaves its files. Reading, run folder and result files are the real ones.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from qhrtem.cli import DEMO_PLAN, app
from qhrtem.errors import InputError, Interrupted
from qhrtem.model.twin import Step
from qhrtem.plan import load_plan
from qhrtem.run.journal import read_journal
from twins import make_twin

IMAGE = DEMO_PLAN.parent / "bto_edge_small.tif"
CIF = DEMO_PLAN.parent / "BaTiO3.cif"
GIVEN = ["--structure", str(CIF), "--zone", "1,1,0", "--high-tension", "300"]


class StandIn(ModuleType):
    """A module that takes the place of a real one during a test."""


class Fit:
    """A stand-in for the pipeline: reports three steps, then returns a twin or raises."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.plan = None

    def __call__(self, plan, raw, crystal, progress, memory, executor):
        self.plan = plan
        assert raw.counts.shape == (268, 268)
        assert crystal.species
        for i, chi2 in enumerate((float("nan"), 3.2, 1.05)):
            progress(Step("imaging", i, chi2, 0.1 * i, "note"))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def save_figures(twin, folder, figures):
    folder.mkdir(exist_ok=True)
    (folder / "match.png").write_text(figures)


def write_report(twin, folder, figures):
    (folder / "report.html").write_text(f"passed {twin.passed} {figures}")


@pytest.fixture
def fit(monkeypatch):
    """Put stand-ins for the pipeline and the report in place; call it with the outcome to give."""

    def install(outcome):
        stand_in = Fit(outcome)
        for name, attribute, value in (
            ("qhrtem.stages.pipeline", "fit_image", stand_in),
            ("qhrtem.report.figures", "figures_of", lambda twin: "drawn"),
            ("qhrtem.report.figures", "save_figures", save_figures),
            ("qhrtem.report.page", "write_report", write_report),
        ):
            known = sys.modules.get(name)
            module = known if isinstance(known, StandIn) else StandIn(name)
            setattr(module, attribute, value)
            monkeypatch.setitem(sys.modules, name, module)
        return stand_in

    return install


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def refusal(*words, code):
    """Run what must fail; return its message, which must be one line and no traceback."""
    lines = [line for line in run(*words, code=code).stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_demo_leaves_the_whole_run_folder(fit, tmp_path):
    stand_in = fit(make_twin(2, 3))
    run("demo", "--out", tmp_path / "run", "--seed", "5")
    found = {p.name for p in (tmp_path / "run").iterdir()}
    assert found >= {"columns.csv", "structure.cif", "structure.extxyz", "microscope.json", "result.h5"}
    assert found >= {"report.html", "figures", "plan.toml", "journal.jsonl"}
    assert ".partial" not in found
    assert stand_in.plan.run.seed == 5
    assert load_plan(tmp_path / "run" / "plan.toml") == stand_in.plan
    assert [r["chi2"] for r in steps_of(tmp_path / "run")] == [None, 3.2, 1.05]
    with (tmp_path / "run" / "columns.csv").open(newline="") as file:
        assert {"row", "col", "n_Ti", "sigma_row", "p_exact"} <= set(next(csv.reader(file)))


def test_fit_of_a_plan_with_overrides(fit, tmp_path):
    stand_in = fit(make_twin(2, 3))
    run(
        "fit", DEMO_PLAN, "--out", tmp_path / "run", "--high-tension", "200", "--zone", "0 0 1", "--c3", "-12"
    )
    assert stand_in.plan.microscope.high_tension_kV == 200
    assert stand_in.plan.microscope.c3_um == -12
    assert stand_in.plan.structure.zone_axis == (0, 0, 1)
    assert stand_in.plan.image.pixel_size_A == 0.112


def test_fit_of_an_image_without_a_plan(fit, tmp_path):
    stand_in = fit(make_twin(2, 3))
    run("fit", IMAGE, *GIVEN, "--pixel-size", "0.112", "--out", tmp_path / "run")
    assert stand_in.plan.image.path == IMAGE
    assert stand_in.plan.image.pixel_size_A == 0.112
    assert stand_in.plan.image.vacuum_counts is None


def test_a_run_is_never_overwritten_unasked(fit, tmp_path):
    fit(make_twin(2, 3))
    run("demo", "--out", tmp_path / "run")
    before = (tmp_path / "run" / "columns.csv").stat().st_mtime_ns
    assert "--force" in refusal("demo", "--out", tmp_path / "run", code=2)
    assert (tmp_path / "run" / "columns.csv").stat().st_mtime_ns == before
    run("demo", "--out", tmp_path / "run", "--force")
    assert (tmp_path / "run" / "columns.csv").stat().st_mtime_ns > before


def test_failed_quality_gate_claims_nothing_but_reports(fit, tmp_path):
    fit(make_twin(2, 3, passed=False))
    result = run("demo", "--out", tmp_path / "run", code=4)
    assert "no atoms are claimed" in result.stderr
    found = {p.name for p in (tmp_path / "run").iterdir()}
    assert "columns.csv" not in found
    assert found >= {"report.html", "result.h5", "microscope.json"}


@pytest.mark.parametrize(("error", "code"), [(InputError("x.tif: no crystal in it; give another"), 3)])
def test_a_failed_fit_leaves_nothing(fit, tmp_path, error, code):
    fit(error)
    result = run("demo", "--out", tmp_path / "run", code=code)
    assert f"error: {error}" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (Interrupted("stopped"), 75)])
def test_an_interrupted_fit_keeps_what_it_takes_to_go_on(fit, tmp_path, error, code):
    fit(error)
    folder = tmp_path / "run"
    run("demo", "--out", folder, code=code)
    assert sorted(p.name for p in folder.iterdir()) == ["journal.jsonl", "plan.toml", "unfinished"]
    assert len(steps_of(folder)) == 3
    assert "qhrtem resume" in refusal("report", folder, code=2)
    assert "qhrtem resume" in refusal("demo", "--out", folder, code=2)
    fit(make_twin(2, 3))
    run("resume", folder)
    assert not (folder / "unfinished").exists()
    assert (folder / "columns.csv").is_file()
    again = run("resume", folder)
    assert "finished" in again.stderr and "χ² crystal" in again.stdout


def test_a_run_of_another_plan_is_not_resumed_but_forked(fit, tmp_path):
    fit(Interrupted("stopped"))
    run("demo", "--out", tmp_path / "run", code=75)
    plan = tmp_path / "run" / "plan.toml"
    plan.write_text(plan.read_text().replace("c3_um = -15.0", "c3_um = -14.0"))
    stand_in = fit(make_twin(2, 3))
    message = refusal("resume", tmp_path / "run", code=2)
    assert "[microscope] c3_um: -15.0 → -14.0" in message and "--fork" in message
    assert stand_in.plan is None
    child = run("resume", tmp_path / "run", "--fork", tmp_path / "child")
    assert "c3_um" in child.stderr
    assert stand_in.plan.microscope.c3_um == -14.0
    assert (tmp_path / "child" / "columns.csv").is_file()
    assert (tmp_path / "run" / "unfinished").is_dir()


def test_only_a_run_can_be_resumed(tmp_path):
    assert "not a run folder" in refusal("resume", tmp_path, code=2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_end_the_process_with_their_codes(tmp_path, number, code):
    program = f"""
import os, signal, sys
from types import ModuleType
module = ModuleType("qhrtem.stages.pipeline")
def fit_image(plan, raw, crystal, progress, memory, executor):
    os.kill(os.getpid(), {int(number)})
    while True:
        pass
module.fit_image = fit_image
sys.modules["qhrtem.stages.pipeline"] = module
sys.argv = ["qhrtem", "demo", "--out", {str(tmp_path / "run")!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)
from qhrtem.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: stopped")


def steps_of(folder):
    return [r for r in read_journal(folder / "journal.jsonl") if r["event"] == "step"]


def test_a_fit_says_what_it_needs_and_is_refused_where_the_machine_lacks_it(fit, tmp_path, monkeypatch):
    stand_in = fit(make_twin(2, 3))
    assert re.search(
        r"needs at most 4\d\d columns .* GB of memory and about", run("demo", "--out", tmp_path / "a").stdout
    )
    stand_in.plan = None
    monkeypatch.setattr("qhrtem.machine.free_memory", lambda: 10**9)
    message = refusal("demo", "--out", tmp_path / "b", code=5)
    assert "needs more memory than there is" in message and "1 GB are free" in message
    assert stand_in.plan is None
    assert not (tmp_path / "b").exists()


def write_plan(folder, old, new):
    for file in (IMAGE, CIF):
        shutil.copy(file, folder)
    text = DEMO_PLAN.read_text()
    assert old in text
    (folder / "plan.toml").write_text(text.replace(old, new))
    return folder / "plan.toml"


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("c3_um", "c3", 2, "did you mean 'c3_um'"),
        ("semi_convergence_mrad = 0.3", "semi_convergence_mrad = 0.0003", 2, "was it given in rad?"),
        ('"bto_edge_small.tif"', '"gone.tif"', 3, "gone.tif: the image file does not exist"),
        ('"bto_edge_small.tif"', '"BaTiO3.cif"', 3, "unknown image format"),
        ('"BaTiO3.cif"', '"gone.cif"', 3, "gone.cif"),
        ('"BaTiO3.cif"', '"bto_edge_small.tif"', 3, "bto_edge_small.tif"),
    ],
)
def test_bad_plan_or_input_is_one_line_and_no_folder(tmp_path, old, new, code, words):
    plan = write_plan(tmp_path, old, new)
    assert words in refusal("fit", plan, "--out", tmp_path / "run", code=code)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([IMAGE], "give also --structure X.cif and --zone 1,1,0 and --high-tension 300"),
        ([IMAGE, *GIVEN[:4]], "give also --high-tension 300"),
        ([IMAGE, "--zone", "[110]"], "three integers"),
        ([IMAGE, *GIVEN, "--pixel-size", "11.2"], "was it given in pm?"),
        (["none.toml"], "none.toml: the plan cannot be read"),
    ],
)
def test_wrong_use_ends_with_code_2(tmp_path, words, expected):
    assert expected in refusal("fit", *words, "--out", tmp_path / "run", code=2)


def test_usage_errors_end_with_code_2(tmp_path):
    run("fit", code=2)
    run("fit", DEMO_PLAN, "--out", tmp_path, "--no-such-option", code=2)


def test_markup_in_a_file_name_is_printed_as_it_is(tmp_path):
    assert "[red]a[/b].tif" in refusal("inspect", tmp_path / "[red]a[" / "b].tif", code=3)


def test_report_is_written_anew_from_the_result(fit, tmp_path):
    fit(make_twin(2, 3))
    run("demo", "--out", tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    run("report", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text() == "passed True drawn"
    assert (tmp_path / "run" / "figures" / "match.png").is_file()
    assert "not a run folder" in refusal("report", tmp_path, code=2)


def test_inspect_shows_size_counts_and_pixel_size(tmp_path):
    counts = np.random.default_rng(0).poisson(100.0, (40, 60)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", counts)
    text = run("inspect", tmp_path / "a.tif").stdout
    assert "40 rows × 60 columns" in text
    assert "not stated" in text
    assert f"{counts.max():.6g}" in text
    formats = Path(__file__).parent / "data" / "formats"
    assert (
        "2 Å (row), 10 Å (col)"
        in run("inspect", formats / "dmTest_float32_nonSquare_diffPixelSize.dm3").stdout
    )


def test_inspect_refuses_what_holds_no_image(tmp_path):
    np.save(tmp_path / "flat.npy", np.ones((8, 8)))
    assert "constant" in refusal("inspect", tmp_path / "flat.npy", code=3)


def test_progress_without_a_terminal_prints_each_stage_once(fit, tmp_path):
    fit(make_twin(2, 3))
    text = run("demo", "--out", tmp_path / "run").stdout
    assert len(re.findall(r"imaging", text)) == 1


def test_inspect_registers_the_lattice_when_the_crystal_is_known():
    text = run("inspect", IMAGE, *GIVEN, "--pixel-size", "0.112").stdout
    size = re.search(r"pixel size +(0\.\d+) ± \S+ Å \(stated 0\.11200 Å\)", text)
    assert float(size[1]) == pytest.approx(0.112, rel=0.001)
    assert "Ready to fit" in text


def test_help_comes_at_once_and_names_every_command():
    done = subprocess.run(
        [sys.executable, "-m", "qhrtem", "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert all(
        command in done.stdout
        for command in ("fit", "demo", "resume", "inspect", "simulate", "report", "doctor")
    )


PHANTOM = f"""
[image]
path = "unused.tif"
pixel_size_A = 0.15
[microscope]
high_tension_kV = 300.0
[structure]
path = '{CIF}'
zone_axis = [1, 1, 0]
[simulate]
field_nm = [2.4, 1.6]
thickness_nm = 1.2
"""


def phantom_plan(folder, old="", new=""):
    assert old in PHANTOM
    (folder / "plan.toml").write_text(PHANTOM.replace(old, new) if old else PHANTOM, "utf-8")
    return folder / "plan.toml"


def test_simulate_leaves_an_image_that_can_be_inspected(tmp_path):
    plan = phantom_plan(tmp_path)
    text = run("simulate", plan, "--out", tmp_path / "a.tif", "--dose", "1e5", "--seed", "3").stdout
    assert "107 × 160 pixels of 0.15 Å" in text
    assert {p.name for p in tmp_path.iterdir()} == {"plan.toml", "a.tif", "a.json", "a.columns.csv"}
    facts = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert facts["parameters"]["dose_e_per_A2"] == {"value": 1e5, "source": "command line"}
    assert facts["parameters"]["seed"] == {"value": 3, "source": "command line"}
    assert facts["parameters"]["thickness_nm"] == {"value": 1.2, "source": "plan"}
    seen = run("inspect", tmp_path / "a.tif").stdout
    assert "107 rows × 160 columns" in seen
    assert "0.15 Å" in seen


def test_a_phantom_is_read_by_a_fit_of_the_same_plan(fit, tmp_path):
    plan = phantom_plan(tmp_path, "unused.tif", "phantom.tif")
    run("simulate", plan, "--out", tmp_path / "phantom.tif")
    seen = []

    def fit_image(plan, raw, crystal, progress, memory, executor):
        seen.append((raw.counts.shape, raw.pixel_size_A, plan.simulate.thickness_nm))
        return make_twin(2, 3)

    fit(None)
    sys.modules["qhrtem.stages.pipeline"].fit_image = fit_image
    run("fit", plan, "--out", tmp_path / "run")
    assert seen == [((107, 160), pytest.approx((0.15, 0.15)), 1.2)]


def test_simulate_is_the_same_for_the_same_seed_and_never_overwrites(tmp_path):
    plan = phantom_plan(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("simulate", plan, "--out", tmp_path / f"{name}.tif", "--seed", seed)
    counts = [tifffile.imread(tmp_path / f"{n}.tif") for n in "abc"]
    assert np.array_equal(counts[0], counts[1])
    assert not np.array_equal(counts[0], counts[2])
    assert "--force" in refusal("simulate", plan, "--out", tmp_path / "a.tif", code=2)
    run("simulate", plan, "--out", tmp_path / "a.tif", "--seed", 2, "--force")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif"), counts[2])


@pytest.mark.parametrize(
    ("old", "new", "words", "code", "expected"),
    [
        ("thickness_nm = 1.2", "thickness_nm = 0.001", [], 2, "was it given in µm?"),
        ("thickness_nm", "thickness_A", [], 2, "did you mean 'thickness_nm'"),
        (str(CIF), "/gone.cif", [], 3, "gone.cif"),
        ("", "", ["--engine", "jems"], 2, "must be 'qhrtem', 'abtem' or 'drprobe'"),
        ("", "", ["--engine", "drprobe"], 5, "needs Dr. Probe's command line tools"),
        ("", "", ["--mode", "linear"], 2, "must be 'focal' or 'full'"),
        ("[1, 1, 0]", "[0, 0, 0]", [], 2, "must be a direction"),
    ],
)
def test_simulate_refuses_in_one_line_and_writes_nothing(
    tmp_path, monkeypatch, old, new, words, code, expected
):
    monkeypatch.setenv("QHRTEM_DRPROBE", str(tmp_path))
    plan = phantom_plan(tmp_path, old, new)
    assert expected in refusal("simulate", plan, "--out", tmp_path / "a.tif", *words, code=code)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.toml"]


def test_simulate_refuses_what_is_neither_plan_nor_run(tmp_path):
    out = tmp_path / "a.tif"
    assert "not a run folder" in refusal("simulate", tmp_path, "--out", out, code=2)
    assert "PLAN.toml, or the folder" in refusal("simulate", IMAGE, "--out", out, code=2)
    assert "cannot be read" in refusal("simulate", tmp_path / "no.toml", "--out", out, code=2)
    assert "must be a TIFF" in refusal("simulate", DEMO_PLAN, "--out", tmp_path / "a.png", code=2)


def test_simulate_a_run_anew(fit, tmp_path):
    fit(make_twin(2, 3))
    run("demo", "--out", tmp_path / "run")
    text = run("simulate", tmp_path / "run", "--out", tmp_path / "a.tif", "--phonons", "0").stdout
    assert "from the run's image" in text
    assert "% of vacuum" in text
    facts = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert set(facts["rms_over_crystal_in_units_of_vacuum"]) >= {"from the run's image"}
    assert tifffile.imread(tmp_path / "a.tif").dtype == np.float32
