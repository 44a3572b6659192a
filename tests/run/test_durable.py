"""Writing: the old file or the new one, never a part of either."""

import os

import pytest

from qhrtem.errors import ResourceError
from qhrtem.run.durable import write, write_atomic


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_atomic_write_replaces_in_full_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "plan.toml"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ResourceError, match="disk is full"):
        write_atomic(path, "never")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["plan.toml"]


def test_a_system_that_writes_little_at_a_time_is_asked_again(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, bytes(data)[:3]))
    handle = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    write(handle, b"0123456789")
    os.close(handle)
    assert (tmp_path / "a").read_bytes() == b"0123456789"
