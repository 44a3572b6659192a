"""Following a run: what is written is read once and whole, and the lock is seen without being touched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liverun import begin, history, under_way
from qhrtem.errors import InputError, PlanError
from qhrtem.run.folder import RunFolder
from qhrtem.run.follow import Follower, Owner, ask_to_stop, standing, working
from qhrtem.run.journal import Journal, read_journal
from qhrtem.run.lock import holder, owner

HERE = socket.gethostname()
linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux says who holds a lock")
WRITER = """
import sys, time
from qhrtem.run.journal import Journal
from qhrtem.run.lock import owner
with Journal(sys.argv[1]) as journal:
    journal.append({"event": "resume", "owner": owner(), "finished_parts": 0})
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder, journal, store = begin(tmp_path_factory.mktemp("follow") / "run")
    history(journal, store)
    journal.close()
    return folder.journal.read_bytes()


@given(cuts=st.lists(st.integers(0, 20_000), max_size=6))
def test_a_journal_that_grows_in_any_pieces_is_read_whole_and_once(
    tmp_path_factory: pytest.TempPathFactory, written: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "journal.jsonl"
    path.write_bytes(b"")
    follower, found, done = Follower(path), [], 0
    for cut in [*sorted(min(c, len(written)) for c in cuts), len(written)]:
        with path.open("ab") as file:
            file.write(written[done:cut])
        done = cut
        found += follower.read()
    assert found == read_journal(path)
    assert follower.read() == [] and follower.generation == 0


def test_a_line_cut_short_waits_and_may_be_replaced(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written[:-5])
    follower = Follower(path)
    before = follower.read()
    with Journal(path) as journal:  # cuts the torn line off, as a resume does
        journal.append({"event": "resume"})
    assert [r["event"] for r in follower.read()] == ["resume"]
    assert len(before) + 1 == len(read_journal(path))


def test_another_journal_in_the_same_place_is_read_from_its_beginning(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    follower = Follower(path)
    assert follower.read() == []  # there is none yet
    path.write_bytes(written)
    count = len(follower.read())
    path.unlink()
    assert follower.read() == [] and follower.generation == 1
    path.write_bytes(written)
    assert len(follower.read()) == count and follower.generation == 1
    other = tmp_path / "other"
    other.write_bytes(written)
    os.replace(other, path)
    assert len(follower.read()) == count and follower.generation == 2


def test_damage_is_named(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    place = written.index(b"\n") + 60
    path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
    with pytest.raises(InputError, match="record 1"):
        Follower(path).read()


@linux
def test_the_kernel_names_the_process_at_work_and_the_lock_stays_free(tmp_path: Path) -> None:
    with under_way(tmp_path / "run") as (folder, _, _):
        assert holder(folder.journal) == working(folder) == os.getpid()
    assert holder(folder.journal) is None
    with Journal(folder.journal):  # looking has not taken it
        pass


@linux
@pytest.mark.parametrize(
    ("last", "host", "expected"),
    [
        ({"event": "stopped"}, HERE, "stopped"),
        ({"event": "step"}, HERE, "broken off"),
        ({"event": "finished"}, HERE, "broken off"),  # killed before its checkpoints went
        ({"event": "step"}, "another.machine", "elsewhere"),
        (None, HERE, "empty"),
    ],
)
def test_standing_of_a_run_that_nobody_here_is_at_work_on(
    tmp_path: Path, last: dict[str, str] | None, host: str, expected: str
) -> None:
    folder, journal, _ = begin(tmp_path / "run")
    assert standing(folder, last, Owner(1, host, "")) == "running"
    journal.close()
    assert standing(folder, last, Owner(1, host, "")) == expected
    folder.close()
    assert standing(folder, last, Owner(1, host, "")) == "finished"


@linux
def test_a_run_is_asked_to_stop_by_the_signal_that_it_knows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    words = [sys.executable, "-c", WRITER, str(folder.journal)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "src"}) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        who = Owner.of(Follower(folder.journal).read()[-1])
        assert who is not None and who.pid == writer.pid
        assert ask_to_stop(folder, who) == writer.pid
        assert writer.wait(10) == -signal.SIGTERM
    with pytest.raises(PlanError, match="no process is at work"):
        ask_to_stop(folder, who)


@linux
def test_nobody_else_is_ever_sent_a_signal(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        with under_way(tmp_path / "run") as (folder, _, _):
            # The journal names a process that does not hold the lock: a number that was used again.
            for who in (Owner(bystander.pid, HERE, ""), Owner(os.getpid(), "another.machine", ""), None):
                with pytest.raises(PlanError):
                    ask_to_stop(folder, who)
        with pytest.raises(PlanError, match="no process"):
            ask_to_stop(folder, Owner(bystander.pid, HERE, ""))
        time.sleep(0.1)
        assert bystander.poll() is None
        bystander.terminate()
    assert owner()["host"] == HERE
