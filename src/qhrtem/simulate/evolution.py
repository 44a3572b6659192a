"""Evolution: frames of a specimen that changes in a known way, to try a series on.

The specimen is made once, larger than the image by as far as it drifts. In each frame it is moved by the
drift, a script takes atoms away or displaces them, and what then lies in the field is imaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qhrtem.model.diffuse import frozen_phonon_image
from qhrtem.model.forward import Field, ForwardModel
from qhrtem.model.microscope import Microscope
from qhrtem.model.sampling import sampling_of
from qhrtem.model.twin import ColumnTable
from qhrtem.plan import Plan, SimulatePlan
from qhrtem.simulate.phantom import Detector, Parameters, planned_detector, planned_lens
from qhrtem.simulate.specimen import CLEARANCE_A, Specimen, column_table, listed, make_specimen, subset
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import Crystal, project

Floats = NDArray[np.float64]
# (columns, where they are in Å from the upper left corner of the first image, frame) → columns
Script = Callable[[ColumnModel, Floats, int], ColumnModel]


@dataclass(frozen=True)
class Answer:
    """What is true of a frame."""

    columns: ColumnTable  # those on the image
    site: NDArray[np.int64]  # (C, 3) kind and cell of each row of `columns`
    shape: tuple[int, int]  # pixels of the image


@dataclass(frozen=True)
class TrueFrame(Answer):
    """A frame and its answer."""

    counts: NDArray[np.float32]  # [row, col], detector counts


@dataclass(frozen=True)
class Evolution:
    """A changing specimen under one microscope."""

    field: Field  # of one frame
    whole: ColumnModel  # in the frame of the first image's field
    microscope: Microscope
    detector: Detector
    script: Script
    drift: Floats  # (frames, 2) y, x in Å since the first frame
    pairs: int  # antithetic frozen phonons of a frame
    seed: int

    def __len__(self) -> int:
        return len(self.drift)

    def specimen(self, number: int) -> Specimen:
        """Return what lies in the field in a frame."""
        origin = self.field.to_field(np.zeros(2))
        now = self.script(self.whole, self.whole.anchor - origin, number)
        now = replace(now, anchor=now.anchor + self.drift[number])
        extent = np.array(self.field.grid.extent)
        there = ((now.anchor > CLEARANCE_A) & (now.anchor < extent - CLEARANCE_A)).all(1)
        return Specimen(self.field, subset(now, np.flatnonzero(there & now.occupied)))

    def frame(self, number: int, workers: int = 1) -> TrueFrame:
        """Return a frame with its noise; the same seed gives the same frame whatever was made before."""
        specimen = self.specimen(number)
        model = ForwardModel(self.field, self.microscope.energy)
        rng = np.random.default_rng([self.seed, 3, number])
        image = frozen_phonon_image(model, specimen.columns, self.microscope, self.pairs, rng, workers)
        seed = int(np.random.SeedSequence([self.seed, 2, number]).generate_state(1)[0])
        counts = self.detector.counts(self.field.crop(image), torch.Generator().manual_seed(seed))
        answer = self.answer(number)
        return TrueFrame(answer.columns, answer.site, answer.shape, counts)

    def answer(self, number: int) -> Answer:
        """Return what is true of a frame, without imaging it."""
        specimen = self.specimen(number)
        tilt = (self.microscope["tilt_x"], self.microscope["tilt_y"])
        site = np.column_stack([specimen.columns.kind, specimen.columns.cell]).astype(np.int64)
        return Answer(column_table(specimen, tilt), site[listed(specimen, tilt)], self.field.image_shape)


def make_evolution(plan: Plan, crystal: Crystal, script: Script, drift: Floats, pairs: int = 2) -> Evolution:
    """Return the frames that a plan with [simulate] describes, under a script and a drift (frames, 2) in Å.

    The vacuum of an edge or wedge is on the left and wide enough for the drift.
    """
    asked = plan.simulate or SimulatePlan()
    note = Parameters()
    pixel = note("pixel_size_A", plan.image.pixel_size_A, 0.1)
    microscope = planned_lens(plan, note)
    detector = planned_detector(plan.image, asked, pixel, note, "plan")
    spread = microscope.delocalisation()
    projection = project(crystal, plan.structure.zone_axis)
    sampling = sampling_of(projection, microscope.energy)
    small = make_specimen(asked, projection, pixel, spread, sampling=sampling)
    reach = float(np.abs(drift).max(initial=0.0)) / 10
    width, height = asked.field_nm
    vacuum = asked.vacuum_nm
    wider = asked.model_copy(
        update={
            "field_nm": (width + 2 * reach, height + 2 * reach),
            "vacuum_nm": None if vacuum is None else vacuum + reach,
        }
    )
    large = make_specimen(wider, projection, pixel, spread, sampling=sampling)
    offset = large.field.to_field(np.full(2, round(10 * reach / pixel))) - small.field.to_field(np.zeros(2))
    whole = replace(large.columns, anchor=large.columns.anchor - offset)
    seed = plan.run.seed if asked.seed is None else asked.seed
    # Both fields count C1 from the exit plane of the whole specimen.
    field = replace(small.field, reference_z=large.field.reference_z)
    return Evolution(field, whole, microscope, detector, script, drift, pairs, seed)


def retreating_edge(begin: float, speed: float) -> Script:
    """Return the script of a specimen that ends at x = begin + speed · frame, in Å of the first image."""

    def at(columns: ColumnModel, place: Floats, frame: int) -> ColumnModel:
        gone = place[:, 1] < begin + speed * frame
        return columns.with_ends(columns.first, np.where(gone, columns.first - 1, columns.last))

    return at


def moving_step(begin: float, speed: float) -> Script:
    """Return the script of an exit surface one period lower where y < begin + speed · frame, Å."""

    def at(columns: ColumnModel, place: Floats, frame: int) -> ColumnModel:
        size = np.array([len(k.sites) for k in columns.projection.kinds])[columns.kind]
        lower = columns.last - np.where(place[:, 0] < begin + speed * frame, size, 0)
        return columns.with_ends(columns.first, np.maximum(lower, columns.first - 1))

    return at


def switching(
    element: str, by: tuple[float, float], centre: tuple[float, float], radius: float, frame: int
) -> Script:
    """Return the script of a domain where an element is off its place by (y, x) Å, and later by minus that.

    centre (y, x) and radius of the domain in Å of the first image; frame: the first with the other sign.
    """

    def at(columns: ColumnModel, place: Floats, number: int) -> ColumnModel:
        within = np.hypot(*(place - np.array(centre)).T) < radius
        shift = columns.shift.copy()
        for k, kind in enumerate(columns.projection.kinds):
            for g, species in enumerate(kind.groups):
                if species.element == element:
                    mine = within & (columns.kind == k)
                    shift[mine, g] += np.array(by) * (1 if number < frame else -1)
        return replace(columns, shift=shift)

    return at


def together(*scripts: Script) -> Script:
    """Return the script that is several, one after another."""

    def at(columns: ColumnModel, place: Floats, frame: int) -> ColumnModel:
        for script in scripts:
            columns = script(columns, place, frame)
        return columns

    return at
