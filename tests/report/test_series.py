"""A series as pictures."""

import matplotlib.image as mpimg
import pytest
from PIL import Image

from qhrtem.report.series import course_figure, write_movie
from serieses import make_series


def test_the_course_shows_what_was_measured(tmp_path):
    figure = course_figure(make_series())
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == [
        "reduced χ² of the crystal",
        "columns well inside the image",
        "aberration (nm)",
        "mistilt (mrad)",
        "drift since the first frame (Å)",
        "events",
    ]
    misfit = figure.axes[0].lines[0].get_xydata()
    assert misfit[:, 0] == pytest.approx([0.0, 0.5])
    assert misfit[:, 1] == pytest.approx([1.0, 1.01])
    figure.savefig(tmp_path / "course.png")
    assert mpimg.imread(tmp_path / "course.png").std() > 0.05


def test_the_movie_has_a_picture_for_each_frame_that_claims(tmp_path):
    path = write_movie(make_series(), tmp_path)
    if path.suffix == ".gif":
        with Image.open(path) as movie:
            assert movie.n_frames == 2
    assert path.stat().st_size > 1000
