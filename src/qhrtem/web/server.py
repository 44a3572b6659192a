"""The server of a live page: one socket, on this machine alone unless asked otherwise."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING

from qhrtem.errors import PlanError, ResourceError
from qhrtem.run.folder import RunFolder

if TYPE_CHECKING:
    import uvicorn

    from qhrtem.web.guard import Access
    from qhrtem.web.live import LiveRun

EVERYWHERE = ("0.0.0.0", "::", "", "*")
NEEDED = ("starlette", "uvicorn")
BACKGROUND = 10  # niceness: the run comes first


def require_installed() -> None:
    """Raise ResourceError where the packages that serve pages are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"the live page needs the Python packages starlette and uvicorn, {' and '.join(missing)} not "
            "found: pip install 'qhrtem[web]'"
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on one address; port 0 takes any that is free.

    Raises PlanError for an address that is not one of this machine, ResourceError for a port that is taken.
    """
    if host in EVERYWHERE:
        raise PlanError(
            f"--host must be one address or name of this machine, got '{host}', which means all of them; "
            "give the one that browsers reach, or tunnel with `ssh -L`"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PlanError(
            f"--host must be an address or name of this machine, got '{host}' ({error})"
        ) from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise PlanError(f"--host must be an address of this machine, got '{host}'") from error
        if error.errno == errno.EACCES:
            raise ResourceError(f"port {port} is reserved; give one above 1023 by --port") from error
        raise ResourceError(
            f"port {port} on {host} is taken ({error.strerror}); give another by --port, or --port 0 for any "
            "that is free"
        ) from error
    return listening


def serve(folder: RunFolder, host: str, port: int, announce: Callable[[str, str, bool], None]) -> None:
    """Serve the page of a run until the process is told to end.

    announce: told the address, the token (which the address carries where every request must) and whether
    others than this machine can reach it. Raises ResourceError where packages or the port are missing.
    """
    require_installed()
    from qhrtem.web.guard import Access
    from qhrtem.web.live import LiveRun

    host = "127.0.0.1" if host == "localhost" else host
    listening = listen(host, port)
    access, live = Access(host), LiveRun(folder)

    live.look()
    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/"
    announce(f"{address}?token={access.token}" if access.guarded else address, access.token, access.guarded)
    if hasattr(os, "nice"):
        os.nice(BACKGROUND)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a tab that was closed is no news
    try:
        server_of(live, access).run(sockets=[listening])
    finally:
        listening.close()


def server_of(live: LiveRun, access: Access) -> uvicorn.Server:
    """Return the server of one run, to be given a socket."""
    import uvicorn

    from qhrtem.web.app import application

    class Server(uvicorn.Server):
        """Ends the streams as soon as it is told to end; they would be waited for."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            live.close()
            super().handle_exit(sig, frame)

    return Server(
        uvicorn.Config(
            application(live, access),
            http="h11",
            ws="none",
            loop="asyncio",
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )
