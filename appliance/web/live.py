"""Streams of what changes (server-sent events).

What this keeps true: a stream costs one waiting coroutine, no thread and no polling; it looks again after a commit, at most
twenty times a second however many commits there are (less often when there are many streams); it sends a comment every 15 seconds so that proxies and clients
know it lives; it ends when its client is gone or the daemon stops.

Why: a page left open over night by ten people must cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.response import Stream

from appliance import accounts
from appliance.db import Database, Reader
from appliance.errors import ApplianceError, Unauthorized
from appliance.runtime.logs import LogStore
from appliance.web.auth import proof_stands, who
from appliance.web.errors import AnyRequest

HEARTBEAT_S = 15.0
PAUSE_S = 0.05
EACH_S = 0.002  # with many streams they look less often, so that looking never fills a core
MANY = 1000  # a look that finds so many events looks again at once
Event = tuple[str, Any]


class Live:
    """Wakes the streams after commits and new log lines. `close` ends them all and may be called from any thread."""

    def __init__(self, db: Database, logs: LogStore) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Future[None] | None = None
        self._planned = False
        self.closed = False
        self.open_streams = 0
        db.on_commit(self.wake)
        logs.on_change(self.wake)

    @asynccontextmanager
    async def running(self, app: Litestar) -> AsyncIterator[None]:
        del app
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.create_future()
        try:
            yield
        finally:
            self._close()
            self._loop = None

    def wake(self) -> None:
        """Something may have changed. Cheap, from any thread; many at once are one."""
        if self._planned or self._loop is None:
            return
        self._planned = True
        with contextlib.suppress(RuntimeError):  # the loop is closing
            self._loop.call_soon_threadsafe(self._plan)

    def close(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._close)

    def ticket(self) -> asyncio.Future[None]:
        """Take it before looking; `changed` with it returns once anything has changed since then."""
        assert self._next is not None, "the application has not started"
        return self._next

    async def changed(self, ticket: asyncio.Future[None], within_s: float = HEARTBEAT_S) -> bool:
        done, _ = await asyncio.wait({ticket}, timeout=within_s)
        return bool(done)

    def _plan(self) -> None:
        assert self._loop is not None
        self._loop.call_later(max(PAUSE_S, self.open_streams * EACH_S), self._fire)

    def _fire(self) -> None:
        self._planned = False
        if self._next is not None and self._loop is not None:
            before, self._next = self._next, self._loop.create_future()
            if not before.done():
                before.set_result(None)

    def _close(self) -> None:
        self.closed = True
        self._fire()


Found = tuple[list[Event], bool]
Look = Callable[[], Found]


async def stream(live: Live, look: Look, first: Found, ticket: asyncio.Future[None]) -> AsyncIterator[bytes]:
    """What `look` found first, and then after each change since `ticket`, until it says that it is over.

    `look` runs in a thread and returns the events that are new since it was last called, and whether these were the last.
    An error of it (the thing was deleted, the one who asks was removed) ends the stream with the sentence.
    """
    live.open_streams += 1
    try:
        async for part in _parts(live, look, first, ticket):
            yield part
    finally:
        live.open_streams -= 1


async def _parts(live: Live, look: Look, first: Found, ticket: asyncio.Future[None]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    events, over = first
    while True:
        if events:
            yield b"".join(encode(name, data) for name, data in events)
        if over:
            return
        while not live.closed and len(events) < MANY and not await live.changed(ticket):
            yield b": still here\n\n"
        if live.closed:
            return
        ticket = live.ticket()
        try:
            events, over = await loop.run_in_executor(None, look)
        except ApplianceError as error:
            events, over = [("end", {"phase": None, "message": error.message})], True


def insist(db: Reader, request: AnyRequest) -> None:
    """Raises Unauthorized when the one who opened the stream has been removed, disabled or given another role since, or
    when the key or session that opened it has ended."""
    _, actor = who(request)
    user = accounts.find_user(db, actor.user_id)
    if user is None or user.disabled_at or user.role is not actor.role:
        raise Unauthorized("Your account has changed; sign in again.")
    if not proof_stands(db, request):
        raise Unauthorized("The session or API key that opened this has ended; sign in again.")


def encode(name: str, data: Any) -> bytes:
    number = f"id: {data['line']}\n" if name == "line" else ""
    return f"{number}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def resumed(request: AnyRequest, after: int) -> int:
    """After which line to go on: a browser that comes back says the last one it had (Last-Event-ID)."""
    told = request.headers.get("last-event-id", "")
    return max(after, int(told)) if re.fullmatch("[0-9]{1,18}", told) else after


async def answer(request: AnyRequest, look: Look) -> Stream:
    """`look` as a response that nginx does not buffer. What is wrong at the first look is an ordinary error answer."""
    live: Live = request.app.state.live
    ticket = live.ticket()
    first = await asyncio.get_running_loop().run_in_executor(None, look)
    return Stream(
        stream(live, look, first, ticket), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )
