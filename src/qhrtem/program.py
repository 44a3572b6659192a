"""What program this is: its version, a digest of its source, and the libraries that compute for it."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("botorch", "gpytorch", "numpy", "scipy", "scikit-image", "torch")


def versions() -> dict[str, str]:
    """Return the versions of everything that computes, and a digest of this program's source."""
    out = {"qhrtem": version("qhrtem"), "source": source_digest(), "python": platform.python_version()}
    return out | {name: version(name) for name in LIBRARIES}


def source_digest() -> str:
    """Return a short digest of the program's own modules, which tells edited code from released."""
    root = Path(__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:12]


@functools.cache
def program_digest() -> str:
    """Return the SHA-256 of all versions, as they were when this process first asked."""
    return hashlib.sha256(repr(sorted(versions().items())).encode()).hexdigest()
