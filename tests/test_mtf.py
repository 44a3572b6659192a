"""MTF files: every kind gives the same curve, and what is none is explained."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from qhrtem.errors import PlanError
from qhrtem.grid import Grid
from qhrtem.mtf import pixel_transfer, read_mtf
from qhrtem.physics.detector import apply, mtf_from_samples, pixel_sinc
from qhrtem.plan import dump_plan, load_plan, plan_from_tables

Q = np.linspace(0, 0.5, 129)
SCINTILLATOR = 0.65 / (1 + (Q / 0.28) ** 2) + 0.35


def dm3(values, unit: str, step: float, path: Path, offset: float = 0.0) -> Path:
    """Write a one-dimensional image as DigitalMicrograph 3 lays it out."""

    def name(kind: int, text: str) -> bytes:
        return struct.pack(">bH", kind, len(text)) + text.encode()

    def number(text: str, code: int, fmt: str, value: float) -> bytes:
        return name(21, text) + b"%%%%" + struct.pack(">ii", 1, code) + struct.pack("<" + fmt, value)

    def array(text: str, code: int, data: np.ndarray) -> bytes:
        return name(21, text) + b"%%%%" + struct.pack(">iiii", 3, 20, code, len(data)) + data.tobytes()

    def group(text: str, *tags: bytes) -> bytes:
        return name(20, text) + struct.pack(">bbi", 1, 0, len(tags)) + b"".join(tags)

    axis = group(
        "",
        number("Origin", 6, "f", -offset / step),
        number("Scale", 6, "f", step),
        array("Units", 4, np.frombuffer(unit.encode("utf-16-le"), "<u2")),
    )
    bright = group(
        "Brightness",
        number("Origin", 6, "f", 0.0),
        number("Scale", 6, "f", 1.0),
        array("Units", 4, np.array([], "<u2")),
    )
    image = group(
        "",
        group(
            "ImageData",
            group("Calibrations", bright, group("Dimension", axis)),
            array("Data", 6, np.asarray(values, "<f4")),
            number("DataType", 5, "I", 2),
            group("Dimensions", number("", 5, "I", len(values))),
            number("PixelDepth", 5, "I", 4),
        ),
        array("Name", 4, np.frombuffer("MTF".encode("utf-16-le"), "<u2")),
        group("ImageTags"),
    )
    tags = [group("ImageList", image)]
    body = struct.pack(">bbi", 1, 0, len(tags)) + b"".join(tags) + bytes(8)
    path.write_bytes(struct.pack(">iii", 3, len(body) - 4, 1) + body)
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def columns(scale: float = 1.0) -> str:
    return "\n".join(f"{q * scale:.6f} {v:.7f}" for q, v in zip(Q, SCINTILLATOR, strict=True))


@pytest.mark.parametrize("kind", ["columns", "commas", "star", "per pixel", "Nyquist"])
def test_every_kind_of_file_gives_the_curve(tmp_path: Path, kind: str) -> None:
    if kind == "columns":
        path = text(tmp_path / "a.txt", "# q (cycles/pixel)  MTF\n" + columns())
    elif kind == "commas":
        path = text(tmp_path / "a.csv", columns().replace(" ", ","))
    elif kind == "star":
        head = "data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n"
        path = text(tmp_path / "k3.star", head + columns() + "\n\n")
    elif kind == "per pixel":
        path = dm3(SCINTILLATOR, "1/pixel", 0.5 / 128, tmp_path / "mtf.dm3")
    else:
        path = dm3(SCINTILLATOR, "Nyquist", 1 / 128, tmp_path / "mtf.dm3")
    q, value = read_mtf(path)
    assert q[0] == 0 and np.allclose(q, Q, atol=1e-6)
    assert np.allclose(value, SCINTILLATOR, atol=1e-6)


def test_the_pixel_comes_to_the_values_of_dr_probe(tmp_path: Path) -> None:
    """wavimg multiplies by both sincs of the pixel; the curve read has their mean over directions inside."""
    values = "\n".join(f"{v:.9f}" for v in SCINTILLATOR)
    q, value = (torch.tensor(v) for v in read_mtf(text(tmp_path / "a.mtf", f"129\n{values}\n")))
    grid = Grid((96, 128), (0.1, 0.1))
    exact = mtf_from_samples(grid, torch.tensor(Q), torch.tensor(SCINTILLATOR)) * pixel_sinc(grid)
    mine = mtf_from_samples(grid, q, value)
    radius = torch.hypot(torch.fft.fftfreq(96)[:, None], torch.fft.rfftfreq(128)[None])
    away = (mine / exact - 1).abs()
    assert away[radius < 0.3].max() < 1.3e-3 and away[radius < 0.5].max() < 0.012
    # An image that holds what a micrograph does, nothing beyond 0.3 cycles/pixel.
    spots = torch.randn(96, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    image = apply(spots, (radius < 0.3).double())
    assert (apply(image, mine) - apply(image, exact)).std() < 4e-4 * image.std()


def test_values_beyond_nyquist_are_kept_as_far_as_an_image_goes(tmp_path: Path) -> None:
    long = np.linspace(0, 1, 257)
    values = "\n".join(f"{np.exp(-4 * q):.9f}" for q in long)
    q, value = read_mtf(text(tmp_path / "a.mtf", f"129\n{values}\n"))
    assert q[-1] == pytest.approx(0.75) and q[128] == pytest.approx(0.5)
    assert value[128] == pytest.approx(np.exp(-2) * pixel_transfer(np.array([0.5]))[0], abs=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("129.5\n1\n0.5\n", "must begin with the number of values"),
        ("1\n0.9\n0.5\n", "must begin with the number of values"),
        ("200\n1\n0.5\n", "promises 200 values.*holds 2"),
        ("3\n1\nnan\n0.2\n", "finite"),
        (columns(2.0), "share of Nyquist must be halved"),
        (columns(20.0), "multiplied by the pixel size"),
        ("0 1 2\n0.5 1 2\n", "two columns"),
        ("0 100\n0.5 30\n", "per cent"),
    ],
)
def test_what_is_no_curve_is_explained(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(PlanError, match=f"^{tmp_path / 'x.mtf'}: .*{words}") as caught:
        read_mtf(text(tmp_path / "x.mtf", content))
    assert "\n" not in str(caught.value)


def test_profiles_must_say_their_unit_and_be_whole(tmp_path: Path) -> None:
    for unit, said in (("1/nm", "got '1/nm'"), ("", "it has none")):
        with pytest.raises(PlanError, match=f"1/pixel or Nyquist, {said}"):
            read_mtf(dm3(SCINTILLATOR, unit, 0.5 / 128, tmp_path / "mtf.dm3"))
    whole = dm3(SCINTILLATOR, "1/px", 0.5 / 128, tmp_path / "mtf.dm3").read_bytes()
    (tmp_path / "cut.dm3").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PlanError, match="cut.dm3: cannot be read as a profile"):
        read_mtf(tmp_path / "cut.dm3")
    with pytest.raises(PlanError, match="does not exist"):
        read_mtf(tmp_path / "none.dm3")
    (tmp_path / "binary.mtf").write_bytes(bytes(range(256)))
    with pytest.raises(PlanError, match="is no text"):
        read_mtf(tmp_path / "binary.mtf")


def test_an_image_is_no_profile() -> None:
    image = Path(__file__).parent / "data" / "formats"
    for path in sorted(image.glob("*.dm3")):
        with pytest.raises(PlanError, match="no line profile|cannot be read"):
            read_mtf(path)


def test_a_plan_with_such_a_file_comes_back(tmp_path: Path) -> None:
    path = dm3(SCINTILLATOR, "1/pixel", 0.5 / 128, tmp_path / "mtf.dm3")
    plan = plan_from_tables(
        {
            "image": {"path": "image.tif", "mtf": str(path)},
            "microscope": {"high_tension_kV": 300.0},
            "structure": {"path": "crystal.cif", "zone_axis": [1, 1, 0]},
        }
    )
    (tmp_path / "plan.toml").write_text(dump_plan(plan), encoding="utf-8")
    assert load_plan(tmp_path / "plan.toml") == plan
