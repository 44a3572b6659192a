"""Multislice: a wave through a stack of thin phase gratings (Cowley and Moodie 1957)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from qhrtem.errors import PlanError
from qhrtem.grid import Beams, fft2, ifft2
from qhrtem.physics.electron import wavelength

Propagation = Literal["fresnel", "exact", "secant"]
STEEPEST_RAD = 0.2  # a larger mistilt is another zone axis


def propagator(
    grid: Beams,
    thickness: float,
    energy: float,
    mistilt: tuple[float | Tensor, float | Tensor] | Tensor = (0.0, 0.0),
    kind: Propagation = "fresnel",
) -> Tensor:
    """Return the propagator of one slice, band limited; shape of the grid, complex.

    thickness: Δz in Å; energy: eV; mistilt: (x, y) in rad, a term 2πΔz k·tan t. In the frame that moves with
    the tilted columns, so slices stay identical; the same as displacing atoms at depth z by +z·tan t.
    kind: "fresnel" exp(-iπλΔz k²); "exact" exp(-i(2π/λ)Δz(1 - cos θ)), sin θ = λk, the free-space solution;
    "secant" the same with 1/cos θ - 1, the large-angle propagator of Dr. Probe.
    """
    lam = wavelength(energy)
    ky, kx = grid.frequencies()
    k2 = kx**2 + ky**2
    keep = grid.in_band()
    if kind == "fresnel":
        phase = -math.pi * lam * thickness * k2
    else:
        cosine = torch.sqrt(torch.clamp(1 - lam**2 * k2, min=1e-4))
        path = 1 - cosine if kind == "exact" else 1 / cosine - 1
        phase = -2 * math.pi / lam * thickness * path
    tx, ty = (torch.as_tensor(t, dtype=torch.float64, device=grid.device) for t in (mistilt[0], mistilt[1]))
    if not (abs(float(tx.detach())) <= STEEPEST_RAD and abs(float(ty.detach())) <= STEEPEST_RAD):
        raise PlanError(
            f"mistilt must be within {STEEPEST_RAD * 1e3:g} mrad along x and y, got {float(tx):g} and "
            f"{float(ty):g} rad; was it given in mrad or degrees?"
        )
    phase = phase + 2 * math.pi * thickness * (kx * torch.tan(tx) + ky * torch.tan(ty))
    return torch.polar(keep.to(phase.dtype), phase).to(grid.complex_dtype)


def transmission(phase: Tensor) -> Tensor:
    """Return exp(i·phase); a positive imaginary part of the phase damps the wave."""
    if phase.is_complex():
        passed = torch.exp(-phase.imag)
        return torch.complex(passed * torch.cos(phase.real), passed * torch.sin(phase.real))
    return torch.complex(torch.cos(phase), torch.sin(phase))


def band_limited(gratings: Tensor, grid: Beams) -> Tensor:
    """Return transmission functions (..., rows, columns) cut at the grid's circular band limit."""
    # A complex factor multiplies a spectrum nearly twice as fast as a real one, which is converted first.
    return ifft2(fft2(gratings) * grid.in_band().to(grid.complex_dtype))


def transmit_propagate(wave: Tensor, grating: Tensor, step: Tensor) -> Tensor:
    """Return the wave after one slice: transmit by `grating`, then propagate by `step` (Fourier space)."""
    return ifft2(fft2(wave * grating) * step)


def exit_wave(
    gratings: Tensor,
    order: Sequence[int],
    step: Tensor,
    wave: Tensor | None = None,
    checkpoint_every: int | None = None,
) -> Tensor:
    """Return the wave (..., rows, columns) behind the stack.

    gratings: (U, ..., rows, columns) distinct transmission functions, batch axes in between; order: which one
    each slice uses; step: propagator of one slice; wave: incident wave, default the unit plane wave.
    checkpoint_every: keep the wave only every so many slices for the gradient and compute the rest again.
    """
    psi = torch.ones_like(gratings[0]) if wave is None else wave
    if not _records_gradient(gratings, step, psi):
        return _march(psi, gratings, order, step)
    if checkpoint_every is None:
        return cast(Tensor, _Multislice.apply(psi, gratings, tuple(order), step))
    if checkpoint_every < 1:
        raise PlanError(f"checkpoint_every must be at least 1 slice, got {checkpoint_every}")
    for start in range(0, len(order), checkpoint_every):
        part = tuple(order[start : start + checkpoint_every])
        psi = checkpoint(exit_wave, gratings, part, step, psi, use_reentrant=False)
    return psi


class _Multislice(torch.autograd.Function):
    """The pass through the stack with its adjoint: one more pass in the other direction.

    With h = F⁻¹ P* F g for the gradient g behind a slice, t ← Σ ψ* h and ψ ← t* h; P ← Σ (F ψt)* F g / N.
    """

    @staticmethod
    def forward(ctx: Any, wave: Tensor, gratings: Tensor, order: tuple[int, ...], step: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(wave.shape, gratings.shape[1:])
        waves = torch.empty((len(order) + 1, *shape), dtype=gratings.dtype, device=gratings.device)
        waves[0] = wave
        for j, u in enumerate(order):
            waves[j + 1] = transmit_propagate(waves[j], gratings[u], step)
        ctx.save_for_backward(waves[:-1], gratings, step)
        ctx.order, ctx.incident = order, wave.shape
        return waves[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        waves, gratings, step = ctx.saved_tensors
        back = step.conj().resolve_conj()
        by_step = torch.zeros_like(step) if ctx.needs_input_grad[3] else None
        by_grating = torch.zeros_like(gratings)
        grad = grad.resolve_conj()
        for j in reversed(range(len(ctx.order))):
            psi, grating = waves[j], gratings[ctx.order[j]]
            spectrum = fft2(grad)
            if by_step is not None:
                by_step += (fft2(psi * grating).conj() * spectrum).sum_to_size(step.shape)
            spectrum *= back
            h = ifft2(spectrum)
            by_grating[ctx.order[j]] += psi.conj() * h
            grad = grating.conj() * h
        if by_step is not None:
            by_step /= step.shape[-1] * step.shape[-2]
        return grad.sum_to_size(ctx.incident), by_grating, None, by_step


def _records_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _march(wave: Tensor, gratings: Tensor, order: Sequence[int], step: Tensor) -> Tensor:
    """Return the wave behind the stack; transforms into given memory would copy their result there."""
    psi = torch.broadcast_to(wave, gratings[0].shape)
    for u in order:
        psi = ifft2(fft2(psi * gratings[u]).mul_(step))
    return psi


def all_waves(gratings: Tensor, order: Sequence[int], step: Tensor) -> Tensor:
    """Return the waves in front of every slice and behind the last, (slices + 1, ..., rows, columns)."""
    out = torch.empty((len(order) + 1, *gratings.shape[1:]), dtype=gratings.dtype, device=gratings.device)
    out[0] = 1
    for j, u in enumerate(order):
        out[j + 1] = transmit_propagate(out[j], gratings[u], step)
    return out
