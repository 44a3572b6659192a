"""Test functions with known minima, for orientation among published benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optimiser.problem import Evaluation, Floats, Quality, Wants, integer_quality
from qhrtem.optimise.space import Parameter, SearchSpace


def ackley(x: Floats) -> float:
    """Ackley's function, minimum 0 at the origin (Ackley 1987; constants 20, 0.2, 2π)."""
    return float(
        -20 * math.exp(-0.2 * math.sqrt(float((x**2).mean())))
        - math.exp(float(np.cos(2 * math.pi * x).mean()))
        + 20
        + math.e
    )


def styblinski_tang(x: Floats) -> float:
    """½ Σ (x⁴ − 16x² + 5x) above its minimum, divided by the dimension (Styblinski and Tang 1990)."""
    return float(0.5 * (x**4 - 16 * x**2 + 5 * x).mean()) + 39.16616570377142


@dataclass(frozen=True)
class Analytic:
    """A function without derivatives or noise."""

    name: str
    space: SearchSpace
    function: Callable[[Floats], float]
    truth: Floats
    depths: tuple[float, float, float]
    pixels: int = 0
    fft_seconds: float = 1e-4

    def targets(self) -> tuple[float, float, float]:
        """Return the values to be reached."""
        return self.depths

    def evaluate(self, vector: Floats, wants: Wants = "value") -> Evaluation:
        """Return the function's value."""
        return Evaluation(self.function(vector), 1)

    def quality(self, vector: Floats) -> Quality:
        """Return the rms distance to the minimum and the shares of right integers."""
        rms = float(np.sqrt(((vector - self.truth) ** 2).mean()))
        return Quality({"rms distance": rms}, *integer_quality(self.space, vector, self.truth))


def _offset(seed: int, d: int) -> Floats:
    """Where the minimum lies: off the centre of the box, so that no method finds it by symmetry."""
    return np.random.default_rng([seed, 0x0FF5]).uniform(-2.0, 2.0, d)


def ackley20(seed: int) -> Analytic:
    """Ackley in 20 dimensions on [-5, 10], minimum moved at random within ±2."""
    shift = _offset(seed, 20)
    space = SearchSpace(tuple(Parameter(f"x{i}", -5, 10) for i in range(20)))
    return Analytic("ackley20", space, lambda v: ackley(v - shift), shift, (3.0, 1.0, 0.1))


def mixed_ackley(seed: int) -> Analytic:
    """Ackley of 10 binary and 3 continuous variables: the 53-dimensional one of Wan et al. 2021, reduced.

    Wan, Nguyen, Ha, Ru, Lu, Osborne, ICML 2021, use 50 binaries and 3 continuous variables in [-1, 1]. The
    binaries are counted from a random corner.
    """
    generator = np.random.default_rng([seed, 0x0FF5])
    corner, shift = generator.integers(0, 2, 10).astype(float), generator.uniform(-0.5, 0.5, 3)
    truth = np.concatenate([corner, shift])
    binaries = tuple(Parameter(f"b{i}", 0, 1, kind="integer") for i in range(10))
    space = SearchSpace((*binaries, *(Parameter(f"x{i}", -1, 1) for i in range(3))))
    return Analytic("mixed_ackley", space, lambda v: ackley(v - truth), truth, (1.0, 0.3, 0.05))


def styblinski_tang40(seed: int) -> Analytic:
    """Styblinski-Tang in 40 dimensions on [-5, 5], per dimension; the seed changes nothing."""
    truth = np.full(40, -2.9035340)
    space = SearchSpace(tuple(Parameter(f"x{i}", -5, 5) for i in range(40)))
    return Analytic("styblinski_tang40", space, styblinski_tang, truth, (10.0, 5.0, 1.0))
