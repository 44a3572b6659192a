"""Drift: the movement of a specimen between frames, lattice translations told apart by its outline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qhrtem.model.micrograph import Micrograph
from qhrtem.stages.drift import find_drift, moved_image
from slabs import slab

ELECTRONS = 200.0


@pytest.fixture(scope="module")
def made():
    return slab(radius=10.0, shape=(110, 110), pixel=0.18, margin=7.0)


def frame(made, step, seed=0):
    """Return the frame of the specimen moved by a step (y, x), Å, with shot noise."""
    columns, field = made.columns, made.model.field
    moved = replace(columns, anchor=columns.anchor + np.array(step))
    image = field.crop(made.model.image(moved, made.microscope)).numpy().astype(float)
    noisy = np.random.default_rng(seed).poisson(image * ELECTRONS) / ELECTRONS
    return Micrograph(noisy, np.ones(noisy.shape, bool), field.detector_pixel, ELECTRONS, 0.0, 0.002)


@settings(max_examples=6, deadline=None)
@given(st.floats(-3.5, 3.5), st.floats(-3.5, 3.5))
def test_drift_is_found_to_a_tenth_of_a_pixel(made, y, x):
    field = made.model.field
    image = made.model.image(made.columns, made.microscope)
    found = find_drift(image, frame(made, (y, x)), field)
    assert np.abs(found.step_A - [y, x]).max() < 0.2 * field.detector_pixel
    assert found.behind > 12


def test_a_lattice_translation_is_known_by_the_outline(made):
    columns = made.columns
    vector = (columns.projection.vectors @ columns.frame)[0]
    image = made.model.image(columns, made.microscope)
    found = find_drift(image, frame(made, vector), made.model.field)
    assert found.step_A == pytest.approx(vector, abs=0.04)


def test_far_from_an_outline_translations_fit_nearly_as_well(made):
    wide = slab(radius=23.0, shape=(110, 110), pixel=0.18, margin=14.0)
    vector = (wide.columns.projection.vectors @ wide.columns.frame)[0]
    image = wide.model.image(wide.columns, wide.microscope)
    found = find_drift(image, frame(wide, 0.9 * vector), wide.model.field)
    periods = (found.step_A - 0.9 * vector) @ vector / (vector @ vector)
    assert periods == pytest.approx(round(periods), abs=0.02)
    near = find_drift(made.model.image(made.columns, made.microscope), frame(made, vector), made.model.field)
    assert found.behind < 0.05 * near.behind


def test_a_moved_image_is_the_image_of_the_moved_specimen(made):
    step = np.array([0.31, -0.77])
    moved = replace(made.columns, anchor=made.columns.anchor + step)
    image = made.model.image(made.columns, made.microscope)
    other = made.model.image(moved, made.microscope)
    assert torch.allclose(moved_image(image, made.model.field, step), other, atol=2e-3)
