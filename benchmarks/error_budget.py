"""Where a fitted image and an independent one may differ: each source of error as an image difference.

    python benchmarks/error_budget.py RUN [--answer TRUTH.npz] [--out FILE]

RUN is a finished run folder. At its fitted structure and lens the image is computed twice, with and without
each approximation; the differences, less their mean, are given as rms over the crystal in per cent of the
vacuum intensity, with their means. "Lens": the two imaging parameters that the error moves farthest, in
standard deviations as claimed, to first order and everything else following. "Columns lost": of those well
inside, how many change their counts when the fitted image with this error, without noise, is fitted from the
fitted structure on; counts that an error moves only together with noise are not in it. With --answer (the
noise-free image of a phantom) what is left of it stands below. Phantoms share some of these approximations
with nobody: few frozen phonons, few focus nodes, coarse waves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from oracle import bench_of
from tables import table
from torch import Tensor

from qhrtem.io.twin import read_twin
from qhrtem.model.diffuse import RigidModel, displacement_pairs, frozen_phonon_image
from qhrtem.model.forward import Field, ForwardModel
from qhrtem.model.microscope import Microscope, parameter
from qhrtem.physics.coherence import full_intensity, gauss_hermite
from qhrtem.run.process import prepare
from qhrtem.specimen.columns import ColumnModel
from qhrtem.specimen.rules import Neighbours, NeighbourStep, SurfaceEnergy
from qhrtem.stages.bordered import Factor
from qhrtem.stages.counts import count_round
from qhrtem.stages.joint import refine
from qhrtem.stages.objective import Bench, State
from qhrtem.stages.structure import LENS, STEEPEST_A, free_lens, neighbour_radius, terrace_radius

PAIRS = 8  # of antithetic frozen phonons, as in the last correction of a fit
ROUNDS = 3  # of counts, from the fitted structure
PLAIN = 24  # independent frozen phonons, as in the phantoms
COARSE_A = 0.07  # sampling of the waves of the phantoms
HEAD = ("source", "rms (%)", "mean (%)", "lens (σ)", "columns lost")
Difference = tuple[str, Callable[[], Tensor]]


class Budget:
    """Image differences at one structure and lens."""

    def __init__(self, field: Field, columns: ColumnModel, lens: Microscope) -> None:
        self.field, self.columns, self.lens = field, columns, lens
        self.model = ForwardModel(field, lens.energy)

    def coherent(self, **changes: object) -> Tensor:
        """Return the coherent image with some of the field's settings changed."""
        return ForwardModel(replace(self.field, **changes), self.lens.energy).image(self.columns, self.lens)  # type: ignore[arg-type]

    def phonons(
        self, pairs: int, seed: int, model: ForwardModel | None = None, conserve: bool = True
    ) -> Tensor:
        """Return the frozen-phonon image."""
        generator = np.random.default_rng(seed)
        return frozen_phonon_image(
            model or self.model, self.columns, self.lens, pairs, generator, 2, conserve=conserve
        )

    def plain(self) -> Tensor:
        """Return one error (one standard deviation drawn) of an average over `PLAIN` independent phonons."""
        rigid = RigidModel(self.model, self.columns, self.lens)
        sigma, rng = rigid.sigma, np.random.default_rng(7)
        images = [
            rigid.detect(rigid.sharp(sigma[:, None] * rng.standard_normal((len(sigma), 2)))) for _ in range(8)
        ]
        # Half of them less the other half errs like one of their number over 8; scaled to PLAIN.
        return (torch.stack(images[:4]).mean(0) - torch.stack(images[4:]).mean(0)) * math.sqrt(2 / PLAIN)

    def coarse(self) -> Tensor:
        """Return what coarser waves through limited potentials change, at the same displacements."""
        rough = RigidModel(self.model, self.columns, self.lens, COARSE_A, conserve=False, taper="soft")
        return rough.average(2, np.random.default_rng(1), 2) - self.phonons(2, 1)

    def source(self, nodes: int) -> Tensor:
        """Return a sum over source angles less the image by envelopes, rigid atoms displaced once."""
        # Upright: a tilted frame slides on below the specimen, which the plain sum does not know.
        upright = self.lens.with_values(tilt_x=0.0, tilt_y=0.0)
        rigid = RigidModel(self.model, self.columns, upright)
        move = displacement_pairs(rigid.atoms, rigid.sigma, 1, np.random.default_rng(3))[0]
        full = full_intensity(rigid.spectrum(move), rigid.grid, rigid.lens, source=nodes)
        return rigid.detect(full - rigid.sharp(move))

    def differences(self) -> Iterator[Difference]:
        """Yield name and image difference of each source of error."""
        yield "thermal motion: coherent image alone", lambda: self.phonons(PAIRS, 1) - self.coherent()
        yield (
            f"thermal motion: {PAIRS} pairs, another draw",
            lambda: self.phonons(PAIRS, 1) - self.phonons(PAIRS, 2),
        )
        yield f"phantom: {PLAIN} independent phonons", self.plain
        yield "focus: 7 equidistant nodes against 25", lambda: self.coherent() - self.coherent(foci=25)
        rule = gauss_hermite(7)
        yield (
            "phantom: 7 Gauss-Hermite nodes of focus",
            lambda: self.coherent(foci=rule) - self.coherent(foci=25),
        )
        yield f"phantom: waves at {COARSE_A} Å, limited potentials, envelopes that lose", self.coarse
        yield (
            "source: what envelopes take away",
            lambda: self.phonons(2, 1) - self.phonons(2, 1, conserve=False),
        )
        yield "source: envelopes against 3 x 3 angles", lambda: self.source(3)
        yield "source: 3 x 3 angles against 5 x 5", lambda: self.source(5) - self.source(3)
        yield "scattering factors: Kirkland's", lambda: self.coherent(table="kirkland") - self.coherent()


def lost(bench: Bench, state: State, error: Tensor, inside: np.ndarray) -> int:
    """Return how many of the columns `inside` change counts where only an error of the image asks for it."""
    measured = bench.image(state) + error
    bench = Bench(bench.model, replace(bench.misfit, measured=measured), bench.workers)
    lens = free_lens(state, LENS)
    projection = state.columns.projection
    support = NeighbourStep(Neighbours.within(state.columns, neighbour_radius(projection)), STEEPEST_A)
    seen = np.zeros(len(state.columns), dtype=bool)
    seen[inside] = True
    rough = SurfaceEnergy(Neighbours.within(state.columns, terrace_radius(projection)))
    before, now = state.columns.element_counts(), state
    for _ in range(ROUNDS):
        every = now.occupied()
        done = count_round(bench, now, lens, every, every, rough.learned(now.columns, seen), support, {})
        now = done.state
        if not done.changed:
            break
    return int((now.columns.element_counts() != before).any(1)[inside].sum())


def moved(bench: Bench, state: State, errors: list[Tensor], claimed: dict[str, float]) -> list[str]:
    """Return what each error of the image does to the lens; claimed: σ of the parameters, by key."""
    lens = free_lens(state, LENS)
    noise = torch.sqrt(bench.misfit.variance(bench.image(state)))
    probe = torch.stack([e / noise for e in errors])[:, None].float()
    here = refine(bench, state, lens, state.occupied(), 0, probe=probe)
    assert here.quadratic.probe is not None
    step = Factor(here.precision).solve(here.quadratic.probe)[: len(lens)].T
    every = [parameter(i) for i in lens]
    sigma = np.array([claimed[p.key] / (p.step * p.factor) for p in every])
    out = []
    for shift in step / sigma:
        far = np.argsort(-np.abs(shift))[:2]
        out.append(", ".join(f"{every[n].name} {shift[n]:+.1f}" for n in far))
    return out


def rms(image: Tensor, field: Field, where: np.ndarray) -> tuple[float, float]:
    """Return rms about the mean and mean over the crystal, per cent."""
    v = field.crop(image).numpy()[where].astype(float) * 100
    return float(v.std()), float(v.mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--answer", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    a = parser.parse_args()
    prepare()
    lines = []
    with torch.inference_mode():
        bench, state, fitted = bench_of(a.run)
        twin = read_twin(a.run)
        match, inside = twin.match, np.asarray(fitted.claimed)[twin.columns.inside]
        where = match.used & match.crystal
        budget = Budget(bench.model.field, state.columns, state.microscope)
        every = list(budget.differences())
        if a.answer:
            clean = torch.as_tensor(budget.field.embed(np.load(a.answer)["clean"].astype(np.float32), 1.0))
            every.append(
                ("left of the noise-free phantom by the blind fit", lambda: clean - bench.image(state))
            )
        errors = [make() for _, make in every]
        lens = moved(bench, state, errors, {e.name: e.sigma for e in twin.microscope})
        for (name, _), error, far in zip(every, errors, lens, strict=True):
            spread, mean = rms(error, budget.field, where)
            wrong = lost(bench, state, error, inside)
            lines.append([name, f"{spread:.3f}", f"{mean:+.3f}", far, f"{wrong} of {len(inside)}"])
            print(" | ".join(lines[-1]), flush=True)
    about = (__doc__ or "").split("\n\n")[2]
    noise = 100 / math.sqrt(bench.misfit.electrons)
    text = f"# Error budget\n\nWritten by `error_budget.py` for `{a.run.name}`. {about}\n"
    a.out.write_text(
        text + "\n" + table(HEAD, lines) + f"\n\nShot noise of a pixel of vacuum: {noise:.1f} %.\n", "utf-8"
    )


if __name__ == "__main__":
    main()
