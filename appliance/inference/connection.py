"""One client's connection: strict HTTP/1.1, one request after the other, in order.

What this keeps true
- A request that has arrived whole is answered; a connection is never closed under a request that is being computed.
  Answers leave in the order of their requests.
- Whoever is slow pays alone: heads, bodies, idleness and unread answers each have a deadline, sizes have limits.
- Whatever closes first says so and then reads on for a moment, so that no reset overtakes the answer.

Why a BufferedProtocol: the kernel writes a large body straight to where the tensor is read from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from appliance.errors import ApplianceError
from appliance.inference import protocol
from appliance.inference.wire import (
    HEAD_LIMIT_BYTES,
    Chunks,
    Head,
    Refusal,
    Response,
    parse_head,
    response_head,
    stray_line_end,
    too_large,
)

HEAD_DEADLINE_S = 10.0
BODY_DEADLINE_S = 30.0
IDLE_DEADLINE_S = 120.0
WRITE_DEADLINE_S = 60.0
LINGER_DEADLINE_S = 2.0
SKIM_LIMIT_BYTES = 1024 * 1024
HELD_LIMIT_BYTES = 256 * 1024 * 1024
_ALIGNMENT = 64
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BELOW_BYTES = 64 * 1024


Done = Callable[[Response], None]


class Answers(Protocol):
    """What a connection puts its questions to (see `service.Service`)."""

    max_body_bytes: int

    def admit(self, head: Head) -> Response | None: ...

    def answer(self, head: Head, body: bytes | memoryview, done: Done) -> None: ...


class Owner(Protocol):
    """What a connection needs of its server (see `http.Server`). `scratch` is shared: it is read before it is lent again.

    `held_bytes` is what all connections together hold of bodies that are not answered yet.
    """

    answers: Answers
    loop: asyncio.AbstractEventLoop
    scratch: memoryview
    draining: bool
    held_bytes: int

    def opened(self, connection: Connection) -> None: ...

    def lost(self, connection: Connection) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """One client. `_step` says what the next bytes are: head, body, chunks, skim (thrown away), busy, linger."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._in = bytearray()
        self._step = "head"
        self._head: Head | None = None
        self._early: Response | None = None
        self._body: memoryview | None = None
        self._filled = 0
        self._chunks: Chunks | None = None
        self._skim_left = 0
        self._eof = False
        self._paused = False
        self._full = False
        self._unsent = 0
        self._held = 0
        self._advancing = False
        self._held_until: float | None = None
        self.deadline = time.monotonic() + IDLE_DEADLINE_S

    # -- what asyncio calls --------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.opened(self)

    def connection_lost(self, _reason: Exception | None) -> None:
        self._step = "closed"
        self._hold(0)
        self._server.lost(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        if self._step == "body" and self._body is not None:
            return self._body[self._filled :]
        return self._server.scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self._step == "body" and self._body is not None:
            self._filled += nbytes
            self._postpone(BODY_DEADLINE_S)
            self._advance()
            return
        if self._step in ("linger", "closed"):
            return
        if self._step == "head" and not self._in:
            self._postpone(HEAD_DEADLINE_S)
        elif self._step in ("chunks", "skim"):
            self._postpone(BODY_DEADLINE_S)
        self._in += self._server.scratch[:nbytes]
        self._advance()
        if len(self._in) > HEAD_LIMIT_BYTES and self._step in ("busy", "head") and not self._paused:
            self._paused = True  # requests behind one that is computed, or behind answers that are not read yet
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._eof = True
        if self._step == "busy" or (self._step == "head" and self._full and self._in):
            return True  # half-closed behind requests that are still to be answered
        self._step = "closed"
        return False

    def pause_writing(self) -> None:
        self._full = True
        self._unsent = self._transport.get_write_buffer_size()
        self._postpone(WRITE_DEADLINE_S)

    def resume_writing(self) -> None:
        self._full = False
        if self._step == "linger":
            self._postpone(LINGER_DEADLINE_S)
        elif self._step == "head":
            self._idle()
            self._read_again()
            self._advance()
            if self._eof and self._step == "head" and not self._in:
                self._linger()

    # -- deadlines -----------------------------------------------------------------------------------------------------

    def _postpone(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def _idle(self) -> None:
        self.deadline = self._held_until if self._held_until is not None else time.monotonic() + IDLE_DEADLINE_S

    def hold_until(self, moment: float) -> None:
        """The server drains: stay open for one more request, until `moment` (monotonic clock)."""
        self._held_until = moment
        if self._step == "head" and not self._in:
            self.deadline = moment

    def expire(self) -> None:
        """The deadline has passed. Whoever still reads, however slowly, is waited for."""
        if self._full and self._transport.get_write_buffer_size() < self._unsent:
            self.pause_writing()
        elif self._full or self._step == "closed":
            self.abort()
        elif self._step == "linger":
            self._step = "closed"
            self._postpone(WRITE_DEADLINE_S)
            self._transport.close()
        elif self._step == "busy":
            self._postpone(IDLE_DEADLINE_S)
        elif self._step == "head" and not self._in:
            self._transport.close()
        else:
            self._refuse(protocol.error(408, "The request did not arrive in time."))

    def abort(self) -> None:
        self._step = "closed"
        self._transport.abort()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do all that the bytes at hand allow. Not re-entered: an answer given at once comes back to this loop."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while (self._in or self._step == "body") and self._one_step():
                pass
        except Refusal as refusal:
            self._refuse(protocol.error(refusal.status, refusal.message))
        finally:
            self._advancing = False

    def _one_step(self) -> bool:
        if self._step == "head":
            return not self._full and self._read_head()
        if self._step == "body" and self._body is not None:
            self._hold(self._filled)
            if self._filled < len(self._body):
                return False
            self._ask(self._body)
            return True
        if self._step == "chunks" and self._chunks is not None:
            whole = self._chunks.feed(self._in)
            self._hold(len(self._chunks.body))
            if whole:
                self._ask(memoryview(self._chunks.body))
            return whole
        if self._step == "skim":
            taken = min(self._skim_left, len(self._in))
            del self._in[:taken]
            self._skim_left -= taken
            if not self._skim_left and self._early is not None:
                self._respond(self._early)
            return True
        return False

    def _read_head(self) -> bool:
        if self._in[:2] == b"\r\n":  # one empty line before a request is forgiven, as RFC 9112 2.2 asks
            del self._in[:2]
        end = self._in.find(b"\r\n\r\n", 0, HEAD_LIMIT_BYTES)
        if end < 0:
            if len(self._in) >= HEAD_LIMIT_BYTES:
                raise Refusal(431, f"The request's head is larger than {HEAD_LIMIT_BYTES // 1024} KiB.")
            if stray_line_end(self._in):
                raise Refusal(400, "The request's head has a line that does not end with CRLF, or a NUL.")
            return False
        head = parse_head(bytes(self._in[:end]))
        del self._in[: end + 4]
        self._head = head
        self._begin(head)
        return True

    def _begin(self, head: Head) -> None:
        """The head is understood: say early what can be said early, else make room for the body."""
        self._early = self._server.answers.admit(head)
        if self._early is not None:
            self._begin_refused(head, self._early)
            return
        if head.length == 0:
            self._ask(b"")
            return
        if head.expects_continue and not self._in:
            self._transport.write(_CONTINUE)
        self._postpone(BODY_DEADLINE_S)
        if head.length is None:
            self._chunks = Chunks(self._server.answers.max_body_bytes)
            self._step = "chunks"
            return
        self._begin_body(head, head.length)

    def _begin_refused(self, head: Head, early: Response) -> None:
        if head.length is None or head.length > SKIM_LIMIT_BYTES or (head.expects_continue and not self._in):
            self._refuse(early)
        elif head.length == 0:
            self._respond(early)
        else:
            self._skim_left, self._step = head.length, "skim"
            self._postpone(BODY_DEADLINE_S)

    def _begin_body(self, head: Head, length: int) -> None:
        if length > self._server.answers.max_body_bytes:
            raise too_large(self._server.answers.max_body_bytes)
        if len(self._in) >= length:
            body = bytes(self._in[:length])
            del self._in[:length]
            self._ask(body)
            return
        self._body = _room(length, head.headers.get(protocol.HEADER_LENGTH, ""))
        self._filled = len(self._in)
        self._body[: self._filled] = self._in
        self._in.clear()
        self._step = "body"

    def _hold(self, count: int) -> None:
        """Say how much this connection holds of a body. Raises `Refusal` when all of them together hold too much."""
        self._server.held_bytes += count - self._held
        more, self._held = count > self._held, count
        if more and self._server.held_bytes > max(HELD_LIMIT_BYTES, 4 * self._server.answers.max_body_bytes):
            raise Refusal(
                503, "This deployment is reading as many large requests as it can hold; try again in a moment."
            )

    def _read_again(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    # -- answering -----------------------------------------------------------------------------------------------------

    def _ask(self, body: bytes | memoryview) -> None:
        head, self._step, self._body, self._chunks = self._head, "busy", None, None
        assert head is not None
        try:
            self._server.answers.answer(head, body, self._respond)
        except ApplianceError as error:
            self._respond(protocol.error(500, error.message))
        except Exception as error:  # a defect of ours: this request fails with a sentence, the others go on
            self._server.loop.call_exception_handler({"message": "a request could not be answered", "exception": error})
            self._respond(protocol.error(500, "The serving process met an error of its own; its log says more."))

    def _respond(self, response: Response) -> None:
        """Send the answer to the present request, then go on with the next or say good-bye."""
        head = self._head
        if self._step == "closed" or head is None:
            return
        more = bool(self._in)
        keep = head.keep_alive and (more or not (self._eof or self._server.draining))
        self._hold(0)
        self._write(response, head, keep)
        self._head = self._early = None
        if not keep:
            self._linger()
            return
        self._step = "head"
        if self._in and not self._full:
            self._postpone(HEAD_DEADLINE_S)
        elif not self._full:
            self._idle()
        self._read_again()
        self._advance()
        if self._eof and self._step == "head" and not self._in:
            self._linger()

    def _write(self, response: Response, head: Head, keep: bool) -> None:
        first = response_head(response, keep_alive=keep, minor=head.minor)
        if head.method == "HEAD":
            self._transport.write(first)
        elif sum(len(part) for part in response.parts) < _JOIN_BELOW_BYTES:
            self._transport.write(b"".join((first, *response.parts)))
        else:
            self._transport.writelines((first, *response.parts))

    def _refuse(self, response: Response) -> None:
        """Answer what cannot be read on, and close: where the next request would begin is unknown."""
        if self._step == "closed":
            return
        self._hold(0)
        self._body = self._chunks = None
        method = self._head.method if self._head is not None else "GET"
        head = Head(method, "/", {}, 1, 0, keep_alive=False, expects_continue=False)
        self._write(response, head, keep=False)
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, and read on for a moment, so that no reset overtakes the answer."""
        self._step = "linger"
        self._in.clear()
        if not self._full:
            self._postpone(LINGER_DEADLINE_S)
        self._read_again()
        if self._eof:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()


def _room(length: int, json_length: str) -> memoryview:
    """Memory for a body, placed so that the tensors behind its JSON of `json_length` bytes are aligned."""
    memory = np.empty(length + _ALIGNMENT, np.uint8)
    ahead = int(json_length) if json_length.isascii() and json_length.isdigit() and len(json_length) < 12 else 0
    start = -(memory.ctypes.data + ahead) % _ALIGNMENT
    return memory.data[start : start + length]
