"""Objects with HyperSpy's public attributes: same image as from a file with the same axes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from qhrtem.errors import InputError
from qhrtem.io.signals import image_from_signal, signal_dictionary
from twins import make_twin


def tree(**entries):
    return SimpleNamespace(as_dictionary=lambda: entries)


def signal(data, units=("nm", "pm"), scales=(0.012, 13.0), dimension=2):
    axes = [
        SimpleNamespace(name=n, units=u, scale=s, navigate=False, index_in_array=i)
        for i, (n, u, s) in enumerate(zip("yx", units, scales, strict=True))
    ]
    manager = SimpleNamespace(_axes=axes, signal_dimension=dimension)
    return SimpleNamespace(
        data=data, axes_manager=manager, metadata=tree(General={"title": "HAADF"}), original_metadata=tree()
    )


def test_axes_keep_their_own_units():
    data = np.random.default_rng(0).poisson(90, (20, 30))
    raw = image_from_signal(signal(data))
    assert raw.pixel_size_A == pytest.approx((0.12, 0.13))
    np.testing.assert_array_equal(raw.counts, data)
    assert raw.metadata["General.title"] == "HAADF"


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match="Signal2D"):
        image_from_signal(np.ones((4, 4)))
    with pytest.raises(InputError, match="two signal dimensions"):
        image_from_signal(signal(np.ones((4, 4)), dimension=1))
    with pytest.raises(InputError, match="constant"):
        image_from_signal(signal(np.ones((4, 4))))


def test_results_go_back_calibrated():
    twin = make_twin(2, 3)
    made = signal_dictionary(twin, "residual")
    np.testing.assert_allclose(made["data"], twin.match.measured - twin.match.simulated)
    assert [a["size"] for a in made["axes"]] == list(made["data"].shape)
    assert all(
        a["scale"] == pytest.approx(twin.pixel_size_A / 10) and a["units"] == "nm" for a in made["axes"]
    )
    with pytest.raises(InputError, match="measured, simulated, residual"):
        signal_dictionary(twin, "phase")
