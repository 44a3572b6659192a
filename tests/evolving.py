"""A small specimen that changes from frame to frame, and what a series would know of its first frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qhrtem.calibrate.lattice import Lattice
from qhrtem.model.diffuse import Diffuse, diffuse_image
from qhrtem.model.forward import ForwardModel
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import PARAMETERS
from qhrtem.plan import Plan, plan_from_tables
from qhrtem.simulate.evolution import Evolution, Script, TrueFrame, make_evolution
from qhrtem.specimen.crystal import read_cif
from qhrtem.specimen.persistence import certain
from qhrtem.stages.atlas import Atlas
from qhrtem.stages.follow import WALK, Known, crystal_of
from qhrtem.stages.objective import EFFECTIVE_ABSORPTION, State

DATA = Path(__file__).parents[1] / "src" / "qhrtem" / "data"
GAIN = 12.0
PIXEL_A = 0.12


def plan(nm: float = 1.8, dose: float = 2e4) -> Plan:
    """Return the plan of a field of some nm with vacuum on its left."""
    return plan_from_tables(
        {
            "image": {"path": DATA / "bto_edge_small.tif", "pixel_size_A": PIXEL_A, "offset_counts": 0.0}
            | {"gain_counts_per_electron": GAIN, "vacuum_counts": dose * PIXEL_A**2 * GAIN},
            "microscope": {"high_tension_kV": 300.0, "c3_um": -15.0},
            "structure": {"path": DATA / "BaTiO3.cif", "zone_axis": [1, 1, 0]},
            "simulate": {"shape": "edge", "field_nm": [nm, nm], "vacuum_nm": 0.5, "thickness_nm": 1.7}
            | {"rotation_deg": 4.0, "dose_e_per_A2": dose, "seed": 3, "c1_nm": 5.0},
        }
    )


def evolution(script: Script, drift: np.ndarray, **asked: float) -> Evolution:
    """Return an evolving specimen; drift: (frames, 2) y, x in Å."""
    asking = plan(**asked)
    return make_evolution(asking, read_cif(asking.structure.path), script, drift, pairs=1)


def known_of(it: Evolution) -> Known:
    """Return what a perfect fit of the first frame would leave."""
    specimen, lens = it.specimen(0), it.microscope
    sigma = np.array([WALK.get(p.name, 0.0) for p in PARAMETERS])
    lens = type(lens)(lens.energy, lens.values, lens.values.copy(), sigma, lens.mtf)
    lens = lens.with_values(absorption=EFFECTIVE_ABSORPTION)
    columns = specimen.columns
    ends = certain(columns, np.arange(len(columns)), np.full(len(columns), 0.99))
    extra = diffuse_image(ForwardModel(it.field, lens.energy), columns, lens, 4, np.random.default_rng(0))
    state = State(columns, lens, Diffuse.without_slope(extra, lens))
    return Known(state, it.field, Atlas(columns), ends, np.zeros(2), 1.0)


def micrograph(frame: TrueFrame, it: Evolution) -> Micrograph:
    """Return a frame on the absolute scale."""
    level = it.detector.electrons * it.detector.gain
    intensity = frame.counts.astype(float) / level
    valid = np.ones(intensity.shape, bool)
    return Micrograph(intensity, valid, PIXEL_A, it.detector.electrons, 0.0, 0.002, gain=GAIN)


def lattice(it: Evolution) -> Lattice:
    """Return the lattice of the first frame."""
    columns = it.specimen(0).columns
    p = columns.projection
    return Lattice(columns.frame / PIXEL_A, p.vectors, PIXEL_A, 4.0, 0.0, 99.0, crystal_of(it.field, columns))
