"""Estimate: how much memory and time a fit will need, before it starts.

The memory follows from what a round of count moves holds at once: the image change of every unknown in its
window, the sparse normal matrix over all of them, and the waves of the field or, where it is cut, of a tile
(`benchmarks/estimate.py` shows how near that is). The time is that of measured fits, scaled by how fast this
machine transforms.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from qhrtem.model.forward import MARGIN_A
from qhrtem.model.window import USED_A
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.contenders import BORDER_A
from qhrtem.stages.linearise import REACH
from qhrtem.stages.tiling import HALO_A, MOST_COLUMNS, cut

PROGRAM_BYTES = 0.55e9  # the libraries alone, measured
SLICES = 40  # thickness assumed for waves, which is not known yet: about 6 nm
IMAGING = 25  # unknowns of the lens
SECONDS_A_COLUMN = 1.0  # processor time of a whole fit for a column of the padded field, measured
SECONDS_ALWAYS = 20.0
ALONE = 0.6  # share of that time that more cores do not shorten, measured on two
USUAL_SPREAD_A = 1.0  # delocalisation of a well-tuned lens, by which tiles overlap more
REFERENCE_TRANSFORM = 2.5e-3  # seconds of an FFT pair on 512² complex64 where these were measured


@dataclass(frozen=True)
class Estimate:
    """What a fit will need at most."""

    columns: int  # of the field with its margin, were all of it crystal
    unknowns: int  # of one round of count moves
    memory: float  # bytes
    seconds: float  # of one core

    def on(self, cores: int) -> float:
        """Return how many seconds the fit will take on some cores."""
        return self.seconds * (ALONE + (1 - ALONE) / cores)


def estimate(
    shape: tuple[int, int], pixel: float, projection: Projection, transform: float = REFERENCE_TRANSFORM
) -> Estimate:
    """Return what the fit of an image will need.

    shape: rows and columns; pixel: Å; transform: seconds that an FFT pair on 512² complex64 takes here.
    """
    cell = abs(float(np.linalg.det(projection.vectors)))
    density = len(projection.kinds) / cell
    area = _area(shape, pixel)
    columns = math.ceil(area * density)
    pieces = [area]
    if columns > MOST_COLUMNS:
        tiles = cut(shape, pixel, HALO_A + BORDER_A + USUAL_SPREAD_A)
        pieces = [_area((t.seen[1] - t.seen[0], t.seen[3] - t.seen[2]), pixel) for t in tiles]
    unknowns, memory = _piece(max(pieces), pixel, projection)
    # Of a field in tiles, images of the whole are held besides.
    memory += 0 if len(pieces) == 1 else 150 * math.prod(shape)
    fitted = sum(pieces) * density
    seconds = (SECONDS_ALWAYS + SECONDS_A_COLUMN * fitted) * transform / REFERENCE_TRANSFORM
    return Estimate(columns, unknowns, memory, seconds)


def _area(shape: tuple[int, int], pixel: float) -> float:
    """Return the area in Å² of an image with its margin."""
    return math.prod(n * pixel + 2 * MARGIN_A for n in shape)


def _piece(area: float, pixel: float, projection: Projection) -> tuple[int, float]:
    """Return the unknowns of one round of count moves over an area (Å²), and the bytes it holds at once."""
    cells = area / abs(float(np.linalg.det(projection.vectors)))
    a_cell = [_unknowns(len(k.sites), len(k.groups)) for k in projection.kinds]
    positions = cells * sum(p for p, _ in a_cell)
    moves = cells * sum(m for _, m in a_cell)
    window = (USED_A / pixel) ** 2
    responses = 2 * 4 * window * (positions + moves)  # single precision, plain and weighted
    # Unknowns meet where their windows overlap; while the moves are brought to depend on each other alone, an
    # entry of the sparse matrix, a value and an index, is held three times. That of the positions is dense.
    together = (positions + moves) * min(1.0, (2 * USED_A) ** 2 / area)
    matrix = 36 * (positions + moves) * together + 24 * positions**2
    scale = max(1.0, pixel / 0.09) ** 2  # waves are sampled at 0.09 Å or finer
    image = area / pixel**2
    waves = 8 * image * scale * (2 * SLICES + 20) + 4 * image * IMAGING
    return round(positions + moves) + IMAGING, PROGRAM_BYTES + responses + matrix + waves


def _unknowns(sites: int, groups: int) -> tuple[int, int]:
    """Position unknowns and moves of one column: of either end by up to its reach, and slides."""
    reach = REACH if sites > 1 else 1
    return 2 * groups, 4 * reach + 2 * reach**2


def transform_seconds() -> float:
    """Return how many seconds an FFT pair on 512² complex64 takes on this machine, the best of several."""
    wave = torch.ones((512, 512), dtype=torch.complex64)
    best = math.inf
    for _ in range(8):
        begin = time.perf_counter()
        torch.fft.ifft2(torch.fft.fft2(wave))
        best = min(best, time.perf_counter() - begin)
    return best
