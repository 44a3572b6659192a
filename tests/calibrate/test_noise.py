"""The noise of known cameras: white where it is, its transfer where it falls, never more than it shows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qhrtem.calibrate.intensity import normalise
from qhrtem.calibrate.noise import noise_spectrum
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import ImagePlan, MtfTable

Floats = NDArray[np.float64]
GAIN, ELECTRONS, READOUT = 12.0, 250.0, 3.0
A, B = 0.35, 0.28
SHAPE = (150, 180)


def curve(q: Floats | float, a: float = A, b: float = B) -> Floats:
    return np.asarray((1 - a) / (1 + (np.asarray(q) / b) ** 2) + a)


def spread(electrons: Floats, a: float, b: float) -> Floats:
    """What a camera makes of the electrons that arrive: each is spread alike."""
    f = np.hypot(np.fft.fftfreq(electrons.shape[0])[:, None], np.fft.rfftfreq(electrons.shape[1]))
    return np.fft.irfft2(np.fft.rfft2(electrons) * curve(f, a, b), s=electrons.shape)


def vacuum(seed: int, a: float = A, b: float = B, readout: float = READOUT, shape=SHAPE) -> Floats:
    rng = np.random.default_rng(seed)
    return GAIN * spread(rng.poisson(ELECTRONS, shape) * 1.0, a, b) + readout * rng.standard_normal(shape)


EVERYWHERE = np.ones(SHAPE, bool)


def test_a_camera_that_spreads_all_electrons_alike_shows_its_mtf() -> None:
    off = []
    for seed in range(12):
        found = noise_spectrum(vacuum(seed), EVERYWHERE, READOUT)
        assert found is not None and found.transfer is not None
        off.append((np.array(found.transfer) - (A, B)) / found.transfer_sigma)
        assert found.level == pytest.approx(GAIN**2 * ELECTRONS, rel=0.25)
        assert np.abs(found.at(np.array([0.1, 0.25, 0.5])) - curve(np.array([0.1, 0.25, 0.5]))).max() < 0.06
    off = np.array(off)
    assert np.abs(off).max() < 4 and 0.4 < off.std() < 1.6


def test_white_noise_shows_nothing_whatever_it_comes_from() -> None:
    """The image may be blurred all the same, as where noise was added to a simulated image."""
    for seed in range(12):
        found = noise_spectrum(vacuum(seed, a=1.0), EVERYWHERE)
        assert found is not None and found.transfer is None
        assert np.abs(found.power / found.power.mean() - 1).max() < 5 * found.sigma.max() / found.power.mean()
        assert "is white within" in found.sentence() and "does not show the MTF" in found.sentence()
    read = noise_spectrum(500 * np.random.default_rng(1).standard_normal(SHAPE), EVERYWHERE)
    assert read is not None and read.transfer is None


def test_electrons_that_scatter_otherwise_each_leave_the_mtf_below_the_noise() -> None:
    """Half of the electrons are spread widely and half not at all: the noise keeps the sharp ones' power."""
    rng = np.random.default_rng(0)
    wide, sharp = (rng.poisson(ELECTRONS / 2, (400, 400)) * 1.0 for _ in range(2))
    counts = GAIN * (spread(wide, 0.0, 0.25) + sharp)
    found = noise_spectrum(counts, np.ones((400, 400), bool), 0.0)
    assert found is not None and found.transfer is not None
    q = np.array([0.15, 0.3, 0.5])
    mtf = 0.5 * curve(q, 0.0, 0.25) + 0.5
    noise = np.sqrt(0.5 * curve(q, 0.0, 0.25) ** 2 + 0.5)
    assert (noise > mtf).all()
    assert found.at(q) == pytest.approx(noise, abs=0.06)


def test_uneven_illumination_is_no_noise() -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    counts = vacuum(3, a=1.0) * (1 + 0.1 * x / SHAPE[1] - 0.05 * y / SHAPE[0])
    found = noise_spectrum(counts, EVERYWHERE)
    assert found is not None and found.transfer is None


def test_only_the_pixels_asked_for_are_used() -> None:
    counts, where = vacuum(4), EVERYWHERE.copy()
    where[:, 100:] = False
    counts[:, 100:] = np.random.default_rng(0).standard_normal((SHAPE[0], 80)) * 1e5
    found = noise_spectrum(counts, where, READOUT)
    assert found is not None and found.power.max() < 3 * GAIN**2 * ELECTRONS
    assert found.pixels <= where.sum()
    where[:, 30:] = False
    assert noise_spectrum(counts, where) is not None
    where[80:] = False
    assert noise_spectrum(counts, where) is None
    assert noise_spectrum(counts, ~EVERYWHERE) is None


# What the plan says of it.


def half_vacuum(a: float, shape: tuple[int, int] = SHAPE) -> RawImage:
    """A lattice on the left, vacuum on the right, by a camera whose noise is spread with (a, B)."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = 1 / (1 + np.exp((x - 0.4 * shape[1]) / 2))
    intensity = 1 + inside * 0.25 * np.cos(2 * np.pi * y / 24) * np.cos(2 * np.pi * x / 18)
    counts = GAIN * spread(rng.poisson(ELECTRONS * intensity) * 1.0, a, B)
    return RawImage(counts + READOUT * rng.standard_normal(shape), "camera.tif")


def said(raw: RawImage, **known: object) -> tuple[tuple[float, float] | None, str]:
    plan = {"path": "x", "offset_counts": 0.0, "vacuum_counts": GAIN * ELECTRONS, **known}
    m = normalise(raw, ImagePlan.model_validate(plan), 0.1)
    return m.transfer, " ".join(n for n in m.notes if "MTF" in n)


def test_the_transfer_of_the_noise_stands_for_an_mtf_that_is_not_given() -> None:
    transfer, note = said(half_vacuum(A))
    assert transfer is not None and float(curve(0.25, *transfer)) == pytest.approx(
        float(curve(0.25)), abs=0.1
    )
    assert "taken for the MTF" in note and "vibration" in note and "at or below" in note
    assert "Readout noise, if there is any" in note
    assert "Readout" not in said(half_vacuum(A), readout_counts=READOUT)[1]


def test_what_the_noise_does_not_show_is_not_invented() -> None:
    transfer, note = said(half_vacuum(1.0))
    assert transfer is None and "does not show the MTF" in note and "cannot be told in one image" in note
    small = half_vacuum(A, (60, 80))
    assert said(small)[0] is None and "too small to show one" in said(small)[1]
    crystal = half_vacuum(A)
    bare = RawImage(crystal.counts[:, :60], "crystal.tif")
    assert said(bare)[0] is None and "without vacuum" in said(bare)[1]


def test_a_given_mtf_is_used_and_compared_with_the_noise() -> None:
    assert said(half_vacuum(A), mtf={"a": A, "b": B}) == (None, "")
    assert said(half_vacuum(A), mtf={"a": 0.1, "b": 0.15}) == (None, "")  # below the noise, as it may be
    assert said(half_vacuum(1.0), mtf={"a": 0.1, "b": 0.15}) == (None, "")
    transfer, note = said(half_vacuum(A), mtf={"a": 0.9, "b": 0.4})
    assert transfer is None and "must lie at or below it" in note
    table = MtfTable(path="x.mtf", q=(0.0, 0.5), value=(1.0, 0.95))
    assert "must lie at or below it" in said(half_vacuum(A), mtf=table)[1]


def test_an_offset_is_taken_off_where_the_noise_is_sure_of_it() -> None:
    rng = np.random.default_rng(2)
    shape = (400, 500)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = 1 / (1 + np.exp((x - 200) / 2))
    intensity = 1 + inside * 0.25 * np.cos(2 * np.pi * y / 24) * np.cos(2 * np.pi * x / 18)
    counts = GAIN * rng.poisson(ELECTRONS * intensity) + 300.0
    known = {"path": "x", "gain_counts_per_electron": GAIN, "mtf": {"a": 1.0, "b": 1.0}}
    m = normalise(RawImage(counts, "x"), ImagePlan.model_validate(known), 0.1)
    assert 0.005 < m.offset_sigma < 0.02
    assert m.electrons_per_pixel == pytest.approx(ELECTRONS, rel=3.5 * m.offset_sigma)
    note = next(n for n in m.notes if "offset" in n)
    assert "were taken off" in note and "contrast is uncertain by" in note
    # A crop says too little; zero is kept, and how wrong that may be is carried along.
    m = normalise(RawImage(counts[:100, 100:320], "x"), ImagePlan.model_validate(known), 0.1)
    assert any("0 counts were assumed" in n for n in m.notes) and m.offset_sigma > 0.02
    given = normalise(RawImage(counts, "x"), ImagePlan.model_validate({**known, "offset_counts": 300.0}), 0.1)
    assert given.offset_sigma == 0.0 and not any("offset" in n for n in given.notes)
