"""`applianced run`: the daemon itself, from its first line to its last.

Order at the start: the lock, the migrations, the store, the loops, the socket, READY. At the end: STOPPING, the socket,
the loops, the database. Exit codes: 0 asked to end, 1 could not start, 70 ended itself after a failed fsync.

Why uvicorn on a socket of our own making: nginx is in front, and only its group may open the socket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from appliance import clock
from appliance.config import Config
from appliance.daemon import failing
from appliance.daemon.admin import AdminDoor, answer
from appliance.daemon.notify import notify, watchdog_s
from appliance.daemon.works import Works
from appliance.web.app import Site, create_app

_LOG = logging.getLogger(__name__)
EXIT_FAILED_WRITE = 70
_LOOK_S = 1.0


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": clock.stamp(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def set_up_logging(level: int = logging.INFO) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "urllib3", "watchfiles", "docker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def listen(path: Path, user: str) -> socket.socket:
    """A listening Unix socket that root and the group of `user` (nginx's workers) may open."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    try:
        os.chown(path, 0, pwd.getpwnam(user).pw_gid)
        path.chmod(0o660)
    except (KeyError, PermissionError):
        _LOG.warning("there is no user %r; only processes of this daemon's user reach %s", user, path)
    listener.listen(2048)
    return listener


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    set_up_logging()
    began = clock.monotonic()
    works = Works(config)
    admin = None
    try:
        admin = AdminDoor(config, partial(answer, works.db, config))
        answer(works.db, config, {"do": "local_key"})
        app = create_app(works.house())
        failing.arm()
        works.start()
        listener = listen(config.daemon_socket, config.service_user)
        _LOG.info("ready after %.2f s; data in %s", clock.monotonic() - began, config.data_dir)
        asyncio.run(_serve(works, app, listener))
        listener.close()
    finally:
        notify("STOPPING=1")
        if admin is not None:
            admin.close()
        works.stop()
    return EXIT_FAILED_WRITE if works.failed.is_set() else 0


async def _serve(works: Works, app: Site, listener: socket.socket) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=75,
            h11_max_incomplete_event_size=64 * 1024,
        )
    )
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined,method-assign,unused-ignore]
    loop = asyncio.get_running_loop()

    def end() -> None:
        """No new requests; the streams, which would go on for ever, end now."""
        server.should_exit = True
        app.close_streams()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    watcher = asyncio.create_task(_watch(works, server, end))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()


async def _watch(works: Works, server: uvicorn.Server, end: Callable[[], None]) -> None:
    """Tell systemd that the daemon is ready, and alive as long as it is; end the server when the works failed."""
    while not server.started:
        await asyncio.sleep(0.02)
    notify("READY=1\nSTATUS=running")
    every = watchdog_s()
    next_at = clock.monotonic()
    while True:
        if works.failed.is_set():
            end()
            return
        if every is not None and clock.monotonic() >= next_at and works.health() is None:
            notify("WATCHDOG=1")
            next_at = clock.monotonic() + every
        await asyncio.sleep(min(_LOOK_S, every or _LOOK_S))
