"""Which requests are let in at all: only those that name us, and that no other site's page has sent.

What this keeps true, before any route or credential is looked at: exactly one Host header, and it names this machine (a name
that somebody else's DNS points here is refused: that is DNS rebinding); a request that changes something, and every
websocket, comes from our own page or from a program that sends no cookie; a page of another port of this machine (a
notebook, a deployment) counts as another site, though browsers send it our cookie.

Why these and not a CSRF token: `Sec-Fetch-Site` cannot be set by a page, and needs no state. Browsers that do not send
it (over plain HTTP from another machine) send `Origin` with every unsafe request.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from litestar.types import ASGIApp, Receive, Scope, Send

from appliance import clock
from appliance.web import errors

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_REFRESH_S = 2.0
Headers = Iterable[tuple[bytes, bytes]]


def values(headers: Headers, name: str) -> list[str]:
    """Every value of a header, in order."""
    wanted = name.encode()
    return [value.decode("latin-1") for key, value in headers if key.lower() == wanted]


def host_of(headers: Headers) -> str | None:
    """The one host that the request names, lower case, without port and brackets; None when it is absent, double or junk."""
    found = values(headers, "host")
    match = _HOST.fullmatch(found[0]) if len(found) == 1 else None
    return match[1].strip("[]").rstrip(".").lower() if match else None


def refusal(kind: str, method: str, headers: Headers) -> str | None:
    """Why the request may not be carried out as far as its origin goes; None when it may. `kind`: http or websocket."""
    headers = list(headers)
    sites, origins = values(headers, "sec-fetch-site"), values(headers, "origin")
    has_cookie = bool(values(headers, "cookie"))
    has_key = bool(values(headers, "authorization")) and not has_cookie
    hostile = [site for site in sites if site not in ("same-origin", "none")]
    if kind == "http" and method in SAFE:
        # Following a link to us is fine; a script of another site that reads or times our answers is not.
        foreign_script = hostile and has_cookie and values(headers, "sec-fetch-mode") != ["navigate"]
        return _FOREIGN if foreign_script else None
    if has_key and not sites and not origins:
        return None
    if sites:
        return _FOREIGN if hostile else None
    if origins:
        same = len(origins) == 1 and _netloc(origins[0]) == _one(values(headers, "host"))
        return None if same else _FOREIGN
    return _UNKNOWN if has_cookie or kind == "websocket" else None


_FOREIGN = "This request was sent by a page of another site, so it was not carried out."
_UNKNOWN = "A request with a cookie must say which page sent it (Origin or Sec-Fetch-Site); programs use an API key."


class Hosts:
    """The hosts that we answer to. A name that is not known is looked up anew, at most every few seconds: addresses move."""

    def __init__(self, accepted: Callable[[], frozenset[str]]) -> None:
        self._accepted, self._lock = accepted, threading.Lock()
        self._known, self._read_at = accepted(), clock.monotonic()

    def accepts(self, host: str) -> bool:
        if host in self._known:
            return True
        with self._lock:
            if clock.monotonic() - self._read_at > _REFRESH_S:
                self._known, self._read_at = self._accepted(), clock.monotonic()
        return host in self._known


def only_ours(app: ASGIApp, hosts: Hosts) -> ASGIApp:
    """`app`, for requests that name one of `hosts`."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = host_of(scope["headers"])
            if host is None or not hosts.accepts(host):
                named = f"the name {host!r}" if host else "no proper name"
                sentence = f"The request gives {named} for this server; use one that it knows, or add it to `names`."
                await _refuse(scope, receive, send, 421, "BAD_REQUEST", sentence)
                return
        await app(scope, receive, send)

    return layer


def no_other_site(app: ASGIApp) -> ASGIApp:
    """`app`, for requests that no other site's page has made."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            why = refusal(str(scope["type"]), str(scope.get("method", "GET")), scope["headers"])
            if why is not None:
                await _refuse(scope, receive, send, 403, "FORBIDDEN", why)
                return
        await app(scope, receive, send)

    return layer


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    kind: str = scope["type"]
    if kind == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4403, "reason": message[:120]})  # before accept: HTTP 403
        return
    await errors.send(send, status, code, message)


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _one(found: list[str]) -> str | None:
    return found[0].lower() if len(found) == 1 else None
