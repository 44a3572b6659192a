"""What is compared with the image: measured intensities, their variance, and the state of knowledge."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qhrtem.model.diffuse import Diffuse
from qhrtem.model.forward import RECORDING, Field, ForwardModel, thermal_of
from qhrtem.model.micrograph import Micrograph
from qhrtem.model.microscope import INDEX, PARAMETERS, SPECIMEN, Microscope
from qhrtem.model.window import Move, Response, Tangent, WindowModel
from qhrtem.specimen.columns import ColumnModel

Floats = NDArray[np.float64]
# Part of the absorptive form factor used in the fast coherent image. What else the image holds,
# `State.diffuse` carries, but a move is seen by the coherent image alone: this share is the one at which one
# atom more changes it most like the average over frozen phonons (benchmarks/thermal_moves.md).
EFFECTIVE_ABSORPTION = 0.8
AROUND_A = 6.0  # columns nearer than this change what a change of a column does to the image


@dataclass(frozen=True)
class OwnLens:
    """What is a further image's own: the lens, and the thermal correction computed for it."""

    microscope: Microscope  # its mistilt and Debye–Waller scale are those of the first image
    diffuse: Diffuse = Diffuse()  # added to the coherent image


@dataclass(frozen=True)
class State:
    """What the run knows: structure, microscope, and the thermal correction computed for them.

    Where several images of one area are fitted together, these are of the first, and `others` of the rest.
    """

    columns: ColumnModel
    microscope: Microscope
    diffuse: Diffuse = Diffuse()  # added to the coherent image
    others: tuple[OwnLens, ...] = ()

    def occupied(self) -> list[int]:
        """Return the columns that hold atoms."""
        return [int(c) for c in np.flatnonzero(self.columns.occupied)]

    def views(self) -> tuple[State, ...]:
        """Return what each image alone would know: the one structure with the image's own lens."""
        if not self.others:
            return (self,)
        others = (State(self.columns, e.microscope, e.diffuse) for e in self.others)
        return (replace(self, others=()), *others)

    def values(self) -> Floats:
        """Return the imaging parameters (N·P,) of all N images, numbered as `microscope.numbered` does."""
        return np.concatenate([v.microscope.values for v in self.views()])

    def prior(self) -> tuple[Floats, Floats]:
        """Return prior means and standard deviations (N·P,) of the imaging parameters of all images."""
        lenses = [v.microscope for v in self.views()]
        return np.concatenate([m.mean for m in lenses]), np.concatenate([m.sigma for m in lenses])

    def prior_deviation(self) -> Floats:
        """Return how many prior standard deviations (N·P,) each imaging parameter lies from its mean.

        Zero for a parameter that is held, whose prior has no width.
        """
        mean, sigma = self.prior()
        away = self.values() - mean
        return np.divide(away, sigma, out=np.zeros_like(away), where=sigma > 0)

    def with_values(self, values: Floats) -> State:
        """Return the state with the imaging parameters (N·P,) of all images, the specimen's of the first."""
        first, *rest = np.array(values).reshape(len(self.others) + 1, len(PARAMETERS))
        others = []
        for e, own in zip(self.others, rest, strict=True):
            own[list(SPECIMEN)] = first[list(SPECIMEN)]
            others.append(replace(e, microscope=replace(e.microscope, values=own)))
        return replace(self, microscope=replace(self.microscope, values=first), others=tuple(others))


@dataclass(frozen=True)
class Misfit:
    """A measured image on the image grid with its noise and the pixels that count."""

    measured: Tensor  # image grid, vacuum = 1
    used: Tensor  # image grid, bool
    electrons: float  # vacuum electrons per pixel
    readout_variance: float

    def variance(self, image: Tensor) -> Tensor:
        """Return the variance expected at a model intensity, image grid."""
        return torch.clamp(image, min=0.02) / self.electrons + self.readout_variance

    def weight(self, image: Tensor) -> Tensor:
        """Return 1/variance on used pixels and zero elsewhere."""
        return torch.where(self.used, 1 / self.variance(image), torch.zeros(()))

    def cost(self, image: Tensor) -> float:
        """Return minus twice the log likelihood up to a constant: Σ (r²/v + ln v) over used pixels."""
        v = self.variance(image)[self.used].double()
        r = (self.measured - image)[self.used].double()
        return float((r * r / v + torch.log(v * self.electrons)).sum())

    def reduced_chi2(self, image: Tensor, where: Tensor | None = None) -> float:
        """Return mean r²/v over used pixels, or over those of `where` that are used."""
        mask = self.used if where is None else self.used & where
        v = self.variance(image)[mask].double()
        r = (self.measured - image)[mask].double()
        return float((r * r / v).mean()) if len(v) else float("nan")

    @property
    def pixels(self) -> int:
        """Number of used pixels."""
        return int(self.used.sum())


def make_misfit(micrograph: Micrograph, field: Field, border: float = 1.5) -> Misfit:
    """Return the misfit of a micrograph on a field, leaving out a border (Å) that outside columns disturb."""
    used = micrograph.valid & np.isfinite(micrograph.intensity)
    n = int(np.ceil(border / field.detector_pixel))
    if n:
        frame = np.zeros_like(used)
        frame[n:-n, n:-n] = True
        used = used & frame
    intensity = np.where(np.isfinite(micrograph.intensity), micrograph.intensity, 1.0)
    measured = torch.as_tensor(field.embed(intensity.astype(np.float32), 1.0), device=field.grid.device)
    return Misfit(
        measured,
        torch.as_tensor(field.embed(used, False), device=field.grid.device),
        micrograph.electrons_per_pixel,
        micrograph.readout_variance,
    )


@dataclass(frozen=True)
class _Kept:
    """The image changes of a column as they were simulated once."""

    ends: bytes  # of the columns around it at that time
    place: dict[Move | Tangent, int]  # of each change in the response
    response: Response

    @classmethod
    def of(cls, ends: bytes, changes: Sequence[Move | Tangent], response: Response) -> _Kept:
        """Return what was simulated for some changes."""
        return cls(ends, {x: k for k, x in enumerate(changes)}, response)

    def joined(self, more: _Kept) -> _Kept | None:
        """Return both together where they lie in the same window, else None."""
        a, b = self.response, more.response
        if (a.row, a.col, a.change.shape[1:]) != (b.row, b.col, b.change.shape[1:]):
            return None
        changes = [*self.place, *more.place]
        return _Kept.of(self.ends, changes, replace(a, change=np.concatenate([a.change, b.change])))

    def of_changes(self, changes: Sequence[Move | Tangent]) -> Response:
        """Return the response to some of the changes, in their order."""
        place = [self.place[x] for x in changes]
        if place == list(range(len(self.place))):
            return self.response
        return replace(self.response, change=self.response.change[place])


@dataclass
class Bench:
    """The forward model and the misfit of one fit, with the exit wave of the last structure kept.

    Images of one area share the exit wave; each has its own misfit, on the image grid of the first.
    """

    model: ForwardModel
    misfit: Misfit
    workers: int = 1  # threads over columns
    others: tuple[Misfit, ...] = ()  # of the further images that `State.others` describes
    # Derivatives by imaging parameters, and what changes of a column do, are computed once, at the first
    # state that needs them: for a fit (of one image) that begins so near its end that they stay what they
    # are. Residuals, and the cost of every state, are exact all the same.
    lagged: bool = False
    _responses: dict[int, _Kept] = field(default_factory=dict, repr=False)  # by column
    _derivatives: dict[int, Tensor] = field(default_factory=dict, repr=False)
    _key: object = None
    _held: ColumnModel | None = field(default=None, repr=False)  # keeps the id in the key from being reused
    _wave: tuple[Tensor, float] | None = field(default=None, repr=False)

    @property
    def misfits(self) -> tuple[Misfit, ...]:
        """The misfit of every image, the first first."""
        return (self.misfit, *self.others)

    def lagging(self) -> Bench:
        """Return a bench of the same images that is lagged from the next state on."""
        return Bench(self.model, self.misfit, self.workers, self.others, lagged=True)

    def image(self, state: State) -> Tensor:
        """Return the full (first) image of a state; lens changes alone reuse the exit wave."""
        wave = self._exit_wave(state)
        return self.model.image_of(*wave, state.microscope) + state.diffuse.at(state.microscope)

    def _exit_wave(self, state: State) -> tuple[Tensor, float]:
        """Return the spectrum of a state's exit wave and the depth (Å) of its exit plane."""
        key = _wave_of(state.columns, state.microscope)
        if self._key != key or self._wave is None:
            self._wave = self.model.exit_spectrum(state.columns, state.microscope)
            self._key, self._held = key, state.columns
        return self._wave

    def images(self, state: State) -> list[Tensor]:
        """Return what every image of a state should show, the first first."""
        return [self.image(view) for view in state.views()]

    def cost(self, state: State) -> float:
        """Return the misfit cost of a state without priors, summed over all images."""
        return sum(m.cost(image) for m, image in zip(self.misfits, self.images(state), strict=True))

    def chi2(self, state: State) -> float:
        """Return the reduced χ² of a state over the used pixels of all images."""
        if not self.others:
            return self.misfit.reduced_chi2(self.image(state))
        found = [m.reduced_chi2(image) for m, image in zip(self.misfits, self.images(state), strict=True)]
        return float(np.average(found, weights=[m.pixels for m in self.misfits]))

    def global_jacobian(self, state: State, index: list[int]) -> NDArray[np.float32]:
        """Return ∂(first image)/∂(imaging parameter)·step, (P, rows, cols), by central differences."""
        if not index:
            return np.zeros((0, *self.misfit.used.shape), dtype=np.float32)
        out = {i: self._derivatives[i] for i in index if i in self._derivatives}
        missing = [i for i in index if i not in out]
        if missing:
            out.update(self._derivatives_of(state, missing))
        if self.lagged:
            self._derivatives.update(out)
        return np.asarray(torch.stack([out[i] for i in index]).numpy())

    def _derivatives_of(self, state: State, index: list[int]) -> dict[int, Tensor]:
        """Return rows of `global_jacobian` by imaging parameter, simulated at a state."""
        model = self.model.coarse
        wave = model.exit_spectrum(state.columns, state.microscope)
        sharp = model.sharp_of(*wave, state.microscope)
        for i in index:
            for m, _ in _around(state.microscope, i):
                # Kernels of all thermal states are made here in turn, for threads to find.
                self._sampled_for(i).kernels(state.columns, thermal_of(m))
        with ThreadPoolExecutor(self.workers) as pool:
            found = pool.map(partial(self._derivative, state, wave, sharp), index)
            return dict(zip(index, found, strict=True))

    def _sampled_for(self, i: int) -> ForwardModel:
        """Return the model for the derivative by imaging parameter i.

        Debye–Waller factors act most on the highest frequencies, which coarse waves leave out.
        """
        return self.model if i == INDEX["b_scale"] else self.model.coarse

    def _derivative(self, state: State, wave: tuple[Tensor, float], sharp: Tensor, i: int) -> Tensor:
        """Return one row of `global_jacobian`; wave: exit wave, sharp: what the lens makes of it."""
        model, images, at = self._sampled_for(i), [], []
        for m, value in _around(state.microscope, i):
            if PARAMETERS[i].name in RECORDING:
                image = model.detect(sharp, model.response(m))
            elif PARAMETERS[i].structural:
                image = model.image(state.columns, m)
            else:
                image = model.image_of(*wave, m)
            images.append(image + state.diffuse.at(m))
            at.append(value)
        return (images[0] - images[1]) * (PARAMETERS[i].step / (at[0] - at[1]))

    def respond(self, window: WindowModel, c: int, changes: Sequence[Move | Tangent]) -> Response:
        """Return the image changes of column c as `WindowModel.respond`.

        A lagged bench simulates them once, and anew where ends near the column are others than they were.
        """
        if not self.lagged:
            return window.respond(c, changes)
        columns = window.columns
        near = np.hypot(*(columns.anchor - columns.anchor[c]).T) < AROUND_A
        ends = np.stack([columns.first[near], columns.last[near]]).tobytes()
        known = self._responses.get(c)
        kept = known if known is not None and known.ends == ends else None
        missing = changes if kept is None else [x for x in changes if x not in kept.place]
        if missing:
            more = _Kept.of(ends, missing, window.respond(c, missing))
            joined = more if kept is None else kept.joined(more)
            # The window moves or grows with position and lens: then all is simulated in the new one.
            kept = joined or _Kept.of(ends, changes, window.respond(c, changes))
            self._responses[c] = kept
        assert kept is not None
        return kept.of_changes(changes)


def _around(microscope: Microscope, i: int) -> list[tuple[Microscope, float]]:
    """Return microscopes half a step of imaging parameter i above and below, and its values there."""
    p, value = PARAMETERS[i], microscope.values[i]
    at = min(value + p.step / 2, p.high), max(value - p.step / 2, p.low)
    return [(microscope.with_vector([i], np.array([x])), x) for x in at]


def _wave_of(columns: ColumnModel, m: Microscope) -> object:
    """Return what an exit wave depends on."""
    return (id(columns), m["tilt_x"], m["tilt_y"], m["b_scale"], m["absorption"])


def white_noise(bench: Bench, seed: int, draws: int) -> Tensor:
    """Return draws of unit white noise (D, N, rows, cols) on the grid of all N images.

    To learn what a fit does to it.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.randn((draws, len(bench.misfits), *bench.misfit.measured.shape), generator=generator)


def threads_here() -> int:
    """Return how many threads work on columns in this process."""
    return os.cpu_count() or 1
