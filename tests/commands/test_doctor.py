"""The doctor: sound things pass, unsound ones end with their exit code, and a poor fit is found out."""

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

from qhrtem.cli import app
from qhrtem.commands import doctor
from qhrtem.commands.doctor import Finding, Judged, examine, judge, show, validate
from qhrtem.errors import QualityError, ResourceError
from twins import make_twin


def test_a_sound_installation_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    for name in ("qhrtem", "libraries", "memory", "threads", "precision cpu", "CUDA", "writing"):
        assert f"{name}:" in result.stdout or "cuda:0" in result.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_not_sound_ends_with_5_and_a_remedy(capsys):
    with pytest.raises(ResourceError, match=r"memory: 1 GB free; end other programs"):
        show(iter([Finding("a", "fine"), Finding("memory", "1 GB free", False, "end other programs")]))
    assert "bad" in capsys.readouterr().out


def test_an_old_library_a_lost_file_and_a_wrong_transform_are_noticed(monkeypatch):
    import torch

    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1")
    monkeypatch.setattr(torch.fft, "ifft2", lambda x: torch.zeros_like(x))
    monkeypatch.setattr(doctor, "DATA", doctor.DATA / "nowhere")
    found = {f.name: f for f in examine()}
    assert "torch must be at least" in found["libraries"].text and not found["libraries"].sound
    assert not found["precision cpu"].sound
    assert not found["data"].sound


SHAPE = (1000, 1000)


def table():
    twin = make_twin(3, 3)
    return dataclasses.replace(twin.columns, inside=np.ones(len(twin.columns.kind), dtype=bool))


def test_the_truth_judges_itself_perfect():
    judged = judge(table(), table(), 0.112, SHAPE)
    assert judged == Judged(1.0, 0, 1.0, 0.0) and not judged.wrong()


def test_each_kind_of_error_is_counted():
    truth = table()
    n = len(truth.kind)
    together = dataclasses.replace(truth, position_px=truth.position_px + 0.1 / 0.112)
    assert judge(together, truth, 0.112, SHAPE).rms_pm == pytest.approx(0.0, abs=1e-9)
    sign = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None] * np.ones(2)
    apart = dataclasses.replace(truth, position_px=truth.position_px + sign * 0.1 / 0.112)
    assert judge(apart, truth, 0.112, SHAPE).rms_pm == pytest.approx(10.0, rel=0.01)
    counts = truth.counts.copy()
    counts[0] += 1
    counts[1] += 2
    assert judge(dataclasses.replace(truth, counts=counts), truth, 0.112, SHAPE).within_one == pytest.approx(
        1 - 1 / n
    )
    position = truth.position_px.copy()
    position[0] -= 1000
    lost = judge(dataclasses.replace(truth, position_px=position), truth, 0.112, SHAPE)
    assert lost.found == pytest.approx(1 - 1 / n) and lost.invented == 1
    wrong = Judged(0.9, 1, 0.5, 9.0).wrong()
    assert len(wrong) == 3


@pytest.mark.parametrize("off", [0.0, 0.9])
def test_validation_judges_the_fit_of_a_phantom(off):
    """The stand-in for the fit reads the true columns that lie beside the phantom."""
    import csv

    def fit(plan, out):
        twin = make_twin(1, 1)
        with plan.image.path.with_suffix(".columns.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        elements = ("Sr", "Ti", "O")
        columns = dataclasses.replace(
            twin.columns,
            kind=tuple(r["kind"] for r in rows),
            elements=elements,
            counts=np.array([[int(r[f"n_{e}"]) for e in elements] for r in rows]),
            position_px=np.array(
                [[float(r["row"]) + off * (-1) ** n, float(r["col"])] for n, r in enumerate(rows)]
            ),
            inside=np.array([bool(int(r["inside"])) for r in rows]),
        )
        return dataclasses.replace(twin, columns=columns)

    if off:
        with pytest.raises(QualityError, match="positions wrong by"):
            validate(fit)
    else:
        validate(fit)
