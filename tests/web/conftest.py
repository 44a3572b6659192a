"""Pages of a run under way whose every text is hostile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from liverun import under_way
from pageserver import HOSTILE, Served, serving


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A page for one test."""
    with under_way(tmp_path / "run", HOSTILE) as parts, serving(*parts) as server:
        yield server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One page for the tests of a module that leave the run as it is."""
    with under_way(tmp_path_factory.mktemp("web") / "run", HOSTILE) as parts, serving(*parts) as server:
        yield server
