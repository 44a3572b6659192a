"""`qhrtem serve`: the live page of a run, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from qhrtem.terminal import print_warning


def serve_run(run: Path, host: str, port: int) -> None:
    """Serve the page of a run until the user ends it; the run is only read.

    Raises PlanError where there is no such run or address, ResourceError where the packages for it are not
    installed or the port is taken.
    """
    from qhrtem.run.folder import find_run
    from qhrtem.web.server import require_installed, serve

    folder = find_run(run)
    require_installed()
    console = Console()

    def announce(address: str, token: str, guarded: bool) -> None:
        console.print(f"{address}", soft_wrap=True, highlight=False, markup=False)
        if guarded:
            print_warning(
                Console(stderr=True),
                f"others can reach this address; every request must carry the token {token}. The connection "
                "is not encrypted: on a network you do not trust, leave --host out and use `ssh -L`",
            )
        console.print("Ctrl-C ends this page; the run goes on.", highlight=False)

    try:
        serve(folder, host, port, announce)
    except KeyboardInterrupt:
        console.print("the page is closed", highlight=False)
