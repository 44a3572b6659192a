"""Images that hold no crystal end a fit with exit code 3 or 4: no folder is left and no atom is claimed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from qhrtem.cli import DEMO_PLAN, app

SHAPE = (180, 180)


def noise(rng):
    return rng.poisson(300.0, SHAPE).astype(float)


def vacuum(rng):
    """Evenly lit, a little darker to one side."""
    return rng.poisson(np.linspace(280, 320, SHAPE[1]) * np.ones(SHAPE)).astype(float)


def carbon(rng):
    """A film whose granules have the spacing of a lattice, but no order."""
    film = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 4) - ndimage.gaussian_filter(
        rng.standard_normal(SHAPE), 7
    )
    return rng.poisson(300 * (1 + 0.1 * film / film.std()).clip(0.1)).astype(float)


def fringes(rng):
    """Fresnel fringes along an edge of carbon."""
    x = np.arange(SHAPE[1]) - 90.0
    wave = np.where(x > 0, 1 + 0.15 * np.exp(-x / 25) * np.cos(x**2 / 60), 0.9)
    return rng.poisson(300 * wave * np.ones(SHAPE)).astype(float)


def one_fringe_set(rng):
    """Lattice fringes of one direction alone: planes, no columns."""
    x = np.arange(SHAPE[1])
    return rng.poisson(300 * (1 + 0.2 * np.cos(2 * np.pi * x / 25.0)) * np.ones(SHAPE)).astype(float)


@pytest.mark.parametrize("make", [noise, vacuum, carbon, fringes, one_fringe_set])
@pytest.mark.parametrize("pixel", ["0.112", None])
def test_no_crystal_no_counts(make, pixel, tmp_path):
    np.save(tmp_path / "image.npy", make(np.random.default_rng(3)))
    command = ["fit", str(tmp_path / "image.npy"), "--structure", str(DEMO_PLAN.parent / "BaTiO3.cif")]
    command += ["--zone", "1,1,0", "--high-tension", "300", "--out", str(tmp_path / "run"), "--vacuum", "300"]
    command += [] if pixel is None else ["--pixel-size", pixel]
    done = CliRunner().invoke(app, command)
    assert done.exit_code in (3, 4), done.output
    assert "error:" in done.output and not (tmp_path / "run").exists()


def test_a_constant_image_is_no_image(tmp_path):
    np.save(tmp_path / "image.npy", np.full(SHAPE, 250.0))
    command = ["fit", str(tmp_path / "image.npy"), "--structure", str(DEMO_PLAN.parent / "BaTiO3.cif")]
    command += ["--zone", "1,1,0", "--high-tension", "300", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3 and "constant" in done.output
