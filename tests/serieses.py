"""A short series for tests: three columns over three frames, one of which leaves."""

from __future__ import annotations

import math

import numpy as np

from qhrtem.model.series import Event, Frame, Series

SITES = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0]])
COUNTS = np.array([[3, 0, 3], [4, 0, 4], [0, 4, 0]])


def make_frame(number: int, rows: list[int], refused: str = "") -> Frame:
    """Return a frame that shows some of the three columns."""
    n, rng = len(rows), np.random.default_rng(number)
    place = np.array([[20.0, 20.0], [20.0, 60.0], [50.0, 40.0]])[rows] + rng.normal(0, 0.1, (n, 2))
    return Frame(
        number=number,
        source=f"frame {number}",
        drift_A=np.array([0.3, -0.2]) * number,
        drift_behind=math.inf if number == 0 else 99.0,
        site=SITES[rows],
        counts=COUNTS[rows],
        p_exact=np.full(n, 0.97),
        p_changed=np.full(n, 0.01),
        position_px=place,
        sigma_px=np.full((n, 2), 0.1),
        displacement_A=np.zeros((n, 2)),
        top_A=np.full(n, 10.0),
        bottom_A=np.full(n, 30.0),
        inside=np.ones(n, bool),
        lens=np.array([5.0 + 0.1 * number, 0.5]),
        lens_sigma=np.array([0.1, math.nan]),
        chi2_crystal=math.nan if refused else 1.0 + 0.01 * number,
        seconds=3.0,
        refused=refused,
    )


def make_series() -> Series:
    """Return the series."""
    frames = (make_frame(0, [2, 0, 1]), make_frame(1, [0, 1]), make_frame(2, [], "blurred"))
    event = Event(1, "leaves", (1, 0, 0), 0.99, (0, 4, 0), (0, 0, 0), lasted=True)
    return Series(
        ("BaO", "Ti"),
        ("Ba", "Ti", "O"),
        ("c1_nm", "c3_um"),
        ("nm", "µm"),
        0.1,
        0.5,
        frames,
        (event,),
        ("late.tif",),
        ("1 of 3 frames claim nothing: 2.",),
    )
