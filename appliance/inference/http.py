"""The connections of one serving process: accepting them from the socket that was handed in, and draining them.

What this keeps true: draining stops accepting at once (what waits in the socket's queue belongs to the next replica),
answers what is in flight, and holds idle connections until they send one more request, which is answered with
`Connection: close`, or until the deadline: a client that sends just as its idle connection is closed could not tell
whether it was heard.

Accepting. Replicas accept from one shared socket, so each new connection wakes all of them and one gets it: the
thundering herd, left as it is on purpose. It costs an idle replica about 10 µs for each new *connection*, not request;
EPOLLEXCLUSIVE is not to be had through libuv, and SO_REUSEPORT would give each replica a queue of its own whose waiting
clients die with it. One connection is taken per wake-up, so that a replica that is awake anyway does not take them all.

Why not asyncio's own server: it takes all that waits at each wake-up, and how its closing treats what it has accepted
but not yet announced is nobody's promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Any

from appliance.inference.connection import Answers, Connection

MAX_CONNECTIONS = 4096
SWEEP_S = 1.0
_SCRATCH_BYTES = 256 * 1024


class Server:
    """The connections of one process, and the listening sockets they come from."""

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self.answers = answers
        self.loop = loop
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.connections: set[Connection] = set()
        self.draining = False
        self.held_bytes = 0
        self._listeners: dict[int, socket.socket] = {}
        self._accepting = False
        self._opening: set[asyncio.Task[Any]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    @property
    def listening(self) -> bool:
        return bool(self._listeners)

    def listen(self, sock: socket.socket) -> None:
        """Accept on `sock` from now on, and own it. The same socket again changes nothing."""
        if any(_same(sock, known) for known in self._listeners.values()):
            sock.close()
            return
        sock.setblocking(False)
        self._listeners[sock.fileno()] = sock
        self._watch(True)
        self._tick()

    async def drain(self, deadline_s: float) -> None:
        """Stop accepting, answer what is there, and return when no connection is left, at the latest after `deadline_s`."""
        self.draining = True
        self._watch(False)
        for sock in self._listeners.values():
            sock.close()
        self._listeners.clear()
        end = time.monotonic() + deadline_s
        if self._opening:
            await asyncio.wait(self._opening, timeout=deadline_s)
        for connection in self.connections:
            connection.hold_until(end)
        if self.connections:
            self._empty = self.loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty, max(0.0, end - time.monotonic()))
        for connection in tuple(self.connections):
            connection.abort()

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self._empty is not None and not self.connections and not self._empty.done():
            self._empty.set_result(None)

    def _watch(self, accept: bool) -> None:
        if accept == self._accepting and not accept:
            return
        self._accepting = accept
        for number, sock in self._listeners.items():
            if accept:
                self.loop.add_reader(number, self._accept, sock)
            else:
                self.loop.remove_reader(number)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # another replica was faster, or the client went away, or descriptors are short for a moment
            return
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self.loop.create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        if len(self.connections) + len(self._opening) >= MAX_CONNECTIONS:
            self._watch(False)

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: Connection(self), sock)
        except OSError:
            sock.close()

    def _tick(self) -> None:
        """Once a second while there is a connection: end those whose deadline has passed; accept again when there is room."""
        now = time.monotonic()
        for connection in [one for one in self.connections if one.deadline <= now]:
            connection.expire()
        if not self._accepting and not self.draining and len(self.connections) < MAX_CONNECTIONS:
            self._watch(True)
        self._sweep = self.loop.call_later(SWEEP_S, self._tick) if self.connections else None

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._tick)


def _same(one: socket.socket, other: socket.socket) -> bool:
    """Whether both descriptors are the same socket."""
    return os.fstat(one.fileno()).st_ino == os.fstat(other.fileno()).st_ino
