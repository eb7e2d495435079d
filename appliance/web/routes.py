"""How a handler declares itself: method, path, permission. Everything succeeds with 200, as Gradient's API does.

Plain functions run in a thread (they read the database); `async` ones stream and call no verb on the event loop.

Why: one spelling, so that no route forgets its permission or answers 201.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from litestar.concurrency import sync_to_thread
from litestar.enums import HttpMethod
from litestar.handlers import HTTPRouteHandler

Handler = Callable[..., Any]
Json = dict[str, Any]


def get(path: str | list[str], *, perm: str = "member", **extra: Any) -> Callable[[Handler], HTTPRouteHandler]:
    return _route(HttpMethod.GET, path, perm, extra)


def post(path: str | list[str], *, perm: str = "member", **extra: Any) -> Callable[[Handler], HTTPRouteHandler]:
    return _route(HttpMethod.POST, path, perm, extra)


def put(path: str | list[str], *, perm: str = "member", **extra: Any) -> Callable[[Handler], HTTPRouteHandler]:
    return _route(HttpMethod.PUT, path, perm, extra)


def patch(path: str | list[str], *, perm: str = "member", **extra: Any) -> Callable[[Handler], HTTPRouteHandler]:
    return _route(HttpMethod.PATCH, path, perm, extra)


def delete(path: str | list[str], *, perm: str = "member", **extra: Any) -> Callable[[Handler], HTTPRouteHandler]:
    return _route(HttpMethod.DELETE, path, perm, extra)


def _route(
    method: HttpMethod, path: str | list[str], perm: str, extra: dict[str, Any]
) -> Callable[[Handler], HTTPRouteHandler]:
    def declare(function: Handler) -> HTTPRouteHandler:
        opt = {"perm": perm, **extra.pop("opt", {})}
        handler = HTTPRouteHandler(path, http_method=method, status_code=200, opt=opt, **extra)
        return handler(function if inspect.iscoroutinefunction(function) else _in_thread(function))

    return declare


def _in_thread(function: Handler) -> Handler:
    # Litestar's own sync_to_thread forgets that it has wrapped a function which is registered twice (2.25: a list of
    # paths, a second application); test_web's two addresses of /health tell when this can go.
    @functools.wraps(function)
    async def threaded(**values: Any) -> Any:
        return await sync_to_thread(functools.partial(function, **values))

    return threaded
