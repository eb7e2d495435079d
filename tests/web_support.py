"""What the tests of accounts, projects and the web share: a migrated database, people in it, a stopped clock."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from waiting import wait_until

from appliance import accounts, clock, machine, schema
from appliance.config import Config
from appliance.db import Database, open_database
from appliance.records import SYSTEM, Actor, Role
from appliance.repos import Repos
from appliance.runtime.logs import LogStore
from appliance.store import Store
from appliance.web.app import Site, create_app
from appliance.web.house import House

PASSWORD = "correct horse battery"


@contextmanager
def database(folder: Path) -> Iterator[Database]:
    path = folder / "appliance.db"
    schema.migrate(path)
    db = open_database(path)
    try:
        yield db
    finally:
        db.close()


# Hashing takes 50 ms; those who only need somebody with some password share this one.
HASH = accounts.hash_password(PASSWORD)


def person(db: Database, email: str, role: Role = Role.MEMBER) -> Actor:
    with db.write() as tx:
        user = accounts.create_user(tx, SYSTEM, email, role, password_hash=HASH)
    return accounts.actor_of(user, "session")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: datetime = clock.now()
        monkeypatch.setattr(clock, "now", lambda: self.now)

    def forward(self, **span: float) -> None:
        self.now += timedelta(**span)


# -- the whole web -----------------------------------------------------------------------------------------------------


@dataclass
class Web:
    """A running server on a Unix socket, as behind nginx, with real database, store and repositories; no engine."""

    house: House
    app: Site
    socket: Path
    boss: Actor
    ana: Actor
    bob: Actor
    keys: dict[str, str]
    _clients: list[httpx.Client]

    @cached_property
    def stranger(self) -> httpx.Client:
        """One client for many requests, without a key."""
        return self.client()

    def client(self, who: str | None = None, **headers: str) -> httpx.Client:
        """`who` (boss, ana, bob) by API key; None is a stranger."""
        if who:
            headers["Authorization"] = f"Bearer {self.keys[who]}"
        client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://localhost",
            headers=headers,
            timeout=20,
        )
        self._clients.append(client)
        return client

    @contextmanager
    def tcp(self) -> Iterator[int]:
        """A port of the loopback that leads to the server, for programs that cannot speak to a Unix socket."""
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), relay_to(self.socket)) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


def relay_to(path: Path) -> type[socketserver.BaseRequestHandler]:
    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as inner:
                inner.connect(str(path))
                back = threading.Thread(target=pump, args=(inner, self.request))
                back.start()
                pump(self.request, inner)
                back.join()

    return Relay


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def running_web(folder: Path) -> Iterator[Web]:
    config = Config(data_dir=folder, run_dir=folder / "run", host_name="gpu.test")
    config.run_dir.mkdir()
    with database(folder) as db:
        store = Store(config.store_dir, reserve_mib=1, floor_bytes=1 << 20)
        logs = LogStore(config.logs_dir)
        house = House(
            config=config,
            db=db,
            store=store,
            repos=Repos(config.repos_dir),
            engine=cast(Any, None),
            logs=logs,
            wake=lambda: None,
            instance="test",
            health=lambda: None,
            doctor=list,
        )
        people = {
            "boss": person(db, "boss@x.org", Role.ADMIN),
            "ana": person(db, "ana@x.org"),
            "bob": person(db, "bob@x.org"),
        }
        with db.write() as tx:
            keys = {name: accounts.create_key(tx, actor, "test")[1] for name, actor in people.items()}
            machine.take_stock(tx, [])
        app = create_app(house)
        clients: list[httpx.Client] = []
        with serving(app, config.daemon_socket):
            yield Web(house, app, config.daemon_socket, **people, keys=keys, _clients=clients)
            for client in clients:
                client.close()
            app.close_streams()
        store.close()


@contextmanager
def serving(app: Site, socket: Path) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(app, uds=str(socket), lifespan="on", log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        wait_until(lambda: server.started, 10, "uvicorn listens")
        yield
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
