"""Sobol points and nothing else: what any method must beat."""

from __future__ import annotations

import numpy as np

from qhrtem.optimise.scripted import Script, Scripted

BLOCK = 256  # points drawn at a time; a power of two keeps the sequence balanced


class Sobol(Scripted):
    """Scrambled Sobol points that the rules allow."""

    ORIGIN = "design"

    def script(self, generator: np.random.Generator) -> Script:
        """Return one block of the sequence, in order."""
        yield list(self.start_points(BLOCK, generator))
