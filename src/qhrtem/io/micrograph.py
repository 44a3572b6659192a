"""Reading a micrograph: any common microscope file in, one two-dimensional image in counts out.

RosettaSciIO reads the formats. Its readers were written for intact files, so whatever they raise on a broken
one is turned into one sentence here. What a file says about itself (pixel size, title) is passed on, never
trusted.
"""

from __future__ import annotations

import gc
import logging
import math
import struct
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.headers import check_promise
from qhrtem.io.rehearsal import rehearse
from qhrtem.model.micrograph import RawImage

READERS = {  # suffix → RosettaSciIO module; NumPy's own files are read here, without pickles
    ".tif": "tiff",
    ".tiff": "tiff",
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".ser": "tia",
    ".emi": "tia",
    ".mrc": "mrc",
    ".hspy": "hspy",
    ".npy": "",
    ".npz": "",
}

ANGSTROM = {  # unit as files write it → Å
    **dict.fromkeys(("A", "Å", "Å", "angstrom", "angstroms", "ångström"), 1.0),
    **dict.fromkeys(("pm", "picometer"), 1e-2),
    **dict.fromkeys(("nm", "nanometer"), 1e1),
    **dict.fromkeys(("um", "µm", "μm", "micron", "micrometer"), 1e4),
    **dict.fromkeys(("mm",), 1e7),
    **dict.fromkeys(("m",), 1e10),
}

METADATA_ENTRIES, METADATA_LENGTH = 2000, 200  # more than this of what a file says helps nobody


def read_image(path: str | Path, dataset: str | None = None, frame: int | None = None) -> RawImage:
    """Return the one two-dimensional image that a file holds, as float64 counts [row, col].

    `dataset` picks by title or number where a file holds several images, `frame` (from 0) from a series.
    Raises InputError naming file, cause and remedy where there is no usable image: a missing, damaged or
    unknown file, a spectrum or diffraction pattern, colour, complex, non-finite or constant data;
    ResourceError, before anything is read, where the file promises more than the memory holds.
    """
    path = Path(path)
    raw = image_of_signal(_chosen(_signals(path), dataset, path), path, frame)
    return replace(raw, metadata={**(raw.metadata or {}), **_beside(path)})


def read_frames(
    path: str | Path, dataset: str | None = None, frames: tuple[int, ...] | None = None
) -> tuple[RawImage, ...]:
    """Return several frames of the series that a file holds, all of them where none are named.

    Raises InputError as `read_image` does, and where there is no series.
    """
    path = Path(path)
    signal = read_signal(path, dataset)
    number = frames_in(signal)
    if number < 2:
        raise InputError(f"{path}: frames needs a series of at least two images, got one; leave it out")
    beside = _beside(path)
    found = [image_of_signal(signal, path, n) for n in (frames or range(number))]
    return tuple(replace(raw, metadata={**(raw.metadata or {}), **beside}) for raw in found)


def read_signal(path: str | Path, dataset: str | None = None) -> dict[str, Any]:
    """Return an image, or a series of images, as RosettaSciIO describes it.

    Raises what `read_image` raises for the file; each image is checked by `image_of_signal`.
    """
    path = Path(path)
    return _chosen(_signals(path), dataset, path)


def frames_in(signal: Mapping[str, Any]) -> int:
    """Return how many images a signal holds."""
    return len(_stack(np.asarray(signal["data"]), _axes(signal))[0])


def image_of_signal(signal: Mapping[str, Any], path: str | Path, frame: int | None = None) -> RawImage:
    """Return the image in a signal as RosettaSciIO describes one: data, axes, metadata, original_metadata.

    path: where it came from, for messages. Raises InputError as `read_image` does.
    """
    path = Path(path)
    data, axes = _one_frame(np.asarray(signal["data"]), _axes(signal), frame, path)
    return RawImage(
        counts=_usable(data, path),
        path=str(path),
        pixel_size_A=_pixel_size(axes, path),
        metadata={**dict(_flat(signal)), **_stored(data, axes)},
    )


def _stored(data: NDArray[Any], axes: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return how the numbers and the axes are written in the file."""
    out = {"stored.dtype": str(data.dtype)}
    for name, axis in zip(("row", "col"), axes, strict=True):
        if axis.get("units"):
            out[f"axis.{name}"] = f"{axis.get('scale')} {axis['units']}"
    return out


def _beside(path: Path) -> dict[str, str]:
    """Return what the .emi file of a .ser says: the .ser itself does not know the microscope."""
    if path.suffix.lower() != ".ser":
        return {}
    main = path.with_name(path.stem.rpartition("_")[0] + ".emi")
    if not main.is_file():
        return {}
    try:
        return dict(_flat(_signals(main)[0]))
    except InputError:
        return {}


def _signals(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        known = " ".join(READERS)
        raise InputError(f"{path}: unknown image format '{suffix}'; export the image as one of {known}")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: the image file {what}; check the path")
    check_promise(path)
    rehearse(path)
    try:
        with _silence():
            if suffix == ".mrc":
                _check_mrc(path)
            if READERS[suffix]:
                found = import_module(f"rsciio.{READERS[suffix]}").file_reader(str(path))
            else:
                found = _numpy_signals(path)
        signals = [s for s in found if np.ndim(s["data"]) >= 2 and np.size(s["data"])]
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read the image file; change its access rights") from error
    except MemoryError as error:
        raise ResourceError(
            f"{path}: the image does not fit into memory ({error}); cut out the part to be fitted, or is the "
            "file damaged?"
        ) from error
    except Exception as error:  # the readers raise whatever a damaged byte leads to
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        with _silence():
            # A reader that failed still holds its file open, some of them in a cycle of objects.
            held: BaseException | None = error
            while held is not None:
                traceback.clear_frames(held.__traceback__)
                held = held.__cause__ or held.__context__
            gc.collect()
        raise InputError(
            f"{path}: cannot be read as a {suffix} image ({cause}); the file may be truncated, damaged or of "
            "another format: copy it again or export it anew, e.g. as TIFF"
        ) from error
    if not signals:
        hint = (
            "keep the .ser files beside it" if suffix == ".emi" else "give the file that holds the micrograph"
        )
        raise InputError(f"{path}: holds no image of two dimensions; {hint}")
    return signals


def _check_mrc(path: Path) -> None:
    """Raise ValueError where an MRC header promises more pixels than its file can hold.

    The reader would plan its way through such a file for minutes before it fails.
    """
    with path.open("rb") as file:
        nx, ny, nz = struct.unpack("<3i", file.read(12))
    densest = 2  # 4-bit pixels: two in a byte
    if min(nx, ny, nz) < 1 or nx * ny * nz > densest * path.stat().st_size:
        raise ValueError(f"the header promises {nx} x {ny} x {nz} pixels, more than the file holds")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the readers from warning and logging about tags they skip, which changes no pixel."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _numpy_signals(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        is_archive = zipfile.is_zipfile(file)
    loaded = np.load(path, allow_pickle=False)
    if not is_archive:
        return [{"data": loaded}]
    with loaded:
        return [{"data": loaded[name], "metadata": {"General": {"title": name}}} for name in loaded.files]


def _chosen(signals: list[dict[str, Any]], dataset: str | None, path: Path) -> dict[str, Any]:
    titles = [_title(signal) for signal in signals]
    listed = ", ".join(f"{i} '{t}' {np.shape(signals[i]['data'])}" for i, t in enumerate(titles))
    if dataset is None:
        if len(signals) == 1:
            return signals[0]
        raise InputError(f"{path}: holds {len(signals)} images; choose one with dataset: {listed}")
    matches = [signals[i] for i, t in enumerate(titles) if dataset in (t, str(i))]
    if len(matches) != 1:
        count = "no image" if not matches else f"{len(matches)} images"
        raise InputError(f"{path}: {count} called '{dataset}'; choose by name or number: {listed}")
    return matches[0]


def _title(signal: Mapping[str, Any]) -> str:
    general = (signal.get("metadata") or {}).get("General") or {}
    return str(general.get("title") or "")


def _axes(signal: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return one axis for each dimension of the data, in its order; empty ones where the file gives none."""
    axes = list(signal.get("axes") or [])
    if len(axes) != np.ndim(signal["data"]):
        return [{}] * np.ndim(signal["data"])
    return sorted(axes, key=lambda axis: axis.get("index_in_array", axes.index(axis)))


def _stack(data: NDArray[Any], axes: list[Mapping[str, Any]]) -> tuple[NDArray[Any], list[Mapping[str, Any]]]:
    """Return all images [frame, row, col] of an image or a series, and the axes of an image."""
    image = [i for i, axis in enumerate(axes) if axis and not axis.get("navigate", False)]
    if len(image) != 2:
        image = [data.ndim - 2, data.ndim - 1]
    series = [i for i in range(data.ndim) if i not in image]
    stack = data.transpose(*series, *image).reshape(-1, *(data.shape[i] for i in image))
    return stack, [axes[i] for i in image]


def _one_frame(
    data: NDArray[Any], axes: list[Mapping[str, Any]], frame: int | None, path: Path
) -> tuple[NDArray[Any], list[Mapping[str, Any]]]:
    """Return a single image [row, col] with its two axes from an image or a series of images."""
    stack, own = _stack(data, axes)
    if frame is None and len(stack) != 1:
        raise InputError(
            f"{path}: holds a series of {len(stack)} frames; choose one with frame = 0 to {len(stack) - 1}, "
            'fit all of them with --series, or together with frames = "all" if they show one area'
        )
    number = frame or 0
    if not 0 <= number < len(stack):
        raise InputError(f"{path}: frame must be 0 to {len(stack) - 1}, got {number}")
    return stack[number], own


def _usable(data: NDArray[Any], path: Path) -> NDArray[np.float64]:
    if data.dtype.names:
        raise InputError(f"{path}: is a colour picture; export it as grey numbers of 16 or 32 bit")
    if data.dtype.kind not in "biuf":
        raise InputError(
            f"{path}: must hold real numbers, got {data.dtype}; give the image, not its transform"
        )
    counts = np.ascontiguousarray(data, dtype=np.float64)
    bad = int(np.count_nonzero(~np.isfinite(counts)))
    if bad:
        raise InputError(
            f"{path}: {bad} of {counts.size} pixels are NaN or infinite; export the raw counts, unmasked and "
            "undivided"
        )
    if np.ptp(counts) == 0:
        raise InputError(
            f"{path}: the image is constant, every pixel is {counts[0, 0]:g}; was the beam blanked or the "
            "wrong frame exported?"
        )
    return counts


def _pixel_size(axes: list[Mapping[str, Any]], path: Path) -> tuple[float, float] | None:
    """Return the (row, col) pitch in Å, each axis by its own unit, or None where the file gives no length."""
    pitch = []
    for axis in axes:
        unit = str(axis.get("units") or "").strip()
        if unit.startswith("1/") or unit.endswith(("^-1", "⁻¹")) or unit in ("mrad", "rad"):
            raise InputError(f"{path}: its axes are in {unit}, a diffraction pattern; give the image itself")
        scale = abs(float(axis.get("scale") or 0.0)) * ANGSTROM.get(unit, ANGSTROM.get(unit.lower(), 0.0))
        pitch.append(scale)
    row, col = pitch
    return (row, col) if all(math.isfinite(p) and p > 0 for p in pitch) else None


def _flat(signal: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the file's own words as dotted keys and short texts, up to a fixed number of entries."""
    left = METADATA_ENTRIES

    def walk(value: object, key: str) -> Iterator[tuple[str, str]]:
        nonlocal left
        if isinstance(value, Mapping):
            for name in value:
                yield from walk(value[name], f"{key}.{name}" if key else str(name))
        elif isinstance(value, (str, bool, int, float, np.generic)) and left > 0:
            left -= 1
            text = str(value).strip()
            if text and len(text) <= METADATA_LENGTH:
                yield key, text

    yield from walk(signal.get("metadata") or {}, "")
    yield from walk(signal.get("original_metadata") or {}, "file")
