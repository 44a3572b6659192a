"""The normalised image and its variance model."""

from __future__ import annotations

import numpy as np

from qhrtem.model.micrograph import Micrograph


def test_variance_is_shot_noise_plus_readout() -> None:
    m = Micrograph(np.ones((4, 4)), np.ones((4, 4), bool), 0.1, 250.0, 3e-4, 0.002)
    assert np.allclose(m.variance(np.array([1.0, 0.5])), [1 / 250 + 3e-4, 0.5 / 250 + 3e-4])
    # A model intensity at or below zero still has noise.
    assert (m.variance(np.array([-1.0, 0.0])) >= 3e-4 + 0.02 / 250).all()
