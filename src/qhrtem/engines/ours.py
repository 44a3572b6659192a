"""The engine of this package: the same functions that a fit uses, on any list of atoms."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qhrtem.engines.protocol import Job
from qhrtem.grid import fft2
from qhrtem.model.supercell import SupercellModel
from qhrtem.physics.coherence import equidistant, focal_transfer, full_intensity, intensity
from qhrtem.physics.lens import check_aperture


class Ours:
    """Multislice, lens and coherence of `qhrtem.physics`."""

    name = "qhrtem"

    def __init__(self, table: str = "lobato") -> None:
        """table: electron form factors, of `physics.scattering.TABLES`."""
        self.table = table

    def available(self) -> str | None:
        """Return None: this engine is always there."""
        return None

    def check(self, job: Job) -> None:
        """Raise `PlanError` where the sampling is too coarse for the objective aperture."""
        check_aperture(job.grid, job.lens)

    def exit_wave(self, job: Job) -> Tensor:
        """Return the wave behind the last slice; slices that hold the same atoms are computed once.

        Rigid atoms scatter far beyond the band limit. Their potentials reach nearly to the Nyquist
        frequency, which halves the error of the sampling (BaTiO3 [110], 4.5 nm thick, pixels of 0.07 Å), and
        transmission functions are cut at the band limit.
        """
        limit: dict[str, Any] = (
            {"taper": "nyquist", "band_limit": "transmission"} if job.thermal.rigid else {}
        )
        model = SupercellModel(
            job.cell, job.slicing, job.grid, job.lens.energy, job.thermal, self.table, **limit
        )
        return model.exit_wave(job.repeats, job.mistilt)

    def image(self, wave: Tensor, job: Job) -> Tensor:
        """Return the image of a wave by the incoherent sum that the job asks for."""
        spectrum = fft2(wave)
        if job.mode == "full":
            return full_intensity(spectrum, job.grid, job.lens, equidistant(job.foci), job.source)
        return intensity(spectrum, focal_transfer(job.grid, job.lens, equidistant(job.foci)))
