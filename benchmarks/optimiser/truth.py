"""Islands and lenses drawn at random, and their images by a route of their own.

An island keeps the lattice and the entrance faces of Dr. Probe's; its exit surface is an inclined plane with
steps of an atom, and its columns are displaced. The images come from Weickenmeier-Kohl form factors, which
are Dr. Probe's, on pixels three quarters as large as the model's and from more foci; a test holds them
against Dr. Probe's own image. The model has Lobato's form factors and seven foci.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from optimiser.island import DETECTOR, EXTENT, PLANE, Column, Island, View, columns, ideal
from optimiser.lens import resampled
from optimiser.problem import Floats
from optimiser.reference import Imaging

DEPTH = (16.0, 26.0)  # Å, mean depth of the exit surface
INCLINE = 0.2  # Å per Å, most
STEP_SHARE = 0.15  # of the columns with an atom too many, and as many with one too few
SHIFT_PM = 20.0  # displacements from the lattice, most along each axis
FINE_FOCI = 15
FINE_SAMPLING = 2.0  # wave pixels per detector pixel
# Lens parameters, lowest and highest: Å, rad
C1, A1, B2, A2 = (30.0, 90.0), 30.0, 100.0, 400.0
C3, S3, A3, C5 = (-15e4, -8e4), 1e4, 1e4, 4e7
FOCAL_SPREAD, SEMI_CONVERGENCE, VIBRATION = (22.0, 38.0), (1e-4, 4e-4), (0.17, 0.33)


@dataclass(frozen=True)
class Scene:
    """What was imaged, and how."""

    columns: tuple[Column, ...]  # all, in the order of `island.columns`
    imaging: Imaging


def draw_columns(generator: np.random.Generator) -> tuple[Column, ...]:
    """Return Dr. Probe's columns with other counts and displacements."""
    at = ideal()
    slope = INCLINE * generator.uniform(-1, 1, 2)
    plane = generator.uniform(*DEPTH) + (at - np.array(EXTENT) / 2) @ slope
    u = generator.random(len(at))
    step = np.where(u < STEP_SHARE, -1, np.where(u > 1 - STEP_SHARE, 1, 0))
    shift = SHIFT_PM / 100 * generator.uniform(-1, 1, at.shape)
    out = []
    for c, depth, more, (y, x) in zip(columns(), plane, step, at + shift, strict=True):
        count = round((depth - c.first * PLANE) / (c.spacing * PLANE)) + 1 + int(more)
        out.append(replace(c, y=float(y), x=float(x), count=int(np.clip(count, 1, c.most))))
    return tuple(out)


def draw_imaging(generator: np.random.Generator) -> Imaging:
    """Return a corrected lens with negative C3 and what blurs its images."""

    def within(most: float) -> complex:
        return most * generator.random() ** 0.5 * np.exp(2j * np.pi * generator.random())

    aberrations = {
        "C1": complex(generator.uniform(*C1)),
        "A1": within(A1),
        "B2": within(B2),
        "A2": within(A2),
        "C3": complex(generator.uniform(*C3)),
        "S3": within(S3),
        "A3": within(A3),
        "C5": complex(C5 * generator.uniform(-1, 1)),
    }
    blur = generator.uniform(*VIBRATION)
    spread, angle = generator.uniform(*FOCAL_SPREAD), generator.uniform(*SEMI_CONVERGENCE)
    return Imaging(aberrations, spread, angle, (blur, blur, 0.0))


def image(scene: Scene, tilt: tuple[float, float] = (0.0, 0.0), table: str = "weickenmeier_kohl") -> Floats:
    """Return the noise-free image (160, 160) of a scene; tilt: (x, y), rad."""
    s = scene.imaging
    fine = Island(View.whole(), (), 1.0, tilt, table, FINE_FOCI, FINE_SAMPLING, scene.columns)
    nothing = np.zeros(0, np.int64), np.zeros((0, 2))
    sharp = fine.image(*nothing, s.aberrations, s.focal_spread, s.semi_convergence, s.vibration[0])
    return resampled(sharp.double().numpy(), (DETECTOR, DETECTOR))


def exits(chosen: tuple[Column, ...]) -> Floats:
    """Return the depth (C,) in Å of each column's last atom."""
    return np.array([(c.first + (c.count - 1) * c.spacing) * PLANE for c in chosen])
