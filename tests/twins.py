"""Synthetic fit results for tests: a BaTiO3 [110]-like wedge with vacuum, drawn from an explicit seed."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from qhrtem.model.twin import Atoms, ColumnTable, Estimate, Gate, Match, Step, Twin

PIXEL_A = 0.112
CELL_A = (2.82, 4.03)  # projected cell of BaTiO3 along [110]
PERIOD_A = 5.64  # repeat along the beam
ELEMENTS = ("Ba", "Ti", "O")
# kind, fractional (x, y) in the projected cell, {element: depths within one repeat}, image contrast per atom
MOTIF = (
    ("BaO", (0.0, 0.0), {"Ba": (0.0,), "O": (2.82,)}, 0.075),
    ("Ti", (0.0, 0.5), {"Ti": (2.82,)}, 0.105),
    ("O", (0.5, 0.5), {"O": (1.41, 4.23)}, 0.03),
)
B_ISO = {"Ba": 0.38, "Ti": 0.45, "O": 0.62}


def make_twin(rows: int = 8, cols: int = 10, *, passed: bool = True, seed: int = 0) -> Twin:
    """Return a deterministic twin of rows x cols projected cells; `passed=False` makes one gate fail."""
    rng = np.random.default_rng(seed)
    turn = np.deg2rad(3.0)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shape = (int((rows * CELL_A[1] + 12.0) / PIXEL_A), int((cols * CELL_A[0] + 8.0) / PIXEL_A))
    columns, atoms = _specimen(rng, rows, cols, rotation)
    match = _images(rng, shape, columns, fidelity=1.0 if passed else 0.4)
    chi2 = float(np.mean(((match.measured - match.simulated) / match.sigma)[match.used & match.crystal] ** 2))
    a, b = rotation @ np.array([CELL_A[0], 0.0]), rotation @ np.array([0.0, CELL_A[1]])
    return Twin(
        columns=columns,
        atoms=atoms,
        microscope=_microscope(),
        match=match,
        pixel_size_A=PIXEL_A,
        lattice_px=np.array([a[::-1], b[::-1]]) / PIXEL_A,
        thickness_A=float(atoms.position_A[:, 2].max()) + 2.0,
        chi2_crystal=chi2,
        chi2_vacuum=1.003,
        gates=_gates(chi2),
        history=_history(rng),
        rules={"support": 143, "minimum distance": 12, "surface step": 61},
        notes=(
            "The vacuum level was taken from the plan.",
            "C5 was assumed to be zero: it cannot be told from C3 at this resolution.",
        ),
        provenance={"qhrtem": "0.1.0", "seed": str(seed), "image sha256": "4d5f" * 16},
    )


def with_text(twin: Twin, text: str) -> Twin:
    """Return the twin with `text` in every free-form string a file or a plan could have put there."""
    return dataclasses.replace(
        twin,
        microscope=tuple(dataclasses.replace(e, label=text, unit=text, note=text) for e in twin.microscope),
        gates=tuple(dataclasses.replace(g, name=text, meaning=text) for g in twin.gates),
        history=tuple(dataclasses.replace(s, stage=text, note=text) for s in twin.history),
        columns=dataclasses.replace(twin.columns, kind=(text,) * len(twin.columns.kind)),
        rules={text: 1},
        notes=(text,),
        provenance={text: text},
    )


def _specimen(
    rng: np.random.Generator, rows: int, cols: int, rotation: NDArray[np.float64]
) -> tuple[ColumnTable, Atoms]:
    """Build the column table and its atoms: a wedge thin at the top, polar displacement along +y of Ti."""
    kind: list[str] = []
    centre, shift, first, last, counts = [], [], [], [], []
    atoms: list[tuple[str, float, float, float, int]] = []
    for i in range(rows):
        for j in range(cols):
            for name, (u, v), sites, _ in MOTIF:
                ideal = rotation @ np.array([(j + u) * CELL_A[0], (i + v) * CELL_A[1]]) + np.array([4.5, 8.0])
                polar = {"BaO": 0.0, "Ti": 0.12, "O": -0.07}[name] * np.tanh((i - rows / 2 + 0.5) / 2.0)
                moved = rng.normal(0, 0.012, 2) + rotation @ np.array([0.0, polar])
                top = float(rng.integers(0, 2)) * 2.82
                bottom = PERIOD_A * (3.0 + 0.6 * i + 0.15 * j) + float(rng.integers(-1, 2)) * 2.82
                column = len(kind)
                depths = [
                    (element, repeat * PERIOD_A + z)
                    for repeat in range(40)
                    for element, offsets in sites.items()
                    for z in offsets
                    if top <= repeat * PERIOD_A + z <= bottom
                ]
                x, y = ideal + moved
                atoms += [(e, x, y, z, column) for e, z in depths]
                kind.append(name)
                centre.append((y / PIXEL_A, x / PIXEL_A))
                shift.append(moved)
                first.append(min(z for _, z in depths))
                last.append(max(z for _, z in depths))
                counts.append([sum(e == element for e, _ in depths) for element in ELEMENTS])
    position, n = np.array(centre), np.array(counts)
    element_position = np.where(n[:, :, None] > 0, position[:, None, :], np.nan)
    width = {"BaO": 0.11, "Ti": 0.13, "O": 0.28}
    sigma = np.array([width[k] for k in kind])[:, None] * rng.uniform(0.9, 1.2, (len(kind), 2))
    confidence = np.where(np.array(kind) == "O", rng.beta(5, 2, len(kind)), rng.beta(40, 2, len(kind)))
    edge = (position[:, 0] < 80) | (position[:, 1] < 50)
    table = ColumnTable(
        kind=tuple(kind),
        elements=ELEMENTS,
        counts=n.astype(np.int64),
        position_px=position,
        sigma_px=sigma,
        element_position_px=element_position,
        displacement_A=np.array(shift),
        p_exact=confidence,
        top_A=np.array(first),
        bottom_A=np.array(last),
        inside=~edge,
    )
    element = tuple(a[0] for a in atoms)
    owner = np.array([a[4] for a in atoms], dtype=np.int64)
    lateral = sigma[owner][:, ::-1] * PIXEL_A
    return table, Atoms(
        element=element,
        position_A=np.array([a[1:4] for a in atoms]),
        occupancy=np.ones(len(atoms)),
        b_iso_A2=np.array([B_ISO[e] for e in element]),
        sigma_A=np.column_stack([lateral, np.full(len(atoms), np.nan)]),
        column=owner,
    )


def _images(rng: np.random.Generator, shape: tuple[int, int], columns: ColumnTable, fidelity: float) -> Match:
    """Blurred columns on vacuum, with shot noise and a weak model error so that χ² exceeds one a little.

    fidelity: contrast of the simulated over the measured image.
    """
    contrast = {name: value for name, _, _, value in MOTIF}
    canvas = np.zeros(shape)
    total = columns.counts.sum(axis=1)
    for name, (row, col), n in zip(columns.kind, columns.position_px, total, strict=True):
        canvas[int(round(row)), int(round(col))] += contrast[name] * float(n) ** 0.8
    simulated = 1.0 + gaussian_filter(canvas, 4.2) * 2 * np.pi * 4.2**2 * 0.5
    simulated -= 0.22 * np.clip(gaussian_filter((canvas > 0).astype(float), 14) * 300, 0, 1)
    sigma = np.sqrt(np.maximum(simulated, 0.02) / 250.0)
    texture = gaussian_filter(rng.normal(size=shape), 3.0) * 0.9
    measured = simulated + sigma * (rng.normal(size=shape) + texture)
    simulated = 1.0 + fidelity * (simulated - 1.0)
    crystal = gaussian_filter((canvas > 0).astype(float), 10) > 6e-4
    used = np.zeros(shape, dtype=bool)
    used[12:-12, 12:-12] = True
    return Match(*(x.astype(np.float32) for x in (measured, simulated, sigma)), used=used, crystal=crystal)


def _microscope() -> tuple[Estimate, ...]:
    return (
        Estimate("high_tension_kV", "U", 300.0, np.nan, "kV", False),
        Estimate("c1_nm", "C1", 5.52, 0.08, "nm", True, "overfocus"),
        Estimate("a1_x_nm", "A1 x", 0.81, 0.05, "nm", True),
        Estimate("a1_y_nm", "A1 y", -1.32, 0.05, "nm", True),
        Estimate("b2_x_nm", "B2 x", 22.4, 3.1, "nm", True),
        Estimate("b2_y_nm", "B2 y", -8.0, 3.3, "nm", True),
        Estimate("a2_x_nm", "A2 x", 12.0, 4.0, "nm", True),
        Estimate("a2_y_nm", "A2 y", 30.5, 4.2, "nm", True),
        Estimate("c3_um", "C3", -13.7, 0.4, "µm", True),
        Estimate("focal_spread_nm", "focal spread", 2.9, 0.1, "nm", True, "one standard deviation"),
        Estimate("semi_convergence_mrad", "semi-convergence", 0.3, np.nan, "mrad", False, "1/e half angle"),
        Estimate("vibration_x_pm", "vibration x", 18.5, 0.7, "pm", True),
        Estimate("tilt_x_mrad", "mistilt x", 1.4, 0.6, "mrad", True),
        Estimate("absorption", "absorption", 0.031, 0.004, "", True, "fraction of the potential"),
    )


def _gates(chi2: float) -> tuple[Gate, ...]:
    return (
        Gate("crystal misfit", chi2, 1.25, chi2 <= 1.25, "Reduced χ² over the crystal; 1 is noise alone."),
        Gate("vacuum misfit", 1.003, 1.10, True, "Reduced χ² over the vacuum; tests the noise model."),
        Gate("registered lattice", 0.04, 0.30, True, "Rms distance of peaks from the lattice, px."),
    )


def _history(rng: np.random.Generator) -> tuple[Step, ...]:
    plan = (("imaging", 60, 3.4, 1.35, 80), ("counts", 25, 1.33, 1.12, 60), ("positions", 10, 1.11, 1.06, 25))
    plan += (("surfaces", 8, 1.06, 1.045, 20), ("counts", 6, 1.045, 1.04, 12), ("joint", 12, 1.04, 1.03, 30))
    steps: list[Step] = []
    start = 4.0
    for stage, n, high, low, span in plan:
        for k in range(n):
            level = low + (high - low) * np.exp(-4.0 * k / n)
            noise = abs(rng.normal(0, 0.25)) if stage == "imaging" else abs(rng.normal(0, 0.01))
            steps.append(Step(stage, k, float(level + noise), start + span * (k + 1) / n))
        start += span
    return tuple(steps)
