"""What a pusher is told: a post-receive hook of the appliance's own asks the daemon and prints what it answers.

What this keeps true: the hook never fails and never changes a push, which is over when it runs. It and a guard that
counts refs are the only hooks there are, in one folder outside all repositories that `core.hooksPath` points at; they
work the same for a push over HTTP, a path or SSH. The daemon's side takes connections of its own user and of root alone, and hands a pusher no
control characters.

Why: git's sideband carries a hook's output and nothing else, so a hook is the only way to show the runs' URLs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from appliance.errors import PreconditionFailed

Update = tuple[str, str | None, str | None]
OnPush = Callable[[str, list[Update], str], Iterable[str]]

MAX_REFS = 5000
MAX_MESSAGE = 8 * 1024 * 1024
ASK_S = 10.0
ANSWER_S = 60.0

_LOG = logging.getLogger(__name__)
_UNPRINTABLE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ZERO = re.compile("0+")

# Runs as whoever pushes, with any Python 3 and its standard library alone; `-IS` ignores that person's environment.
SCRIPT = f'''#!/usr/bin/env -S python3 -IS
"""Tell the appliance which refs moved and print what it answers. Never fails: the push has already happened."""
import json, os, pwd, socket, sys

def user():
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())

def main():
    updates = []
    for line in sys.stdin.buffer:
        old, new, ref = line.decode("utf-8", "replace").rstrip("\\n").split(" ", 2)
        updates.append([ref, old, new])
    home = os.path.dirname(os.path.abspath(__file__))
    try:
        with open(os.path.join(home, "socket"), encoding="utf-8") as file:
            address = file.read().strip()
        address = os.environ.get("APPLIANCE_HOOK_SOCKET") or address
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
            daemon.settimeout(5)
            daemon.connect(address)
            project = os.path.basename(os.getcwd())[: -len(".git")]
            pusher = os.environ.get("APPLIANCE_PUSHER") or user()
            message = {{"project": project, "updates": updates, "pusher": pusher}}
            daemon.sendall(json.dumps(message).encode() + b"\\n")
            daemon.shutdown(socket.SHUT_WR)
            daemon.settimeout({ANSWER_S})
            while part := daemon.recv(65536):
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
    except TimeoutError:
        print("the appliance is slow to answer; the push is kept and its workflows start")
    except OSError:
        print("the appliance is not running; the push is kept and its workflows start when it is")

try:
    main()
except Exception as error:
    print(f"the push is kept, but the appliance could not be told: {{error}}")
'''

# Before anything moves: refs are files, and a push of a million of them would be a million files.
GUARD = f"""#!/bin/sh
if [ "$(wc -l)" -gt {MAX_REFS} ]; then
  echo "a push may move at most {MAX_REFS} refs; push fewer at once"
  exit 1
fi
"""


def install(folder: Path, address: Path | None) -> None:
    """`folder` holds the hooks and the daemon's address, readable by who pushes and writable by their owner alone."""
    folder.mkdir(mode=0o755, exist_ok=True)
    _replace(folder / "post-receive", SCRIPT, 0o755)
    _replace(folder / "pre-receive", GUARD, 0o755)
    _replace(folder / "socket", f"{address or ''}\n", 0o644)


def _replace(path: Path, text: str, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(mode)
    fresh.replace(path)


class HookServer:
    """Listens until `close`. Each push is answered on a thread of its own, eight at a time."""

    def __init__(self, path: Path, on_push: OnPush) -> None:
        self._path, self._on_push = path, on_push
        self._socket = _listen(path)
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="hook")
        self._thread = threading.Thread(target=self._accept, name="hook-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Pushes that are being answered still are; may be called twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self._pool.shutdown(wait=True)
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            try:
                self._pool.submit(self._serve, client)
            except RuntimeError:
                client.close()
                return

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if _peer_uid(client) not in (0, os.geteuid()):
                    return
                client.settimeout(ASK_S)
                project_id, updates, pusher = _message(client)
                for line in self._answer(project_id, updates, pusher):
                    client.sendall(_UNPRINTABLE.sub("?", line)[:2000].encode("utf-8", "replace") + b"\n")
            except (OSError, ValueError, TypeError, KeyError) as error:
                _LOG.warning("a push could not be told of: %s", error)

    def _answer(self, project_id: str, updates: list[Update], pusher: str) -> Iterator[str]:
        try:
            yield from self._on_push(project_id, updates, pusher)
        except OSError:
            raise
        except Exception:
            _LOG.exception("a push to %s could not be taken up", project_id)
            yield "the push is kept, but its workflows could not be started yet; the appliance's log says why"


@contextlib.contextmanager
def hook_server(path: Path, on_push: OnPush) -> Iterator[HookServer]:
    """Answer pushes on the Unix socket `path` while the block runs.

    `on_push(project_id, [(ref, old, new)], pusher)` gives the lines shown to the pusher, as they come; it is called on
    several threads; old or new is None where the ref was made or deleted. The list is whole: the guard admits
    `MAX_REFS` at most. `pusher` is what `http_backend` was given as user, or the login name over a path or SSH.
    """
    server = HookServer(path, on_push)
    try:
        yield server
    finally:
        server.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise PreconditionFailed(f"Cannot listen for pushes on {path}: {error}.") from error
    return listener


def _peer_uid(client: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def _message(client: socket.socket) -> tuple[str, list[Update], str]:
    raw = b""
    while not raw.endswith(b"\n"):
        part = client.recv(65536)
        if not part or len(raw) > MAX_MESSAGE:
            raise ValueError("the hook's message was cut off or too long")
        raw += part
    said: dict[str, Any] = json.loads(raw)
    updates = [(str(ref), _sha(old), _sha(new)) for ref, old, new in said["updates"]]
    return str(said["project"]), updates, str(said["pusher"])[:200]


def _sha(text: str) -> str | None:
    return None if _ZERO.fullmatch(text) else text
