"""How finely waves must be sampled depends on the atoms, and what is chosen is enough."""

from __future__ import annotations

import numpy as np
import pytest

from crystals import cif, crystal_of, projection
from qhrtem.model.forward import ForwardModel, make_field
from qhrtem.model.microscope import nominal
from qhrtem.model.sampling import (
    CHANGE_ERROR,
    CHANGE_PIXELS_A,
    COARSEST,
    RIGID,
    RIGID_PIXELS_A,
    RIGID_REFERENCE_A,
    SMEARED_REFERENCE_A,
    Sampling,
    apart,
    sampling_of,
    scattered,
)
from qhrtem.model.window import Move, SiteChange, Tangent, WindowModel
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import project
from slabs import place

ENERGY = 300e3
GOLD = project(crystal_of(cif("Au", (4.078,) * 3, "F m -3 m", [("Au", 0, 0, 0, 1, 0.6)])), (1, 1, 0))


@pytest.mark.parametrize("name", ["BaTiO3", "Si", "MgO"])
def test_light_crystals_take_the_coarsest_waves(name: str) -> None:
    assert sampling_of(projection(name, (1, 1, 0)), ENERGY) == COARSEST


def test_heavier_columns_need_finer_waves() -> None:
    ceria, gold = (sampling_of(p, ENERGY) for p in (projection("CeO2", (1, 1, 0)), GOLD))
    assert gold.wave < ceria.wave < COARSEST.wave
    assert max(gold.change, ceria.change) < COARSEST.change
    assert gold.rigid < ceria.rigid < COARSEST.rigid


def test_the_error_falls_with_the_pixel() -> None:
    kind = GOLD.kinds[0]
    fine = scattered(GOLD, kind, ENERGY, SMEARED_REFERENCE_A)
    errors = [apart(scattered(GOLD, kind, ENERGY, pixel), fine) for pixel in CHANGE_PIXELS_A]
    assert np.all(np.diff(errors) < 0) and errors[0] > 0.05 and errors[-1] < 1e-3


def test_rigid_atoms_need_finer_waves_than_smeared_ones() -> None:
    kind = GOLD.kinds[0]
    fine = scattered(GOLD, kind, ENERGY, RIGID_REFERENCE_A, RIGID)
    errors = [apart(scattered(GOLD, kind, ENERGY, pixel, RIGID), fine) for pixel in RIGID_PIXELS_A]
    assert errors[0] > 0.15 and errors[-1] < 0.03


def test_a_thinner_vacuum_around_the_column_changes_little(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = GOLD.kinds[0]

    def error() -> float:
        waves = [scattered(GOLD, kind, ENERGY, pixel) for pixel in (0.1, SMEARED_REFERENCE_A)]
        return apart(*waves)

    wide = error()
    monkeypatch.setattr("qhrtem.model.sampling.WIDTH_A", 8.0)
    assert error() == pytest.approx(wide, rel=0.3)


def test_what_is_chosen_serves_moves_in_a_crystal_of_gold() -> None:
    """An atom and a displacement in a full field: much nearer to fine waves than on those for light atoms."""
    worst = {}
    for sampling in (sampling_of(GOLD, ENERGY), COARSEST):
        field = make_field((140, 140), 0.11, 15.0, margin=0.0, sampling=sampling)
        columns = lattice_columns(
            GOLD, field.middle(), np.array([[0.0, 1.0], [1.0, 0.0]]), (1.5, 1.5, 13.9, 13.9)
        )
        n = len(columns)
        columns = columns.filled(np.zeros(n), np.full(n, 24.0))
        c = int(np.linalg.norm(columns.anchor - field.middle(), axis=1).argmin())
        changes = [Move((SiteChange((int(columns.last[c]) + 1,), 1),)), Tangent(0, 0), Tangent(0, 1)]
        fine = make_field((140, 140), 0.11, 15.0, margin=0.0, sampling=Sampling(0.05, 0.05))
        found = []
        for model in (ForwardModel(field, ENERGY).coarse, ForwardModel(fine, ENERGY)):
            answer = WindowModel(model, columns, nominal(ENERGY), 9.0).respond(c, changes)
            found.append([place(w, answer.row, answer.col, (300, 300)) for w in answer.change])
        worst[sampling] = max(
            float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(*found, strict=True)
        )
    chosen, light = worst.values()
    assert chosen < 5 * CHANGE_ERROR and light > 2 * chosen
