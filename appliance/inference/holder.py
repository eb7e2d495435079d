"""A small process that keeps every listening socket: over restarts of the daemon, and while no replica runs.

What this keeps true: a port that a deployment was given stays open, and clients that connect wait in its queue, until
somebody says `close`. Only root, or the user that the holder runs as, is answered. It imports nothing heavy and keeps
under 25 MiB, so that it has no reason ever to be restarted; where systemd runs it, the sockets are also left
with systemd (FDSTORE), and a restarted holder has them again.

    {"do": "open", "name": N, "address": A, "port": P or 0}  the socket N, made if need be    → {"port": P} and the socket
    {"do": "get", "name": N}                                                                → {"port": P} and the socket
    {"do": "close", "name": N}                                                              → {}
    {"do": "list"}                                                        → {"sockets": {N: {"address": A, "port": P}}}

Run as `python -m appliance.inference.holder --socket PATH`. The client is `control.HolderClient`.

Why a process of its own: whoever holds a listening socket decides how long the port lives, and the daemon and the
replicas both come and go.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

from appliance.errors import ApplianceError, BadRequest, Conflict, NotFound

BACKLOG = 1024
LINE_LIMIT_BYTES = 4096
MAX_CLIENTS = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Holder:
    """The sockets by name. Every verb may be called again."""

    def __init__(self) -> None:
        self._held: dict[str, socket.socket] = {}

    def adopt(self, name: str, sock: socket.socket) -> None:
        self._held[name] = sock

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        """Do what one request says. Raises an `ApplianceError` of one sentence."""
        match request:
            case {"do": "open", "name": str(name), "address": str(address), "port": int(port)}:
                sock = self._open(name, address, port)
                return {"port": sock.getsockname()[1]}, sock
            case {"do": "get", "name": str(name)}:
                sock = self._get(name)
                return {"port": sock.getsockname()[1]}, sock
            case {"do": "close", "name": str(name)}:
                self._close(name)
                return {}, None
            case {"do": "list"}:
                return {"sockets": {name: _place(sock) for name, sock in self._held.items()}}, None
        raise BadRequest("The holder knows open (name, address, port), get (name), close (name) and list.")

    def _open(self, name: str, address: str, port: int) -> socket.socket:
        if not _NAME.fullmatch(name):
            raise BadRequest(f"{name!r} cannot name a socket: letters, digits, dot, dash and underscore, at most 100.")
        if not 0 <= port <= 65535:
            raise BadRequest(f"{port} is no port: they go from 1 to 65535, and 0 lets the kernel choose.")
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = listening(address, port)
            notify(b"FDSTORE=1\nFDNAME=" + name.encode(), held.fileno())
        place = _place(held)
        if place["address"] != address or port not in (0, place["port"]):
            raise Conflict(
                f"Socket {name!r} is already held on {place['address']} port {place['port']}; close it before it moves."
            )
        return held

    def _get(self, name: str) -> socket.socket:
        try:
            return self._held[name]
        except KeyError:
            raise NotFound(f"No socket called {name!r} is held; open it first.") from None

    def _close(self, name: str) -> None:
        sock = self._held.pop(name, None)
        if sock is not None:
            notify(b"FDSTOREREMOVE=1\nFDNAME=" + name.encode())
            sock.close()


def _place(sock: socket.socket) -> dict[str, Any]:
    address, port = sock.getsockname()[:2]
    return {"address": address, "port": port}


def listening(address: str, port: int) -> socket.socket:
    """A new listening socket. Raises `Conflict` for a port in use (and says by whom), `BadRequest` for a bad address."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        socket.inet_pton(sock.family, address)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _refusal(address, port, error) from error
    return sock


def _refusal(address: str, port: int, error: OSError) -> ApplianceError:
    if error.errno == errno.EADDRINUSE:
        who = holder_of(port)
        return Conflict(f"Port {port} on {address} is in use{f' by {who}' if who else ''}; choose another or stop it.")
    if error.errno == errno.EACCES:
        return BadRequest(f"Port {port} on {address} may be opened by root alone; choose one from 1024.")
    if error.errno == errno.EADDRNOTAVAIL:
        return BadRequest(f"This machine has no address {address}; choose one of its own.")
    if error.errno is None:
        return BadRequest(f"{address!r} is no IP address.")
    return Conflict(f"Port {port} on {address} cannot be opened: {error.strerror}.")


def holder_of(port: int) -> str | None:
    """Who listens on TCP `port`, as `name (process 123)`; None where /proc does not tell."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in filter(str.isdigit, os.listdir("/proc")) if wanted else ():  # noqa: PTH208 (pathlib is heavy here)
        try:
            numbers = os.listdir(f"/proc/{process}/fd")  # noqa: PTH208
            if any(os.readlink(f"/proc/{process}/fd/{number}") in wanted for number in numbers):  # noqa: PTH115
                with open(f"/proc/{process}/comm") as file:  # noqa: PTH123
                    return f"{file.read().strip()} (process {process})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:  # noqa: PTH123
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        yield from (row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port)


# -- systemd -----------------------------------------------------------------------------------------------------------


def notify(text: bytes, descriptor: int | None = None) -> None:
    """Tell systemd, where it runs this process (sd_notify(3)); else nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        try:
            line.connect("\0" + path[1:] if path.startswith("@") else path)
            socket.send_fds(line, [text], [] if descriptor is None else [descriptor])
        except OSError as error:
            print(f"systemd could not be told {text!r}: {error}", file=sys.stderr, flush=True)


def kept_by_systemd() -> dict[str, socket.socket]:
    """The sockets that an earlier holder left with systemd (sd_listen_fds(3)), by name."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {name: socket.socket(fileno=3 + index) for index, name in enumerate(names) if name}
    for sock in found.values():
        sock.setblocking(False)
        sock.set_inheritable(False)
    return found


def watchdog_interval_s() -> float | None:
    """Half of what systemd allows between two signs of life; None without a watchdog."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() else None


# -- the process -------------------------------------------------------------------------------------------------------


def bind(path: str) -> socket.socket:
    """The holder's own socket. Raises `Conflict` when another holder answers there; a dead one's is replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(path) == 0:
            raise Conflict(f"Another holder already answers at {path}; stop it first.")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 (pathlib costs this small process 1 MiB)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        door.bind(path)
    except OSError as error:
        door.close()
        raise BadRequest(f"The holder cannot listen at {path}: {error.strerror}.") from error
    finally:
        os.umask(before)
    door.listen(MAX_CLIENTS)
    door.setblocking(False)
    return door


def serve(holder: Holder, door: socket.socket, stop: socket.socket) -> None:
    """Answer until a byte arrives on `stop`."""
    every_s = watchdog_interval_s()
    lines: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(door, selectors.EVENT_READ)
        ready.register(stop, selectors.EVENT_READ)
        notify(b"READY=1\nSTATUS=holding")
        while True:
            events = ready.select(every_s)
            if every_s is not None:
                notify(b"WATCHDOG=1")
            for key, _ in events:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is stop:
                    return
                if sock is door:
                    _welcome(door, ready, lines)
                elif not _hear(holder, sock, lines):
                    ready.unregister(sock)
                    del lines[sock]
                    sock.close()


def _welcome(door: socket.socket, ready: selectors.BaseSelector, lines: dict[socket.socket, bytes]) -> None:
    try:
        client, _ = door.accept()
    except OSError:
        return
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user not in (0, os.geteuid()) or len(lines) >= MAX_CLIENTS:
        client.close()
        return
    client.setblocking(False)
    lines[client] = b""
    ready.register(client, selectors.EVENT_READ)


def _hear(holder: Holder, client: socket.socket, lines: dict[socket.socket, bytes]) -> bool:
    """Take what has come and answer each whole line; False when the conversation is over."""
    try:
        part = client.recv(LINE_LIMIT_BYTES)
        *whole, rest = (lines[client] + part).split(b"\n")
        lines[client] = rest
        for line in whole:
            _reply(holder, client, line)
    except OSError:
        return False
    return bool(part) and len(rest) <= LINE_LIMIT_BYTES


def _reply(holder: Holder, client: socket.socket, line: bytes) -> None:
    sock = None
    try:
        request = json.loads(line)
        answer, sock = holder.answer(request if isinstance(request, dict) else {})
    except ValueError:
        answer = {"error": "The request is not JSON.", "code": BadRequest.code}
    except ApplianceError as error:
        answer = {"error": error.message, "code": error.code}
    socket.send_fds(client, [json.dumps(answer).encode() + b"\n"], [] if sock is None else [sock.fileno()])


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "--socket":
        print("usage: python -m appliance.inference.holder --socket PATH", file=sys.stderr)
        return 2
    holder = Holder()
    for name, sock in kept_by_systemd().items():
        holder.adopt(name, sock)
    try:
        door = bind(arguments[1])
    except ApplianceError as error:
        print(error.message, file=sys.stderr)
        return 1
    stop, wake = socket.socketpair()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wake.send(b"."))
    serve(holder, door, stop)
    notify(b"STOPPING=1")
    os.unlink(arguments[1])  # noqa: PTH108
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
