"""Plan: what was asked, in the units users write, checked before any work starts.

A plan is a TOML file of four tables, `[image]`, `[microscope]`, `[structure]` and `[run]`; two more,
`[series]` and `[simulate]`, describe frames in the order of time and a phantom to be made. Every key carries
its unit. What is left out is found from the image or assumed, and the report says which. Conversion to the
internal units (Å, rad) happens once, in `qhrtem.model.microscope`; here a number stays as it was written.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from qhrtem.errors import PlanError
from qhrtem.mtf import read_mtf

Tables = Mapping[str, Mapping[str, Any]]  # a plan as TOML holds it: table → key → value


def _within(low: float, high: float, unit: str, below: str = "", above: str = "") -> AfterValidator:
    """Return a check that a number lies in [low, high] unit; `below`, `above` guess why it does not."""

    def check(value: float) -> float:
        if low <= value <= high:
            return value
        guess = below if value < low else above
        raise ValueError(
            f"must be {low:g} to {high:g} {unit}, got {value:g}" + (f"; {guess}" if guess else "")
        )

    return AfterValidator(check)


_Number = Annotated[float, Strict()]  # a TOML integer or float, never a string or a boolean
_Angstrom = Annotated[_Number, _within(0.02, 1.0, "Å", "was it given in nm?", "was it given in pm?")]
_Counts = Annotated[_Number, _within(-1e7, 1e7, "counts")]
_Noise = Annotated[_Number, _within(0.0, 1e5, "counts")]
_Gain = Annotated[_Number, _within(1e-4, 1e5, "counts per electron")]
_HighTension = Annotated[_Number, _within(20.0, 1500.0, "kV", above="was it given in V?")]
_Defocus = Annotated[_Number, _within(-1000.0, 1000.0, "nm", "was it given in Å?", "was it given in Å?")]
_Axial = Annotated[_Number, _within(-5000.0, 5000.0, "nm", "was it given in Å?", "was it given in Å?")]
_C3 = Annotated[
    _Number, _within(-5000.0, 5000.0, "µm", "was it given in nm or Å?", "was it given in nm or Å?")
]
_FocalSpread = Annotated[_Number, _within(0.05, 20.0, "nm", above="was it given in Å?")]
_SemiConvergence = Annotated[
    _Number, _within(0.005, 10.0, "mrad", "was it given in rad?", "was it given in µrad?")
]
_Vibration = Annotated[_Number, _within(0.0, 200.0, "pm", above="was it given in fm?")]
_C5 = Annotated[_Number, _within(-1000.0, 1000.0, "mm", "was it given in µm?", "was it given in µm?")]
_Tilt = Annotated[_Number, _within(-50.0, 50.0, "mrad", "was it given in µrad?", "was it given in µrad?")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MtfFormula(_Table):
    """Modulation transfer (1 − a)/(1 + (q/b)²) + a, q in cycles/pixel of the image."""

    a: Annotated[_Number, _within(0.0, 1.0, "(a fraction)")]
    b: Annotated[_Number, _within(0.01, 10.0, "cycles/pixel", above="was it given in cycles/Å or 1/nm?")]


class MtfTable(_Table):
    """Modulation transfer as measured, read from a file (`qhrtem.mtf`)."""

    path: Path
    q: tuple[float, ...]  # cycles/pixel, rising from 0
    value: tuple[float, ...]  # same length, 1 at q = 0


_Corner = tuple[_Number, _Number]  # row, col, pixels
_Polygon = Annotated[tuple[_Corner, ...], Field(min_length=3)]


_Frame = Annotated[int, Strict(), Field(ge=0)]
_Frames = Annotated[tuple[_Frame, ...], Field(min_length=2)]
_Drift = Annotated[_Number, _within(-1e4, 1e4, "pixels", "was it given in pm?", "was it given in pm?")]
_Step = Annotated[_Number, _within(-200.0, 200.0, "nm", "was it given in Å?", "was it given in Å?")]


class FurtherPlan(_Table):
    """A further image of the same area, with the pixels of the first; what is left out is as in [image].

    Mask and polygons are not taken over: they are of one image.
    """

    path: Path | None = None
    dataset: str | None = None  # which image, where a file holds several
    frame: _Frame | None = None  # which frame of a series, from 0
    offset_counts: _Counts | None = None  # reading without electrons
    vacuum_counts: _Counts | None = None  # mean vacuum level, the offset included
    gain_counts_per_electron: _Gain | None = None
    readout_counts: _Noise | None = None  # one standard deviation
    mask: Path | None = None  # image of the same size, zero where a pixel must not be used
    exclude: tuple[_Polygon, ...] | None = None  # areas that must not be used
    c1_nm: _Defocus | None = None  # positive = overfocus, from the specimen's exit plane; else looked for
    # how many rows and columns farther along the specimen lies than in the first image
    drift_px: tuple[_Drift, _Drift] | None = None

    @model_validator(mode="after")
    def _another(self) -> Self:
        if self.path is None and self.dataset is None and self.frame is None:
            raise ValueError(
                "needs a path, a dataset or a frame of its own, got none; it would be the first image again"
            )
        return self


class ImagePlan(_Table):
    """Where the micrograph is and what is known of the camera."""

    path: Path
    dataset: str | None = None  # which image, where a file holds several
    frame: _Frame | None = None  # which frame of a series, from 0
    frames: Literal["all"] | Annotated[tuple[_Frame, ...], Field(min_length=2)] | None = (
        None  # fitted together
    )
    focus_step_nm: _Step | None = None  # change of C1 from one of these frames to the next, if it was set
    also: tuple[FurtherPlan, ...] | None = (
        None  # further images of the same area, each a table [[image.also]]
    )
    pixel_size_A: _Angstrom | None = None  # a prior, refined by the lattice
    offset_counts: _Counts | None = None  # reading without electrons, 0 where left out
    vacuum_counts: _Counts | None = None  # mean vacuum level, the offset included
    gain_counts_per_electron: _Gain | None = None
    readout_counts: _Noise | None = None  # one standard deviation
    mtf: MtfFormula | MtfTable | None = None  # { a = …, b = … } for (1 − a)/(1 + (q/b)²) + a, or a file
    mask: Path | None = None  # image of the same size, zero where a pixel must not be used
    exclude: tuple[_Polygon, ...] | None = None  # areas that must not be used

    @field_validator("mtf", mode="before")
    @classmethod
    def _one_kind(cls, value: object) -> object:
        # Decide here, so that a wrong key is reported once and not once for each kind of MTF.
        if isinstance(value, Mapping):
            return (MtfTable if "path" in value else MtfFormula).model_validate(dict(value))
        if value is None or isinstance(value, (MtfFormula, MtfTable)):
            return value
        raise ValueError(f"must be a table {{ a = …, b = … }} or the path of a file of values, got {value!r}")

    @model_validator(mode="after")
    def _one_choice_of_frames(self) -> Self:
        if self.frames is not None and self.frame is not None:
            raise ValueError("takes frame (one) or frames (fitted together), got both; leave one out")
        if self.focus_step_nm is not None and self.frames is None:
            raise ValueError('focus_step_nm needs frames = "all" or a list such as [0, 1, 2]')
        if isinstance(self.frames, tuple) and len(set(self.frames)) < len(self.frames):
            raise ValueError(f"frames must differ, got {list(self.frames)}")
        return self

    @model_validator(mode="after")
    def _vacuum_above_offset(self) -> Self:
        offset = self.offset_counts or 0.0
        if self.vacuum_counts is not None and self.vacuum_counts <= offset:
            raise ValueError(
                f"vacuum_counts must exceed offset_counts ({offset:g} counts), got "
                f"{self.vacuum_counts:g}; give the mean vacuum level as the file holds it, offset included"
            )
        return self


class MicroscopePlan(_Table):
    """What is known of the lens; all but the high tension are priors, pairs are cartesian (x, y)."""

    high_tension_kV: _HighTension
    c1_nm: _Defocus | None = None  # positive = overfocus, from the specimen's exit plane
    a1_nm: tuple[_Axial, _Axial] | None = None
    b2_nm: tuple[_Axial, _Axial] | None = None
    a2_nm: tuple[_Axial, _Axial] | None = None
    c3_um: _C3 | None = None  # negative for negative-C3 imaging
    focal_spread_nm: _FocalSpread | None = None  # one standard deviation
    semi_convergence_mrad: _SemiConvergence | None = None  # 1/e half angle
    vibration_pm: tuple[_Vibration, _Vibration] | None = None  # one standard deviation along x, y
    mistilt_mrad: tuple[_Tilt, _Tilt] | None = None  # along x, y


class StructurePlan(_Table):
    """The ideal crystal and the direction it is looked at."""

    path: Path
    zone_axis: tuple[int, int, int]  # [u, v, w] of the CIF's cell, reduced to the primitive direction

    @field_validator("zone_axis", mode="before")
    @classmethod
    def _direction(cls, value: object) -> tuple[int, ...]:
        indices = tuple(value) if isinstance(value, (list, tuple)) else ()
        if len(indices) != 3 or any(type(i) is not int for i in indices):
            raise ValueError(f"must be three integers such as [1, 1, 0], got {value!r}")
        if not any(indices):
            raise ValueError("must be a direction, got [0, 0, 0]; give the zone axis, e.g. [1, 1, 0]")
        common = math.gcd(*indices)
        return tuple(i // common for i in indices)


class RunPlan(_Table):
    """How to compute."""

    seed: Annotated[int, Strict(), Field(ge=0, lt=2**63)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"


_Interval = Annotated[_Number, _within(1e-6, 1e6, "s")]
_Idle = Annotated[_Number, _within(0.0, 1e6, "s")]


class SeriesPlan(_Table):
    """Frames of one specimen in the order of time: those of one file, or files as a folder gets them."""

    interval_s: _Interval | None = None  # from frame to frame
    first: Annotated[int, Strict(), Field(ge=0)] = 0  # of the frames of the file
    last: Annotated[int, Strict(), Field(ge=0)] | None = None  # the last there is where left out
    folder: Path | None = None  # to be watched; [image] path is then its first file
    pattern: str = "*"  # names of its files, by wildcards
    behind: Literal["keep", "drop"] = "keep"  # "drop": all but the newest where several files wait
    idle_s: _Idle = 60.0  # without a new file before the series is complete

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last is not None and self.last < self.first:
            raise ValueError(f"last must not come before first ({self.first}), got {self.last}")
        return self


_Field = Annotated[_Number, _within(1.0, 100.0, "nm", above="was it given in Å?")]
_Thickness = Annotated[_Number, _within(0.2, 100.0, "nm", "was it given in µm?", "was it given in Å?")]
_Vacuum = Annotated[_Number, _within(0.0, 50.0, "nm", above="was it given in Å?")]
_Wedge = Annotated[_Number, _within(1.0, 1400.0, "mrad", "was it given in rad?", "was it given in µrad?")]
_Rotation = Annotated[_Number, _within(-180.0, 180.0, "degrees")]
_Dose = Annotated[_Number, _within(0.0, 1e8, "electrons/Å²")]


class SimulatePlan(_Table):
    """The phantom that `qhrtem simulate` makes; a fit does not look at it.

    The lens is as given here, else as in `[microscope]`, else that of a tuned instrument.
    """

    engine: Literal["qhrtem", "abtem", "drprobe"] = "qhrtem"
    mode: Literal["focal", "full"] | None = None  # sum over focus, or over focus and source angle
    shape: Literal["slab", "edge", "wedge"] = "edge"  # without vacuum, or with vacuum on the left
    field_nm: tuple[_Field, _Field] = (4.0, 4.0)  # width, height of the image
    thickness_nm: _Thickness | None = None  # 4 nm where left out; of a wedge at its thin end
    thickness_slices: Annotated[int, Strict(), Field(ge=1, le=999)] | None = None  # instead of thickness_nm
    wedge_mrad: _Wedge | None = None  # angle between the faces of a wedge
    vacuum_nm: _Vacuum | None = None  # width of the vacuum, a fifth of the field where left out
    rotation_deg: _Rotation = 0.0  # of the crystal in the image, from columns towards rows
    dose_e_per_A2: _Dose = 1e4  # 0 = no noise
    phonon_configurations: Annotated[int, Strict(), Field(ge=0, le=10000)] = 0  # 0 = damping and absorption
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**63)] | None = None  # that of [run] where left out
    c1_nm: _Defocus | None = None  # positive = overfocus, from the specimen's exit plane
    a1_nm: tuple[_Axial, _Axial] | None = None
    b2_nm: tuple[_Axial, _Axial] | None = None
    a2_nm: tuple[_Axial, _Axial] | None = None
    c3_um: _C3 | None = None
    s3_um: tuple[_C3, _C3] | None = None
    a3_um: tuple[_C3, _C3] | None = None
    c5_mm: _C5 | None = None
    focal_spread_nm: _FocalSpread | None = None  # one standard deviation
    semi_convergence_mrad: _SemiConvergence | None = None  # 1/e half angle
    vibration_pm: tuple[_Vibration, _Vibration] | None = None  # one standard deviation along x, y
    mistilt_mrad: tuple[_Tilt, _Tilt] | None = None  # along x, y

    @property
    def coherence(self) -> Literal["focal", "full"]:
        """The mode; where left out, full for frozen phonons if the engine can.

        An envelope for the source loses what rigid atoms scatter to high angles: in 8 nm of BaTiO3 3 % of
        all electrons.
        """
        return self.mode or ("full" if self.phonon_configurations and self.engine != "abtem" else "focal")

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if self.thickness_nm is not None and self.thickness_slices is not None:
            raise ValueError("takes thickness_nm or thickness_slices, got both; leave one out")
        if self.shape == "wedge" and self.wedge_mrad is None:
            raise ValueError("wedge_mrad is required for the shape wedge, e.g. 300.0")
        if self.shape != "wedge" and self.wedge_mrad is not None:
            raise ValueError(f'wedge_mrad needs shape = "wedge", got shape = "{self.shape}"')
        if self.shape == "slab" and self.vacuum_nm:
            raise ValueError('vacuum_nm needs shape = "edge" or "wedge", got shape = "slab"')
        if self.vacuum_nm is not None and self.vacuum_nm > self.field_nm[0] - 0.5:
            raise ValueError(
                f"vacuum_nm must leave 0.5 nm of the field to the crystal, got {self.vacuum_nm:g} of "
                f"{self.field_nm[0]:g} nm"
            )
        return self


class Plan(_Table):
    """Everything that was asked of one fit; paths are absolute once loaded from a file."""

    image: ImagePlan
    microscope: MicroscopePlan
    structure: StructurePlan
    run: RunPlan = RunPlan()
    simulate: SimulatePlan | None = None
    series: SeriesPlan | None = None

    @model_validator(mode="after")
    def _one_use_of_several_images(self) -> Self:
        if self.series is not None and (self.image.frames or self.image.also):
            raise ValueError(
                "takes [series], which follows changes from frame to frame, or frames and [[image.also]] in "
                "[image], which fit one structure to all, got both; leave one out"
            )
        return self


_KINDS: dict[str, type[_Table]] = {
    "image": ImagePlan,
    "microscope": MicroscopePlan,
    "structure": StructurePlan,
    "run": RunPlan,
    "simulate": SimulatePlan,
    "series": SeriesPlan,
}


def load_plan(path: str | Path, overrides: Tables | None = None) -> Plan:
    """Return the plan in a TOML file, with `overrides` laid over it key by key.

    Paths in the file are relative to its folder, paths in the overrides to the working folder.
    Raises PlanError, naming file and key, where the file or a value in it cannot be used.
    """
    path = Path(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(
            f"{path}: the plan cannot be read ({error.strerror or error}); check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: not valid TOML ({error}); text needs quotes, and a plan is a text file, not the image"
        ) from error
    _check_tables(tables, str(path))
    return _validated(_merged(_rooted(tables, path.parent), _rooted(overrides or {}, Path())), str(path))


def plan_from_tables(tables: Tables, origin: str = "command line") -> Plan:
    """Return the plan in nested tables, with paths from the working folder; messages name `origin`."""
    _check_tables(tables, origin)
    return _validated(_rooted(tables, Path()), origin)


def dump_plan(plan: Plan) -> str:
    """Return the plan as TOML that `load_plan` reads back to an equal plan; what is unknown is left out."""
    lines = []
    for name in _KINDS:
        if getattr(plan, name) is None:
            continue
        lines.append(f"[{name}]")
        for key, value in getattr(plan, name):
            if value is not None:
                lines.append(f"{key} = {_toml(value)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if isinstance(value, MtfTable):
        return _toml(value.path)
    if isinstance(value, FurtherPlan):
        given = ", ".join(f"{key} = {_toml(part)}" for key, part in value if part is not None)
        return f"{{ {given} }}"
    if isinstance(value, MtfFormula):
        return f"{{ a = {value.a!r}, b = {value.b!r} }}"
    if isinstance(value, (str, Path)):
        # A TOML basic string is a JSON string, but for DEL, which TOML wants escaped.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return repr(value)


def _check_tables(tables: Mapping[str, Any], origin: str) -> None:
    for name, table in tables.items():
        if name not in _KINDS:
            raise PlanError(f"{origin}: unknown table or key '{name}'; {_nearest(name)}")
        if not isinstance(table, Mapping):
            raise PlanError(f"{origin}: [{name}] must be a table of keys, got {table!r}")


def _rooted(tables: Tables, folder: Path) -> dict[str, dict[str, Any]]:
    """Copy the tables with their paths made absolute against a folder."""
    out = {name: dict(table) for name, table in tables.items()}
    for table, key in PATHS:
        value = out.get(table, {}).get(key)
        if isinstance(value, (str, Path)):
            absolute = (folder / Path(value).expanduser()).resolve()
            out[table][key] = _measured(absolute) if key == "mtf" else absolute
    also = out.get("image", {}).get("also")
    if isinstance(also, (list, tuple)):
        out["image"]["also"] = [_further_rooted(entry, folder) for entry in also]
    return out


def _further_rooted(entry: object, folder: Path) -> object:
    if not isinstance(entry, Mapping):
        return entry
    absolute = {
        key: (folder / Path(entry[key]).expanduser()).resolve()
        for key in ("path", "mask")
        if isinstance(entry.get(key), (str, Path))
    }
    return {**entry, **absolute}


PATHS = (("image", "path"), ("structure", "path"), ("image", "mtf"), ("image", "mask"), ("series", "folder"))


def _measured(path: Path) -> MtfTable:
    q, value = read_mtf(path)
    return MtfTable(path=path, q=q, value=value)


def _merged(base: Tables, over: Tables) -> dict[str, dict[str, Any]]:
    return {name: {**base.get(name, {}), **over.get(name, {})} for name in {**base, **over}}


def _validated(tables: Tables, origin: str) -> Plan:
    try:
        return Plan.model_validate(tables)
    except ValidationError as error:
        # An unknown key is most often the cause of a missing one, so it is told first.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise PlanError(f"{origin}: {_explain(faults[0])}") from error


def _explain(fault: Any) -> str:
    """Return one clause for a fault of pydantic: the key in its table, what is required, what came."""
    loc = [str(part) for part in fault["loc"]]
    if not loc:
        return f"the plan {fault['ctx']['error']}"
    table, key = loc[0], ".".join(loc[1:])
    if fault["type"] == "extra_forbidden":
        hint = "known here: a and b, or path" if loc[1] == "mtf" else _nearest(key, table)
        if loc[1] == "also":
            hint = f"known here: {', '.join(FurtherPlan.model_fields)}"
        return f"unknown key '{key}' in [{table}]; {hint}"
    place = f"[{table}] {key}".rstrip()
    if fault["type"] == "missing":
        if loc[-1].isdigit():
            return f"[{table}] {loc[1]} must be a pair [x, y], got {fault['input']!r}"
        return f"{place} is required{_REQUIRED.get(key, '')}"
    if fault["type"] == "value_error":
        return f"{place} {fault['ctx']['error']}"
    if fault["type"] == "string_pattern_mismatch":
        return f"{place} must be auto, cpu, cuda or cuda:N, got {fault['input']!r}"
    reason = fault["msg"].replace("Input should be", "must be").replace("Input is not", "must be")
    return f"{place} {reason}, got {fault['input']!r}"


_REQUIRED = {
    "": ": a plan needs [image], [microscope] and [structure]",
    "high_tension_kV": " in kV, e.g. 300.0; it cannot be told from the image",
    "zone_axis": ", e.g. [1, 1, 0]: the direction of the CIF's cell that lies along the beam",
}


def _nearest(name: str, table: str | None = None) -> str:
    """Return a hint for an unknown name: the table it belongs to, the nearest known key, or all of them."""
    homes = [t for t, kind in _KINDS.items() if name in kind.model_fields]
    if homes:
        return f"it belongs under [{homes[0]}]"
    known = [*_KINDS[table].model_fields] if table else [*_KINDS]
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f"did you mean '{lowered[close[0]]}'?" if close else f"known here: {', '.join(known)}"
