"""HyperSpy signals in and out, by their public attributes alone: the library itself is not needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from qhrtem.errors import InputError
from qhrtem.io.micrograph import image_of_signal
from qhrtem.model.micrograph import RawImage
from qhrtem.model.twin import Twin


def image_from_signal(signal: Any, name: str = "signal") -> RawImage:
    """Return the image in a HyperSpy `Signal2D` of one frame, with its own calibration and metadata.

    Raises InputError where it holds a series, or for what a file would be refused.
    """
    manager = getattr(signal, "axes_manager", None)
    if manager is None or not hasattr(signal, "data"):
        raise InputError(f"{name}: must be a HyperSpy Signal2D, got {type(signal).__name__}")
    if int(getattr(manager, "signal_dimension", 2)) != 2:
        raise InputError(f"{name}: must have two signal dimensions, got {manager.signal_dimension}")
    described = {
        "data": np.asarray(signal.data),
        "axes": [
            {
                "name": str(axis.name),
                "units": None if not isinstance(axis.units, str) else axis.units,
                "scale": float(axis.scale),
                "navigate": bool(axis.navigate),
                "index_in_array": int(axis.index_in_array),
            }
            for axis in manager._axes
        ],
        "metadata": signal.metadata.as_dictionary(),
        "original_metadata": signal.original_metadata.as_dictionary(),
    }
    return image_of_signal(described, name)


def signal_dictionary(twin: Twin, what: str = "simulated") -> dict[str, Any]:
    """Return the measured or simulated image of a fit as HyperSpy's `Signal2D(**...)` takes it.

    what: "measured", "simulated" or "residual" (both in vacuum = 1). Axes are calibrated in nm.
    """
    images = {
        "measured": twin.match.measured,
        "simulated": twin.match.simulated,
        "residual": twin.match.measured - twin.match.simulated,
    }
    if what not in images:
        raise InputError(f"what must be one of {', '.join(images)}, got '{what}'")
    pitch = twin.pixel_size_A / 10
    return {
        "data": images[what],
        "axes": [
            {"name": axis, "size": size, "scale": pitch, "offset": 0.0, "units": "nm"}
            for axis, size in zip(("y", "x"), images[what].shape, strict=True)
        ],
        "metadata": {
            "General": {"title": f"{what} by qhrtem"},
            "Signal": {"quantity": "Intensity (vacuum = 1)"},
        },
    }
