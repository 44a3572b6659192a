"""A page served from a real socket, without a browser."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qhrtem.run.folder import RunFolder
from qhrtem.run.journal import Journal
from qhrtem.run.store import Store
from qhrtem.web.guard import Access
from qhrtem.web.live import LiveRun
from qhrtem.web.server import listen, server_of

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> "
    "{{ 7*7 }} & '"
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Served:
    """A server and the run that it shows, whose journal this process holds."""

    port: int
    access: Access
    folder: RunFolder
    journal: Journal | None
    store: Store | None

    def ask(self, path: str, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
        """Send a request whose path goes out as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host != "":
            connection.putheader("Host", host or f"127.0.0.1:{self.port}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        got = connection.getresponse()
        answer = Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        connection.close()
        return answer

    def own(self) -> dict[str, str]:
        """Return the headers that the page itself sends with a POST."""
        return {"Origin": f"http://127.0.0.1:{self.port}", "X_Qhrtem_Token": self.access.token}

    @contextmanager
    def events(self, after: str = "") -> Iterator[Callable[[], tuple[str, str, Any]]]:
        """Give what returns the next event as (kind, id, content)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/events", headers={"Last-Event-ID": after} if after else {})
        stream = connection.getresponse()
        assert stream.status == 200 and stream.getheader("content-type", "").startswith("text/event-stream")

        def following() -> tuple[str, str, Any]:
            kind, name, content = "message", "", None
            while True:
                line = stream.readline().decode().rstrip("\n")
                if not line:
                    if content is not None:
                        return kind, name, content
                elif line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("id: "):
                    name = line[4:]
                elif line.startswith("data: "):
                    content = json.loads(line[6:])

        try:
            yield following
        finally:
            stream.close()
            connection.close()


@contextmanager
def serving(
    folder: RunFolder, journal: Journal | None, store: Store | None, access: Access | None = None
) -> Iterator[Served]:
    access = access or Access("127.0.0.1")
    listening = listen("127.0.0.1", 0)
    live = LiveRun(folder)
    live.look()
    server = server_of(live, access)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(listening.getsockname()[1], access, folder, journal, store)
    finally:
        live.close()
        server.should_exit = True
        thread.join(10)
        listening.close()
