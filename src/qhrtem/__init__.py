"""qhrtem: from one HRTEM image of a crystal to its three-dimensional atomic model, with error bars.

For notebooks and scripts: `fit` an image, `read` a finished run, and the figures and physics of its `Twin`.
The names are loaded when they are first used, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = "qhrtem.api"

__all__ = [
    "Twin",
    "ase_atoms",
    "composition",
    "distance_to_edge",
    "figures",
    "fit",
    "off_centring",
    "own_charges",
    "polarisation",
    "profile",
    "read",
    "read_series",
    "strain_map",
    "thickness_at",
    "valence_sums",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOME), name)
    raise AttributeError(f"module 'qhrtem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
