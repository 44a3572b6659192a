"""The images of a plan with what their user rules out: a mask image, or polygons in pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from qhrtem.errors import InputError
from qhrtem.io.micrograph import read_frames, read_image
from qhrtem.model.micrograph import RawImage
from qhrtem.plan import FurtherPlan, ImagePlan


def read_planned(plan: ImagePlan) -> RawImage:
    """Return the image that a plan names, with the pixels that its mask and polygons rule out.

    It brings along the further images of the same area: those of its series, then those of [[image.also]].
    Raises InputError where an image or a mask cannot be used, or a polygon holds no pixel of its image.
    """
    raws: tuple[RawImage, ...]
    if plan.frames is None:
        raws = (read_image(plan.path, plan.dataset, plan.frame),)
    else:
        raws = read_frames(plan.path, plan.dataset, None if plan.frames == "all" else plan.frames)
    first, *further = (ruled_out(plan, raw) for raw in raws)
    for entry in plan.also or ():
        own = entry.path is not None
        dataset = entry.dataset if own or entry.dataset is not None else plan.dataset
        further.append(ruled_out(entry, read_image(entry.path or plan.path, dataset, entry.frame)))
    return replace(first, also=tuple(further))


def ruled_out(plan: ImagePlan | FurtherPlan, raw: RawImage) -> RawImage:
    """Return an image with the pixels that mask and polygons of its plan rule out; raises InputError."""
    if plan.mask is None and plan.exclude is None:
        return raw
    usable = np.ones(raw.counts.shape, dtype=bool)
    if plan.mask is not None:
        usable &= _read_mask(plan.mask, raw)
    for number, corners in enumerate(plan.exclude or ()):
        inside = polygon2mask(raw.counts.shape, np.array(corners))
        if not inside.any():
            rows, cols = raw.counts.shape
            raise InputError(
                f"{raw.path}: polygon {number} of exclude holds no pixel of the {rows} × {cols} image; "
                "its corners are [row, col] in pixels"
            )
        usable &= ~inside
    return replace(raw, usable=usable)


def _read_mask(path: Path, raw: RawImage) -> NDArray[np.bool_]:
    try:
        mask = read_image(path).counts
    except InputError as error:
        if "the image is constant" not in str(error):
            raise
        raise InputError(
            f"{path}: the mask is constant; zero rules a pixel out, anything else keeps it"
        ) from error
    if mask.shape != raw.counts.shape:
        raise InputError(
            f"{path}: the mask must have the image's {raw.counts.shape[0]} × {raw.counts.shape[1]} pixels, "
            f"got {mask.shape[0]} × {mask.shape[1]}; was it drawn on another frame or binning?"
        )
    return np.asarray(mask != 0)
