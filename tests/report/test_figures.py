"""Figures: labelled axes with units, honest numbers, no claim from a refused twin."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from qhrtem.model.twin import Estimate, FurtherImage, ImagingErrors, Step, Twin
from qhrtem.report.drawing import grey_range, integer_scale, nice_length, spacing_A
from qhrtem.report.evidence import (
    convergence_figure,
    power_spectrum,
    radial_mean,
    reflections,
    residual_figure,
)
from qhrtem.report.figures import (
    CLAIMING,
    EVIDENCE,
    PHYSICS,
    UNCERTAINTY,
    counts_figure,
    displacement_figure,
    figures_of,
    match_figure,
    save_figures,
    surfaces_figure,
)
from qhrtem.report.lens import lens_figure
from qhrtem.report.posterior import posterior_figure
from specimens import twin_of_crystal
from twins import make_twin, with_text

SHARING = ("match", "profiles", "posterior")  # figures whose panels share the outer axis labels
UNITS = (
    "(pm)",
    "(µC/cm²)",
    "(%)",
    "(nm)",
    "(pm²)",
    "(Å)",
    "(s)",
    "(1)",
    "(1/Å)",
    "(1/σ)",
    "(mrad)",
    "(rad)",
    "(σ of noise)",
    "= 1)",
)


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(3, 4)


@pytest.fixture(scope="module")
def figures(twin: Twin) -> dict[str, Figure]:
    known = twin_of_crystal(radius=7.0, size=110)
    return figures_of(twin) | {name: draw(known) for name, draw in (PHYSICS | UNCERTAINTY).items()}


def test_every_axis_is_labelled_with_its_unit(figures: dict[str, Figure]) -> None:
    assert set(figures) == set(CLAIMING) | set(EVIDENCE) | set(PHYSICS) | set(UNCERTAINTY)
    for name, figure in figures.items():
        drawn = [
            ax for ax in figure.axes if (ax.axison or ax.name == "3d") and ax.get_label() != "<colorbar>"
        ]
        assert drawn, name
        for ax in drawn:
            for label in (ax.get_xlabel(), ax.get_ylabel()):
                shared = not label and name in SHARING
                assert shared or any(unit in label for unit in UNITS), (name, label)
        for bar in (ax for ax in figure.axes if ax.get_label() == "<colorbar>"):
            assert bar.get_xlabel() or bar.get_ylabel(), name


def test_no_two_texts_overlap(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        figure.draw_without_rendering()
        boxes = []
        for ax in figure.axes:
            texts = [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
            boxes += [
                (t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()
            ]
        for i, (text, box) in enumerate(boxes):
            for other, rival in boxes[:i]:
                overlap = np.minimum(box.max, rival.max) - np.maximum(box.min, rival.min)
                assert (overlap < 1.5).any(), (name, text, other)


def test_measured_and_simulated_share_one_scale(twin: Twin) -> None:
    figure = match_figure(twin)
    measured, simulated, residual = (ax.images[0] for ax in figure.axes[:3])
    assert measured.get_clim() == simulated.get_clim()
    assert residual.get_clim()[0] == -residual.get_clim()[1]
    expected = (twin.match.measured - twin.match.simulated) / twin.match.sigma
    np.testing.assert_allclose(residual.get_array(), expected, rtol=1e-6)


def test_count_panels_show_the_counts(twin: Twin) -> None:
    table, figure = twin.columns, counts_figure(twin)
    for e, ax in enumerate(figure.axes[: len(table.elements)]):
        colored = [c for c in ax.collections if isinstance(c, PathCollection) and c.get_array() is not None]
        chosen = (table.counts[:, e] > 0) & table.inside
        np.testing.assert_array_equal(colored[0].get_array(), table.counts[chosen, e])
        place = table.position_px[chosen][:, ::-1] * twin.pixel_size_A
        np.testing.assert_allclose(colored[0].get_offsets(), place)


def test_arrows_point_along_the_displacement_on_the_screen(twin: Twin) -> None:
    figure = displacement_figure(twin)
    kind = np.array(twin.columns.kind)
    for ax, name in zip(figure.axes, dict.fromkeys(twin.columns.kind), strict=True):
        arrows = next(c for c in ax.collections if isinstance(c, Quiver))
        chosen = (kind == name) & twin.columns.inside
        np.testing.assert_allclose(np.c_[arrows.U, arrows.V], twin.columns.displacement_A[chosen])
        assert ax.yaxis_inverted()  # y is downward, and angles="xy" follows the axis
        assert arrows.angles == "xy"


def test_refused_twin_has_no_figure_about_the_specimen(twin: Twin, tmp_path: Path) -> None:
    for name in ("counts.png", "counts.pdf", "surfaces.png"):
        (tmp_path / name).write_bytes(b"old")
    refused = make_twin(2, 2, passed=False)
    figures = figures_of(refused)
    assert set(figures) == set(EVIDENCE)
    written = save_figures(refused, tmp_path, {"convergence": figures["convergence"]})
    assert [p.name for p in written] == ["convergence.png", "convergence.pdf"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    assert all(p.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for p in written)


def test_strange_names_and_empty_parts_do_not_break_a_figure() -> None:
    twin = make_twin(2, 2)
    strange = with_text(twin, "$\\frac{<b>\n\0 \udcff 原子 " + "long " * 30)
    bare = dataclasses.replace(
        twin,
        history=(Step("only", 0, float("nan"), 0.0), Step("only", 1, -3.0, 1.0)),
        columns=dataclasses.replace(
            twin.columns,
            displacement_A=np.full_like(twin.columns.displacement_A, np.nan),
            p_exact=np.full_like(twin.columns.p_exact, np.nan),
            inside=np.zeros_like(twin.columns.inside),
        ),
        match=dataclasses.replace(twin.match, used=np.zeros_like(twin.match.used)),
    )
    for odd, drawn in (
        (strange, (displacement_figure, convergence_figure, lens_figure)),
        (bare, (counts_figure, displacement_figure, surfaces_figure, residual_figure, convergence_figure)),
    ):
        for draw in drawn:
            draw(odd).draw_without_rendering()


def test_the_posterior_of_several_images_shows_the_first_and_others_when_asked() -> None:
    twin = twin_of_crystal()
    names = ("c1_nm", "a1_x_nm", "c1_nm of image 2", "shift_x_pm of image 2")
    errors = ImagingErrors(names, np.eye(4) + 0.3)
    second = FurtherImage("b.tif", (1.0, 2.0), (Estimate("c1_nm", "C1", 9.0, 0.1, "nm", True),), 1.0, 0.9)
    several = dataclasses.replace(twin, imaging_errors=errors, further=(second,))
    labels = [ax.get_xlabel() for ax in posterior_figure(several).axes if ax.get_xlabel()]
    assert len(labels) == 2 and not any("image 2" in text for text in labels)
    asked = posterior_figure(several, ("c1_nm", "c1_nm of image 2"))
    assert "of image\n2 (nm)" in [ax.get_xlabel() for ax in asked.axes if ax.get_xlabel()][-1]


def test_convergence_keeps_negative_objectives(twin: Twin) -> None:
    history = tuple(Step("joint", k, -5.0 - k, float(k)) for k in range(4))
    ax = convergence_figure(dataclasses.replace(twin, history=history)).axes[0]
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[0] < -8.0


def test_convergence_draws_cell_averages_and_field_on_axes_of_their_own(twin: Twin) -> None:
    averages = [Step("imaging", k, 0.03 / (k + 1), float(k)) for k in range(4)]
    field = [Step("counts", k, 1.3 - 0.1 * k, 10.0 + k) for k in range(3)]
    history = (Step("calibrate", 0, float("inf"), 0.0), *averages, *field)
    left, right = convergence_figure(dataclasses.replace(twin, history=history)).axes
    assert left.get_ylim()[1] < 0.1 and right.get_ylim()[0] > 0.7
    assert max(left.get_xlim()) < 10.0 < max(right.get_xlim())
    (alone,) = convergence_figure(dataclasses.replace(twin, history=tuple(field))).axes
    assert alone.get_ylabel() == right.get_ylabel() != left.get_ylabel()


def test_white_noise_has_unit_power() -> None:
    rng = np.random.default_rng(1)
    used = np.zeros((150, 130), dtype=bool)
    used[8:-8, 8:-8] = True
    spectra = [radial_mean(*power_spectrum(rng.normal(size=used.shape), used, 0.1)) for _ in range(40)]
    mean, error = (np.array([s[k] for s in spectra])[:, 3:] for k in (1, 2))  # the innermost rings are few
    radius = spectra[0][0]
    assert mean.mean() == pytest.approx(1.0, abs=0.02)
    assert np.mean(np.abs(mean - 1.0) < error) == pytest.approx(0.68, abs=0.08)  # the band is one sigma
    assert radius[-1] <= 5.0  # Nyquist


def test_periodic_residual_peaks_at_its_frequency() -> None:
    x = np.arange(200) * 0.1
    wave = np.tile(np.cos(2 * np.pi * 1.2 * x), (160, 1))
    radius, mean, _ = radial_mean(*power_spectrum(wave, np.ones(wave.shape, dtype=bool), 0.1))
    assert radius[mean.argmax()] == pytest.approx(1.2, abs=0.1)


def test_reflections_of_a_rectangular_cell() -> None:
    lattice = np.array([[0.0, 28.2], [40.3, 0.0]])  # a = 2.82 Å along x, b = 4.03 Å along y
    got = reflections(lattice, 0.1, 0.5)
    a, b = 1 / 2.82, 1 / 4.03
    np.testing.assert_allclose(got, sorted([a, b, np.hypot(a, b), 2 * b]), atol=1e-4)


def test_drawing_choices() -> None:
    assert [nice_length(v) for v in (10.0, 9.99, 4.9, 0.021)] == pytest.approx([10.0, 5.0, 2.0, 0.02])
    assert spacing_A(np.array([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]])) == pytest.approx(2.0)
    low, high = grey_range(np.zeros((4, 4)), np.full((4, 4), np.nan))
    assert low < high
    cmap, norm = integer_scale(np.array([3, 7]))
    assert len({cmap(norm(n)) for n in range(3, 8)}) == 5  # one colour a count


def test_drawing_needs_no_pyplot_and_leaves_settings_alone() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "import qhrtem.report.page\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "with qhrtem.report.page.style(): pass\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    path = ":".join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})
