"""`qhrtem inspect`: true of known images, its plan loads, its page is safe, other kinds are refused."""

from __future__ import annotations

from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from qhrtem.calibrate.survey import survey
from qhrtem.cli import DEMO_PLAN
from qhrtem.errors import InputError, PlanError
from qhrtem.inspect import inspect_image, write_inspection
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import ImagePlan, load_plan
from qhrtem.report.inspection import account

IMAGE = DEMO_PLAN.parent / "bto_edge_small.tif"
CIF = DEMO_PLAN.parent / "BaTiO3.cif"
FORMATS = Path(__file__).parent / "data" / "formats"


@pytest.fixture(scope="module")
def known():
    """The demo image with crystal and tension, neither pixel size nor zone axis."""
    return inspect_image(IMAGE, {}, {"path": CIF}, 300.0)


def test_what_it_says_of_the_demo_image_is_true(known):
    found, said = known
    assert found.zone in ((1, 1, 0), (1, -1, 0))
    assert found.pixel_A == pytest.approx(0.112, rel=1e-3)
    assert found.dose == pytest.approx(2e4, rel=0.1)  # the offset, unknown here, is in it
    assert found.vacuum.level == pytest.approx(3110.56, rel=0.005)
    assert 0.6 < found.information_limit()[1] < 1.0
    assert said.fittable and said.refusals == ()
    assert any("offset" in c and "±" in c for c in said.cautions)
    assert any("[1 1 0] from [1 0 1]" in c for c in said.cautions)


def test_the_recommended_plan_loads_and_says_what_was_found(known, tmp_path):
    found, said = known
    write_inspection(found, said, None, tmp_path / "PLAN.toml")
    plan = load_plan(tmp_path / "PLAN.toml")
    assert plan.image.path == IMAGE.resolve()
    assert plan.image.pixel_size_A == pytest.approx(found.pixel_A, abs=1e-6)
    assert plan.image.vacuum_counts == pytest.approx(found.vacuum.level, abs=1e-3)
    assert plan.structure.zone_axis == found.zone
    assert plan.microscope.high_tension_kV == 300.0
    with pytest.raises(PlanError, match="exists already"):
        write_inspection(found, said, None, tmp_path / "PLAN.toml")


def test_what_is_missing_for_a_plan_is_named_in_it(tmp_path):
    found, said = inspect_image(FORMATS / "64x64_TEM_images_acquire.npy", {"pixel_size_A": 0.1}, {})
    assert not said.complete and not said.fittable
    for option in ("--high-tension", "--structure", "--zone"):
        assert f"required: give {option}" in said.plan
    write_inspection(found, said, None, tmp_path / "part.toml")
    with pytest.raises(PlanError, match="is required"):
        load_plan(tmp_path / "part.toml")


def test_the_page_loads_nothing_and_escapes_names(known, tmp_path):
    found, said = known
    evil = "<script>alert(1)</script>.tif"
    write_inspection(found, replace(said, title=f"/data/{evil}"), tmp_path / "page.html", None)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in unescape(text)
    assert "<script" not in text.lower()

    class Links(HTMLParser):
        seen: tuple[str, ...] = ()

        def handle_starttag(self, tag, attrs):
            self.seen += tuple(v for k, v in attrs if k in ("src", "href", "action") and v)

    parser = Links()
    parser.feed(text)
    assert parser.seen and all(link.startswith("data:image/png") for link in parser.seen)


def test_a_wrong_pixel_size_is_told_with_the_right_one():
    _, said = inspect_image(IMAGE, {"pixel_size_A": 0.056}, {"path": CIF, "zone_axis": [1, 1, 0]}, 300.0)
    assert any("0.112" in r and "binned" in r for r in said.refusals)
    _, said = inspect_image(IMAGE, {"pixel_size_A": 0.116}, {"path": CIF, "zone_axis": [1, 1, 0]}, 300.0)
    assert said.refusals == () and any("3.6 % too large" in c for c in said.cautions)


@pytest.mark.parametrize(
    ("name", "frame", "reason"),
    [
        ("test_STEM_image.dm3", None, "scanning (STEM) image"),
        ("64x64_TEM_images_acquire.emi", None, "pixels of 62.82 Å"),
        ("temp.mrc", 0, "pixels of 2 Å"),
        ("example_image.emd", None, "3 × 3 pixels"),
        ("dmTest_float32_nonSquare_diffPixelSize.dm3", None, "pixels of 4.472 Å"),
    ],
)
def test_files_of_another_kind_are_named_and_refused(name, frame, reason):
    _, said = inspect_image(FORMATS / name, {} if frame is None else {"frame": frame}, {})
    assert any(reason in r for r in said.refusals)
    assert "would be refused" in said.verdict


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_holds_no_crystal(seed, tmp_path):
    np.save(tmp_path / "noise.npy", np.random.default_rng(seed).poisson(200.0, (160, 160)).astype(float))
    found, said = inspect_image(tmp_path / "noise.npy", {"pixel_size_A": 0.1}, {"path": CIF}, 300.0)
    assert found.lattice is None and said.refusals


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        inspect_image(tmp_path / "none.tif", {}, {})


def test_the_noise_of_the_vacuum_is_shown_and_what_it_says_of_the_mtf(known, tmp_path):
    found, said = known
    rows = dict(said.image)
    assert found.noise is not None and found.noise.transfer is None
    assert (
        "white within" in rows["noise spectrum"]
        and "does not show the camera's MTF" in rows["noise spectrum"]
    )
    assert any("No MTF was given" in c and "cannot be told in one image" in c for c in said.cautions)
    write_inspection(found, said, tmp_path / "page.html", None)
    assert "the power of the noise in the vacuum" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_image_that_is_refused_for_what_it_is_is_not_asked_for_more():
    found, said = inspect_image(FORMATS / "test_STEM_image.dm3", {}, {})
    assert said.plan_title == "What is known for a plan"
    assert any("STEM" in r for r in said.refusals) and not any("vacuum" in r for r in said.refusals)
    assert found.noise is None or not said.fittable


def test_detail_near_nyquist_is_told():
    """A lattice of 2.3 pixels: its harmonics are folded back."""
    y, x = np.mgrid[:200, :200]
    wave = np.cos(2 * np.pi * (0.40 * x + 0.2 * y)) + np.cos(2 * np.pi * 0.15 * y)
    counts = np.random.default_rng(0).poisson(500 * (1 + 0.2 * wave)).astype(float)
    said = account(survey(RawImage(counts, "fine.tif"), ImagePlan(path="fine.tif")), None, None)
    assert any("Nyquist" in c and "folded back" in c for c in said.cautions)
