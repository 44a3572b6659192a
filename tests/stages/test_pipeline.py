"""What the pipeline decides before any fit."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from crystals import projection
from phantoms import small_phantom, small_plan
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import Plan
from qhrtem.run.identity import result_hash
from qhrtem.specimen.columns import lattice_columns
from qhrtem.specimen.crystal import read_cif
from qhrtem.specimen.rules import Neighbours
from qhrtem.stages.checkpoint import Forgetful, Snapshot
from qhrtem.stages.pipeline import fit_image
from qhrtem.stages.start import stated_pixel
from qhrtem.stages.structure import neighbour_radius


def plan(**image: float) -> Plan:
    return Plan.model_validate(
        {
            "image": {"path": "image.tif", **image},
            "microscope": {"high_tension_kV": 300.0},
            "structure": {"path": "BaTiO3.cif", "zone_axis": [1, 1, 0]},
        }
    )


@pytest.mark.parametrize(
    ("name", "zone"), [("BaTiO3", (1, 1, 0)), ("SrTiO3", (1, 1, 1)), ("MgO", (0, 0, 1)), ("CeO2", (1, 1, 0))]
)
def test_every_column_has_a_shell_of_neighbours(name: str, zone: tuple[int, int, int]) -> None:
    p = projection(name, zone)
    columns = lattice_columns(p, np.zeros(2), np.array([[0.0, 1], [1, 0]]), (-12, -12, 12, 12))
    pairs = Neighbours.within(columns, neighbour_radius(p)).pairs
    inner = np.flatnonzero(np.abs(columns.anchor).max(1) < 6)
    degree = np.bincount(pairs.ravel(), minlength=len(columns))[inner]
    assert degree.min() >= 4 and degree.max() <= 12


def test_the_plan_states_the_pixel_size_before_the_file() -> None:
    raw = RawImage(np.ones((8, 8)), "image.tif", (0.1, 0.101))
    assert stated_pixel(plan(pixel_size_A=0.12), raw) == (0.12, 0.12)
    assert stated_pixel(plan(), raw) == (0.1, 0.101)
    assert stated_pixel(plan(), RawImage(np.ones((8, 8)), "image.tif")) is None


def test_radii_grow_with_the_cell() -> None:
    radii = [neighbour_radius(projection("MgO", z)) for z in ((0, 0, 1), (1, 1, 0))]
    assert all(1 < r < 5 for r in radii) and any(a != b for a, b in pairwise(radii))


class Kept(Forgetful):
    """A memory of the finished parts of a fit, in the order in which they came."""

    def __init__(self, parts: dict[str, Snapshot]) -> None:
        self.parts = parts

    def recall(self, part: str) -> Snapshot | None:
        return deepcopy(self.parts.get(part))

    def keep(self, part: str, snapshot: Snapshot) -> None:
        self.parts[part] = deepcopy(snapshot)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_images_are_fitted_together_and_a_resumed_fit_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Fewer of the steps that all fits have in common.
    monkeypatch.setattr("qhrtem.stages.pipeline.TRIALS", 24)
    monkeypatch.setattr("qhrtem.stages.structure.COUNT_ROUNDS", 3)
    monkeypatch.setattr("qhrtem.stages.thickness.MOST_PERIODS", 0)
    image = {"vacuum_counts": 450.0, "also": [{"path": "second.tif", "drift_px": [0.0, 0.0]}]}
    size = {"field_nm": [1.6, 1.4], "dose_e_per_A2": 2e4}
    asked = small_plan(image, **size)
    first, second = (
        RawImage(small_phantom(c1_nm=c1, seed=n, **size).counts.astype(float), f"{n}.tif")
        for n, c1 in enumerate((6.0, 9.0))
    )
    raw, crystal = replace(first, also=(second,)), read_cif(asked.structure.path)
    parts: dict[str, Snapshot] = {}
    whole = fit_image(asked, raw, crystal, memory=Kept(parts))
    (further,) = whole.further
    c1 = {e.name: e.value for e in further.microscope}["c1_nm"]
    assert c1 == pytest.approx(9.0, abs=1.0) and further.chi2_crystal < 1.3
    assert np.abs(further.drift_px).max() < 0.3
    names = list(parts)
    assert "lay image 2" in names and "joint positions" in names
    for last in ("lay image 2", "joint counts 2"):
        known = names[: names.index(last) + 1]
        again = fit_image(asked, raw, crystal, memory=Kept({n: parts[n] for n in known}))
        assert result_hash(again) == result_hash(whole), last
