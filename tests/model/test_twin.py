"""The result type."""

from __future__ import annotations

from dataclasses import replace

import twins


def test_a_twin_passes_when_every_gate_does() -> None:
    good = twins.make_twin(4, 4)
    assert good.passed
    failed = replace(good.gates[0], passed=False)
    assert not replace(good, gates=(failed, *good.gates[1:])).passed
