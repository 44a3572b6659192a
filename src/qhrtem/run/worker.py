"""A worker: a process that does tasks for another one.

`python -m qhrtem.run.worker` is how `processes` starts one; it takes messages from standard input and answers
on standard output. A message is a line of JSON that names the length of what follows, and that.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from typing import Any, BinaryIO

from qhrtem.run.handshake import Credentials
from qhrtem.run.process import prepare
from qhrtem.stages.parcel import to_bytes
from qhrtem.stages.tasks import Place, Task, describe, perform


def work(parcel: bytes, place: dict[str, Any], algebra: int = 1) -> bytes:
    """Do the task of a parcel and return the parcel of its result.

    place: fields of a `Place`; algebra: threads of matrix algebra.
    """
    prepare(algebra)
    return to_bytes(perform(Task.from_bytes(parcel), Place(**place)))


def greet(threads: int, algebra: int = 1) -> dict[str, Any]:
    """Return the credentials of this process as JSON values."""
    return Credentials.of_this_process(threads, algebra).record()


def send(stream: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    """Write one message: JSON values and bytes."""
    line = json.dumps({**head, "bytes": len(body)}).encode() + b"\n"
    stream.write(line + body)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read one message; None where the other side is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head: dict[str, Any] = json.loads(line)
    body = stream.read(head["bytes"])
    return (head, body) if len(body) == head["bytes"] else None


def main() -> None:
    """Serve until standard input ends, which it also does when the other process dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard stops the one who gives the work
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not come between the messages
    inbox: queue.Queue[tuple[dict[str, Any], bytes]] = queue.Queue()

    def listen() -> None:
        while True:
            message = receive(sys.stdin.buffer)
            if message is None:
                os._exit(0)  # in the middle of a task too: nobody waits for it
            inbox.put(message)

    threads, algebra = (int(word) for word in sys.argv[1:])
    send(answers, {"greets": greet(threads, algebra)})
    threading.Thread(target=listen, daemon=True).start()
    while True:
        head, parcel = inbox.get()
        try:
            result = work(parcel, head["place"], algebra)
        except Exception as error:
            send(answers, {"ticket": head["ticket"], "failed": describe(error)})
        else:
            send(answers, {"ticket": head["ticket"]}, result)


def as_fields(place: Place) -> dict[str, Any]:
    """Return the fields of a place, as `work` takes them."""
    return asdict(place)


if __name__ == "__main__":
    main()
