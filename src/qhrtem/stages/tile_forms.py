"""What a tile is given and what it gives back as snapshots, for checkpoints and for the way to a worker."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.forward import Field, make_field
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import Microscope
from qhrtem.model.sampling import Sampling
from qhrtem.model.twin import ImagingErrors, Match, PositionErrors
from qhrtem.physics.potential import Species
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.crystal import Crystal, Projection, project
from qhrtem.stages.assess import Assessed
from qhrtem.stages.checkpoint import (
    COLUMN_ARRAYS,
    Forgetful,
    LatticeForm,
    Log,
    Parts,
    Reached,
    ReachedForm,
    Snapshot,
    load_microscope,
    save_microscope,
)
from qhrtem.stages.objective import State
from qhrtem.stages.start import Start
from qhrtem.stages.tasks import Place, task
from qhrtem.stages.thickness import Rival
from qhrtem.stages.tile import Job, Settled, finish, settle

Arrays = dict[str, NDArray[Any]]
MATCH = ("measured", "simulated", "sigma", "used", "crystal")
PLACES = ("column", "element", "axis", "common_A")


def joined(**parts: Snapshot) -> Snapshot:
    """Return several snapshots as one."""
    arrays = {f"{name}.{k}": v for name, part in parts.items() for k, v in part.arrays.items()}
    return Snapshot({name: part.facts for name, part in parts.items()}, arrays)


def part_of(snapshot: Snapshot, name: str) -> Snapshot:
    """Return one of several snapshots that were joined."""
    head = f"{name}."
    arrays = {k.removeprefix(head): v for k, v in snapshot.arrays.items() if k.startswith(head)}
    return Snapshot(snapshot.facts[name], arrays)


def save_projection(projection: Projection) -> Snapshot:
    """Return the snapshot of a crystal and its zone axis."""
    c = projection.crystal
    facts = {
        "name": c.name,
        "species": [[s.element, float(s.b_iso), float(s.occupancy)] for s in c.species],
        "notes": list(c.notes),
        "zone": [int(v) for v in projection.zone],
    }
    return Snapshot(facts, {"cell": c.cell, "fractional": c.fractional, "centring": c.centring})


def load_projection(snapshot: Snapshot) -> Projection:
    """Return the crystal of a snapshot, projected."""
    f, a = snapshot.facts, snapshot.arrays
    species = tuple(Species(*s) for s in f["species"])
    crystal = Crystal(f["name"], a["cell"], a["fractional"], species, a["centring"], tuple(f["notes"]))
    h, k, m = f["zone"]
    return project(crystal, (h, k, m))


def save_field(field: Field) -> dict[str, Any]:
    """Return what a field is made from."""
    return {
        "shape": list(field.image_shape),
        "pixel": field.detector_pixel,
        "reference_z": field.reference_z,
        "pivot_z": field.pivot_z,
        "margin": (field.pad[0] - 0.5) * field.detector_pixel,
        "sampling": list(astuple(field.sampling)),
    }


def load_field(facts: dict[str, Any]) -> Field:
    """Return a field made from the same numbers."""
    rows, cols = facts["shape"]
    return make_field(
        *((rows, cols), facts["pixel"], facts["reference_z"]),
        margin=facts["margin"],
        pivot_z=facts["pivot_z"],
        sampling=Sampling(*facts["sampling"]),
    )


class JobForm:
    """A tile that is to be fitted."""

    def save(self, job: Job) -> Snapshot:
        """Return the snapshot of a job."""
        start, m = job.start, job.micrograph
        facts = {
            "name": job.name,
            "seed": job.seed,
            "thickness_open": job.thickness_open,
            "field": save_field(start.field),
            "pixel_size_A": m.pixel_size_A,
            "electrons": m.electrons_per_pixel,
            "readout_variance": m.readout_variance,
            "scale_sigma": m.scale_sigma,
        }
        columns = {n: getattr(start.columns, n) for n in COLUMN_ARRAYS}
        arrays = {**columns, "eligible": start.eligible, "intensity": m.intensity, "valid": m.valid}
        return joined(
            tile=Snapshot(facts, arrays),
            lens=save_microscope(start.microscope),
            lattice=LatticeForm().save(job.lattice),
            crystal=save_projection(start.columns.projection),
        )

    def load(self, snapshot: Snapshot) -> Job:
        """Return the job of a snapshot."""
        tile = part_of(snapshot, "tile")
        f, a = tile.facts, tile.arrays
        projection = load_projection(part_of(snapshot, "crystal"))
        columns = ColumnModel(projection, **{n: a[n] for n in COLUMN_ARRAYS})
        lens = load_microscope(part_of(snapshot, "lens"))
        micrograph = Micrograph(
            *(a["intensity"], a["valid"], f["pixel_size_A"]),
            *(f["electrons"], f["readout_variance"], f["scale_sigma"]),
        )
        start = Start(load_field(f["field"]), columns, lens, a["eligible"])
        lattice = LatticeForm().load(part_of(snapshot, "lattice"))
        return Job(f["name"], f["seed"], start, micrograph, lattice, f["thickness_open"])


@dataclass(frozen=True)
class SettledForm:
    """A tile that has settled, of a crystal."""

    projection: Projection

    def save(self, value: Settled) -> Snapshot:
        """Return the snapshot."""
        counts = {str(n): r.counts for n, r in enumerate(value.rivals) if r.counts is not None}
        rivals = Snapshot({"all": [[r.name, float(r.behind)] for r in value.rivals]}, counts)
        known = Snapshot({"rejected": dict(value.rejected)}, {"covariance": value.covariance})
        state = ReachedForm(self.projection).save(Reached(value.state))
        return joined(state=state, rivals=rivals, known=known)

    def load(self, snapshot: Snapshot) -> Settled:
        """Return the value of a snapshot."""
        rivals, known = part_of(snapshot, "rivals"), part_of(snapshot, "known")
        return Settled(
            ReachedForm(self.projection).load(part_of(snapshot, "state")).state,
            known.arrays["covariance"],
            tuple(
                Rival(name, behind, rivals.arrays.get(str(n)))
                for n, (name, behind) in enumerate(rivals.facts["all"])
            ),
            dict(known.facts["rejected"]),
        )


@dataclass(frozen=True)
class FinishedForm:
    """A tile at its end: state and assessment."""

    projection: Projection

    def save(self, value: tuple[State, Assessed]) -> Snapshot:
        """Return the snapshot."""
        state, e = value
        local = e.positions.local_A2
        arrays: Arrays = {
            **{f"match_{n}": getattr(e.match, n) for n in MATCH},
            **{f"position_{n}": getattr(e.positions, n) for n in PLACES},
            **{f"local_{n}": getattr(local, n) for n in ("data", "indices", "indptr")},
            "sigma": e.sigma,
            "probability": e.probability,
            "imaging": e.imaging.covariance,
            "diffuse": e.diffuse,
        }
        facts = {
            "names": list(e.positions.common_name),
            "reach": e.positions.reach_A,
            "imaging": list(e.imaging.name),
            "own": float(e.own),
            "shared": float(e.shared),
            "refined": list(e.refined),
            "rejected": dict(e.rejected),
            "notes": list(e.notes),
        }
        return joined(
            state=ReachedForm(self.projection).save(Reached(state)), assessed=Snapshot(facts, arrays)
        )

    def load(self, snapshot: Snapshot) -> tuple[State, Assessed]:
        """Return the value of a snapshot."""
        part = part_of(snapshot, "assessed")
        f, a = part.facts, part.arrays
        size = len(a["position_column"])
        local = sparse.csr_array((a["local_data"], a["local_indices"], a["local_indptr"]), shape=(size, size))
        positions = PositionErrors(
            **{n: a[f"position_{n}"] for n in PLACES},
            common_name=tuple(f["names"]),
            local_A2=local,
            reach_A=f["reach"],
        )
        assessed = Assessed(
            Match(**{n: a[f"match_{n}"] for n in MATCH}),
            a["sigma"],
            a["probability"],
            positions,
            ImagingErrors(tuple(f["imaging"]), a["imaging"]),
            *(f["own"], f["shared"], tuple(f["refined"]), dict(f["rejected"])),
            a["diffuse"],
            tuple(f["notes"]),
        )
        return ReachedForm(self.projection).load(part_of(snapshot, "state")).state, assessed


def _alone() -> Parts:
    """Return parts that keep nothing and tell nobody: a worker's result is kept as a whole."""
    return Parts(Forgetful(), Log(lambda step: None))


@task
def settle_tile(given: Snapshot, place: Place) -> Snapshot:
    """Fit a tile whose lens is roughly known."""
    job = JobForm().load(part_of(given, "job"))
    with torch.inference_mode():
        return SettledForm(job.start.columns.projection).save(settle(job, _alone(), place.threads))


@task
def finish_tile(given: Snapshot, place: Place) -> Snapshot:
    """Bring a tile to its end with the lens of the field."""
    job = JobForm().load(part_of(given, "job"))
    projection = job.start.columns.projection
    before = SettledForm(projection).load(part_of(given, "settled"))
    lens: Microscope = load_microscope(part_of(given, "lens"))
    with torch.inference_mode():
        return FinishedForm(projection).save(finish(job, before, lens, _alone(), place.threads))
