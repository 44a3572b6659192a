"""Cell averages of images that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from lattices import BTO, FRAME_PX, PIXEL_A, lattice
from qhrtem.errors import QualityError
from qhrtem.model.micrograph import Micrograph
from qhrtem.stages.averages import cell_averages


def test_averages_are_fourier_coefficients_at_the_lattice_points() -> None:
    y, x = np.mgrid[:160, :160]
    reciprocal = np.linalg.inv(BTO.vectors @ FRAME_PX).T  # rows: cycles per pixel of both lattice directions
    f = reciprocal[1]
    image = 0.97 + 0.2 * np.cos(2 * np.pi * (f[0] * y + f[1] * x) + 0.4)
    a = cell_averages(
        Micrograph(image, np.ones((160, 160), bool), PIXEL_A, 500.0, 0.0, 0.002), lattice(), PIXEL_A
    )
    assert a.index[0].tolist() == [0, 0] and a.weight[0] == 1 and (a.weight[1:] == 2).all()
    assert np.abs(a.value[:, 0] - 0.97).max() < 0.01
    mine = [i for i, n in enumerate(a.index.tolist()) if n in ([0, 1], [0, -1])]
    assert len(mine) == 1
    sign = a.index[mine[0]][1]
    assert a.value[:, mine[0]] == pytest.approx(np.full(len(a.value), 0.1 * np.exp(0.4j * sign)), abs=0.01)
    assert np.allclose(a.frequency[mine[0]], sign * f / PIXEL_A)
    rest = np.delete(np.abs(a.value), [0, mine[0]], axis=1)
    assert rest.max() < 0.01
    # Two dimensions of places, all inside.
    assert len(a.centre) >= 4 and ((a.centre > 0) & (a.centre < 160)).all()


def test_a_crystal_smaller_than_the_window_is_refused() -> None:
    tiny = lattice()
    tiny.crystal[:] = False
    tiny.crystal[70:90, 70:90] = True
    micrograph = Micrograph(np.ones((160, 160)), np.ones((160, 160), bool), PIXEL_A, 500.0, 0.0, 0.002)
    with pytest.raises(QualityError, match="larger area"):
        cell_averages(micrograph, tiny, PIXEL_A)
