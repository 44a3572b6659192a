"""abTEM as an engine: its potentials, multislice and transfer functions (Madsen and Susi 2021).

abTEM's arrays are [x, y]; its tilt is that of the beam, the negative of the specimen's; aberrations are
Krivanek's C_nm (Å) with azimuths, and its angular spread is a 1/e half angle in mrad. It knows neither
Debye–Waller factors nor absorption, so thermal motion enters as frozen phonons only. Its fast projection
spreads atoms over the nearest pixels, which blurs them by some per cent at 2 1/Å.
"""

from __future__ import annotations

import cmath
import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qhrtem.engines.protocol import Job
from qhrtem.errors import PlanError
from qhrtem.physics.aberrations import TERMS, to_krivanek
from qhrtem.physics.coherence import equidistant
from qhrtem.physics.lens import Lens
from qhrtem.physics.potential import Thermal


class AbTem:
    """abTEM 1.0 with Lobato's form factors."""

    name = "abtem"

    def __init__(self, table: str = "lobato", projection: str = "infinite") -> None:
        """table: "lobato" or "kirkland"; projection: "infinite", or "finite" for atoms that cross slices."""
        self.table, self.projection = table, projection

    def available(self) -> str | None:
        """Return None where abTEM can be imported, else what to install."""
        try:
            importlib.import_module("abtem")
        except ImportError as error:
            return f"the engine abtem needs the Python package abtem ({error}): pip install 'qhrtem[abtem]'"
        return None

    def check(self, job: Job) -> None:
        """Raise `PlanError` for damping, absorption, occupancies, apertures, beam tilt or mode full."""
        if _is_warm(job.thermal):
            raise PlanError(
                "abTEM has neither Debye-Waller factors nor absorption, only frozen phonons; ask for some, "
                "e.g. --phonons 16"
            )
        if any(s.occupancy != 1 for s in job.cell.species):
            raise PlanError(
                "abTEM takes whole atoms only, this structure has partial occupancies; use another engine"
            )
        if job.mode != "focal":
            raise PlanError("the engine abtem sums over focus only; use --mode focal or another engine")
        if job.lens.aperture is not None or any(float(t) != 0 for t in job.lens.beam_tilt):
            raise PlanError(
                "the engine abtem takes no objective aperture and no beam tilt; use another engine"
            )

    def exit_wave(self, job: Job) -> Tensor:
        """Return the wave behind the last slice, each atom projected wholly into its slice."""
        import abtem
        import ase

        cell, grid = job.cell, job.grid
        edge = np.concatenate([[0.0], np.cumsum(job.slicing.thickness)])
        middle = (edge[1:] + edge[:-1]) / 2
        x, y = cell.position[:, 1], cell.position[:, 0]
        z = middle[job.slicing.index] if self.projection == "infinite" else cell.position[:, 2]
        atoms = ase.Atoms(
            symbols=[cell.species[k].element for k in cell.kind],
            positions=np.stack([np.mod(x, grid.extent[1]), np.mod(y, grid.extent[0]), z], -1),
            cell=(grid.extent[1], grid.extent[0], edge[-1]),
            pbc=True,
        )
        potential = abtem.Potential(
            atoms,
            gpts=grid.shape[::-1],
            slice_thickness=tuple(job.slicing.thickness.tolist()),
            parametrization=self.table,
            projection=self.projection,
            device="cpu",
        ).build(lazy=False)
        tilt = (-1e3 * job.mistilt[0], -1e3 * job.mistilt[1])
        wave = abtem.PlaneWave(
            gpts=grid.shape[::-1], extent=grid.extent[::-1], energy=job.lens.energy, tilt=tilt, device="cpu"
        ).build(lazy=False)
        for _ in range(job.repeats):
            wave = wave.multislice(potential)
        return _tensor(wave.array, job)

    def image(self, wave: Tensor, job: Job) -> Tensor:
        """Return the sum of images over focus, the source as abTEM's envelope at each focus."""
        import abtem

        grid, lens = job.grid, job.lens
        waves = abtem.Waves(
            np.ascontiguousarray(wave.cpu().numpy().T.astype(np.complex64)),
            energy=lens.energy,
            extent=grid.extent[::-1],
        )
        spread = float(lens.focal_spread)
        rule = equidistant(job.foci if spread else 1)
        coefficients = krivanek_polar(lens)
        total = torch.zeros(grid.shape, dtype=torch.float64)
        for offset, weight in zip(rule.offset.tolist(), rule.weight.tolist(), strict=True):
            at_focus = coefficients | {"C10": coefficients.get("C10", 0.0) + spread * offset}
            transfer = abtem.CTF(
                aberration_coefficients=at_focus,
                angular_spread=1e3 * float(lens.semi_convergence),
                energy=lens.energy,
                semiangle_cutoff=np.inf,
            )
            image_wave = np.asarray(waves.apply_ctf(transfer).array).T
            total += weight * torch.as_tensor(np.abs(image_wave) ** 2)
        return total.to(grid.dtype)


def krivanek_polar(lens: Lens) -> dict[str, float]:
    """Return magnitudes C_nm (Å) and azimuths phi_nm (rad) of the aberrations of a lens."""
    out: dict[str, float] = {}
    for name, value in lens.aberrations.items():
        label, along, across = to_krivanek(name, complex(value))
        _, p, q = TERMS[name]
        if p == q:
            out[label] = along
            continue
        magnitude, angle = cmath.polar(complex(along, across))
        out[label], out[f"phi{label[1:]}"] = magnitude, angle / abs(p - q)
    return out


def _is_warm(thermal: Thermal) -> bool:
    damped = float(thermal.b_scale) != 0
    absorbs = float(thermal.absorption_scale) != 0 or float(thermal.proportional) != 0
    return not thermal.rigid and (damped or absorbs)


def _tensor(array: Any, job: Job) -> Tensor:
    """Return an array [x, y] as a tensor [y, x] in the precision of the job."""
    return torch.as_tensor(np.ascontiguousarray(np.asarray(array).T)).to(job.grid.complex_dtype)
