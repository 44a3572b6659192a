"""The faults that are tried, each a function of a bench that returns what went wrong."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults.bench import Bench, End, killed, result_of
from faults.disk import Disk, Mode
from qhrtem.run.journal import read_journal

WITHIN_SECONDS = 10.0  # a request to stop must have ended the process
SMALL_DISK_KB = 4000


@dataclass(frozen=True)
class Outcome:
    """What one kind of fault led to."""

    name: str
    tried: int
    faults: tuple[str, ...]  # one sentence for each that went wrong
    measured: str = ""  # a figure worth keeping


def crashes(bench: Bench, run: Path, reference: str, mode: Mode, every: int, first: int = 0) -> Outcome:
    """Stop a fit at every so-manieth write, fsync and rename, the last one included, then go on."""
    operations = bench.operations(run)
    # Only a write can be torn or find no room.
    some = [n for n, what in enumerate(operations) if what == "write" or mode in ("kill", "power")]
    places = sorted({*some[first::every], some[-1]})
    wrong = []
    for at in places:
        end = bench.fit(run, Disk(mode, at))
        if mode == "full" and end.code != 5:
            wrong.append(f"operation {at}: exit {end.code} on a full disk")
        if mode != "full" and not killed(end):
            wrong.append(f"operation {at}: exit {end.code} instead of the kill")
        wrong += _after(bench, run, reference, f"operation {at}")
    names = {"kill": "kill −9", "torn": "kill −9 in the middle of a write", "power": "power cut"}
    kinds = "writes, fsyncs and renames" if mode in ("kill", "power") else "writes"
    name = f"{names.get(mode, 'disk full (5)')} at {len(places)} of {len(some)} {kinds}"
    return Outcome(name, len(places), tuple(wrong))


def repeated_crashes(
    bench: Bench, run: Path, reference: str, times: int, seed: int, in_a_row: int = 5
) -> Outcome:
    """Kill a fit, then its resumes, several in a row, each at another operation."""
    rng = random.Random(seed)
    total = len(bench.operations(run))
    wrong = []
    for n in range(times):
        bench.fit(run, Disk("power" if n % 2 else "kill", rng.randrange(total // 3)))
        hits = 1
        for _ in range(in_a_row - 1):
            if not (run / "plan.toml").is_file():
                break
            end = bench.do("resume", str(run), disk=Disk("kill", rng.randrange(2, 30)))
            hits += killed(end)
        wrong += _after(bench, run, reference, f"series {n}", hits)
    return Outcome(f"{in_a_row} kills in a row, the fit and then its resumes", times, tuple(wrong))


def random_kills(bench: Bench, run: Path, reference: str, times: int, seed: int) -> Outcome:
    """Kill −9 from outside at random times, until a process comes to its end."""
    rng = random.Random(seed)
    whole = bench.fit(run, pause=0.03).seconds
    wrong, kills = [], 0
    while kills < times:
        shutil.rmtree(run, ignore_errors=True)
        bench.notes.unlink(missing_ok=True)
        words = ("fit", str(bench.plan), "--out", str(run))
        hits = 0
        while True:
            begin = time.monotonic()
            child = bench.start(*words, pause=0.03)
            time.sleep(rng.uniform(0.1, 0.9) * whole)
            os.kill(child, signal.SIGKILL)
            end = bench.wait(child, begin)
            if not killed(end):
                break
            hits += 1
            if (run / "plan.toml").is_file():
                words = ("resume", str(run))
        kills += hits
        if end.code:
            wrong.append(f"exit {end.code}: {end.words[-200:]}")
        fault = bench.fault(run, reference, hits)
        wrong += [fault] if fault else []
    return Outcome("kill −9 from outside at random times", kills, tuple(wrong))


def signals(bench: Bench, run: Path, reference: str) -> Outcome:
    """SIGTERM and SIGINT, while Python runs and inside a long calculation that returns to it much later."""

    def busy(what: str) -> None:
        if what == "round 1":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)  # tens of seconds outside the interpreter

    wrong, slowest = [], 0.0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        for hook, pause, reached in ((lambda what: None, 0.4, "trial 1"), (busy, 0.0, "round 0")):
            shutil.rmtree(run, ignore_errors=True)
            bench.notes.unlink(missing_ok=True)
            child = bench.start("fit", str(bench.plan), "--out", str(run), hook=hook, pause=pause)
            while not (bench.notes.is_file() and reached in bench.notes.read_text()):
                time.sleep(0.05)
            time.sleep(1.0)
            begin = time.monotonic()
            os.kill(child, number)
            end = bench.wait(child, begin)
            slowest = max(slowest, end.seconds)
            name = signal.Signals(number).name
            if end.code != code or end.seconds > WITHIN_SECONDS:
                wrong.append(f"{name}: exit {end.code} after {end.seconds:.1f} s, {end.words[-200:]}")
            if "qhrtem resume" not in end.words:
                wrong.append(f"{name}: does not say how to go on: {end.words[-200:]}")
            wrong += _after(bench, run, reference, name)
    return Outcome("SIGTERM (75) and SIGINT (130)", 4, tuple(wrong), f"slowest {slowest:.1f} s")


def damaged_journal(bench: Bench, run: Path, reference: str, seed: int, flips: int) -> Outcome:
    """Cut the journal's end; flip bytes in its middle."""
    rng = random.Random(seed)
    wrong = []
    bench.fit(run, Disk("kill", 120))
    journal = run / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])
    torn = bench.do("resume", str(run))
    if torn.code or "cut short" not in torn.words:
        wrong.append(f"torn end: exit {torn.code}, {torn.words[-200:]}")
    wrong += _checked(bench, run, reference, 2, "torn end")
    for _ in range(flips):
        bench.fit(run, Disk("kill", 120))
        whole = journal.read_bytes()
        place = rng.randrange(whole.rindex(b"\n", 0, -1))
        record = whole[:place].count(b"\n")
        journal.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        end = bench.do("resume", str(run))
        if whole[place] != 10 and (end.code != 3 or f"record {record}" not in end.words):
            wrong.append(f"byte {place} of record {record}: exit {end.code}, {end.words[-200:]}")
        journal.write_bytes(whole)
        wrong += _after(bench, run, reference, "restored journal")
    return Outcome("journal: torn end dropped, flipped byte refused (3)", 1 + flips, tuple(wrong))


def damaged_checkpoints(bench: Bench, run: Path, reference: str) -> Outcome:
    """Spoil or remove the arrays of checkpoints, the last and others."""
    wrong, tried = [], 0
    for choose in (-1, 0, 1, -2, None):
        bench.fit(run, Disk("kill", 125))
        records = [r for r in read_journal(run / "journal.jsonl") if r["event"] == "part"]
        hit = records if choose is None else [records[choose]]
        used = {d for r in records for d in r["arrays"].values() if r not in hit}
        for record in hit:
            for digest in set(record["arrays"].values()) - used:
                file = run / "unfinished" / f"{digest}.npy"
                if not file.exists():
                    continue
                data = file.read_bytes()
                if tried % 2:
                    file.unlink()
                else:
                    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        tried += 1
        end = bench.do("resume", str(run))
        if end.code or "is damaged" not in end.words:
            wrong.append(f"checkpoint {choose}: exit {end.code}, {end.words[-200:]}")
        wrong += _checked(bench, run, reference, 1 + len(hit), f"checkpoint {choose}")
    return Outcome("checkpoint with a wrong checksum: from the one before", tried, tuple(wrong))


def one_writer(bench: Bench, run: Path, reference: str) -> Outcome:
    """Two processes in one folder; a lock whose owner is gone."""
    wrong = []
    shutil.rmtree(run, ignore_errors=True)
    bench.notes.unlink(missing_ok=True)
    child = bench.start("fit", str(bench.plan), "--out", str(run), pause=0.5)
    while not (run / "journal.jsonl").is_file() or not (run / "journal.jsonl").stat().st_size:
        time.sleep(0.02)
    for words in (
        ("resume", str(run)),
        ("fit", str(bench.plan), "--out", str(run)),
        ("fit", str(bench.plan), "--out", str(run), "--force"),
    ):
        end = bench.do(*words)
        if end.code != 2 or f"process {child}" not in end.words:
            wrong.append(f"{' '.join(words[:1])}: exit {end.code}, {end.words[-200:]}")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wrong += _after(bench, run, reference, "stale lock")
    return Outcome("two runs in one folder (2, the owner named); stale lock", 4, tuple(wrong))


def changed_inputs(bench: Bench, run: Path, reference: str) -> Outcome:
    """Change plan, image, crystal or program between kill and resume; then fork."""
    wrong = []
    image, cif, plan = (bench.folder / n for n in ("bto_edge_small.tif", "BaTiO3.cif", "run/plan.toml"))
    texts = {
        plan: ("c3_um = -15.0", "c3_um = -14.5", "[microscope] c3_um: -15.0 → -14.5"),
        cif: ("data_", "# edited\ndata_", "structure file (SHA-256)"),
        image: (None, None, "image file (SHA-256)"),
        run / "journal.jsonl": ('"numpy":"', '"numpy":"0.', "numpy: 0."),
    }
    for file, (old, new, words) in texts.items():
        bench.fit(run, Disk("kill", 110))
        data = file.read_bytes()
        if old is None:
            # One count more in one pixel: the last byte of the TIFF belongs to its data or tags.
            edited = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
        else:
            assert old.encode() in data, (file, old)
            edited = data.replace(old.encode(), str(new).encode(), 1)
        if file.name == "journal.jsonl":
            edited = _sealed(edited)
        file.write_bytes(edited)
        end = bench.do("resume", str(run))
        if end.code != 2 or words not in " ".join(end.words.split()):
            wrong.append(f"{file.name}: exit {end.code}, {end.words[-300:]}")
        before = (run / "journal.jsonl").read_bytes()
        child = bench.folder / "child"
        shutil.rmtree(child, ignore_errors=True)
        fork = bench.do("resume", str(run), "--fork", str(child))
        if fork.code or (run / "journal.jsonl").read_bytes() != before:
            wrong.append(f"{file.name}: fork: exit {fork.code}, {fork.words[-300:]}")
        elif (result_of(child) == reference) == (file in (plan, image)) and file != plan:
            wrong.append(
                f"{file.name}: the child's result {'is' if file == image else 'is not'} its parent's"
            )
        file.write_bytes(data)
        wrong += _checked_resume(bench, run, reference, f"{file.name} restored")
    return Outcome("changed plan, image, CIF, version refused (2); --fork", len(texts), tuple(wrong))


def moved_run(bench: Bench, run: Path, reference: str) -> Outcome:
    """Move an unfinished run alone, then together with its files."""
    wrong = []
    bench.fit(run, Disk("kill", 100))
    moved = bench.folder / "moved"
    shutil.rmtree(moved, ignore_errors=True)
    run.rename(moved)
    wrong += _after(bench, moved, reference, "moved run")
    report = bench.do("report", str(moved))
    wrong += [f"report: exit {report.code}"] if report.code else []
    shutil.rmtree(moved)
    bench.fit(run, Disk("kill", 100))
    other = bench.folder.with_name(bench.folder.name + "-elsewhere")
    bench.folder.rename(other)
    try:
        elsewhere = Bench.__new__(Bench)
        elsewhere.__dict__ = {"folder": other, "plan": other / "plan.toml", "notes": other / bench.notes.name}
        wrong += _after(elsewhere, other / run.name, reference, "moved with its files")
    finally:
        other.rename(bench.folder)
    return Outcome("run folder moved, alone and with its files", 2, tuple(wrong))


def real_disks(bench: Bench, run: Path, reference: str) -> Outcome:
    """A small disk that fills up, and one that is read-only; needs the right to mount."""
    wrong, tried = [], 0
    with _small_disk(bench.folder / "disk", SMALL_DISK_KB) as disk:
        if disk is None:
            return Outcome("tmpfs full (5) and read-only (5)", 0, (), "no right to mount here")
        small = disk / "run"
        for room in (20, 40, 60, 90, 120):
            (disk / "ballast").unlink(missing_ok=True)
            end = bench.fit(small)
            with (disk / "ballast").open("wb") as file:
                shutil.rmtree(small, ignore_errors=True)
                file.write(b"0" * (SMALL_DISK_KB - room) * 1024)
            end = bench.fit(small)
            tried += 1
            if end.code != 5 or not any(w in end.words for w in ("disk is full", "No space left")):
                wrong.append(f"{room} kB: exit {end.code}, {end.words[-300:]}")
            (disk / "ballast").unlink()
            wrong += _after(bench, small, reference, f"{room} kB")
        bench.fit(small, Disk("kill", 100))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        end = bench.do("resume", str(small))
        tried += 1
        if end.code != 5 or "read-only" not in end.words:
            wrong.append(f"read-only: exit {end.code}, {end.words[-300:]}")
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        wrong += _after(bench, small, reference, "read-only")
    return Outcome("tmpfs full (5) and read-only (5), then room made", tried, tuple(wrong))


def _after(bench: Bench, run: Path, reference: str, what: str, hits: int = 1) -> list[str]:
    end: End = bench.go_on(run)
    if end.code:
        return [f"{what}: going on ends with {end.code}: {end.words[-300:]}"]
    return _checked(bench, run, reference, hits, what)


def _checked_resume(bench: Bench, run: Path, reference: str, what: str) -> list[str]:
    """Go on; the child's evaluations are in the same list, so only the result is compared."""
    end = bench.do("resume", str(run))
    if end.code or result_of(run) != reference:
        return [f"{what}: exit {end.code}, {end.words[-300:]}"]
    return []


def _checked(bench: Bench, run: Path, reference: str, hits: int, what: str) -> list[str]:
    fault = bench.fault(run, reference, hits)
    return [f"{what}: {fault}"] if fault else []


def _sealed(journal: bytes) -> bytes:
    """Return a journal whose edited records have their checksums corrected."""
    import zlib

    lines = []
    for n, line in enumerate(journal.splitlines()):
        payload = line.split(b'"record":', 1)[1][:-1]
        json.loads(payload)
        crc = b"%08x" % zlib.crc32(b"%d:%s" % (n, payload))
        lines.append(b'{"n":%d,"crc32":"%s","record":%s}\n' % (n, crc, payload))
    return b"".join(lines)


@contextmanager
def _small_disk(path: Path, kilobytes: int) -> Iterator[Path | None]:
    path.mkdir(exist_ok=True)
    options = f"size={kilobytes}k"
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, check=False
        )
    except FileNotFoundError:
        yield None
        return
    if done.returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=False)


Campaign = list[Callable[[], Outcome]]


def campaign(bench: Bench, run: Path, reference: str, full: bool, every: int) -> Campaign:
    """Return the faults to try, all of them or those that fit into a minute.

    every: so-manieth write, fsync or rename at which a fit is stopped; other faults are fewer by it too.
    """
    jobs: Campaign = [
        lambda: one_writer(bench, run, reference),
        lambda: damaged_journal(bench, run, reference, 3, math.ceil(20 / every)),
        lambda: damaged_checkpoints(bench, run, reference),
        lambda: changed_inputs(bench, run, reference),
        lambda: moved_run(bench, run, reference),
    ]
    if full:
        jobs += [lambda: signals(bench, run, reference), lambda: real_disks(bench, run, reference)]
    jobs += [
        lambda: random_kills(bench, run, reference, math.ceil(50 / every), 2),
        lambda: repeated_crashes(bench, run, reference, math.ceil(10 / every), 1),
    ]
    modes: tuple[Mode, ...] = ("power", "torn", "full", "kill")
    jobs += [
        lambda mode=mode, n=n: crashes(bench, run, reference, mode, every, n % every)  # type: ignore[misc]
        for n, mode in enumerate(modes)
    ]
    return jobs
