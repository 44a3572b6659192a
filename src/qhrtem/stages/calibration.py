"""Calibration: a raw image onto the absolute scale, the lattice in it, and what is neither left out."""

from __future__ import annotations

from dataclasses import replace

from qhrtem.calibrate.area import foreign_area
from qhrtem.calibrate.intensity import mean_pitch, normalise
from qhrtem.calibrate.lattice import Lattice, register, require_square
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.plan import Plan
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.checkpoint import LatticeForm, Parts
from qhrtem.stages.start import stated_pixel


def calibrate(
    plan: Plan, raw: RawImage, projection: Projection, parts: Parts, name: str = "calibrate"
) -> tuple[Micrograph, Lattice]:
    """Return the image on the absolute scale and the lattice in it; name: of the part that finds it."""
    stated = stated_pixel(plan, raw)
    micrograph = normalise(raw, plan.image, mean_pitch(stated))

    def registered() -> Lattice:
        found = register(micrograph.intensity, micrograph.valid, stated, projection, raw.path)
        against = ""
        if stated is not None:
            against = f" ({100 * (found.pixel_size_A / mean_pitch(stated) - 1):+.2f} %)"
        parts.log.done = 0.04
        parts.log(
            "calibrate",
            float("nan"),
            f"pixel {found.pixel_size_A:.4f} Å{against}, "
            f"rotation {found.rotation_deg:.2f}°, {100 * found.crystal.mean():.0f} % crystal",
        )
        return found

    lattice = parts(name, registered, LatticeForm())
    require_square(lattice, raw.path)
    foreign = foreign_area(micrograph, lattice.crystal, lattice.frame, lattice.vectors)
    if foreign.any():
        note = f"{100 * foreign.mean():.1f} % of the image is neither lattice nor vacuum and is left out."
        micrograph = replace(micrograph, valid=micrograph.valid & ~foreign, notes=(*micrograph.notes, note))
    return micrograph, lattice
