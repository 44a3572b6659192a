"""A NeXus view of result.h5: the images as NXdata with axes and units, linked and not copied.

Programs that know NeXus (HyperSpy, nexpy, silx) open them without this package. Definitions: NeXus manual,
NXdata, https://manual.nexusformat.org.
"""

from __future__ import annotations

import h5py
import numpy as np

from qhrtem.io.hdf5 import put
from qhrtem.model.twin import Twin

IMAGES = {"measured": "measured image", "simulated": "simulated image", "sigma": "expected noise"}


def link_images(file: h5py.File, twin: Twin) -> None:
    """Add /entry with one NXdata an image of `twin.match`, axes y and x in Å, pixel centres."""
    file.attrs["default"] = "entry"
    entry = file.create_group("entry")
    entry.attrs.update({"NX_class": "NXentry", "default": "measured"})
    rows, cols = twin.match.measured.shape
    for name, title in IMAGES.items():
        data = entry.create_group(name)
        data.attrs.update({"NX_class": "NXdata", "signal": "intensity", "title": title})
        data.attrs["axes"] = ["y", "x"]
        data.attrs.update({"y_indices": 0, "x_indices": 1})
        data["intensity"] = file[f"match/{name}"]
        for axis, size in (("y", rows), ("x", cols)):
            put(data, axis, np.arange(size) * twin.pixel_size_A, "angstrom")
            data[axis].attrs["long_name"] = f"{axis} (angstrom)"
    residual = entry.create_group("residual")
    residual.attrs.update({"NX_class": "NXdata", "signal": "residual", "title": "measured - simulated"})
    residual.attrs["axes"] = ["y", "x"]
    residual.attrs.update({"y_indices": 0, "x_indices": 1})
    match = twin.match
    put(residual, "residual", (match.measured - match.simulated) / match.sigma, "sigma of noise")
    for axis in ("y", "x"):
        residual[axis] = entry[f"measured/{axis}"]
