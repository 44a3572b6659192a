"""The specimen of a phantom: as thick, as wide and as turned as its plan says."""

import numpy as np
import pytest

from phantoms import CIF, small_plan
from qhrtem.simulate.specimen import column_table, make_specimen, supercell_of
from qhrtem.specimen.crystal import project, read_cif

PROJECTION = project(read_cif(CIF), (1, 1, 0))


def specimen(pixel=0.15, refine=1, **simulate):
    return make_specimen(small_plan(**simulate).simulate, PROJECTION, pixel, 0.0, refine)


def image_x(made):
    """Return x (Å) of each column from the left border of the image."""
    return made.field.to_detector(made.columns.anchor)[:, 1] * made.field.detector_pixel


@pytest.mark.parametrize("layers", [1, 2, 7, 8])
def test_every_column_is_as_many_layers_thick_as_asked(layers):
    made = specimen(thickness_slices=layers, shape="slab")
    atoms = made.columns.atoms()
    assert atoms.slice.max() - atoms.slice.min() + 1 == layers
    # BaTiO3 [110]: an atom in every second layer, in Ti columns in every fourth.
    columns = made.columns
    for c in range(len(columns)):
        every = 4 if columns.kind_of(c).name == "Ti" else 2
        assert columns.last[c] - columns.first[c] + 1 in {layers // every, -(-layers // every)}
    assert made.exit_z == pytest.approx(PROJECTION.origin + (atoms.slice.max() + 0.5) * PROJECTION.plane)


def test_thickness_in_nm_is_rounded_to_layers():
    made = specimen(thickness_nm=3.0, shape="slab")
    _, slicing = supercell_of(made.columns, made.field.grid)
    assert slicing.thickness.sum() == pytest.approx(30.0, abs=PROJECTION.plane / 2)


def test_vacuum_is_on_the_left_and_as_wide_as_asked():
    x = image_x(specimen(vacuum_nm=0.9))
    assert 9.0 <= x.min() < 9.0 + 4.1
    assert x.max() > 24.0
    slab = image_x(specimen(shape="slab"))
    assert slab.min() < 0


def test_a_wedge_grows_to_the_right_on_both_faces():
    made = specimen(shape="wedge", wedge_mrad=600.0, thickness_nm=1.0, vacuum_nm=0.4)
    x = image_x(made) - 4.0
    # A column is as thick as its whole sites: two layers each, four of Ti.
    off = (made.columns.thickness() - 10 - np.tan(0.6) * x) / PROJECTION.plane
    titanium = np.array([made.columns.kind_of(c).name == "Ti" for c in range(len(x))])
    assert np.abs(off[~titanium]).max() < 1.51
    assert np.abs(off[titanium]).max() < 3.51
    top, bottom = made.columns.surfaces()
    assert np.polyfit(x, top, 1)[0] == pytest.approx(-np.tan(0.6) / 2, abs=0.06)
    assert np.polyfit(x, bottom, 1)[0] == pytest.approx(np.tan(0.6) / 2, abs=0.06)


def test_rotation_turns_columns_towards_rows():
    turned = specimen(shape="slab", rotation_deg=90.0).columns
    straight = specimen(shape="slab").columns
    # A crystal vector along image x (0, 1) comes to lie along image y (1, 0).
    assert np.allclose(turned.frame, straight.frame @ [[0, -1], [1, 0]])
    assert np.linalg.det(straight.frame) == pytest.approx(-1)  # (x, y) → (row, column)


def test_the_supercell_holds_the_same_atoms_in_the_same_slices():
    made = specimen(shape="wedge", wedge_mrad=400.0)
    cell, slicing = supercell_of(made.columns, made.field.grid)
    atoms = made.columns.atoms()
    assert np.allclose(cell.position[:, :2], atoms.position)
    assert np.allclose(np.diff(cell.position[:, 2]), np.diff(atoms.z))
    assert np.array_equal(slicing.index, np.floor(cell.position[:, 2] / PROJECTION.plane + 1e-6).astype(int))
    assert cell.extent[2] == pytest.approx(slicing.thickness.sum())
    assert cell.extent[:2] == pytest.approx(made.field.grid.extent)


def test_finer_waves_leave_field_and_columns_as_they_are():
    coarse, fine = specimen(), specimen(refine=2)
    assert np.allclose(coarse.field.grid.extent, fine.field.grid.extent)
    assert fine.field.grid.shape == tuple(2 * n for n in coarse.field.grid.shape)
    assert np.array_equal(coarse.columns.anchor, fine.columns.anchor)
    assert fine.field.image_grid == coarse.field.image_grid


def test_the_table_counts_the_atoms_of_columns_on_the_image():
    made = specimen()
    table = column_table(made, (0.0, 0.0))
    assert set(table.kind) == {k.name for k in PROJECTION.kinds}
    shape = np.array(made.field.image_shape)
    assert ((table.position_px > -0.5) & (table.position_px < shape - 0.5)).all()
    assert table.counts.sum() < len(made.columns.atoms().z)
    heavy = [table.elements.index(k[:2]) if k != "O" else table.elements.index("O") for k in table.kind]
    own = table.element_position_px[np.arange(len(heavy)), heavy]
    assert np.allclose(own, table.position_px)
    assert (table.bottom_A >= table.top_A).all()


def test_mistilt_moves_atoms_by_their_height_above_the_exit_plane():
    made = specimen()
    flat, tilted = (column_table(made, t) for t in ((0.0, 0.0), (10e-3, -4e-3)))
    moved = (tilted.position_px - flat.position_px) * made.field.detector_pixel
    assert np.allclose(moved[:, 0], -0.4 * moved[:, 1], atol=1e-5)
    height = -moved[:, 1] / 10e-3 / PROJECTION.plane
    assert height.mean() == pytest.approx(4, abs=0.3)
    assert ((height > 2.4) & (height < 5.6)).all()
