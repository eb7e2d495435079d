"""The bytes of HTTP/1.1: a request's head, chunked bodies, compression, a response's head. Pure: no socket, no clock.

What this keeps true: a message that two readers could understand differently is refused, never guessed at (RFC 9112:
both framings, a repeated Content-Length, a bare line feed, a folded line, a blank before the colon, an unknown
transfer coding). Whatever is refused so ends its connection, for where the next request would begin is unknown.

Why by hand: the general servers cost several times the whole inference of a small model, and what must be accepted
here is a small part of HTTP.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus

from appliance.errors import BadRequest

HEAD_LIMIT_BYTES = 32 * 1024
LINE_LIMIT_BYTES = 256
TRAILER_LIMIT_BYTES = 8 * 1024
COMPRESS_FROM_BYTES = 1024
REMEMBER_UP_TO_BYTES = 2048

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(r"[0-9]{1,18}")
_HEX = re.compile(rb"[0-9A-Fa-f]{1,8}")
_NOT_AT_ALL = re.compile(r"q=0(\.0*)?")
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_ONCE = frozenset(
    (
        "host",
        "content-length",
        "transfer-encoding",
        "content-encoding",
        "content-type",
        "authorization",
        "x-api-key",
        "inference-header-content-length",
    )
)


class Refusal(BadRequest):
    """What cannot be understood or is not allowed; `status` is the HTTP status that says so, `headers` whole lines."""

    def __init__(self, status: int, message: str, headers: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Head:
    """One request's head, understood. `length` is the body's size in bytes as announced; None when it is chunked."""

    method: str
    path: str
    headers: Mapping[str, str]
    minor: int
    length: int | None
    keep_alive: bool
    expects_continue: bool

    @property
    def chunked(self) -> bool:
        return self.length is None


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back. `parts` are sent one after the other as the body; `headers` are whole lines with CRLF."""

    status: int
    parts: tuple[bytes | memoryview, ...] = ()
    content_type: bytes = b"application/json"
    headers: bytes = b""


def stray_line_end(block: bytes | bytearray) -> bool:
    """Whether there is a line feed or carriage return that is not part of CRLF, or a NUL. The last byte may be CR."""
    found = _STRAY.search(block)
    return found is not None and not (found.start() == len(block) - 1 and block[-1] == 0x0D)


def parse_head(block: bytes) -> Head:
    """Understand the bytes before the empty line (without it); raises `Refusal` for what is not strictly HTTP/1.x.

    A client's heads are mostly the same bytes again: small ones are remembered, which saves some 10 µs each.
    """
    return _remembered(block) if len(block) <= REMEMBER_UP_TO_BYTES else _understood(block)


def _understood(block: bytes) -> Head:
    if stray_line_end(block) or block.endswith(b"\r"):
        raise Refusal(400, "The request's head has a line that does not end with CRLF, or a NUL.")
    first, *lines = block.split(b"\r\n")
    method, path, minor = _request_line(first)
    headers = _headers(lines)
    if minor == 1 and "host" not in headers:
        raise Refusal(400, "An HTTP/1.1 request needs a Host header.")
    expects = headers.get("expect", "").lower()
    if expects not in ("", "100-continue"):
        raise Refusal(417, "The only expectation that can be met is 100-continue.")
    return Head(
        method=method,
        path=path,
        headers=headers,
        minor=minor,
        length=_length(headers, minor),
        keep_alive=_keep_alive(headers, minor),
        expects_continue=bool(expects) and minor == 1,
    )


_remembered = lru_cache(maxsize=1024)(_understood)


def _request_line(line: bytes) -> tuple[str, str, int]:
    words = line.split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
        raise Refusal(400, "The request line is not METHOD, one space, path, one space, HTTP/1.1.")
    method, target, version = words
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Refusal(505 if version.startswith(b"HTTP/") else 400, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if target[:7].lower() == b"http://":
        target = b"/" + target[7:].partition(b"/")[2]
    if not target.startswith(b"/"):
        raise Refusal(400, "The request's target must be a path that begins with /.")
    return method.decode("ascii"), target.partition(b"?")[0].decode("ascii"), version[-1] - 0x30


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Refusal(
                400, "A header line is not NAME, a colon right after it, and a value of printable characters."
            )
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key in _ONCE:
                raise Refusal(400, f"The header {key} may be given only once.")
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers


def _length(headers: Mapping[str, str], minor: int) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or minor == 0:
            raise Refusal(400, "Transfer-Encoding may stand neither beside Content-Length nor in HTTP/1.0.")
        if coding.lower() != "chunked":
            raise Refusal(501, "The only transfer coding understood here is chunked.")
        return None
    if length is None:
        return 0
    if not _DIGITS.fullmatch(length):
        raise Refusal(400, "Content-Length must be one decimal number.")
    return int(length)


def _keep_alive(headers: Mapping[str, str], minor: int) -> bool:
    options = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return "close" not in options and (minor == 1 or "keep-alive" in options)


class Chunks:
    """A chunked body while it arrives. `feed` takes bytes out of the front of a buffer; `body` is what they carried."""

    def __init__(self, limit_bytes: int) -> None:
        self.body = bytearray()
        self._limit = limit_bytes
        self._left = 0
        self._step = "size"
        self._trailers = 0

    def feed(self, buffer: bytearray) -> bool:
        """Consume what can be consumed; True when the body is whole. Raises `Refusal`; then nothing more can be read."""
        while True:
            if self._step == "data":
                if not self._data(buffer):
                    return False
                continue
            end = buffer.find(b"\r\n")
            line = bytes(buffer if end < 0 else buffer[:end])
            if stray_line_end(line) or (end >= 0 and line.endswith(b"\r")):
                raise Refusal(400, "A line of the chunked body does not end with CRLF.")
            if len(line) > LINE_LIMIT_BYTES and self._step != "trailer":
                raise Refusal(400, "A chunk's size line is too long.")
            if self._step == "trailer" and self._trailers + len(line) > TRAILER_LIMIT_BYTES:
                raise Refusal(431, f"The trailers are larger than {TRAILER_LIMIT_BYTES // 1024} KiB.")
            if end < 0:
                return False
            del buffer[: end + 2]
            if self._line(line):
                return True

    def _data(self, buffer: bytearray) -> bool:
        taken = min(self._left, len(buffer))
        self.body += memoryview(buffer)[:taken]
        del buffer[:taken]
        self._left -= taken
        if self._left or len(buffer) < 2:
            return False
        if buffer[:2] != b"\r\n":
            raise Refusal(400, "A chunk is longer than its size line says.")
        del buffer[:2]
        self._step = "size"
        return True

    def _line(self, line: bytes) -> bool:
        if self._step == "trailer":
            self._trailers += len(line) + 2
            if line:
                _headers([line])
            return not line
        size, _, extension = line.partition(b";")
        if not _HEX.fullmatch(size) or not _VALUE.fullmatch(extension):
            raise Refusal(400, "A chunk's size must be a hexadecimal number.")
        self._left = int(size, 16)
        if len(self.body) + self._left > self._limit:
            raise too_large(self._limit)
        self._step = "data" if self._left else "trailer"
        return False


def too_large(limit_bytes: int) -> Refusal:
    return Refusal(413, f"The body is larger than {limit_bytes // (1024 * 1024)} MiB, the limit of this deployment.")


def decompress(body: bytes | memoryview, coding: str, limit_bytes: int) -> bytes | memoryview:
    """The body without its Content-Encoding; never more than `limit_bytes`, whatever the body claims to unfold to."""
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "deflate"):
        raise Refusal(415, "The content encodings understood here are gzip and deflate.")
    unfold = zlib.decompressobj(wbits=31 if coding == "gzip" else 15)
    try:
        plain = unfold.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise Refusal(400, f"The body is not valid {coding}.") from error
    if len(plain) > limit_bytes:
        raise too_large(limit_bytes)
    if not unfold.eof or unfold.unused_data:
        raise Refusal(400, f"The body is cut off or has bytes behind its end as {coding}.")
    return plain


def accepted_coding(accept: str) -> str:
    """`gzip`, `deflate` or nothing: what the Accept-Encoding header allows, gzip first."""
    allowed = set()
    for item in accept.lower().split(","):
        coding, _, quality = item.partition(";")
        if not _NOT_AT_ALL.fullmatch(quality.replace(" ", "")):
            allowed.add(coding.strip())
    return next((coding for coding in ("gzip", "deflate") if coding in allowed), "")


def compress(response: Response, accept: str) -> Response:
    """The response in a coding that the client accepts, where its size makes that worth while; else itself."""
    coding = accepted_coding(accept)
    if not coding or sum(len(part) for part in response.parts) < COMPRESS_FROM_BYTES:
        return response
    fold = zlib.compressobj(1, wbits=31 if coding == "gzip" else 15)
    packed = b"".join([*(fold.compress(part) for part in response.parts), fold.flush()])
    header = b"Content-Encoding: %s\r\nVary: Accept-Encoding\r\n" % coding.encode()
    return Response(response.status, (packed,), response.content_type, response.headers + header)


_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


def response_head(response: Response, *, keep_alive: bool, minor: int) -> bytes:
    """The status line and headers, up to and with the empty line."""
    size = sum(len(part) for part in response.parts)
    connection = b"" if keep_alive and minor == 1 else b"Connection: keep-alive\r\n" if keep_alive else _CLOSE
    return b"%bContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        _STATUS_LINES[response.status],
        response.content_type,
        size,
        response.headers,
        connection,
    )


_CLOSE = b"Connection: close\r\n"
