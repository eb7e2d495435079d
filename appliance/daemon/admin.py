"""What root on the server may do without an account: the first sign-in, admins, the local key.

What this keeps true: it works the same while the daemon runs (asked over a socket that root alone can open) and while it
does not (the data directory is locked and opened for the moment).

Why: whoever has lost every password still has the server.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import accounts, errors
from appliance.config import Config
from appliance.daemon.lock import Lock
from appliance.daemon.works import make_folders, open_data
from appliance.db import Database
from appliance.errors import ApplianceError, BadRequest, Conflict, PreconditionFailed
from appliance.records import SYSTEM, Role

_LIMIT = 64 * 1024


def socket_of(config: Config) -> Path:
    return config.run_dir / "admin.sock"


def ask(config: Config, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request, by the daemon if it runs, else here."""
    make_folders(config)
    lock = Lock(config.data_dir / "lock")
    try:
        lock.take()
    except Conflict:
        return _over_socket(config, request)
    try:
        db = open_data(config)
        try:
            return answer(db, config, request)
        finally:
            db.close()
    finally:
        lock.release()


def answer(db: Database, config: Config, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request: `setup_link`, `create_admin` or `local_key`."""
    match request.get("do"):
        case "setup_link":
            with db.write() as tx:
                token = accounts.setup_token(tx)
            return {"url": f"{config.dashboard_urls()[0]}/accept?token={token}"}
        case "create_admin":
            hashed = accounts.hash_password(str(request["password"]))
            with db.write() as tx:
                user = accounts.create_user(tx, SYSTEM, str(request["email"]), Role.ADMIN, password_hash=hashed)
            return {"email": user.email}
        case "local_key":
            return {"made": _local_key(db, config)}
        case "has_admin":
            with db.read() as reader:
                return {"has_admin": accounts.has_admin(reader)}
        case other:
            raise BadRequest(f"The daemon does not know the request {str(other)[:40]!r}; are both of the same release?")


def _local_key(db: Database, config: Config) -> bool:
    """The file with the key by which root's `appliance` speaks to this server holds a key that works; True if it is new."""
    path = config.local_admin_key
    if path.exists() and accounts.key_actor(db, path.read_text().strip()) is not None:
        return False
    with db.write() as tx:
        secret = accounts.local_admin_key(tx)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(secret + "\n")
    fresh.replace(path)
    return True


def _over_socket(config: Config, request: dict[str, Any]) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(30)
            line.connect(str(socket_of(config)))
            line.sendall(json.dumps(request).encode() + b"\n")
            said: dict[str, Any] = json.loads(line.makefile("rb").readline(_LIMIT))
    except (OSError, ValueError) as error:
        raise PreconditionFailed(
            f"An applianced holds {config.data_dir} but does not answer on {socket_of(config)} ({error}); "
            "wait until it has started, or stop it."
        ) from error
    if "code" in said:
        kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
        raise kinds.get(said["code"], ApplianceError)(said["message"])
    return said


class AdminDoor:
    """Answers `ask` while the daemon runs. The socket is root's alone, and the peer is asked for, too."""

    def __init__(self, config: Config, carry_out: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._path, self._carry_out = socket_of(config), carry_out
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(before)
        self._socket.listen(8)
        self._thread = threading.Thread(target=self._serve, name="admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                client.settimeout(10)
                try:
                    request = json.loads(client.makefile("rb").readline(_LIMIT))
                    said = self._answer(request)
                    client.sendall(json.dumps(said).encode() + b"\n")
                except (OSError, ValueError):
                    continue

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._carry_out(request)
        except ApplianceError as error:
            return {"code": error.code, "message": error.message}
