"""The host's half of two small conversations: with a serving container, and with the holder of listening sockets.

What this keeps true: nobody on the other end can hold the daemon up or lead it astray. A container owns the folder that
its control socket is in, so the socket is opened without following links, an answer has a deadline and 64 KiB, and what
it says is checked before it is believed. Needs the standard library alone.

The protocol of both: one JSON object on one line there, one back; descriptors ride along as SCM_RIGHTS. A refusal is
`{"error": sentence, "code": code}` and is raised here as that error.

Why a Unix socket that the container *listens* on: a handed listening socket belongs to the host's network, so the
container must never be able to connect; the daemon connects in.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, BadRequest, Conflict, EngineBusy, EngineRefused, NotFound

LINE_LIMIT_BYTES = 64 * 1024
STATES = ("loading", "ready", "serving", "draining", "failed")
_ERRORS: dict[str, type[ApplianceError]] = {
    kind.code: kind for kind in (EngineBusy, EngineRefused, NotFound, Conflict, BadRequest)
}


@dataclass(frozen=True)
class ServingStatus:
    """What one serving process says of itself. `latency_ms` has p50, p95, p99 of its last 1,024 answers, or nothing.

    `error` is why it is `failed`, one sentence. `providers` are what ONNX Runtime really runs the model on.
    """

    state: str
    model: str
    error: str | None = None
    requests: int = 0
    failures: int = 0
    inflight: int = 0
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    providers: tuple[str, ...] = ()


def status(path: str | Path, timeout_s: float = 2.0) -> ServingStatus:
    """How the serving process whose control socket is at `path` is. Raises `EngineBusy` while nobody answers there."""
    answer, _ = exchange(path, {"do": "status"}, timeout_s=timeout_s)
    return _status_of(answer)


def listen(path: str | Path, sock: socket.socket, timeout_s: float = 5.0) -> None:
    """Afterwards the process accepts on `sock`. May be called again. Raises `EngineBusy` while it is still loading."""
    exchange(path, {"do": "listen"}, sock, timeout_s=timeout_s)


def configure(path: str | Path, keys: tuple[str, ...], timeout_s: float = 5.0) -> None:
    """Afterwards exactly `keys` (SHA-256, hex) open the deployment; none at all opens it to everybody."""
    exchange(path, {"do": "configure", "keys": list(keys)}, timeout_s=timeout_s)


def drain(path: str | Path, timeout_s: float = 5.0) -> None:
    """Afterwards the process accepts nothing new, and ends when it has answered what it has. May be called again."""
    exchange(path, {"do": "drain"}, timeout_s=timeout_s)


class HolderClient:
    """Asks the holder (see `holder`) at `path`. Raises `EngineBusy` where no holder answers."""

    def __init__(self, path: str | Path, timeout_s: float = 5.0) -> None:
        self._path = Path(path)
        self._timeout_s = timeout_s

    def open(self, name: str, address: str, port: int) -> tuple[socket.socket, int]:
        """The listening socket called `name`, made if it is not there, and its port; port 0 lets the kernel choose.

        May be called again with the same address and port, or 0, and gives the same socket. Raises `Conflict` for a
        port that somebody else has (the sentence says who) or a name that is held on another.
        """
        answer, sock = self._ask({"do": "open", "name": name, "address": address, "port": port})
        return _held(sock, name), int(answer["port"])

    def get(self, name: str) -> socket.socket:
        """The socket called `name`. Raises `NotFound`."""
        return _held(self._ask({"do": "get", "name": name})[1], name)

    def close(self, name: str) -> None:
        """Afterwards the holder does not hold `name`. May be called again."""
        self._ask({"do": "close", "name": name})

    def list(self) -> dict[str, tuple[str, int]]:
        """Address and port of each held socket, by name."""
        answer, _ = self._ask({"do": "list"})
        return {name: (where["address"], int(where["port"])) for name, where in answer["sockets"].items()}

    def _ask(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        return exchange(self._path, request, timeout_s=self._timeout_s)


def exchange(
    path: str | Path, request: Mapping[str, Any], sock: socket.socket | None = None, *, timeout_s: float
) -> tuple[dict[str, Any], socket.socket | None]:
    """One request line there, with `sock` if given, one answer line back, with the socket that came along.

    Raises `EngineBusy` when nobody listens or answers in time, else the error that the other end names.
    """
    end = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.settimeout(timeout_s)
            _connect(line, Path(path))
            socket.send_fds(line, [json.dumps(request).encode() + b"\n"], [] if sock is None else [sock.fileno()])
            text, received = _read_line(line, end)
        except OSError as error:
            raise EngineBusy(f"Nobody answers at {path} yet ({error.strerror or error}).") from error
    return _answer(path, text, received), received


def _connect(line: socket.socket, path: Path) -> None:
    """Connect to the socket at `path` itself: a link in its place is refused. Paths may be of any length."""
    number = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise EngineRefused(f"{path} is not a socket; the process that owns its folder has replaced it.")
        line.connect(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def _read_line(line: socket.socket, end: float) -> tuple[bytes, socket.socket | None]:
    text, received = b"", None
    while not text.endswith(b"\n"):
        line.settimeout(max(0.001, end - time.monotonic()))
        part, numbers, _, _ = socket.recv_fds(line, LINE_LIMIT_BYTES, 4)
        for number in numbers:
            other = socket.socket(fileno=number)
            if received is None:
                received = other
            else:
                other.close()
        text += part
        if not part or len(text) > LINE_LIMIT_BYTES:
            break
    return text, received


def _answer(path: str | Path, text: bytes, received: socket.socket | None) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and "error" not in answer:
        return answer
    if isinstance(answer, dict) and answer.get("state") in STATES:
        return answer
    if received is not None:
        received.close()
    if not text:
        raise EngineBusy(f"The process at {path} ended before it answered.")
    if not isinstance(answer, dict):
        raise EngineRefused(f"The process at {path} gave an answer that is not a JSON object.")
    raise _ERRORS.get(str(answer.get("code")), EngineRefused)(str(answer["error"])[:1000])


def _held(sock: socket.socket | None, name: str) -> socket.socket:
    if sock is None:
        raise EngineRefused(f"The holder's answer for {name!r} came without a socket.")
    return sock


def _status_of(answer: Mapping[str, Any]) -> ServingStatus:
    def number(name: str) -> int:
        value = answer.get(name)
        return value if isinstance(value, int) else 0

    state, latency, providers = answer.get("state"), answer.get("latency_ms"), answer.get("providers")
    if state not in STATES:
        raise EngineRefused(f"The serving process says that it is {str(state)[:40]!r}, which is none of its states.")
    error = answer.get("error")
    return ServingStatus(
        state=str(state),
        model=str(answer.get("model", ""))[:200],
        error=None if error is None else str(error)[:1000],
        requests=number("requests"),
        failures=number("failures"),
        inflight=number("inflight"),
        latency_ms=_numbers(latency) if isinstance(latency, dict) else {},
        providers=tuple(str(one)[:100] for one in providers[:10]) if isinstance(providers, list) else (),
    )


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {str(key)[:20]: float(value) for key, value in list(found.items())[:20] if isinstance(value, int | float)}
