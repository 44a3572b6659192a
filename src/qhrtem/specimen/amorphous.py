"""An amorphous layer on a crystal: the contamination or support film that every real specimen carries."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from qhrtem.errors import InputError
from qhrtem.physics.potential import Species
from qhrtem.specimen.supercell import Supercell

CLOSEST_A = 1.4  # a little below the bond length of carbon
TRIES = 200  # draws for each atom before the density is declared impossible


def amorphous_layer(
    extent: tuple[float, float],
    thickness: float,
    generator: np.random.Generator,
    species: Species = Species("C", 0.7),  # noqa: B008 (frozen)
    density: float = 0.1,
    closest: float = CLOSEST_A,
) -> Supercell:
    """Return a layer of atoms at random, no two closer than `closest` Å across the periodic edges.

    extent: (y, x) in Å; thickness: Å; density: atoms per Å³ (0.1 is carbon of 2 g/cm³). Random sequential
    placement: a hard-sphere film without the short-range order of real ones, which the image of a thin layer
    hardly shows. Raises `InputError` for a density that does not fit.
    """
    if not thickness > 0 or not density > 0:
        raise InputError(
            f"an amorphous layer needs a positive thickness and density, got {thickness:g} Å and "
            f"{density:g} 1/Å³"
        )
    box = np.array([extent[0], extent[1], thickness])
    number = round(float(density * box.prod()))
    placed = np.empty((0, 3))
    for _ in range(TRIES):
        wanted = number - len(placed)
        if wanted == 0:
            return Supercell((species,), np.zeros(number, np.int64), placed, box)
        fresh = generator.random((wanted, 3)) * box
        placed = _without_conflicts(np.concatenate([placed, fresh]), len(placed), box, closest)
    raise InputError(
        f"only {len(placed)} of {number} atoms fit into the amorphous layer {closest:g} Å apart; "
        f"lower the density of {density:g} 1/Å³ or the distance"
    )


def _without_conflicts(points: np.ndarray, settled: int, box: np.ndarray, closest: float) -> np.ndarray:
    """Return the points of which no earlier one is closer than `closest`, the settled ones all kept."""
    wrapped = np.array([box[0], box[1], 4 * box.max() + 4 * closest])  # periodic across the beam only
    pairs = cKDTree(points, boxsize=wrapped).query_pairs(closest, output_type="ndarray")
    keep = np.ones(len(points), dtype=bool)
    for later in np.sort(pairs, axis=1)[:, 1] if len(pairs) else ():
        if later >= settled:
            keep[later] = False
    return points[keep]


def stacked(upper: Supercell, lower: Supercell) -> Supercell:
    """Return two supercells of equal extent one behind the other along the beam."""
    if not np.allclose(upper.extent[:2], lower.extent[:2], atol=1e-6):
        raise InputError(
            f"stacked cells must have equal extent across the beam, got {upper.extent[:2].tolist()} and "
            f"{lower.extent[:2].tolist()} Å"
        )
    species = tuple(dict.fromkeys((*upper.species, *lower.species)))
    index = [np.array([species.index(s) for s in cell.species], np.int64) for cell in (upper, lower)]
    kind = np.concatenate([index[0][upper.kind], index[1][lower.kind]])
    moved = lower.position + np.array([0.0, 0.0, upper.extent[2]])
    depth = np.array([*upper.extent[:2], upper.extent[2] + lower.extent[2]])
    return Supercell(species, kind, np.concatenate([upper.position, moved]), depth)
