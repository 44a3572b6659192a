"""Compare this simulator with Dr. Probe and abTEM on a folder of their waves and images.

python benchmarks/drprobe_agreement.py --folder ../shared/reference/drprobe

The folder holds, for each structure NAME, NAME.extxyz and/or NAME.cif, NAME_waves.npz, and NAME_images.npz
with NAME_images.json; optionally abtem_waves.npz, form_factors_*kV.npz and NAME_frozen_lattice.npz with its
json. Prints a Markdown table, writes it beside this script and exits with 1 where a tolerance is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from drprobe_folder import (
    SAME,
    Array,
    Structure,
    arrays,
    as_drprobe,
    grid_for,
    lateral_cell,
    rms,
    structure,
    wave_set,
)

from qhrtem.errors import InputError
from qhrtem.grid import Grid, fft2
from qhrtem.physics import drprobe
from qhrtem.physics.electron import gamma, potential_per_scattering_factor, wavelength
from qhrtem.physics.potential import Species, Thermal, phase_factor
from qhrtem.specimen.supercell import Supercell, displaced, equal_slices, repeat

OTHERS = ("lobato", "kirkland")


@dataclass(frozen=True)
class Check:
    """One comparison and what is allowed."""

    group: str
    item: str
    figure: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.figure <= self.tolerance


def over_mean(a: Array, b: Array) -> float:
    """Return the rms of a - b over the mean of b."""
    return float(np.sqrt((np.abs(a - b) ** 2).mean()) / np.abs(b).mean())


def spectrum(wave: Array) -> torch.Tensor:
    return fft2(torch.as_tensor(wave, dtype=torch.complex128))


def form_factor_checks(folder: Path) -> Iterator[Check]:
    """Tabulated form factors: γ f_e exp(-B g²/4) and f'."""
    for path in sorted(folder.glob("form_factors_*kV.npz")):
        content = arrays(path)
        energy = 1e3 * float(path.stem.split("_")[-1].removesuffix("kV"))
        g = torch.as_tensor(content["g_inv_A"], dtype=torch.float64)
        for element in sorted(k[:-2] for k in content if k.endswith("_B")):
            species = Species(element, float(content[f"{element}_B"]))
            ours = phase_factor(species, g, energy, Thermal(), SAME) / wavelength(energy)
            for part, mine in (("re", ours.real), ("im", ours.imag)):
                error = rms(mine.numpy(), content[f"{element}_{part}_A"])
                name = "γ f exp(-Bs²)" if part == "re" else "f′"
                yield Check("form factors", f"{element} {name}, {energy / 1e3:g} kV", error, 1e-3)


def wave_checks(s: Structure) -> Iterator[Check]:
    """Exit waves with Dr. Probe's form factors and with others."""
    for name, stored in s.sets.items():
        for table in (SAME, *OTHERS):
            tolerance = 5e-4 if table == SAME else 0.03
            ours = s.own_waves(name, table)
            for n, mine, theirs in zip(s.thicknesses(name), ours, stored, strict=True):
                item = f"{s.name} {name} × {n}"
                yield Check(f"waves, {table}", item, rms(s.tiled(mine), theirs), tolerance)


def potential_checks(s: Structure) -> Iterator[Check]:
    """Projected potentials in V, mean over a slice, without the relativistic factor."""
    for key, stored in s.waves.items():
        if not key.startswith("projected_potential_V_"):
            continue
        name = key.removeprefix("projected_potential_V_")
        cell, times, grid = s.small
        slicing = equal_slices(cell, len(stored))
        model = as_drprobe(cell, slicing, grid, s.energy, wave_set(name, s.folder, s.waves).thermal)
        to_volt = potential_per_scattering_factor() / (wavelength(s.energy) * gamma(s.energy))
        ours = (model.phases()[list(model.order)] * to_volt).numpy() / slicing.thickness[:, None, None]
        if stored.shape[1:] != grid.shape:
            ours = np.tile(ours, (1, *times))
        yield Check("projected potentials", f"{s.name} {name}", rms(ours, stored), 5e-4)


def image_checks(s: Structure) -> Iterator[Check]:
    """Images from the stored waves, and from our own."""
    path = s.folder / f"{s.name}_images.npz"
    stored = arrays(path) if path.is_file() else {}
    for record in s.record["images"]:
        try:
            settings = drprobe.settings_of(record)
        except InputError as error:
            yield Check("images, stored waves", f"{s.name} {record['id']}: {error}", math.inf, 0.0)
            continue
        name, index, theirs = record["wave_set"], record["wave_index"], stored[record["id"]]
        model = f"model {settings.model}" + (", complex" if settings.complex_wave else "")
        item = f"{s.name} {record['id']} ({model})"
        crop = record.get("wave_crop_ny_nx")
        ours = image_of(s.sets[name][index], s.grid, settings, crop)
        yield Check("images, stored waves", item, rms(ours, theirs), 1e-4)
        for table in (SAME, *OTHERS):
            wave, grid = s.own_waves(name, table)[index], s.small[2]
            if crop:
                wave, grid = s.tiled(wave), s.grid
            mine = image_of(wave, grid, settings, crop)
            if mine.shape != theirs.shape:
                mine = s.tiled(mine)
            if table == SAME:
                yield Check(f"images, own waves, {table}", item, over_mean(mine, theirs), 1e-3)
            elif settings.lens.focal_spread:
                yield Check(f"images, own waves, {table}", item, over_mean(mine, theirs), 0.015)
            else:  # undamped, so contrast and what form factors make of it are several times larger
                error = over_mean(mine, theirs) * np.abs(theirs).mean() / theirs.std()
                yield Check(f"sharp images over contrast, own waves, {table}", item, error, 0.06)


def image_of(wave: Array, grid: Grid, settings: drprobe.Settings, crop: list[int] | None = None) -> Array:
    """Return the image of a wave, or of its first `crop` rows and columns."""
    if crop:
        wave, grid = wave[: crop[0], : crop[1]], replace(grid, shape=(crop[0], crop[1]))
    return drprobe.wavimg(spectrum(wave), grid, settings).numpy()


def abtem_checks(folder: Path) -> Iterator[Check]:
    """Elastic waves of abTEM, without a common phase."""
    path = folder / "abtem_waves.npz"
    content = arrays(path) if path.is_file() else {}
    for key, stored in content.items():
        found = re.fullmatch(r"(\w+)_wave_abtem_(\w+)", key)
        if found is None:
            continue
        s = Structure(folder, found[1])
        repeats = [int(n) for n in content[f"{found[1]}_z_repeats"]]
        waves = s.simulate("elastic", found[2], repeats, s.slices)
        for n, mine, theirs in zip(repeats, waves, stored, strict=True):
            whole = s.tiled(mine)
            common = np.vdot(whole, theirs)
            error = rms(whole * common / abs(common), theirs)
            yield Check(f"waves of abTEM, {found[2]}", f"{found[1]} elastic × {n}", error, 0.03)


def frozen_checks(folder: Path, configurations: int) -> Iterator[Check]:
    """Absorptive waves and the mean of frozen-lattice images; configurations: how many of ours."""
    for path in sorted(folder.glob("*_frozen_lattice.npz")):
        stored = arrays(path)
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        name = re.match(r"\w+", record["structure"])
        assert name is not None
        whole = structure(folder, name[0])
        energy, repeats = 1e3 * record["high_tension_kV"], int(record["z_repeats"])
        shape = stored["image_mean"].shape
        pixel = (10 * record["pixel_nm_y"], 10 * record["pixel_nm_x"])
        ny, nx = (round(float(e) / (n * p)) for e, n, p in zip(whole.extent, shape, pixel, strict=False))
        full = grid_for(whole, (shape[0] * ny, shape[1] * nx))
        cell, times = lateral_cell(whole, full.shape)
        grid = grid_for(cell, (full.shape[0] // times[0], full.shape[1] // times[1]))
        settings = drprobe.settings_of({"coherence_model": drprobe.FOCAL, **record})
        slices = Structure(folder, path.name.removesuffix("_frozen_lattice.npz")).slices
        for key, thermal in (("absorptive", Thermal()), ("dwf", Thermal(absorption_scale=0.0))):
            wave = (
                as_drprobe(cell, equal_slices(cell, slices), grid, energy, thermal).exit_wave(repeats).numpy()
            )
            tiles = (shape[0] // grid.shape[0], shape[1] // grid.shape[1])
            if f"{key}_wave" in stored:
                error = rms(np.tile(wave, tiles), stored[f"{key}_wave"])
                yield Check("frozen lattice file", f"{key} wave", error, 5e-4)
            if f"{key}_image" in stored:
                error = rms(np.tile(image_of(wave, grid, settings), tiles), stored[f"{key}_image"])
                yield Check("frozen lattice file", f"{key} image", error, 1e-3)
        mean, sem = frozen_mean(
            whole, slices * repeats, repeats, full, energy, settings, configurations, (ny, nx)
        )
        spread = np.sqrt((sem**2 + stored["image_sem"] ** 2).mean())
        error = float(np.sqrt(((mean - stored["image_mean"]) ** 2).mean()) / spread)
        item = f"mean of {configurations} own configurations, rms over combined standard error"
        yield Check("frozen lattice file", item, error, 2.0)
        item = "mean intensity of own configurations, relative"
        yield Check("frozen lattice file", item, abs(mean.mean() / stored["image_mean"].mean() - 1), 2e-3)


def frozen_mean(
    whole: Supercell,
    slices: int,
    repeats: int,
    grid: Grid,
    energy: float,
    settings: drprobe.Settings,
    configurations: int,
    cells: tuple[int, int],
) -> tuple[Array, Array]:
    """Return the mean image over configurations and lateral cells, and its standard error."""
    generator = np.random.default_rng(0)
    crystal = repeat(whole, 1, 1, repeats)
    slicing = equal_slices(crystal, slices)
    images = []
    for _ in range(configurations):
        shaken = displaced(crystal, generator, along_beam=False)
        model = as_drprobe(shaken, slicing, grid, energy, Thermal(rigid=True))
        image = image_of(model.exit_wave().numpy(), grid, settings)
        rows, cols = grid.shape[0] // cells[0], grid.shape[1] // cells[1]
        images.append(image.reshape(cells[0], rows, cells[1], cols).mean((0, 2)))
    stack = np.stack(images)
    return stack.mean(0), stack.std(0, ddof=1) / math.sqrt(configurations)


def all_checks(folder: Path, configurations: int) -> Iterator[Check]:
    """Every comparison that the folder allows."""
    yield from form_factor_checks(folder)
    for path in sorted(folder.glob("*_waves.npz")):
        if path.name != "abtem_waves.npz":
            s = Structure(folder, path.name.removesuffix("_waves.npz"))
            yield from wave_checks(s)
            yield from potential_checks(s)
            yield from image_checks(s)
    yield from abtem_checks(folder)
    if configurations:
        yield from frozen_checks(folder, configurations)


def markdown(checks: Iterable[Check]) -> str:
    """Return a summary by group and every figure, as Markdown."""
    checks = list(checks)
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.group, []).append(check)
    lines = ["# Agreement with Dr. Probe and abTEM", ""]
    lines += [
        "Relative rms; of images from own waves rms over the mean intensity, of those without focal spread",
        "(with other form factors) over the standard deviation.",
        "",
    ]
    lines += [
        "| comparison | number | median | largest | where | missed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group, members in groups.items():
        worst = max(members, key=lambda c: c.figure)
        middle = float(np.median([c.figure for c in members]))
        missed = sum(not c.passed for c in members)
        lines.append(
            f"| {group} | {len(members)} | {middle:.1e} | {worst.figure:.1e} | {worst.item} | {missed} |"
        )
    lines += [
        "",
        "## Every figure",
        "",
        "| comparison | item | figure | allowed | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for c in checks:
        lines.append(
            f"| {c.group} | {c.item} | {c.figure:.2e} | {c.tolerance:.1e} | {'' if c.passed else 'missed'} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    here = Path(__file__).resolve().parent
    parser.add_argument("--folder", type=Path, default=here.parents[1] / "shared/reference/drprobe")
    parser.add_argument("--report", type=Path, default=here / "drprobe_agreement.md")
    parser.add_argument("--configurations", type=int, default=32, help="own frozen-lattice images, 0: none")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        print(f"{given.folder} is no folder; give --folder", file=sys.stderr)
        return 2
    began = time.perf_counter()
    checks = list(all_checks(given.folder, given.configurations))
    if not checks:
        print(f"{given.folder} holds nothing to compare with", file=sys.stderr)
        return 2
    text = markdown(checks)
    print(text)
    given.report.write_text(text, "utf-8")
    missed = [c for c in checks if not c.passed]
    print(f"{len(checks)} comparisons in {time.perf_counter() - began:.0f} s, {len(missed)} beyond tolerance")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
