"""Pictures of a state: measured image, simulated image and their difference over the noise, as PNG."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError

Layer = Literal["measured", "simulated", "difference"]
LAYERS: tuple[Layer, ...] = ("measured", "simulated", "difference")
RESIDUAL_SIGMA = 4.0  # range of the difference, standard deviations of the noise, as in the report
LARGEST = 1400  # pixels along a side that are sent; larger images are averaged over blocks
DARKEST = 0.02  # least intensity (vacuum = 1) whose noise is believed, as in a fit
# Support points of a blue-white-red scale that colour-blind readers tell apart; linear between them.
DIVERGING = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))
UNUSED = (128, 128, 128)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """What a state is compared by, on the detector's pixels [row, col]."""

    measured: Floats  # vacuum = 1
    simulated: Floats  # vacuum = 1
    sigma: Floats  # noise expected, vacuum = 1
    used: NDArray[np.bool_]  # pixels that count


def stored_images(checkpoints: Path, record: dict[str, Any]) -> Images:
    """Return the images of the state that a record of a part names; InputError where they are gone."""
    names, view = record["arrays"], record["facts"]["view"]
    measured, simulated, used = (_array(checkpoints, names[n]) for n in ("measured", "image", "used"))
    variance = np.maximum(simulated, DARKEST) / view["electrons"] + view["readout_variance"]
    return Images(measured, simulated, np.sqrt(variance), used.astype(bool))


def _array(folder: Path, digest: str) -> NDArray[Any]:
    """Return an array by the SHA-256 of its file, which is also its name."""
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InputError("a record names an array by no checksum")
    try:
        data = (folder / f"{digest}.npy").read_bytes()
    except OSError as error:
        raise InputError("the state is not stored any more") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError("an array does not match its checksum")
    loaded: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded


def result_images(path: Path) -> Images:
    """Return the images of a finished run from its result.h5; InputError where it cannot be read."""
    import h5py  # takes a while, and only a finished run needs it

    try:
        with h5py.File(path, "r", locking=False) as file:
            parts = [file[f"match/{n}"][()] for n in ("measured", "simulated", "sigma", "used")]
    except (OSError, KeyError, ValueError) as error:
        raise InputError("the result cannot be read") from error
    return Images(*parts)


def picture(images: Images, layer: Layer) -> bytes:
    """Return one layer as PNG; measured and simulated share the range of the measured image."""
    if layer == "difference":
        ratio = np.where(images.used, (images.measured - images.simulated) / images.sigma, np.nan)
        block = _block(ratio)
        # The mean of n pixels of white noise scatters by 1/sqrt(n): times sqrt(n) it is in units of its own.
        scaled = _binned(ratio, block) * block
        level = np.clip(np.nan_to_num(scaled) / RESIDUAL_SIGMA * 127 + 127, 0, 254)
        index = np.where(np.isfinite(scaled), np.round(level), 255).astype(np.uint8)
        return _png(index, _palette())
    image = images.measured if layer == "measured" else images.simulated
    low, high = np.percentile(images.measured[np.isfinite(images.measured)], (0.2, 99.8))
    grey = (_binned(image, _block(image)) - low) / max(high - low, 1e-6) * 255
    return _png(np.round(np.clip(np.nan_to_num(grey), 0, 255)).astype(np.uint8), None)


def _block(image: NDArray[Any]) -> int:
    return -(-max(image.shape) // LARGEST)


def _binned(image: NDArray[Any], block: int) -> NDArray[Any]:
    """Return the image averaged over blocks of so many pixels; what is over at the rim is left out."""
    rows, cols = (n // block for n in image.shape)
    cut = image[: rows * block, : cols * block].astype(np.float64)
    return np.asarray(cut.reshape(rows, block, cols, block).mean((1, 3)))


def _palette() -> bytes:
    points = np.array(DIVERGING, dtype=float)
    place = np.linspace(0, len(points) - 1, 255)
    colours = [np.interp(place, np.arange(len(points)), points[:, c]) for c in range(3)]
    return np.vstack([np.stack(colours, axis=1), UNUSED]).round().astype(np.uint8).tobytes()


def _png(pixels: NDArray[np.uint8], palette: bytes | None) -> bytes:
    """Return an 8-bit PNG, grey or with a palette of 256 colours."""
    rows, cols = pixels.shape
    kind = 0 if palette is None else 3
    lines = np.zeros((rows, cols + 1), dtype=np.uint8)  # each begins with the number of its filter, none
    lines[:, 1:] = pixels
    chunks = [(b"IHDR", struct.pack(">2I5B", cols, rows, 8, kind, 0, 0, 0))]
    chunks += [] if palette is None else [(b"PLTE", palette)]
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 4)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
