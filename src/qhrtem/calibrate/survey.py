"""Survey: everything an image says before it is fitted, each part on its own: one failure hides no other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.area import foreign_area
from qhrtem.calibrate.candidates import FINEST_A
from qhrtem.calibrate.claims import Claims, read_claims
from qhrtem.calibrate.defects import Defects, find_defects
from qhrtem.calibrate.intensity import mean_pitch, normalise, planned_pitch
from qhrtem.calibrate.lattice import Lattice, register, require_square
from qhrtem.calibrate.noise import NoiseSpectrum, noise_spectrum
from qhrtem.calibrate.reflections import reflections
from qhrtem.calibrate.spectrum import PEAK_POWER, Peaks, Spectrum, flattened
from qhrtem.calibrate.vacuum import Transfer, Vacuum, find_vacuum, measure_vacuum, photon_transfer
from qhrtem.calibrate.zones import ZoneProposal, propose_zones
from qhrtem.errors import InputError
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.plan import ImagePlan
from qhrtem.specimen.crystal import Crystal, project

Bools = NDArray[np.bool_]
CONVINCING = 0.35  # merit of a view from which it is proposed
SMALLEST = 16  # pixels along an edge for a spectrum


@dataclass(frozen=True)
class Survey:
    """What was found; None where there was nothing to find."""

    raw: RawImage
    plan: ImagePlan
    claims: Claims
    defects: Defects
    pitch_A: tuple[float, float] | None  # (row, col) as stated
    vacuum: Vacuum | None
    transfer: Transfer | None
    noise: NoiseSpectrum | None = field(repr=False, default=None)  # of the vacuum
    spectrum: Spectrum | None = field(repr=False, default=None)
    peaks: Peaks | None = None
    zones: tuple[ZoneProposal, ...] = ()
    zone: tuple[int, int, int] | None = None  # the one used: given, or the best proposal
    lattice: Lattice | None = None
    crystal: Crystal | None = None  # the one it was compared with
    micrograph: Micrograph | None = None
    foreign: Bools | None = None
    trouble: tuple[str, ...] = ()  # why something above is missing

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why a fit would be refused, each a sentence."""
        return (*(f"The image {r}." for r in self.claims.refusals), *self.trouble)

    @property
    def pixel_A(self) -> float:
        """Geometric mean of the pitches in Å: the lattice's, else the stated one, else nan."""
        return self.lattice.pixel_size_A if self.lattice is not None else mean_pitch(self.pitch_A)

    @property
    def dose(self) -> float:
        """Electrons per Å², nan where it cannot be told.

        Correlated noise is smaller per pixel than the electrons' own; its low-frequency part is not.
        """
        if self.micrograph is None:
            return math.nan
        shared = 1.0
        if self.vacuum is not None and self.vacuum.correlated and self.plan.gain_counts_per_electron is None:
            shared = self.vacuum.correlation
        return self.micrograph.electrons_per_pixel / shared / self.pixel_A**2

    def information_limit(self) -> tuple[float, float]:
        """Return the finest spot's frequency in cycles/pixel and its spacing in Å, nan where none is."""
        if self.peaks is None or not len(self.peaks.snr):
            return math.nan, math.nan
        radius = np.linalg.norm(self.peaks.frequency, axis=1)
        if self.lattice is not None and self.zone is not None and self.crystal is not None:
            # A weak reflection counts where it is expected, for its place is known.
            refl = reflections(project(self.crystal, self.zone), FINEST_A)
            f = refl.g @ np.linalg.inv(self.lattice.frame).T
            assert self.spectrum is not None
            seen = np.nan_to_num(self.spectrum.at(f)) > PEAK_POWER
            radius = np.linalg.norm(f[seen], axis=1) if seen.any() else radius
        finest = float(radius.max())
        return finest, self.pixel_A / finest


def survey(
    raw: RawImage, plan: ImagePlan, crystal: Crystal | None = None, zone: tuple[int, int, int] | None = None
) -> Survey:
    """Return what an image says, compared with a crystal where one is given.

    zone: looked for among low-index directions where it is left out. Never raises `InputError` for what the
    image lacks: that is told in `Survey.trouble`.
    """
    pitch = planned_pitch(plan, raw)
    claims = read_claims(replace(raw, pixel_size_A=pitch))
    defects = find_defects(raw.counts)
    valid = defects.valid if raw.usable is None else defects.valid & raw.usable
    if not valid.any():
        valid = np.isfinite(raw.counts)
    filled = np.where(valid, raw.counts, np.median(raw.counts[valid]))
    where = find_vacuum(filled) & valid
    vacuum = measure_vacuum(filled, where) if where.any() else None
    noise = noise_spectrum(filled, where, plan.readout_counts) if where.any() else None
    out = Survey(raw, plan, claims, defects, pitch, vacuum, photon_transfer(filled, valid), noise)
    if min(raw.counts.shape) < SMALLEST:
        return out
    trouble: list[str] = []
    spectrum = Spectrum(flattened(filled, valid))
    out = replace(out, spectrum=spectrum, peaks=spectrum.peaks())
    try:
        out = replace(out, micrograph=normalise(raw, plan, mean_pitch(pitch)))
    except InputError as error:
        # Of an image of another kind, or filtered, no vacuum level makes a micrograph.
        if not claims.refusals:
            trouble.append(_sentence(error, raw))
    if crystal is not None:
        out, said = _compared(out, filled, valid, crystal, zone)
        trouble += said
    return replace(out, trouble=tuple(trouble))


def _compared(
    found: Survey,
    filled: NDArray[np.float64],
    valid: Bools,
    crystal: Crystal,
    zone: tuple[int, int, int] | None,
) -> tuple[Survey, list[str]]:
    """Return the survey with the crystal's lattice, and what stood in the way."""
    assert found.spectrum is not None and found.peaks is not None
    pitch = found.pitch_A
    aspect = 1.0 if pitch is None else pitch[0] / pitch[1]
    if zone is None:
        stated = None if pitch is None else mean_pitch(pitch)
        zones = propose_zones(found.spectrum, found.peaks, crystal, stated, aspect)
        found = replace(found, zones=tuple(zones))
        if not zones or zones[0].candidate.merit < CONVINCING:
            at = "" if pitch is None else f" at the stated pixel size of {mean_pitch(pitch):.4g} Å"
            return found, [
                f"No low-index view of {crystal.name} explains the spots of the image{at}; check the CIF and "
                "the pixel size, or give the zone axis."
            ]
        zone = zones[0].zone
    found = replace(found, zone=zone, crystal=crystal)
    projection = project(crystal, zone)
    try:
        lattice = register(
            filled / max(abs(float(np.median(filled))), 1e-9), valid, pitch, projection, found.raw.path
        )
    except InputError as error:
        return found, [_sentence(error, found.raw)]
    found = replace(found, lattice=lattice)
    oblong: list[str] = []
    try:
        require_square(lattice, found.raw.path)
    except InputError as error:
        oblong.append(_sentence(error, found.raw))
    if found.micrograph is not None:
        foreign = foreign_area(found.micrograph, lattice.crystal, lattice.frame, lattice.vectors)
        found = replace(found, foreign=foreign)
    return found, oblong


def _sentence(error: InputError, raw: RawImage) -> str:
    text = str(error).removeprefix(f"{raw.path}: ")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")
