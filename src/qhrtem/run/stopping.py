"""Stopping on request: SIGTERM and SIGINT end a run within seconds, with what is finished on the disk."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from qhrtem.errors import Interrupted, InterruptedByUser

GRACE_SECONDS = 6.0  # for the main thread to leave; then the process ends, which loses nothing on the disk
KINDS = {signal.SIGTERM: Interrupted, signal.SIGINT: InterruptedByUser}
REASONS = {
    signal.SIGTERM: "stopped by the system (SIGTERM)",
    signal.SIGINT: "stopped from the keyboard",
}


@contextmanager
def stoppable(remedy: str) -> Iterator[None]:
    """Let SIGTERM and SIGINT raise Interrupted or InterruptedByUser, with `remedy` in the message.

    A thread watches that the process is gone soon after: the main thread may be inside a long calculation, or
    wait for others that are. A second signal ends the process at once. Outside the main thread, which alone
    may set handlers, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()

    def stop(number: int, frame: object) -> None:
        if asked.is_set():
            os._exit(KINDS[signal.Signals(number)].exit_code)
        asked.set()
        raise KINDS[signal.Signals(number)](f"{REASONS[signal.Signals(number)]}; {remedy}")

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before_wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop) for number in KINDS}
    left = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reading, left, remedy), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_wakeup)
        if not asked.is_set():  # else the watcher stays until the process is gone
            left.set()
            writing.close()
            watcher.join()
            reading.close()


def _watch(reading: socket.socket, left: threading.Event, remedy: str) -> None:
    """End the process some seconds after a signal arrived."""
    while True:
        data = reading.recv(1)
        if not data:
            return
        if data[0] in KINDS:
            break
    left.wait(GRACE_SECONDS)
    number = signal.Signals(data[0])
    sys.stderr.write(f"error: {REASONS[number]}; {remedy}\n")
    sys.stderr.flush()
    os._exit(KINDS[number].exit_code)
