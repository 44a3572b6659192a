"""The result of a run: what is claimed about the specimen and the microscope, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.forward import Field
from qhrtem.model.microscope import Microscope
from qhrtem.specimen.columns import ColumnModel


@dataclass(frozen=True)
class Estimate:
    """One imaging parameter in the unit users write."""

    name: str  # plan-style key, e.g. "c1_nm"
    label: str  # as the field writes it, e.g. "C1"
    value: float
    sigma: float  # one standard deviation, same unit; nan where it was not refined
    unit: str
    refined: bool
    note: str = ""  # e.g. "overfocus"


@dataclass(frozen=True)
class ColumnTable:
    """Every atomic column; C columns, E elements of the structure."""

    kind: tuple[str, ...]  # (C,), e.g. "BaO"
    elements: tuple[str, ...]  # (E,)
    counts: NDArray[np.int64]  # (C, E) atoms
    position_px: NDArray[np.float64]  # (C, 2) row, col of the heaviest element, mean along the beam
    sigma_px: NDArray[np.float64]  # (C, 2) one standard deviation
    element_position_px: NDArray[np.float64]  # (C, E, 2) row, col; nan where the element is absent
    displacement_A: NDArray[np.float64]  # (C, 2) x, y of the heaviest element from the ideal lattice
    p_exact: NDArray[np.float64]  # (C,) probability that all counts of the column are exact
    top_A: NDArray[np.float64]  # (C,) depth of the first atom, along the beam
    bottom_A: NDArray[np.float64]  # (C,) depth of the last atom
    inside: NDArray[np.bool_]  # (C,) column lies in the part of the image that the fit used


@dataclass(frozen=True)
class Atoms:
    """The three-dimensional structure; N atoms, x along detector columns, y along rows, z along the beam."""

    element: tuple[str, ...]  # (N,)
    position_A: NDArray[np.float64]  # (N, 3) x, y, z
    occupancy: NDArray[np.float64]  # (N,)
    b_iso_A2: NDArray[np.float64]  # (N,) B = 8π²⟨u²⟩
    sigma_A: NDArray[np.float64]  # (N, 3) one standard deviation
    column: NDArray[np.int64]  # (N,) row in the column table


@dataclass(frozen=True)
class PositionErrors:
    """How the errors of positions belong together: K coordinates of an element in a column along an axis.

    The covariance is local + common·commonᵀ. `local` connects neighbours only, so it averages down over many
    columns; each column of `common` is one nuisance (a combination of imaging parameters, a prior that many
    columns share) that moves all coordinates together, so it does not.
    """

    column: NDArray[np.int64]  # (K,) row in the column table
    element: NDArray[np.int64]  # (K,) index into the elements of the column table
    axis: NDArray[np.int64]  # (K,) 0 = x (detector columns), 1 = y (detector rows)
    common_A: NDArray[np.float32]  # (K, Q) Å, shift of the coordinate by one standard deviation of a nuisance
    common_name: tuple[str, ...]  # (Q,)
    local_A2: sparse.csr_array  # (K, K) Å², symmetric; zero for coordinates farther apart than reach_A
    reach_A: float

    def index(self, columns: int, elements: int) -> NDArray[np.int64]:
        """Return (columns, elements, 2) the row of each coordinate, -1 where it was not refined."""
        out = np.full((columns, elements, 2), -1, dtype=np.int64)
        out[self.column, self.element, self.axis] = np.arange(len(self.column))
        return out

    def sigma_A(self) -> NDArray[np.float64]:
        """Return one standard deviation (K,) in Å."""
        variance = self.local_A2.diagonal() + (self.common_A.astype(float) ** 2).sum(1)
        return np.sqrt(np.maximum(variance, 0.0))

    def of(self, weight: sparse.csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return local (M, M) and common (M, Q) errors of weighted sums (M, K) of coordinates."""
        local = (weight @ self.local_A2 @ weight.T).toarray()
        return local, np.asarray(weight @ self.common_A.astype(float))


@dataclass(frozen=True)
class ImagingErrors:
    """Covariance of the refined imaging parameters, in the units of their estimates."""

    name: tuple[str, ...]  # (P,) names of estimates, e.g. "c1_nm"
    covariance: NDArray[np.float64]  # (P, P)

    def sigma(self) -> dict[str, float]:
        """Return one standard deviation of each by name."""
        width = np.sqrt(np.maximum(np.diag(self.covariance), 0))
        return dict(zip(self.name, width.tolist(), strict=True))


@dataclass(frozen=True)
class Fitted:
    """What the fitted image was simulated from, so that it can be simulated again to the last digit."""

    columns: ColumnModel  # of the whole simulated area, also where it reaches beyond the image
    claimed: NDArray[np.int64]  # (C,) which of them the rows of the column table are
    microscope: Microscope
    field: Field
    diffuse: NDArray[np.float32]  # thermal diffuse correction on the image grid, vacuum = 1
    # (2, 2) rad/Å, change of the mistilt (y, x) along rows and columns of a field that was fitted in tiles;
    # the microscope's mistilt is then that in the middle. None where one mistilt holds everywhere.
    bend: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Match:
    """Measured and simulated image on the scale vacuum = 1, [row, col]."""

    measured: NDArray[np.float32]
    simulated: NDArray[np.float32]
    sigma: NDArray[np.float32]  # expected standard deviation of the noise
    used: NDArray[np.bool_]  # pixels in the misfit
    crystal: NDArray[np.bool_]  # pixels of the specimen (the rest is vacuum)


@dataclass(frozen=True)
class FurtherImage:
    """One more image of the same area, to which the structure was fitted together with the first."""

    path: str
    # row, col by which the specimen lies farther along in it than in the first image, pixels
    drift_px: tuple[float, float]
    microscope: tuple[Estimate, ...]
    chi2_crystal: float  # reduced χ² over the crystal, where both images show it
    overlap: float  # share of the pixels that count in the first image which also count in this one


@dataclass(frozen=True)
class Step:
    """One line of the convergence history."""

    stage: str
    iteration: int
    chi2: float  # reduced χ² over the used pixels, or the stage's own objective
    seconds: float  # since the start of the run
    note: str = ""
    done: float = float("nan")  # estimated share of the work finished, 0 to 1


@dataclass(frozen=True)
class Gate:
    """One quality test of the result."""

    name: str
    value: float
    limit: float
    passed: bool
    meaning: str  # one sentence a user understands


@dataclass(frozen=True)
class Twin:
    """The digital twin: structure, microscope, evidence and history of one fit."""

    columns: ColumnTable
    atoms: Atoms
    microscope: tuple[Estimate, ...]
    match: Match
    pixel_size_A: float
    lattice_px: NDArray[np.float64]  # (2, 2) rows: projected cell vectors a, b as (row, col) in pixels
    thickness_A: float  # depth from the uppermost to the lowest atom
    chi2_crystal: float  # reduced χ² over the crystal
    chi2_vacuum: float  # reduced χ² over the vacuum, nan without vacuum
    gates: tuple[Gate, ...]
    history: tuple[Step, ...]
    rules: dict[str, int] = field(default_factory=dict)  # candidates rejected by each physics rule
    notes: tuple[str, ...] = ()  # assumptions and warnings, one sentence each
    provenance: dict[str, str] = field(default_factory=dict)  # versions, hashes, seed, host-free
    position_errors: PositionErrors | None = None  # None in results of version 1
    imaging_errors: ImagingErrors | None = None
    fitted: Fitted | None = None
    further: tuple[FurtherImage, ...] = ()  # images fitted together with the one that all else speaks of

    @property
    def passed(self) -> bool:
        """True when every quality gate holds and the counts may be claimed."""
        return all(g.passed for g in self.gates)

    def _repr_html_(self) -> str:
        """Return a short table for notebooks; nothing about the specimen where a gate failed."""
        rows = [("quality gates", "all hold" if self.passed else "FAILED, no atoms are claimed")]
        rows.append(("χ² crystal, vacuum", f"{self.chi2_crystal:.3f}, {self.chi2_vacuum:.3f}"))
        if self.passed:
            inner = self.columns.inside
            total = self.columns.counts[inner].sum(axis=0)
            atoms = ", ".join(f"{int(n)} {e}" for e, n in zip(self.columns.elements, total, strict=True))
            rows += [
                ("columns in the fitted region", str(int(inner.sum()))),
                ("atoms in them", atoms),
                ("depth", f"{self.thickness_A / 10:.2f} nm"),
            ]
        for e in self.microscope:
            if e.refined:
                rows.append((e.label, f"{e.value:.4g} ± {e.sigma:.2g} {e.unit} {e.note}"))
        cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
        return f"<table><caption>qhrtem twin</caption>{cells}</table>"
