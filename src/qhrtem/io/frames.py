"""Frames of a series from files: those of one stack, or one file each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from qhrtem.errors import InputError
from qhrtem.io.masks import ruled_out
from qhrtem.io.micrograph import frames_in, image_of_signal, read_image, read_signal
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import ImagePlan, SeriesPlan
from qhrtem.stages.series import Exposure


def stack_frames(image: ImagePlan, series: SeriesPlan) -> Iterator[Exposure]:
    """Yield the frames that a plan asks for of the file it names.

    Raises InputError, before the first, where the file holds fewer frames than asked for, and what
    `read_image` raises for the file.
    """
    signal = read_signal(image.path, image.dataset)
    count = frames_in(signal)
    last = count - 1 if series.last is None else series.last
    if not series.first <= last < count:
        raise InputError(
            f"{image.path}: frames {series.first} to {last} are asked for, the file holds {count} (0 to "
            f"{count - 1}); change first and last in [series]"
        )
    for number in range(series.first, last + 1):
        name = f"{image.path.name}, frame {number}"
        yield exposure(
            number - series.first, name, image, partial(image_of_signal, signal, image.path, number)
        )


def file_frames(image: ImagePlan, paths: Iterable[Path]) -> Iterator[Exposure]:
    """Yield the images of files, one each."""
    for number, path in enumerate(paths):
        yield exposure(number, path.name, image, partial(read_image, path, image.dataset, image.frame))


def exposure(number: int, name: str, image: ImagePlan, read: Callable[[], RawImage]) -> Exposure:
    """Return an image as a frame of a series; name: what it is called in messages and results.

    An image that cannot be used is a frame with a fault; the first one raises InputError instead.
    """
    try:
        raw = ruled_out(image, read())
    except InputError as error:
        if number == 0:
            raise
        nothing = RawImage(np.zeros((1, 1)), name)
        return Exposure(number, nothing, hashlib.sha256(str(error).encode()).hexdigest(), str(error))
    counts = np.ascontiguousarray(raw.counts)
    digest = hashlib.sha256(f"{counts.shape}".encode() + counts.tobytes()).hexdigest()
    return Exposure(number, replace(raw, path=name), digest)
