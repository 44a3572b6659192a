"""What `qhrtem inspect` says: one account for the terminal and the page, and the plan it recommends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qhrtem.calibrate.noise import NYQUIST, NoiseSpectrum
from qhrtem.calibrate.survey import Survey
from qhrtem.plan import Plan, dump_plan, plan_from_tables
from qhrtem.report.notation import number

Rows = tuple[tuple[str, str], ...]
MOST_ZONES = 5
LOW_DOSE = 3000.0  # electrons per Å² below which light atoms will hardly be counted
NEAR_NYQUIST = 0.42  # cycles/pixel from which finer detail is likely to be folded back
COARSE_LIMIT_A = 1.4  # information limit beyond which neighbouring columns of most crystals merge


@dataclass(frozen=True)
class Account:
    """Everything that is told, in words."""

    title: str
    verdict: str
    fittable: bool
    file: Rows  # what the file says
    image: Rows  # what the image says
    zones: Rows
    contradictions: tuple[str, ...]
    refusals: tuple[str, ...]
    cautions: tuple[str, ...]
    plan: str  # PLAN.toml; a comment where something required is unknown
    complete: bool  # whether `qhrtem fit` can run the plan as it is
    has_noise: bool = False  # whether the figure shows the noise of a vacuum

    @property
    def plan_title(self) -> str:
        """Return what the plan is: recommended only where a fit would take it."""
        if self.refusals:
            return "What is known for a plan"
        return "Recommended plan" if self.complete else "Plan so far"


def account(found: Survey, structure: Path | None, high_tension_kV: float | None) -> Account:
    """Return the account of a survey.

    structure: CIF for the recommended plan; high_tension_kV: as given, else the file's.
    """
    tension = high_tension_kV or found.claims.high_tension_kV
    plan, complete, missing = recommended_plan(found, structure, tension)
    refusals = found.refusals
    fittable = not refusals and complete
    if refusals:
        verdict = "A fit would be refused"
    elif not complete:
        verdict = f"Nothing rules out a fit; for a plan give also {missing}"
    else:
        verdict = "Ready to fit"
    return Account(
        found.raw.path,
        verdict,
        fittable,
        _file(found),
        _image(found),
        _zones(found),
        tuple(c[:1].upper() + c[1:] + "." for c in found.claims.contradictions),
        refusals,
        _cautions(found),
        plan,
        complete,
        found.noise is not None,
    )


def _file(found: Survey) -> Rows:
    raw, claims = found.raw, found.claims
    rows, cols = raw.counts.shape
    out = [("size", f"{rows} rows × {cols} columns"), ("technique", claims.technique)]
    if raw.pixel_size_A is None:
        out.append(("pixel size", "not stated"))
    else:
        row, col = raw.pixel_size_A
        pitch = f"{col:.5g} Å" if abs(row / col - 1) < 1e-6 else f"{row:.5g} Å (row), {col:.5g} Å (col)"
        field = f"{cols * col / 10:.4g} × {rows * row / 10:.4g} nm"
        out.append(("pixel size", f"{pitch}, field {field}"))
    tension = claims.high_tension_kV
    out.append(("high tension", "not stated" if tension is None else f"{tension:g} kV"))
    if claims.gain_counts_per_electron is not None:
        out.append(("gain", f"{claims.gain_counts_per_electron:.3g} counts per electron"))
    return (*out, *claims.facts)


def _image(found: Survey) -> Rows:
    counts = found.raw.counts
    finite = counts[np.isfinite(counts)]
    low, middle, high = np.percentile(finite, [1, 50, 99])
    out = [
        ("counts", f"{finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}"),
        ("1 %, 50 %, 99 %", f"{low:.6g}, {middle:.6g}, {high:.6g}"),
        ("unusable pixels", f"{int((~found.defects.valid).sum())}"),
    ]
    if found.vacuum is None:
        out.append(("vacuum", "none found"))
    else:
        share, level = 100 * found.vacuum.pixels / counts.size, found.vacuum.level
        out.append(
            (
                "vacuum",
                f"{share:.0f} % of the image, {level:.1f} ± {found.vacuum.level_sigma:.1f} counts",
            )
        )
        out.append(
            (
                "noise",
                f"{math.sqrt(found.vacuum.variance):.3g} counts, correlation {found.vacuum.correlation:.2f}",
            )
        )
    if found.noise is not None:
        out.append(("noise spectrum", _noise_spectrum(found.noise)))
    if found.micrograph is not None:
        m = found.micrograph
        sigma = f" ± {m.gain_sigma:.1g}" if m.gain_sigma > 0 else ""
        out.append(("gain", f"{m.gain:.3g}{sigma} counts per electron"))
        dose = f"{m.electrons_per_pixel:.3g} electrons per pixel"
        if math.isfinite(found.dose):
            dose = f"{found.dose:.3g} electrons/Å² ({dose})"
        out.append(("dose", dose))
    frequency, spacing = found.information_limit()
    if math.isfinite(frequency):
        limit = f"{frequency:.3f} cycles per pixel" + (f", {spacing:.2f} Å" if math.isfinite(spacing) else "")
        out.append(("finest detail", limit))
    if found.peaks is not None:
        out.append(("spots", f"{len(found.peaks.snr)} in half of the spectrum"))
    return (*out, *_lattice(found))


def _noise_spectrum(noise: NoiseSpectrum) -> str:
    if noise.transfer is None:
        return f"white within {200 * noise.fall_sigma:.2g} %: it does not show the camera's MTF"
    (a, b), (da, db) = noise.transfer, noise.transfer_sigma
    return (
        f"transfer {float(noise.at(NYQUIST)):.2f} at Nyquist, (1 - a)/(1 + (q/b)²) + a with a = {a:.3f} ± "
        f"{da:.1g}, b = {b:.3f} ± {db:.1g} cycles/pixel; the MTF lies at or below"
    )


def _lattice(found: Survey) -> Rows:
    lattice = found.lattice
    if lattice is None:
        return ()
    row, col = lattice.pitch_A
    pitch = f"{lattice.pixel_size_A:.5f} ± {_sigma(lattice.pixel_size_sigma_A)} Å"
    if abs(row / col - 1) > 1e-3:
        pitch = f"{row:.5f} Å (row), {col:.5f} Å (col)"
    stated = (
        "" if found.pitch_A is None else f" (stated {math.sqrt(found.pitch_A[0] * found.pitch_A[1]):.5f} Å)"
    )
    zone = "" if found.zone is None else " [" + " ".join(str(v) for v in found.zone) + "]"
    name = "" if found.crystal is None else found.crystal.name
    out = [
        ("lattice", f"{name}{zone}, {100 * lattice.explained:.0f} % of the spots, {100 * lattice.seen:.0f} % "
         "of the reflections that should stand out"),
        ("pixel size", pitch + stated),
        ("rotation", f"{lattice.rotation_deg:.2f} ± {_sigma(lattice.rotation_sigma_deg)}°"),
        ("distortion", f"{100 * lattice.shear:.2f} %"),
        ("crystal", f"{100 * lattice.crystal.mean():.0f} % of the image"),
    ]  # fmt: skip
    if found.foreign is not None and found.foreign.any():
        out.append(("neither crystal nor vacuum", f"{100 * found.foreign.mean():.1f} % of the image"))
    return tuple(out)


def _sigma(value: float) -> str:
    return "?" if not math.isfinite(value) else f"{value:.1g}"


def _zones(found: Survey) -> Rows:
    out = []
    for proposal in found.zones[:MOST_ZONES]:
        name = "[" + " ".join(str(v) for v in proposal.zone) + "]"
        if proposal.alike:
            name += " or " + ", ".join("[" + " ".join(str(v) for v in z) + "]" for z in proposal.alike[:2])
        out.append((name, proposal.evidence()))
    return tuple(out)


def _cautions(found: Survey) -> tuple[str, ...]:
    out = list(found.defects.notes())
    if found.micrograph is not None:
        out += [n for n in found.micrograph.notes if n not in out]
    if found.lattice is not None:
        out += found.lattice.notes
    if len(found.zones) > 1 and found.zones[1].merit > 0.8 * found.zones[0].merit:
        first, second = (" ".join(str(v) for v in z.zone) for z in found.zones[:2])
        out.append(f"The spots alone hardly tell [{first}] from [{second}]; give the zone axis you know.")
    if math.isfinite(found.dose) and found.dose < LOW_DOSE:
        out.append(
            f"At {number(found.dose)} electrons/Å² only heavy columns can be counted; expect wide error bars."
        )
    frequency, spacing = found.information_limit()
    if frequency > NEAR_NYQUIST:
        out.append(
            f"Detail reaches {frequency:.2f} cycles/pixel; Nyquist is at 0.5. What is finer was folded back "
            "into the image, where it cannot be told from true detail; take the image with smaller pixels."
        )
    if math.isfinite(spacing) and spacing > COARSE_LIMIT_A:
        out.append(f"Nothing finer than {spacing:.2f} Å is seen: neighbouring columns may not be resolved.")
    return tuple(out)


def recommended_plan(
    found: Survey, structure: Path | None, high_tension_kV: float | None
) -> tuple[str, bool, str]:
    """Return a plan as TOML, whether it is complete, and what is missing.

    It holds what was measured or stated and nothing that was guessed; what it leaves out is found by the fit.
    """
    raw, given = found.raw, found.plan
    image: dict[str, object] = {"path": Path(raw.path).resolve()}
    for key in ("dataset", "frame", "offset_counts", "readout_counts", "mtf", "mask", "exclude"):
        if getattr(given, key) is not None:
            image[key] = getattr(given, key)
    if math.isfinite(found.pixel_A) and 0.02 <= found.pixel_A <= 1.0:
        image["pixel_size_A"] = round(found.pixel_A, 6)
    level = given.vacuum_counts or (found.vacuum.level if found.vacuum is not None else None)
    if level is not None and level > (given.offset_counts or 0.0):
        image["vacuum_counts"] = round(float(level), 3)
    gain = given.gain_counts_per_electron or found.claims.gain_counts_per_electron
    if gain is None and found.micrograph is not None and found.vacuum is not None:
        gain = found.micrograph.gain
    if gain is not None and 1e-4 <= gain <= 1e5:
        image["gain_counts_per_electron"] = round(float(gain), 5)
    missing = [
        what
        for what, known in (
            ("--high-tension (kV)", high_tension_kV),
            ("--structure (CIF)", structure),
            ("--zone", found.zone),
        )
        if known is None
    ]
    # What is missing gets a stand-in, so that the rest is checked as a plan is; then it is struck.
    plan = plan_from_tables(
        {
            "image": image,
            "microscope": {"high_tension_kV": float(high_tension_kV or 300.0)},
            "structure": {
                "path": (structure or Path("STRUCTURE.cif")).resolve(),
                "zone_axis": list(found.zone or (0, 0, 1)),
            },
        }
    )
    return _struck(plan, missing), not missing, " and ".join(missing)


def _struck(plan: Plan, missing: list[str]) -> str:
    keys = {"--high-tension (kV)": "high_tension_kV", "--structure (CIF)": "path", "--zone": "zone_axis"}
    table, lines = "", []
    for line in dump_plan(plan).splitlines():
        table = line if line.startswith("[") else table
        key = line.split(" = ")[0]
        for what in missing:
            home = "[microscope]" if key == "high_tension_kV" else "[structure]"
            if key == keys[what] and table == home:
                line = f"# {key} = …  # required: give {what}"
        lines.append(line)
    return "\n".join(lines) + "\n"
