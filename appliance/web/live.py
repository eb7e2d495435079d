"""Streams of what changes (server-sent events).

What this keeps true: a stream costs one waiting coroutine, no thread and no polling; it looks again after a commit, at most
twenty times a second however many commits there are; it sends a comment every 15 seconds so that proxies and clients
know it lives; it ends when its client is gone or the daemon stops.

Why: a page left open over night by ten people must cost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar
from litestar.response import Stream

from appliance.db import Database

HEARTBEAT_S = 15.0
PAUSE_S = 0.05
Event = tuple[str, Any]


class Live:
    """Wakes the streams after commits. `close` ends them all and may be called from any thread."""

    def __init__(self, db: Database) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Future[None] | None = None
        self._planned = False
        self.closed = False
        db.on_commit(self.wake)

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
        self._loop.call_later(PAUSE_S, self._fire)

    def _fire(self) -> None:
        self._planned = False
        if self._next is not None and self._loop is not None:
            before, self._next = self._next, self._loop.create_future()
            if not before.done():
                before.set_result(None)

    def _close(self) -> None:
        self.closed = True
        self._fire()


async def stream(live: Live, look: Callable[[], tuple[list[Event], bool]]) -> AsyncIterator[bytes]:
    """What `look` finds, now and after each change, until it says that it is over.

    `look` runs in a thread and returns the events that are new since it was last called, and whether these were the last.
    """
    loop = asyncio.get_running_loop()
    while not live.closed:
        ticket = live.ticket()
        events, over = await loop.run_in_executor(None, look)
        if events:
            yield b"".join(encode(name, data) for name, data in events)
        if over:
            return
        while not await live.changed(ticket):
            yield b": still here\n\n"


def encode(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def answer(events: AsyncIterator[bytes]) -> Stream:
    """`events` as a response that nginx does not buffer."""
    return Stream(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
