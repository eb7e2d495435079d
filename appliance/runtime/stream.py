"""Docker's endpoints that do not end by themselves (logs, events, an exec's output), each on a connection of its own.

What this keeps true: a stream can be closed from another thread, which ends the iteration at once; a stream that
breaks off raises `EngineBusy`, one that was closed or has ended just ends. Nothing here waits without a limit but the
reading of a followed stream, whose end is `close`.

Why not docker-py for these: its log stream drops which of stdout and stderr a line came from, and its connections come
from a pool, where closing one under a reader is undefined.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from appliance.errors import EngineBusy, NotFound
from appliance.runtime.engine import LogEntry, Nudge

_CONNECT_S = 10.0
_LONGEST_LINE = 64 * 1024
_STREAMS = {1: "stdout", 2: "stderr"}
_BROKEN = (OSError, http.client.HTTPException, ValueError, AttributeError)


class Stream:
    """One request whose answer is read as it comes."""

    def __init__(
        self, path: str, target: str, *, method: str = "GET", body: Any = None, timeout_s: float | None = None
    ) -> None:
        """Ask; `timeout_s` bounds each later read (None: wait for ever). `NotFound` for 404, `EngineBusy` otherwise."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._closed = False
        connection = http.client.HTTPConnection("localhost")
        try:
            self._socket.settimeout(_CONNECT_S)
            self._socket.connect(path)
            connection.sock = self._socket
            payload = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if payload else {}
            connection.request(method, target, payload, headers)
            self._response = connection.getresponse()
            if self._response.status >= 300:
                raise self._refusal()
            self._socket.settimeout(timeout_s)
        except _BROKEN as cause:
            self._socket.close()
            raise EngineBusy(f"The container engine at {path} does not answer ({cause}); it is tried again.") from cause
        except BaseException:
            self._response.close()
            self._socket.close()
            raise

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        try:
            return self._response.read(size)
        except http.client.IncompleteRead as cut:
            if self._closed:
                return b""
            raise EngineBusy("The container engine broke off in the middle of an answer; it is tried again.") from cut
        except TimeoutError:
            raise
        except _BROKEN as cause:
            if self._closed:
                return b""
            raise EngineBusy(f"The connection to the container engine broke ({cause}); it is tried again.") from cause

    def readline(self) -> bytes:
        """One line with its end; empty at the end."""
        try:
            return self._response.readline()
        except _BROKEN as cause:
            if self._closed:
                return b""
            raise EngineBusy(f"The connection to the container engine broke ({cause}); it is tried again.") from cause

    def set_timeout(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """End it, also under a thread that is reading: that one sees the end."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Give the file descriptor back; only for the thread that reads."""
        self.close()
        self._response.close()
        self._socket.close()

    def _refusal(self) -> Exception:
        text = self._response.read(4096).decode(errors="replace")
        with contextlib.suppress(ValueError):
            text = json.loads(text).get("message", text)
        if self._response.status == 404:
            return NotFound(text)
        return EngineBusy(f"The container engine answered {self._response.status}: {text.strip()}")


def frames(stream: Stream) -> Iterator[tuple[str, bytes]]:
    """Docker's multiplexed output: which stream, and its bytes. Engine API, "Attach to a container", stream format."""
    while True:
        header = stream.read(8)
        if len(header) < 8:
            return
        kind, size = struct.unpack(">BxxxL", header)
        payload = stream.read(size)
        if len(payload) < size:
            return
        yield _STREAMS.get(kind, "stdout"), payload


def entries(parts: Iterator[tuple[str, bytes]]) -> Iterator[LogEntry]:
    """Lines out of frames that each begin with a time. A line above 16 KiB comes in several frames; only the last
    ends in a newline, and the line has the first one's time."""
    open_lines: dict[str, tuple[str, bytearray]] = {}
    for stream, payload in parts:
        at, _, text = payload.partition(b" ")
        began, held = open_lines.pop(stream, (at.decode("ascii", "replace"), bytearray()))
        held += text
        ended = held.endswith(b"\n")
        if ended or len(held) >= _LONGEST_LINE:
            yield from _lines(began, stream, bytes(held[:-1] if ended else held))
        else:
            open_lines[stream] = (began, held)
    for stream, (began, held) in open_lines.items():
        yield from _lines(began, stream, bytes(held))


def _lines(at: str, stream: str, text: bytes) -> Iterator[LogEntry]:
    yield LogEntry(at=at, stream=stream, text=text.removesuffix(b"\r").decode(errors="replace"))


def unix_time(at: str) -> str:
    """Docker's own time as it wants it back: seconds, a point, nine digits of nanoseconds."""
    moment, _, fraction = at.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(moment + "+00:00").timestamp())
    return f"{seconds}.{fraction[:9]:0<9}"


class DockerLogs:
    """What one container wrote; see `engine.LogStream`."""

    def __init__(self, path: str, version: str, engine_id: str, since: str | None, follow: bool) -> None:
        since = unix_time(since) if since else "0"
        query = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "since": since}
        target = f"/v{version}/containers/{engine_id}/logs?{urlencode(query)}"
        self._stream: Stream | None = None
        with contextlib.suppress(NotFound):
            self._stream = Stream(path, target, timeout_s=None if follow else 30.0)
        self._entries = entries(frames(self._stream)) if self._stream else iter(())

    def __iter__(self) -> Iterator[LogEntry]:
        return self

    def __next__(self) -> LogEntry:
        try:
            return next(self._entries)
        except TimeoutError as cause:
            self._finish()
            raise EngineBusy("The container engine stopped sending a log; it is tried again.") from cause
        except BaseException:
            self._finish()
            raise

    def close(self) -> None:
        if self._stream:
            self._stream.close()

    def _finish(self) -> None:
        if self._stream:
            self._stream.finish()


class DockerEvents:
    """What happens to this instance's containers; see `engine.EventStream`."""

    def __init__(self, path: str, version: str, instance: str) -> None:
        filters = {
            "type": ["container"],
            "event": ["create", "start", "die", "oom", "destroy"],
            "label": [f"appliance.instance={instance}"],
        }
        self._stream = Stream(path, f"/v{version}/events?{urlencode({'filters': json.dumps(filters)})}")

    def __iter__(self) -> Iterator[Nudge]:
        return self

    def __next__(self) -> Nudge:
        while True:
            line = self._readline()
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                return Nudge(kind=event["Action"], container_id=event["Actor"]["Attributes"]["appliance.id"])

    def close(self) -> None:
        self._stream.close()

    def _readline(self) -> bytes:
        try:
            line = self._stream.readline()
        except EngineBusy:
            self._stream.finish()
            raise
        if not line:
            self._stream.finish()
            raise StopIteration
        return line
