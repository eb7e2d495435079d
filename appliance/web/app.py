"""The application: all handlers, and around them the layers that every request passes, routed or not.

Outermost first: our own host names only (421), security headers on every answer, OPTIONS and HEAD answered safely, no
request made by another site's page (403); then Litestar with the guard of `auth` on every route.

Why a subclass: Litestar runs its middleware for routes alone, so an address without a route would be without protection.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp, Receive, Scope, Send

from appliance import __version__, clock
from appliance.web import auth, errors, git, origin, pages
from appliance.web.api import HANDLERS
from appliance.web.house import House
from appliance.web.live import Live
from appliance.web.schema_page import SchemaPage

THREADS = 48
PATIENCE_S = 5.0
BODY_BYTES = 10 * 1024 * 1024
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
HEADERS = {
    b"content-security-policy": CSP.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
Message = MutableMapping[str, Any]


class Site(Litestar):
    """Litestar inside our layers. `close_streams` ends every stream at once, from any thread, before a shutdown."""

    __slots__ = ("_outer", "live")

    def __init__(self, house: House) -> None:
        self.live = Live(house.db, house.logs)
        super().__init__(
            route_handlers=[*HANDLERS, *git.HANDLERS, *pages.HANDLERS],
            guards=[auth.permit],
            exception_handlers={Exception: errors.answer},
            request_class=errors.JsonRequest,
            request_max_body_size=BODY_BYTES,
            openapi_config=_openapi(),
            logging_config=None,
            debug=False,
            lifespan=[_threads, self.live.running],
        )
        self.state.house = house
        self.state.live = self.live
        self.state.error_page = pages.error_page
        auth.check_permissions(self)
        app: Any = super().__call__
        for layer in (origin.no_other_site, _methods, _headers):
            app = layer(app)
        self._outer: ASGIApp = origin.only_ours(app, origin.Hosts(house.config.accepted_hosts))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._outer(scope, receive, send)

    def close_streams(self) -> None:
        self.live.close()


def create_app(house: House) -> Site:
    """The application for `house`. AssertionError names a route that declares no permission."""
    return Site(house)


def _headers(app: ASGIApp) -> ASGIApp:
    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in HEADERS.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await app(scope, receive, with_headers)

    return layer


def _methods(app: ASGIApp) -> ASGIApp:
    """OPTIONS says the same of every address and grants nothing; HEAD is GET whose body is never made."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        kind: str = scope["type"]
        method = scope.get("method") if kind == "http" else None
        if method == "OPTIONS":
            headers = [(b"allow", b"GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif method == "HEAD":
            await _head(app, {**scope, "method": "GET"}, receive, send)  # type: ignore[arg-type]
        else:
            await app(scope, receive, send)

    return layer


async def _head(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    answered = asyncio.Event()

    async def head_only(message: Any) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            answered.set()

    async def run(wanted: Callable[[], Awaitable[Any]]) -> Any:
        return await wanted()

    work = asyncio.create_task(run(lambda: app(scope, receive, head_only)))
    waiting = asyncio.create_task(answered.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (work, waiting):
            if not task.done():
                task.cancel()
        await asyncio.gather(work, waiting, return_exceptions=True)


@asynccontextmanager
async def _threads(app: Litestar) -> AsyncIterator[None]:
    """Threads enough for handlers that wait (the default is six on two cores), and others for slow uploads."""
    pools = [ThreadPoolExecutor(THREADS, thread_name_prefix=name) for name in ("web", "upload")]
    asyncio.get_running_loop().set_default_executor(pools[0])
    app.state.uploads = pools[1]
    app.state.uploading = {}  # each user's places, see web/transfer.py
    try:
        yield
    finally:
        # Waited for beside the loop and not for ever: a thread may itself be waiting for the loop, or for a model.
        closers = [threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}) for pool in pools]
        for closer in closers:
            closer.daemon = True
            closer.start()
        deadline = clock.monotonic() + PATIENCE_S
        while any(closer.is_alive() for closer in closers) and clock.monotonic() < deadline:
            await asyncio.sleep(0.01)


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Appliance",
        version=__version__,
        description="Gradient's v1 API, and what it lacked. Authorization: Bearer KEY.",
        render_plugins=[SchemaPage(path="/"), JsonRenderPlugin(path="/openapi.json")],
        openapi_router=Router("/schema", route_handlers=[], opt={"perm": "public", "blind": True}),
        create_examples=False,
        use_handler_docstrings=True,
    )


__all__ = ["Site", "create_app"]
