"""The command: one socket of this machine, errors in one line, and a run that never notices."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("starlette", reason="the live page needs starlette and uvicorn")

from liverun import begin, history, step, under_way
from pageserver import serving
from qhrtem.cli import app
from qhrtem.errors import PlanError, ResourceError
from qhrtem.run.folder import RunFolder
from qhrtem.run.journal import Journal, read_journal
from qhrtem.web import server

SOURCE = Path(server.__file__).parents[2]


@contextmanager
def command(run: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `qhrtem serve` as a process of its own; give it and its port."""
    call = [sys.executable, "-m", "qhrtem", "serve", str(run), "--port", "0", *words]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"}
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as it:
        assert it.stdout is not None and it.stderr is not None
        address = it.stdout.readline().strip()
        assert address.startswith("http://"), it.stderr.read()
        try:
            yield it, int(address.split(":")[2].split("/")[0])
        finally:
            it.kill()


def listening(pid: int) -> set[str]:
    """Return the addresses and ports that a process listens on, as the kernel's own list has them."""
    sockets = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(entry)
        if target.startswith("socket:["):
            sockets.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in sockets and words[3] in ("0A", "07"):  # listening, or a datagram socket
                found.add(words[1])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the kernel's list of sockets")
def test_only_this_machine_is_listened_to_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    with under_way(tmp_path / "run") as (folder, journal, _), command(folder.path) as (it, port):
        assert listening(it.pid) == {f"0100007F:{port:04X}"}  # 127.0.0.1, low byte first
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/events")
        assert connection.getresponse().status == 200  # an open stream does not hold it up
        begun = time.monotonic()
        it.send_signal(signal.SIGINT)
        assert it.wait(10) == 0 and time.monotonic() - begun < 5
        connection.close()
        step(journal, "joint", 1.0, 9.0, "goes on", 0.9)
    assert read_journal(folder.journal)[-1]["note"] == "goes on"


def test_a_killed_page_leaves_the_run_its_lock_and_its_files(tmp_path: Path) -> None:
    with under_way(tmp_path / "run") as (folder, journal, store):
        with command(folder.path) as (it, port):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/events")
            connection.getresponse().read(200)
            before = sorted(folder.path.rglob("*"))
            it.kill()
            it.wait(10)
            connection.close()
        assert sorted(folder.path.rglob("*")) == before
        with pytest.raises(PlanError, match=f"process {os.getpid()}"):
            Journal(folder.journal)  # still locked, by the run
        step(journal, "joint", 1.0, 9.0, "goes on", 0.9)
        store.trial("imaging 1", 0, [0.0], lambda v: {"value": 1.0})  # type: ignore[arg-type, dict-item]
    with Journal(folder.journal):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux says who holds a lock")
def test_the_page_stops_a_fit_that_then_goes_on_to_the_same_result(tmp_path: Path) -> None:
    from faults.bench import Bench, result_of

    (tmp_path / "bench").mkdir()
    bench = Bench(tmp_path / "bench")
    run = bench.folder / "run"
    assert bench.fit(run).code == 0
    reference = result_of(run)
    bench.notes.unlink()
    child = bench.start("fit", str(bench.plan), "--out", str(run), "--force", pause=0.3)
    while not (bench.notes.is_file() and "trial 2" in bench.notes.read_text()):
        time.sleep(0.05)
    folder = RunFolder(run)
    with serving(folder, None, None) as page:
        time.sleep(1.5)  # by then it has seen who is at work
        answer = page.ask("/stop", "POST", **page.own())
        assert answer.status == 200 and str(child) in answer.text
        assert bench.wait(child).code == 75
    assert read_journal(folder.journal)[-1]["event"] == "stopped"
    assert bench.go_on(run).code == 0
    assert bench.fault(run, reference, 1) == ""


def test_the_run_may_be_resumed_while_it_is_looked_at(tmp_path: Path) -> None:
    folder, journal, store = begin(tmp_path / "run")
    history(journal, store)
    journal.close()
    with command(folder.path):
        for _ in range(40):
            with Journal(folder.journal) as again:
                again.append({"event": "step", "chi2": None}, sync=False)
            time.sleep(0.05)


def test_no_such_run() -> None:
    done = CliRunner().invoke(app, ["serve", "no/such/run"])
    assert done.exit_code == 2 and "is not a run folder" in done.stderr


def test_a_taken_port_is_one_line_with_its_remedy(tmp_path: Path) -> None:
    folder, journal, _ = begin(tmp_path / "run")
    journal.close()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", str(folder.path), "--port", str(port)])
    assert done.exit_code == 5
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr and "--port 0" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "*", ""])
def test_no_page_for_everyone(host: str) -> None:
    with pytest.raises(PlanError, match="ssh -L"):
        server.listen(host, 0)


def test_a_host_that_is_not_here_is_refused() -> None:
    with pytest.raises(PlanError, match="of this machine"):
        server.listen("192.0.2.1", 0)  # reserved for documentation, so nobody's
    with pytest.raises(PlanError, match="of this machine"):
        server.listen("no.such.host.invalid", 0)


def test_another_host_prints_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, journal, _ = begin(tmp_path / "run")
    journal.close()

    class Done:
        def run(self, sockets: list[socket.socket]) -> None:
            assert sockets[0].getsockname()[0] == "127.0.0.2"

    monkeypatch.setattr(server, "server_of", lambda live, access: Done())
    monkeypatch.setattr(server.os, "nice", lambda by: by)
    done = CliRunner().invoke(app, ["serve", str(folder.path), "--port", "0", "--host", "127.0.0.2"])
    assert done.exit_code == 0, done.output
    token = done.stdout.split("?token=")[1].split()[0]
    assert len(token) >= 40 and token in done.stderr and "ssh -L" in done.stderr


def test_without_the_packages_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, journal, _ = begin(tmp_path / "run")
    journal.close()
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else object())
    done = CliRunner().invoke(app, ["serve", str(folder.path)])
    assert done.exit_code == 5 and "pip install 'qhrtem[web]'" in done.stderr
    with pytest.raises(ResourceError, match="uvicorn"):
        server.require_installed()


@pytest.mark.parametrize(
    "module", ["qhrtem.web", "qhrtem.web.server", "qhrtem.commands.serve", "qhrtem.web.live"]
)
def test_importing_loads_no_server_and_no_numerics(module: str) -> None:
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    words = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    ).stdout.split()
    assert not {"starlette", "uvicorn", "torch", "matplotlib", "scipy", "h5py"} & set(words)
