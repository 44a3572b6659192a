"""Watch: files of a folder as they appear."""

import math

import pytest

from qhrtem.errors import InputError
from qhrtem.run.watch import FolderWatch, natural


class Clock:
    """Time that passes only by waiting, and what happens while it does."""

    def __init__(self, *happens):
        self.time, self.happens = 0.0, list(happens)

    def now(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds
        if self.happens:
            self.happens.pop(0)()


def write(folder, name, size=8):
    def act():
        (folder / name).write_bytes(b"x" * size)

    return act


def nothing():
    pass


def watch(folder, clock, **options):
    told = []
    settings = {"pattern": "*", "suffixes": (".tif",), "idle_s": 3.0, "behind": "keep"} | options
    return FolderWatch(folder, **settings, tell=told.append, now=clock.now, wait=clock.wait), told


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("f10.tif", "f9.tif", "f1.tif", "notes.txt", ".hidden.tif"):
        write(tmp_path, name)()
    it, told = watch(tmp_path, Clock())
    assert [p.name for p in it] == ["f1.tif", "f9.tif", "f10.tif"]
    assert [(r["event"], r["file"], r["waiting"]) for r in told] == [
        ("frame", "f1.tif", 2),
        ("frame", "f9.tif", 1),
        ("frame", "f10.tif", 0),
    ]


def test_a_file_that_still_grows_is_waited_for(tmp_path):
    clock = Clock(*(write(tmp_path, "a.tif", n) for n in (1, 2, 3)), nothing, nothing)
    it, _ = watch(tmp_path, clock)
    assert next(iter(it)).stat().st_size == 3
    assert clock.time >= 2.0


def test_the_series_is_complete_when_nothing_came_for_some_time(tmp_path):
    clock = Clock(write(tmp_path, "a.tif"))
    it, _ = watch(tmp_path, clock)
    assert len(list(it)) == 1
    assert 3.0 <= clock.time <= 5.5


def test_late_frames_are_left_out_only_where_the_policy_says_so(tmp_path):
    for n in range(4):
        write(tmp_path, f"{n}.tif")()
    it, told = watch(tmp_path, Clock(), behind="drop")
    assert [p.name for p in it] == ["3.tif"]
    assert it.names == ("0.tif", "1.tif", "2.tif")
    assert [r["event"] for r in told] == ["dropped"] * 3 + ["frame"]


def test_a_resumed_watch_takes_the_same_files_first(tmp_path):
    for name in ("0.tif", "1.tif", "2.tif", "3.tif"):
        write(tmp_path, name)()
    it, told = watch(tmp_path, Clock(), past=("1.tif",), dropped=["0.tif"])
    assert [p.name for p in it] == ["1.tif", "2.tif", "3.tif"]
    assert [r["file"] for r in told] == ["2.tif", "3.tif"]


def test_a_frame_that_is_gone_is_asked_for(tmp_path):
    it, _ = watch(tmp_path, Clock(), past=("1.tif",), idle_s=math.inf)
    with pytest.raises(InputError, match="put the file back"):
        next(iter(it))


def test_natural_order():
    from pathlib import Path

    names = ["b2.tif", "a10.tif", "a9.tif", "10.tif", "9.tif", "a.tif"]
    ordered = [p.name for p in sorted(map(Path, names), key=natural)]
    assert ordered == ["9.tif", "10.tif", "a9.tif", "a10.tif", "a.tif", "b2.tif"]
