"""The run folder: never overwritten unasked, never half written."""

import pytest

from qhrtem.errors import PlanError, ResourceError
from qhrtem.run.folder import RESULTS, RunFolder, check_free, create_run, find_run, open_run
from qhrtem.run.journal import Journal


def names(path):
    return sorted(p.name for p in path.iterdir())


def finished(path, mark="old"):
    """Make a folder that looks like a finished run."""
    folder = create_run(path)
    folder.write_plan(f"# {mark}\n")
    folder.journal.write_text("")
    with folder.publishing() as staging:
        (staging / "columns.csv").write_text(mark)
        (staging / "figures").mkdir()
        (staging / "figures" / "match.png").write_text(mark)
    folder.close()
    return folder


def test_publishing_moves_everything_and_leaves_no_staging(tmp_path):
    folder = finished(tmp_path / "deep" / "run")
    assert names(folder.path) == ["columns.csv", "figures", "journal.jsonl", "plan.toml"]
    assert (folder.path / "figures" / "match.png").read_text() == "old"


def test_failure_while_publishing_leaves_the_run_as_it_was(tmp_path):
    folder = finished(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), folder.publishing() as staging:
        (staging / "columns.csv").write_text("half")
        raise ZeroDivisionError
    assert (folder.path / "columns.csv").read_text() == "old"
    assert names(folder.path) == ["columns.csv", "figures", "journal.jsonl", "plan.toml"]


def test_publishing_again_never_mixes_two_fits(tmp_path):
    folder = finished(tmp_path / "run")
    with folder.publishing() as staging:
        (staging / "result.h5").write_text("new")
    assert names(folder.path) == ["journal.jsonl", "plan.toml", "result.h5"]


def test_earlier_run_is_kept_unless_forced(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(PlanError, match="already holds a run.*--force"):
        create_run(tmp_path / "run")
    assert (tmp_path / "run" / "columns.csv").read_text() == "old"
    assert names(create_run(tmp_path / "run", force=True).path) == ["unfinished"]


def test_force_removes_only_what_a_run_writes(tmp_path):
    finished(tmp_path / "run")
    (tmp_path / "run" / "my notes.txt").write_text("keep")
    create_run(tmp_path / "run", force=True)
    assert names(tmp_path / "run") == ["my notes.txt", "unfinished"]


def test_folder_of_someone_else_is_refused_even_when_forced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(PlanError, match="other files"):
            create_run(tmp_path, force)
    assert names(tmp_path) == ["thesis.tex"]


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(PlanError, match="it is a file"):
        check_free(tmp_path / "run", force=True)
    with pytest.raises(ResourceError, match="part of the path is a file"):
        create_run(tmp_path / "run" / "deeper")


def test_folder_that_is_empty_but_for_a_torn_file_may_be_used(tmp_path):
    (tmp_path / ".plan.toml.123.tmp").write_text("[ima")
    assert create_run(tmp_path).path == tmp_path


def test_discard_removes_the_run_and_spares_the_rest(tmp_path):
    folder = finished(tmp_path / "run")
    folder.discard()
    assert not folder.path.exists()
    folder = finished(tmp_path / "run")
    (folder.path / "notes.txt").write_text("keep")
    folder.discard()
    assert names(folder.path) == ["notes.txt"]


def test_only_a_run_can_be_opened(tmp_path):
    with pytest.raises(PlanError, match="not a run folder"):
        open_run(tmp_path)
    assert open_run(finished(tmp_path / "run").path).path == tmp_path / "run"


def test_a_run_that_goes_on_is_no_finished_one(tmp_path):
    folder = create_run(tmp_path / "run")
    folder.write_plan("# plan")
    assert not find_run(folder.path).finished
    with pytest.raises(PlanError, match="qhrtem resume"):
        open_run(folder.path)
    with pytest.raises(PlanError, match="unfinished run.*qhrtem resume"):
        check_free(folder.path)
    check_free(folder.path, force=True)
    folder.close()
    assert open_run(folder.path).finished and names(folder.path) == ["plan.toml"]


def test_a_run_in_use_is_not_replaced_even_when_forced(tmp_path):
    folder = create_run(tmp_path / "run")
    folder.write_plan("# plan")
    with Journal(folder.journal):
        for force in (False, True):
            with pytest.raises(PlanError, match="in use by"):
                create_run(folder.path, force)
    create_run(folder.path, force=True)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_removal_cut_short_never_looks_like_a_run(tmp_path, monkeypatch, left):
    folder = finished(tmp_path / "run")
    remove = RunFolder._remove

    def stop(self, these):
        remove(self, these[:left])
        raise ZeroDivisionError

    monkeypatch.setattr(RunFolder, "_remove", stop)
    with pytest.raises(ZeroDivisionError):
        create_run(folder.path, force=True)
    monkeypatch.undo()
    assert not RunFolder(folder.path).finished
    if left:
        create_run(folder.path)  # nothing is left that --force would have to protect


def test_results_are_those_of_the_contract():
    contract = {
        "columns.csv",
        "structure.cif",
        "structure.extxyz",
        "microscope.json",
        "result.h5",
        "report.html",
    }
    assert contract | {"figures"} <= set(RESULTS)
