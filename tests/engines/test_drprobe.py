"""Dr. Probe's files in their documented format; its tools replaced by programs that check their input."""

import re
import stat
import sys
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest
import torch

import drprobe
from jobs import EVERY, NCSI, cell_job
from qhrtem.engines.drprobe import DrProbe, thermal_options
from qhrtem.engines.drprobe_files import MsaParameters, WavimgParameters, cel_text
from qhrtem.engines.protocol import simulate
from qhrtem.errors import PlanError, ResourceError
from qhrtem.physics.lens import Aperture, Lens
from qhrtem.physics.potential import Thermal
from qhrtem.specimen.supercell import Slicing

# Stand-ins: each checks that its input exists and is complete, then writes what the real one would.
CELSLC = """
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    lines = open(given["-cel"]).read().splitlines()
    assert lines[0].startswith("#") and lines[-1] == "*"
    assert len(lines[1].split()) == 7 and all(len(l.split()) == 9 for l in lines[2:-1])
    for n in range(int(given["-nz"])):
        open(f"{given['-slc']}_{n + 1:03d}.sli", "wb").write(b"slice")
    open("size.txt", "w").write(given["-nx"] + " " + given["-ny"])
"""
MSA = """
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    assert "/ctem" in sys.argv
    lines = open(given["-prm"]).read().splitlines()
    assert lines[0] == "'[Microscope Parameters]'" and lines[11] == "'[Multislice Parameters]'"
    name, slices, total = (lines[i].split("!")[0].strip() for i in (26, 27, 31))
    order = [int(l) for l in lines[32:32 + int(total)]]
    assert sorted(set(order)) == list(range(int(slices)))
    for n in range(int(slices)):
        open(f"{name[1:-1]}_{n + 1:03d}.sli", "rb").close()
    nx, ny = map(int, open("size.txt").read().split())
    wave = np.exp(1j * np.arange(nx * ny).reshape(ny, nx) / (nx * ny)).astype(np.complex64)
    wave.tofile(given["-out"].replace(".wav", f"_sl{int(total):03d}.wav"))
"""
WAVIMG = """
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    lines = [l.split("!")[0].strip() for l in open(given["-prm"]).read().splitlines()]
    nx, ny = map(int, lines[1].split(","))
    wave = np.fromfile(lines[0][1:-1], np.complex64).reshape(ny, nx)
    (np.abs(wave) ** 2 + np.arange(nx) * 1e-3).astype(np.float32).tofile(lines[5][1:-1])
"""


def program(folder, name, body):
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys\nimport numpy as np\n{dedent(body)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, body in (("celslc", CELSLC), ("msa", MSA), ("wavimg", WAVIMG)):
        program(folder, name, body)
    return folder


def values(text):
    return [line.split("!")[0].strip() for line in text.splitlines()]


def test_whole_chain_keeps_rows_and_columns(tools):
    job = cell_job(thermal=Thermal())
    engine = DrProbe(tools)
    assert engine.available() is None
    wave = engine.exit_wave(job)
    assert wave.shape == job.grid.shape == (60, 80)
    assert wave.dtype == job.grid.complex_dtype
    assert float(wave[0, 1].angle() - wave[0, 0].angle()) == pytest.approx(1 / 4800, abs=1e-6)
    image = simulate(engine, job)
    assert image.dtype == job.grid.dtype
    assert np.allclose(image[7].numpy(), 1 + 1e-3 * np.arange(80), atol=1e-5)


def test_cel_holds_every_atom_in_the_middle_of_its_slice():
    job = cell_job()
    lines = cel_text(job.cell, job.slicing, 2.0).splitlines()
    edges = [float(v) for v in lines[1].split()]
    assert edges[:4] == pytest.approx([0, 0.564836897, 0.4036, 0.564836897])
    rows = [line.split() for line in lines[2:-1]]
    assert [r[0] for r in rows] == [e for e, *_ in drprobe.ATOMS]
    got = np.array([[float(v) for v in r[1:6]] for r in rows])
    want = [[x, y, (j + 0.5) / 4, 1.0] for _, x, y, j in drprobe.ATOMS]
    assert np.allclose(got[:, :4], want, atol=1e-8)
    assert got[0, 4] == pytest.approx(2 * 0.5 * 0.01)


def test_cel_wraps_displaced_atoms_into_the_cell():
    job = cell_job()
    moved = replace(job.cell, position=job.cell.position - [0.1, 0.1, 0])
    x = [float(line.split()[1]) for line in cel_text(moved, job.slicing).splitlines()[2:-1]]
    assert all(0 <= v < 1 for v in x)


def test_msa_parameters_repeat_the_slices_and_tilt_in_degrees():
    lines = values(MsaParameters(300.0, "dir/slice", 2, [0, 1, 0, 1], (0.4, -0.25)).text())
    tag = lines.index("'[Multislice Parameters]'")
    assert [float(v) for v in lines[tag + 1 : tag + 3]] == [0.4, -0.25]
    assert lines[tag + 15] == "'dir/slice'"
    assert lines[tag + 16 :] == ["2", "1", "1", "0", "4", "0", "1", "0", "1"]
    assert float(lines[5]) == 300.0


def test_wavimg_parameters_are_on_the_documented_lines():
    lens = Lens(drprobe.ENERGY, {"C1": 58.0, "C3": -1.27e5}, 30.0, 2e-4, Aperture(0.025, 0.1, (1e-3, 2e-3)))
    text = WavimgParameters("a.wav", "b.dat", (60, 80), (0.006, 0.007), lens, 2, (0.02, 0.03, 20.0)).text()
    lines = values(text)
    assert (lines[0], lines[1], lines[5], lines[6]) == ("'a.wav'", "80, 60", "'b.dat'", "80, 60")
    assert [float(v) for v in lines[2].split(",")] == pytest.approx([0.007, 0.006])
    assert float(lines[3]) == 300
    assert lines[12] == "2"
    # Dr. Probe's focal spread is √2 times the standard deviation, in nm.
    assert [float(v) for v in lines[13].split(",")] == pytest.approx([1, 3 * np.sqrt(2)])
    assert [float(v) for v in lines[14].split(",")] == pytest.approx([1, 0.2])
    assert [float(v) for v in lines[16].split(",")] == pytest.approx([2, 0.02, 0.03, 20])
    assert lines[17] == "2"
    assert [float(v) for v in lines[18].split(",")] == pytest.approx([1, 5.8, 0])
    assert [float(v) for v in lines[19].split(",")] == pytest.approx([5, -12700, 0])
    assert [float(v) for v in lines[20].split(",")] == pytest.approx([25, 0.1])
    assert [float(v) for v in lines[21].split(",")] == pytest.approx([1, 2])
    assert lines[22] == "0"


def test_a_coherent_lens_switches_both_spreads_off():
    lines = values(WavimgParameters("a", "b", (64, 64), (0.01, 0.01), Lens(drprobe.ENERGY)).text())
    assert [lines[i].split(",")[0] for i in (13, 14, 15, 16)] == ["0"] * 4
    assert lines[17] == "0"
    assert float(lines[18].split(",")[0]) > 1000


def test_aberrations_round_trip_through_the_reading_of_reference_data():
    text = WavimgParameters("a", "b", (64, 64), (0.01, 0.01), Lens(drprobe.ENERGY, EVERY)).text()
    rows = [line.split(",") for line in values(text)[18 : 18 + len(EVERY)]]
    found = {int(i): complex(float(x), float(y)) for i, x, y in rows}
    # The polynomial that the documentation gives, against ours.
    orders = {1: (2, 0), 2: (2, 2), 3: (3, 1), 4: (3, 3), 5: (4, 0), 6: (4, 2), 7: (4, 4), 8: (5, 1)}
    orders |= {9: (5, 3), 10: (5, 5), 11: (6, 0), 12: (6, 2), 13: (6, 4), 14: (6, 6)}
    w = 0.02 * np.exp(1j * np.linspace(0, 6, 13))
    theirs = sum(abs(w) ** (m - n) * (np.conj(10 * found[i]) * w**n).real / m for i, (m, n) in orders.items())
    from qhrtem.physics.aberrations import chi_at
    from qhrtem.physics.electron import wavelength

    lam = wavelength(drprobe.ENERGY)
    k = [torch.as_tensor(part / lam) for part in (w.real, w.imag)]
    ours = chi_at(k[0], k[1], drprobe.ENERGY, EVERY).numpy() * lam / (2 * np.pi)
    assert theirs == pytest.approx(ours, rel=1e-8)


@pytest.mark.parametrize(
    ("thermal", "options"),
    [
        (Thermal(rigid=True), ()),
        (Thermal(), ("-dwf", "-abs")),
        (Thermal(absorption_scale=0.0), ("-dwf",)),
        (Thermal(absorption_scale=0.0, proportional=0.07), ("-dwf", "-abf", "0.070000")),
    ],
)
def test_thermal_models_become_options_of_celslc(thermal, options):
    assert thermal_options(thermal) == options


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"thermal": Thermal(absorption_scale=0.8)}, "frozen phonons"),
        ({"thermal": Thermal(proportional=0.05)}, "frozen phonons"),
        ({"slicing": Slicing(cell_job().slicing.index, np.array([1.0, 1.0, 1.0, 2.0]))}, "equal"),
    ],
)
def test_what_celslc_cannot_do_is_refused(change, words):
    with pytest.raises(PlanError, match=words):
        DrProbe().check(cell_job(**change))


def test_a_field_beyond_its_pixels_is_refused():
    job = cell_job()
    grid = replace(job.grid, shape=(60, 4000), pixel=(job.grid.pixel[0], job.grid.extent[1] / 4000))
    with pytest.raises(PlanError, match="2048 pixels"):
        DrProbe().check(replace(job, grid=grid))


def test_missing_tools_are_named_with_the_remedy(tools, monkeypatch):
    (tools / "msa").unlink()
    monkeypatch.setenv("QHRTEM_DRPROBE", str(tools))
    reason = DrProbe().available()
    assert re.search(r"not found in .*tools: msa; install .* QHRTEM_DRPROBE", reason)
    monkeypatch.delenv("QHRTEM_DRPROBE")
    monkeypatch.setenv("PATH", str(tools))
    assert "not found on PATH: msa" in DrProbe().available()


@pytest.mark.parametrize(
    ("tool", "body", "words"),
    [
        ("celslc", "print('atom type Xx unknown'); sys.exit(3)", "celslc ended with status 3: atom type Xx"),
        ("celslc", "pass", "celslc wrote 0 of 4 slice files"),
        ("msa", "sys.exit(1)", "msa ended with status 1$"),
        ("msa", "pass", "msa wrote 0 waves"),
        ("msa", "open('wave_sl032.wav', 'wb').write(b'short')", "need 38400 bytes, Dr. Probe wrote 5"),
        ("msa", "np.full(4800, np.nan, np.complex64).tofile('wave_sl032.wav')", "not finite"),
        ("wavimg", "pass", "image.dat was not written"),
        ("wavimg", "sys.stderr.write('Error: no wave'); sys.exit(2)", "status 2: Error: no wave"),
    ],
)
def test_a_failing_tool_is_one_clear_error(tools, tool, body, words):
    program(tools, tool, body)
    with pytest.raises(ResourceError, match=words):
        simulate(DrProbe(tools), cell_job())


def test_a_tool_that_is_no_program_is_explained(tools):
    (tools / "celslc").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(ResourceError, match="cannot be started"):
        DrProbe(tools).exit_wave(cell_job())


def test_beam_tilt_goes_to_wavimg_in_mrad(tools, tmp_path):
    record = tmp_path / "arguments.txt"
    program(tools, "wavimg", f"open({str(record)!r}, 'w').write(' '.join(sys.argv[1:]))" + dedent(WAVIMG))
    lens = replace(NCSI, beam_tilt=(1e-3, -2e-3))
    DrProbe(tools).image(torch.ones(drprobe.GRID.shape, dtype=torch.complex128), cell_job(lens=lens))
    words = record.read_text().split()
    assert float(words[words.index("-btx") + 1]) == pytest.approx(1)
    assert float(words[words.index("-bty") + 1]) == pytest.approx(-2)
