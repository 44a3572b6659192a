"""Images of rough crystal edges by abTEM and plain numpy, with their answers.

Nothing of qhrtem's physics takes part: abTEM 1.0 (Lobato, frozen phonons) makes the exit waves, the sums over
focus and source angle, detector and noise stand here. Specimen: every atom of the crystal between an entrance
and an exit surface, both rough and terraced; the mistilt shears the columns along the beam.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers
from ase.spacegroup import crystal as ase_crystal
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
ENERGY_EV = 300e3
WAVELENGTH_A = 0.019687
MARGIN_A = 9.0  # of crystal and vacuum around the recorded field
COLUMN_A = 0.6  # atoms that project nearer than this are not resolved and count as one column


@dataclass(frozen=True)
class Cell:
    """A crystal: sites (element, x, y, z fractional) of the conventional cell, B factors in Å²."""

    name: str
    group: str  # Hermann-Mauguin symbol
    lattice: tuple[float, float, float, float, float, float]  # Å, degrees
    sites: tuple[tuple[str, float, float, float], ...]
    b: dict[str, float]
    origin: str = ""  # ":1" where the group has two choices of origin

    def cif(self) -> str:
        """Return the crystal as a CIF."""
        names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
        lines = [f"data_{self.name}"]
        lines += [f"_cell_{n} {v}" for n, v in zip(names, self.lattice, strict=True)]
        lines += [f"_space_group_name_H-M_alt '{self.group}{self.origin}'", "loop_", "_atom_site_label"]
        lines += ["_atom_site_type_symbol", "_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z"]
        lines += ["_atom_site_occupancy", "_atom_site_B_iso_or_equiv"]
        rows = [f"{e}{i} {e} {x} {y} {z} 1.0 {self.b[e]}" for i, (e, x, y, z) in enumerate(self.sites)]
        return "\n".join([*lines, *rows, ""])


@dataclass(frozen=True)
class Spec:
    """Everything that makes one phantom; lengths in Å, angles in mrad unless the name says otherwise."""

    name: str
    cell: Cell
    zone: tuple[int, int, int]
    seed: int
    field_A: float = 26.0
    pixel_A: float = 0.11
    stated_pixel: float = 1.0  # pixel size that the user believes, as a multiple of the true one
    rotation_deg: float = 5.0
    shear: float = 0.0  # of the detector's rows along its columns
    thickness_A: float = 32.0  # mean over the field
    wedge_A: float = 10.0  # thicker by this at the far end than at the edge
    roughness_A: float = 1.6
    vacuum_A: float = 7.0  # from the left of an unturned image to the edge
    off_centre: dict[str, float] = field(default_factory=dict)  # Å along image y far from the edge
    decay_A: float = 10.0
    mistilt: tuple[float, float] = (1.0, -1.0)
    c1: float = 55.0
    a1: tuple[float, float] = (6.0, -6.0)
    b2: tuple[float, float] = (100.0, 100.0)
    a2: tuple[float, float] = (-150.0, 120.0)
    c3: float = -1.5e5
    vibration: tuple[float, float] = (0.22, 0.26)
    focal_spread: float = 30.0
    semi_convergence: float = 0.3
    dose: float = 2e4  # electrons/Å²
    gain: float = 12.0
    offset: float = 100.0
    readout: float = 3.0
    mtf: tuple[float, float] = (0.35, 0.28)
    phonons: int = 24
    sampling_A: float = 0.07  # of the waves; potentials and waves are limited at 2/3 of what it holds
    foci: int = 7  # Gauss–Hermite nodes: 7 hold to 3 % up to a phase of 3 rad per focal spread, 21 to 6.5 rad


@dataclass(frozen=True)
class Specimen:
    """Atoms (N) of a phantom and the columns (C) they make up, sample frame, Å."""

    element: NDArray[np.str_]  # (N,)
    position: Floats  # (N, 3) x, y, z along the beam
    column: NDArray[np.int64]  # (N,)
    extent: tuple[float, float]  # x, y of the periodic box


def zone_frame(lattice: Floats, zone: tuple[int, int, int]) -> Floats:
    """Return rows x, y, z in Cartesian axes of the crystal: z along the zone, x along a short vector."""
    z = np.array(zone) @ lattice
    z /= np.linalg.norm(z)
    best = min(
        (np.array(v) @ lattice for v in itertools.product((-1, 0, 1), repeat=3) if any(v)),
        key=lambda v: (round(abs(v @ z), 6), round(float(np.linalg.norm(v)), 6), tuple(-v)),
    )
    x = best - (best @ z) * z
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def build(spec: Spec, rng: np.random.Generator) -> Specimen:
    """Return the atoms between the two surfaces, the vacuum at small x."""
    c = spec.cell
    unit = ase_crystal(
        [s[0] for s in c.sites], [s[1:] for s in c.sites], spacegroup=c.group, cellpar=list(c.lattice)
    )
    frame = zone_frame(np.asarray(unit.cell), spec.zone)
    side = spec.field_A * np.sqrt(2) + 2 * MARGIN_A
    depth = spec.thickness_A + spec.wedge_A + 30
    reach = np.linalg.norm([side, side, depth]) / 2 + 10
    n = [int(np.ceil(reach / h)) for h in 1 / np.linalg.norm(np.linalg.inv(np.asarray(unit.cell)), axis=0)]
    cells = np.array(list(itertools.product(*(range(-k, k + 1) for k in n))))
    position = ((unit.get_scaled_positions()[None] + cells[:, None]) @ np.asarray(unit.cell)) @ frame.T
    element = np.tile(np.array(unit.get_chemical_symbols()), len(cells))
    position = position.reshape(-1, 3)
    inside = (np.abs(position[:, :2]) < side / 2).all(1) & (np.abs(position[:, 2]) < depth / 2)
    position, element = position[inside], element[inside]
    column = columns_of(position[:, :2])
    number = np.bincount(column)
    across = np.stack([np.bincount(column, position[:, k]) / number for k in (0, 1)], axis=1)
    keep = _between(spec, across, side, rng)(position[:, 2], column)
    position, element, column = position[keep], element[keep], column[keep]
    depth_in = np.clip(position[:, 0] + spec.field_A / 2 - spec.vacuum_A, 0, None)
    for name, shift in spec.off_centre.items():
        position[:, 1] += (element == name) * shift * (1 - np.exp(-depth_in / spec.decay_A))
    _, column = np.unique(column, return_inverse=True)
    tilt = np.array(spec.mistilt) * 1e-3
    position[:, :2] += position[:, 2:] * tilt
    return Specimen(element, position + [side / 2, side / 2, 0], column.ravel(), (side, side))


def columns_of(across: Floats) -> NDArray[np.int64]:
    """Return the column (N,) of each atom: those that project within COLUMN_A of each other are one."""
    _, first, place = np.unique(
        np.round(across / 0.02).astype(int), axis=0, return_index=True, return_inverse=True
    )
    pairs = cKDTree(across[first]).query_pairs(COLUMN_A, output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(first), len(first)))
    return connected_components(graph, directed=False)[1][place.ravel()]


def _between(spec: Spec, across: Floats, side: float, rng: np.random.Generator):
    """Return the test whether an atom of a column lies between its entrance and exit surface."""
    x = (across[:, 0] + side / 2) / side
    present = across[:, 0] > spec.vacuum_A - spec.field_A / 2 + 0.8 * np.sin(across[:, 1] / 4)
    rough = []
    for _ in range(2):
        noise = ndimage.gaussian_filter(rng.normal(size=(80, 80)), 80 * 4.0 / side, mode="wrap")
        i = np.clip(((across + side / 2) / side * 79).astype(int), 0, 79)
        rough.append(spec.roughness_A * (noise / noise.std())[i[:, 0], i[:, 1]])
    half = spec.thickness_A / 2 + spec.wedge_A / 2 * (x - 0.5)
    step = 2.0 * (across[:, 1] > rng.uniform(-6, 6))
    top, bottom = -half + rough[0] + step, half + rough[1]

    def test(z: Floats, column: NDArray[np.int64]) -> NDArray[np.bool_]:
        return present[column] & (z >= top[column]) & (z <= bottom[column])

    return test


def grid_of(spec: Spec, specimen: Specimen) -> tuple[int, int]:
    """Return the pixels of the wave along x and y, numbers that transform fast."""
    nx, ny = (fft.next_fast_len(int(np.ceil(s / spec.sampling_A))) for s in specimen.extent)
    return nx, ny


def exit_waves(spec: Spec, specimen: Specimen, rng: np.random.Generator):
    """Yield an exit wave [x, y] for each frozen-phonon configuration."""
    import abtem
    import ase

    z = specimen.position[:, 2]
    low = z.min() - 2.0
    box = (*specimen.extent, float(z.max() - low + 2.0))
    gpts = grid_of(spec, specimen)
    pixel = np.array(specimen.extent) / gpts
    # abTEM shares an atom between the four pixels around it, which blurs it by up to half a pixel. Put on one
    # pixel it is moved by a variance of pixel²/12 along each axis, which is taken off the thermal motion.
    square = np.array([spec.cell.b[e] / (8 * np.pi**2) for e in specimen.element])
    u = np.sqrt(square[:, None] - pixel**2 / 12)
    for _ in range(spec.phonons):
        moved = specimen.position - [0, 0, low]
        moved[:, :2] = np.round((moved[:, :2] + rng.normal(size=u.shape) * u) / pixel) * pixel
        atoms = ase.Atoms(list(specimen.element), positions=moved, cell=box, pbc=True)
        potential = abtem.Potential(
            atoms,
            gpts=gpts,
            slice_thickness=1.5,
            parametrization="lobato",
            projection="infinite",
            device="cpu",
        )
        wave = abtem.PlaneWave(gpts=gpts, extent=specimen.extent, energy=ENERGY_EV, device="cpu")
        yield np.asarray(wave.build(lazy=False).multislice(potential).array, dtype=np.complex64)


def ideal_image(spec: Spec, specimen: Specimen, rng: np.random.Generator) -> Floats:
    """Return the mean intensity [x, y] over phonons, focus (Gauss–Hermite) and source angle (3 × 3)."""
    shape = grid_of(spec, specimen)
    kx, ky = np.meshgrid(
        *(np.fft.fftfreq(s, e / s) for s, e in zip(shape, specimen.extent, strict=True)), indexing="ij"
    )
    lenses = [(w, lens.astype(np.complex64)) for w, lens in _lenses(spec, kx, ky)]
    total = np.zeros(shape)
    for wave in exit_waves(spec, specimen, rng):
        spectrum = fft.fft2(wave)
        for w, lens in lenses:
            image = fft.ifft2(spectrum * lens)
            total += w * (image.real**2 + image.imag**2)
    blur = np.exp(-2 * np.pi**2 * ((spec.vibration[0] * kx) ** 2 + (spec.vibration[1] * ky) ** 2))
    return fft.ifft2(fft.fft2(total / spec.phonons) * blur).real


def _lenses(spec: Spec, kx: Floats, ky: Floats):
    """Yield weight and transfer of every focus and source angle."""
    node, weight = np.polynomial.hermite_e.hermegauss(spec.foci)
    angle, share = np.polynomial.hermite.hermgauss(3)
    tilt = angle * spec.semi_convergence * 1e-3 / WAVELENGTH_A
    for i, j, k in itertools.product(range(spec.foci), range(3), range(3)):
        focus, a, b = node[i] * spec.focal_spread, tilt[j], tilt[k]
        chi = _chi(spec, kx + a, ky + b, focus) - _chi(spec, np.array(a), np.array(b), focus)
        yield weight[i] / weight.sum() * share[j] * share[k] / share.sum() ** 2, np.exp(-1j * chi)


def _chi(spec: Spec, kx: Floats, ky: Floats, extra_focus: float) -> Floats:
    w = WAVELENGTH_A * (kx + 1j * ky)
    c = np.conj(w)
    a1, b2, a2 = complex(*spec.a1), complex(*spec.b2), complex(*spec.a2)
    total = 0.5 * (spec.c1 + extra_focus) * w * c + 0.5 * a1 * c**2 + b2 * w**2 * c + a2 * c**3 / 3
    return 2 * np.pi / WAVELENGTH_A * (total + spec.c3 * (w * c) ** 2 / 4).real


def detected(spec: Spec, image: Floats, specimen: Specimen, rng: np.random.Generator):
    """Return counts [row, col], the noise-free image on the detector, and the map of sample to pixels."""
    n = int(round(spec.field_A / spec.pixel_A))
    turn = np.radians(spec.rotation_deg)
    rotation = np.array(
        [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    )  # sample → image (x, y)
    matrix = np.array([[1.0, spec.shear], [0.0, 1.0]]) @ rotation / spec.pixel_A
    centre = np.array(specimen.extent) / 2
    row, col = np.mgrid[:n, :n].astype(float)
    pixel = np.stack([col - (n - 1) / 2, row - (n - 1) / 2])
    sample = np.einsum("ij,jkl->ikl", np.linalg.inv(matrix), pixel) + centre[:, None, None]
    d = specimen.extent[0] / image.shape[0]
    clean = ndimage.map_coordinates(image, sample / d, order=5, mode="grid-wrap")
    qy, qx = np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n), indexing="ij")
    a, b = spec.mtf
    clean = np.fft.ifft2(np.fft.fft2(clean) * ((1 - a) / (1 + (qx**2 + qy**2) / b**2) + a)).real
    electrons = rng.poisson(np.clip(clean, 0, None) * spec.dose * spec.pixel_A**2)
    counts = spec.offset + spec.gain * electrons + rng.normal(size=clean.shape) * spec.readout

    def to_pixel(xy: Floats) -> Floats:
        return (matrix @ (xy - centre).T).T[:, ::-1] + (n - 1) / 2

    return counts.astype(np.float32), clean, to_pixel


def make(spec: Spec, folder: Path) -> Path:
    """Write NAME.tif, NAME.cif, NAME.toml and truth/NAME.npz, .json; return the plan."""
    import tifffile

    rng = np.random.default_rng(spec.seed)
    specimen = build(spec, rng)
    counts, clean, to_pixel = detected(spec, ideal_image(spec, specimen, rng), specimen, rng)
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / f"{spec.name}.tif", counts)
    (folder / f"{spec.name}.cif").write_text(spec.cell.cif(), "utf-8")
    plan = folder / f"{spec.name}.toml"
    plan.write_text(_plan(spec), "utf-8")
    truth = answer(specimen, to_pixel)
    on_image = ((truth["row"] > 0) & (truth["row"] < clean.shape[0] - 1)) & (
        (truth["col"] > 0) & (truth["col"] < clean.shape[1] - 1)
    )
    truth = {k: v if k == "elements" else v[on_image] for k, v in truth.items()}
    np.savez_compressed(folder / "truth" / f"{spec.name}.npz", clean=clean.astype(np.float32), **truth)
    (folder / "truth" / f"{spec.name}.json").write_text(json.dumps({"spec": asdict(spec)}, indent=1), "utf-8")
    return plan


def answer(specimen: Specimen, to_pixel) -> dict[str, NDArray]:
    """Return counts and mean positions of every column, elements by falling atomic number."""
    elements = sorted(set(specimen.element.tolist()), key=lambda e: -atomic_numbers[e])
    n = specimen.column.max() + 1
    counts = np.zeros((n, len(elements)), dtype=np.int64)
    position = np.full((n, len(elements), 2), np.nan)
    pixel = to_pixel(specimen.position[:, :2])
    top, bottom = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(top, specimen.column, specimen.position[:, 2])
    np.maximum.at(bottom, specimen.column, specimen.position[:, 2])
    for k, e in enumerate(elements):
        mine = specimen.element == e
        counts[:, k] = np.bincount(specimen.column[mine], minlength=n)
        for axis in (0, 1):
            total = np.bincount(specimen.column[mine], pixel[mine, axis], minlength=n)
            with np.errstate(invalid="ignore", divide="ignore"):
                position[:, k, axis] = np.where(counts[:, k] > 0, total / counts[:, k], np.nan)
    mean = np.array([pixel[specimen.column == k].mean(0) for k in range(n)])
    kind = np.array(["".join(e for k, e in enumerate(elements) if row[k]) for row in counts])
    return {
        "kind": kind,
        "row": mean[:, 0],
        "col": mean[:, 1],
        "elements": np.array(elements),
        "counts": counts,
        "positions": position,
        "top_A": top,
        "bottom_A": bottom,
    }


def _plan(spec: Spec) -> str:
    vacuum = spec.offset + spec.gain * spec.dose * spec.pixel_A**2
    return f"""[image]
path = "{spec.name}.tif"
pixel_size_A = {spec.pixel_A * spec.stated_pixel:.5f}
offset_counts = {spec.offset}
vacuum_counts = {vacuum:.2f}
gain_counts_per_electron = {spec.gain}
mtf = {{ a = {spec.mtf[0]}, b = {spec.mtf[1]} }}
[microscope]
high_tension_kV = {ENERGY_EV / 1e3}
c3_um = {round(spec.c3 / 1e4)}.0
focal_spread_nm = {spec.focal_spread / 10}
semi_convergence_mrad = {spec.semi_convergence}
[structure]
path = "{spec.name}.cif"
zone_axis = {list(spec.zone)}
"""
