"""The application: what each address answers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import cast

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from qhrtem.errors import InputError, PlanError
from qhrtem.web.files import media_type, run_file
from qhrtem.web.guard import COOKIE, Access, Application, Guard
from qhrtem.web.live import LiveRun
from qhrtem.web.pictures import LAYERS, RESIDUAL_SIGMA, Layer
from qhrtem.web.records import FINAL

STREAMS_MOST = 100
ASSETS = {
    "report.css": ("qhrtem.report", "templates"),  # the look of the report
    "live.css": ("qhrtem.web", "assets"),
    "live.js": ("qhrtem.web", "assets"),
    "charts.js": ("qhrtem.web", "assets"),
    "stream.js": ("qhrtem.web", "assets"),
}
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


class Page:
    """The answers about one run."""

    def __init__(self, live: LiveRun, access: Access) -> None:
        self.live, self.access = live, access
        self._streams = 0

    async def index(self, request: Request) -> Response:
        """The page. A token in the address goes into a cookie, and out of the address."""
        if "token" in request.query_params and self.access.guarded:
            away = RedirectResponse("/", 303)
            away.set_cookie(COOKIE, self.access.token, httponly=True, samesite="strict")
            return away
        run = _shown(self.live.folder.path.resolve())
        resume = f"qhrtem resume {shlex.quote(run)}"
        text = _template().render(
            run=run,
            token=self.access.token,
            resume=resume,
            fork=f"{resume} --fork CHILD",
            sigma=f"{RESIDUAL_SIGMA:g}",
        )
        return HTMLResponse(text)

    async def asset(self, request: Request) -> Response:
        """Style sheets and scripts, all of them from the package."""
        name = request.path_params["name"]
        if name not in ASSETS:
            raise HTTPException(404)
        return Response(_asset(name), media_type=TYPES[Path(name).suffix])

    async def icon(self, request: Request) -> Response:
        """None; browsers ask for it whether or not a page names one."""
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """What happens, as it happens."""
        if self._streams >= STREAMS_MOST:
            raise HTTPException(503, "too many pages are open")
        seen = request.headers.get("last-event-id") or request.query_params.get("after", "")
        return StreamingResponse(self._counted(seen), media_type="text/event-stream")

    async def _counted(self, seen: str) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            async for piece in self.live.stream(seen):
                yield piece
        finally:
            self._streams -= 1

    async def image(self, request: Request) -> Response:
        """A layer of a stored state or of the result."""
        name, layer = request.path_params["name"], request.path_params["layer"]
        if layer not in LAYERS:
            raise HTTPException(404)
        try:
            drawn = await asyncio.to_thread(self.live.drawn, name, cast(Layer, layer))
        except InputError as error:
            raise HTTPException(404, str(error)) from error
        # A stored state is named by its content and never changes.
        keep = {} if name == FINAL else {"cache-control": "private, max-age=86400, immutable"}
        return Response(drawn, media_type="image/png", headers=keep)

    async def file(self, request: Request) -> Response:
        """A result, the plan or a figure."""
        path = run_file(self.live.folder.path, request.path_params["path"])
        if path is None:
            raise HTTPException(404)
        kind = media_type(path)
        headers = {"content-security-policy": report_policy()}
        if kind.startswith("application/"):
            headers["content-disposition"] = f'attachment; filename="{path.name}"'
        return FileResponse(path, media_type=kind, headers=headers)

    async def stop(self, request: Request) -> Response:
        """Ask the run to stop."""
        try:
            pid = await asyncio.to_thread(self.live.stop)
        except PlanError as error:
            return JSONResponse({"said": str(error)}, 409)
        return JSONResponse({"said": f"Process {pid} has been asked to stop (SIGTERM); it ends within 10 s."})


def application(live: LiveRun, access: Access) -> Application:
    """Return the ASGI application of one run, guarded."""
    page = Page(live, access)

    @asynccontextmanager
    async def following(_: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(live.follow())
        try:
            yield
        finally:
            live.close()
            work.cancel()

    routes = [
        Route("/", page.index),
        Route("/assets/{name}", page.asset),
        Route("/favicon.ico", page.icon),
        Route("/events", page.events),
        Route("/image/{name}/{layer}.png", page.image),
        Route("/files/{path:path}", page.file),
        Route("/stop", page.stop, methods=["POST"]),
    ]
    inner = Starlette(routes=routes, lifespan=following, exception_handlers={HTTPException: _refused})
    return Guard(cast(Application, inner), access)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)


def _shown(path: Path) -> str:
    """Return a path as text, also where its bytes are none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    text = (files("qhrtem.web") / "templates" / "live.html.j2").read_text("utf-8")
    return environment.from_string(text)


@cache
def _asset(name: str) -> bytes:
    package, folder = ASSETS[name]
    return (files(package) / folder / name).read_bytes()


@cache
def report_policy() -> str:
    """Return the policy for files of a run: a report may run the scripts of this package, in a sandbox.

    So a file that someone put there can neither run a script of its own nor reach the page or any address.
    """
    report = files("qhrtem.report")
    scripts = (report / "assets" / "3Dmol-min.js", report / "templates" / "report.js")
    hashes = " ".join(_hash(s.read_text("utf-8")) for s in scripts)
    return (
        f"sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {hashes}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
