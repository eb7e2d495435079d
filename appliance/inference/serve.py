"""The process inside a serving container: loads one model, is handed a listening socket, answers until it is drained.

    python -m appliance.inference.serve --control /run/serving/control.sock --config /run/serving/config.json

What this keeps true: it makes no connection and opens no port; it listens on its control socket from the first moment
(so that `status` answers while a large model loads) and answers clients only on the socket that it was handed. A model
that cannot be loaded leaves it in the state `failed` with the reason, one sentence, until it is ended. Only root
or its own user may control it. SIGTERM drains, as the request does; the exit code is then 0.

    loading → ready → serving → draining → (gone)          loading → failed

Why it stays when the model is broken: whoever deployed it asks for its status, and an exited process has no answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from appliance.errors import ApplianceError, BadRequest, EngineBusy, EngineRefused
from appliance.inference.http import Server
from appliance.inference.onnx import Model
from appliance.inference.service import Service

LINE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True)
class ServingConfig:
    """config.json. `keys` are SHA-256 in hex, none at all means open; `drain_s` is how long draining may take."""

    deployment: str
    model: str
    version: str = "1"
    path: str = "/model"
    keys: tuple[str, ...] = ()
    threads: int = 1
    instances: int = 1
    max_body_mib: int = 64
    drain_s: float = 30.0


def read_config(path: Path) -> ServingConfig:
    """Raises `BadRequest` that names the file and what is wrong in it."""
    try:
        found = json.loads(path.read_text())
        config = ServingConfig(**{**found, "keys": tuple(found.get("keys", ()))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadRequest(f"The configuration {path} cannot be read: {error}.") from error
    numbers = (config.threads, config.instances, config.max_body_mib)
    if not all(type(number) is int and number >= 1 for number in numbers) or config.drain_s < 0:
        raise BadRequest(f"The configuration {path}: threads, instances and max_body_mib must be numbers from 1.")
    return config


class Process:
    """The state of this process, and what the control socket may ask of it."""

    def __init__(self, config: ServingConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._config = config
        self._loop = loop
        self._state = "loading"
        self._error: str | None = None
        self._keys = config.keys
        self._service: Service | None = None
        self._server: Server | None = None
        self.stopping = asyncio.Event()

    async def load(self) -> None:
        """Load the model on a thread of its own; afterwards the state is `ready` or `failed`."""
        try:
            self._service = await asyncio.to_thread(self._make_service)
        except ApplianceError as error:
            self._state, self._error = "failed", error.message
            print(error.message, file=sys.stderr, flush=True)
            return
        self._service.set_keys(self._keys)
        self._server = Server(self._service, self._loop)
        if self._state == "loading":
            self._state = "ready"

    def _make_service(self) -> Service:
        config = self._config
        return Service(
            Model(Path(config.path), config.model, config.version, config.threads),
            deployment=config.deployment,
            keys=config.keys,
            instances=config.instances,
            max_body_bytes=config.max_body_mib * 1024 * 1024,
            call_soon=self._loop.call_soon_threadsafe,
        )

    def answer(self, request: Any, sock: socket.socket | None) -> dict[str, Any]:
        """Do what one control line says. Takes `sock` over. Raises an `ApplianceError` of one sentence."""
        match request:
            case {"do": "status"}:
                return self._status()
            case {"do": "listen"}:
                self._listen(sock)
                return {"state": self._state}
            case {"do": "configure", "keys": [*keys]} if all(isinstance(key, str) for key in keys):
                self._keys = tuple(keys)
                if self._service is not None:
                    self._service.set_keys(self._keys)
                return {"state": self._state}
            case {"do": "drain"}:
                self.begin_drain()
                return {"state": self._state}
        raise BadRequest("The serving process knows status, listen (with one socket), configure (keys) and drain.")

    def _status(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"state": self._state, "model": self._config.model, "error": self._error}
        if self._service is not None:
            count = self._service.counters
            answer |= {"requests": count.requests, "failures": count.failures, "inflight": count.inflight}
            answer |= {"latency_ms": count.latency_ms(), "providers": self._service.model.providers}
        return answer

    def _listen(self, sock: socket.socket | None) -> None:
        if sock is None or not _is_listening(sock):
            raise BadRequest("The request listen must bring one listening TCP socket.")
        if self._state == "loading":
            raise EngineBusy(f"Model {self._config.model!r} is still loading; hand the socket over when it is ready.")
        if self._state not in ("ready", "serving") or self._server is None:
            raise EngineRefused(f"Model {self._config.model!r} is {self._state} and takes no clients.")
        self._server.listen(sock.dup())
        self._state = "serving"

    def begin_drain(self) -> None:
        """From now on nothing new is accepted; `stopping` is set. May be called again."""
        if self._state != "failed":
            self._state = "draining"
        self.stopping.set()

    async def drain(self) -> None:
        if self._server is not None:
            await self._server.drain(self._config.drain_s)
        if self._service is not None:
            self._service.close()


def _is_listening(sock: socket.socket) -> bool:
    try:
        return sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    except OSError:
        return False


class Control:
    """The control socket: one JSON line in, one out, on plain sockets, for uvloop's streams drop descriptors."""

    def __init__(self, path: Path, process: Process, loop: asyncio.AbstractEventLoop) -> None:
        self._process = process
        self._loop = loop
        self._clients: dict[socket.socket, bytes] = {}
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._door.bind(str(path))
        finally:
            os.umask(before)
        self._door.listen(16)
        self._door.setblocking(False)
        loop.add_reader(self._door.fileno(), self._welcome)

    def close(self) -> None:
        for sock in (self._door, *self._clients):
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _welcome(self) -> None:
        try:
            client, _ = self._door.accept()
        except OSError:
            return
        _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user not in (0, os.geteuid()):
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = b""
        self._loop.add_reader(client.fileno(), self._hear, client)

    def _hear(self, client: socket.socket) -> None:
        try:
            part, numbers, _, _ = socket.recv_fds(client, LINE_LIMIT_BYTES, 4)
        except BlockingIOError:
            return
        except OSError:
            part, numbers = b"", []
        socks = [socket.socket(fileno=number) for number in numbers]
        *lines, rest = (self._clients[client] + part).split(b"\n")
        self._clients[client] = rest
        try:
            for line in lines:
                client.send(json.dumps(self._reply(line, socks[0] if socks else None)).encode() + b"\n")
        except OSError:
            part = b""
        for sock in socks:
            sock.close()
        if not part or len(rest) > LINE_LIMIT_BYTES:
            self._loop.remove_reader(client.fileno())
            del self._clients[client]
            client.close()

    def _reply(self, line: bytes, sock: socket.socket | None) -> dict[str, Any]:
        try:
            return self._process.answer(json.loads(line), sock)
        except ValueError:
            return {"error": "The request is not JSON.", "code": BadRequest.code}
        except ApplianceError as error:
            return {"error": error.message, "code": error.code}


async def run(config: ServingConfig, control_path: Path) -> None:
    """Serve until drained."""
    loop = asyncio.get_running_loop()
    process = Process(config, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.begin_drain)
    control = Control(control_path, process, loop)
    loading = loop.create_task(process.load())
    await process.stopping.wait()
    loading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await loading
    await process.drain()
    control.close()
    control_path.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m appliance.inference.serve")
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        config = read_config(options.config)
    except ApplianceError as error:
        print(error.message, file=sys.stderr)
        return 2
    uvloop.run(run(config, options.control))
    # A thread may still be inside the model (a drain that met its deadline, a load cut short): leave without it.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
