"""From the plan and the repeated-cell averages to a first model of the whole field."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.calibrate.area import unusable_area
from qhrtem.calibrate.finder import present_columns
from qhrtem.calibrate.intensity import planned_pitch
from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.forward import MARGIN_A, Field, make_field
from qhrtem.model.micrograph import Micrograph, RawImage
from qhrtem.model.microscope import INDEX, Microscope, nominal
from qhrtem.model.sampling import Sampling
from qhrtem.plan import MtfFormula, Plan
from qhrtem.specimen.columns import ColumnModel, lattice_columns
from qhrtem.specimen.crystal import Projection
from qhrtem.stages.averages import CellAverages
from qhrtem.stages.imaging import Hypothesis, thickness_at
from qhrtem.stages.objective import EFFECTIVE_ABSORPTION

Floats = NDArray[np.float64]
MID_PLANE_A = 80.0  # depth of the specimen's mid-plane in the box; an arbitrary origin
QUOTED_A = 40.0  # C1 is quoted this far / 2 below the mid-plane until the specimen is known


@dataclass(frozen=True)
class Start:
    """A first model of the field."""

    field: Field
    columns: ColumnModel
    microscope: Microscope
    eligible: NDArray[np.bool_]  # (C,) columns that the image shows


def stated_pixel(plan: Plan, raw: RawImage) -> tuple[float, float] | None:
    """Return the (row, col) pixel pitch in Å that the plan or else the file states, None where neither does.

    The lattice is asked whether rectangular pixels are so (`calibrate.lattice.require_square`).
    """
    return planned_pitch(plan.image, raw)


def planned_microscope(
    plan: Plan, scale_sigma: float, transfer: tuple[float, float] | None = None
) -> Microscope:
    """Return the microscope with priors from the plan, in Å and rad.

    A value given in the plan becomes the mean of a prior about a tenth as wide as without it.
    transfer: (a, b) of an MTF seen in the noise, which serves where the plan gives none.
    """
    m = plan.microscope
    base = nominal(m.high_tension_kV * 1e3)
    mean, sigma = base.mean.copy(), base.sigma.copy()

    def given(name: str, value: float | None, width: float) -> None:
        if value is not None:
            mean[INDEX[name]], sigma[INDEX[name]] = value, width

    def pair(name: str, value: tuple[float, float] | None, factor: float, width: float) -> None:
        if value is not None:
            given(f"{name}_x", value[0] * factor, width)
            given(f"{name}_y", value[1] * factor, width)

    given("c1", None if m.c1_nm is None else m.c1_nm * 10, 20.0)
    pair("a1", m.a1_nm, 10, 5.0)
    pair("b2", m.b2_nm, 10, 60.0)
    pair("a2", m.a2_nm, 10, 100.0)
    given("c3", None if m.c3_um is None else m.c3_um * 1e4, 1e4)
    given("focal_spread", None if m.focal_spread_nm is None else m.focal_spread_nm * 10, 2.0)
    given(
        "semi_convergence", None if m.semi_convergence_mrad is None else m.semi_convergence_mrad * 1e-3, 5e-5
    )
    if m.vibration_pm is not None:
        given("vibration_xx", (m.vibration_pm[0] / 100) ** 2, 0.02)
        given("vibration_yy", (m.vibration_pm[1] / 100) ** 2, 0.02)
    pair("tilt", m.mistilt_mrad, 1e-3, 1e-3)
    mean[INDEX["absorption"]], sigma[INDEX["absorption"]] = EFFECTIVE_ABSORPTION, 0.0
    sigma[INDEX["scale"]] = scale_sigma
    mtf: tuple[float, float] | Floats = transfer or (1.0, 1.0)
    if isinstance(plan.image.mtf, MtfFormula):
        mtf = (plan.image.mtf.a, plan.image.mtf.b)
    elif plan.image.mtf is not None:
        mtf = np.array([plan.image.mtf.q, plan.image.mtf.value])
    return Microscope(base.energy, mean.copy(), mean, sigma, mtf)


def start_field(
    micrograph: Micrograph,
    lattice: Lattice,
    projection: Projection,
    averages: CellAverages,
    hypothesis: Hypothesis,
    sampling: Sampling,
) -> Start:
    """Return the first model: every lattice site of the crystal filled to the thickness of its surroundings.

    Specimens are taken symmetric about a flat mid-plane; the counts stage finds which surface steps.
    sampling: the coarsest that serves the crystal.
    """
    pixel = lattice.pixel_size_A
    plane = projection.plane
    reference = MID_PLANE_A + round(QUOTED_A / plane) * plane / 2
    spread = min(hypothesis.microscope.delocalisation(), 8.0)
    shape = (micrograph.intensity.shape[0], micrograph.intensity.shape[1])
    margin = MARGIN_A + spread
    field = make_field(shape, pixel, reference, margin=margin, pivot_z=MID_PLANE_A, sampling=sampling)
    vectors = projection.vectors @ hypothesis.frame
    origin = field.to_field(np.zeros(2)) - np.array(hypothesis.origin) @ vectors
    ny, nx = field.image_shape
    low, high = field.to_field(np.zeros(2)) - MARGIN_A, field.to_field(np.array([ny - 1, nx - 1])) + MARGIN_A
    columns = lattice_columns(projection, origin, hypothesis.frame, (low[0], low[1], high[0], high[1]))
    detector = field.to_detector(columns.anchor)
    crystal = present_columns(
        micrograph.intensity,
        micrograph.valid,
        detector,
        columns.kind,
        lattice.crystal,
        pixel,
        float(np.sqrt(micrograph.variance(np.ones(1))[0])),
    )
    thickness = thickness_at(np.clip(detector, 0, np.array([ny - 1, nx - 1])), averages, hypothesis, plane)
    filled = columns.filled(MID_PLANE_A - thickness / 2, MID_PLANE_A + thickness / 2)
    last = np.where(crystal, filled.last, filled.first - 1)
    columns = filled.with_ends(filled.first, last)
    # Where nothing can be seen, such as in a second grain, no column may appear.
    place = np.clip(np.round(detector).astype(int), 0, np.array([ny - 1, nx - 1]))
    blind = unusable_area(micrograph.valid)[place[:, 0], place[:, 1]] & ~crystal
    return Start(field, columns, replace(hypothesis.microscope), shown(field, columns) & ~blind)


def shown(field: Field, columns: ColumnModel) -> NDArray[np.bool_]:
    """Return the columns (C,) that the image of a field shows."""
    detector = field.to_detector(columns.anchor)
    inside = np.clip(np.round(detector).astype(int), 0, np.array(field.image_shape) - 1)
    return np.asarray(np.abs(detector - inside).max(1) * field.detector_pixel < 1.0)
