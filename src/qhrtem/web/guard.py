"""Who may ask what: the checks that every request passes before the page sees it.

A web site that the user visits elsewhere can make the browser send requests here. It cannot forge the headers
Host and Origin: a Host that is not this server's own name comes from a rebound name server entry, an Origin
that is not this page's from a foreign page. Neither gets an answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "qhrtem"
TOKEN_HEADER = "x-qhrtem-token"
LOOPBACK = {"127.0.0.1": ("127.0.0.1", "localhost"), "::1": ("::1", "localhost")}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """How this server is reached, and the secret that goes with it."""

    host: str  # address or name that it listens on
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def guarded(self) -> bool:
        """Whether every request must carry the token: wherever others than this machine can reach it."""
        return self.host not in LOOPBACK

    def knows(self, host: str) -> bool:
        """Return whether a Host header, with or without port, names this server."""
        return _name_of(host) in LOOPBACK.get(self.host, (self.host.lower(),))

    def holds(self, token: str | None) -> bool:
        """Return whether a token is the right one, in a time that tells nothing."""
        return token is not None and secrets.compare_digest(token.encode(), self.token.encode())


def _name_of(host: str) -> str:
    """Return the name in a Host header without its port; tunnels bring other ports."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].split("]", 1)[0]
    return host.rsplit(":", 1)[0] if host.count(":") == 1 else host


class Guard:
    """ASGI middleware: refuses strangers, and puts the security headers on every answer."""

    def __init__(self, application: Application, access: Access) -> None:
        self._application, self._access = application, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", []))
                named = {name.lower() for name, _ in own}
                own += [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in named]
                message["headers"] = own
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._application(scope, receive, answer)
            return
        body = refusal.encode() + b"\n"
        kind = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        await answer({"type": "http.response.start", "status": 403, "headers": kind})
        await answer({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused, None where it is not."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._access.knows(hosts[0]):
            return "this server does not go by that name (Host)"
        own = f"{scope.get('scheme', 'http')}://{hosts[0]}".lower()
        origins = headers.get("origin", [])
        if any(origin.lower() != own for origin in origins):
            return "requests of other pages are not answered (Origin)"
        if self._access.guarded and not self._access.holds(_carried(scope, headers)):
            return "the token is missing: open the address that `qhrtem serve` printed"
        if scope["method"] not in ("GET", "HEAD"):
            sent = headers.get(TOKEN_HEADER, [""])
            if not origins or not self._access.holds(sent[0]):
                return "this needs the page's own token and Origin"
        return None


def _carried(scope: Scope, headers: dict[str, list[str]]) -> str | None:
    """Return the token of a request: in the address, the cookie or a header."""
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    if asked:
        return asked[0]
    for name in (TOKEN_HEADER, "authorization"):
        if name in headers:
            return headers[name][0].removeprefix("Bearer ")
    for value in headers.get("cookie", []):
        try:
            found = SimpleCookie(value).get(COOKIE)
        except CookieError:
            continue
        if found is not None:
            return found.value
    return None
