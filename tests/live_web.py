"""The real application on a real port, with a real database, store and repositories, for whoever is its client.

No loop runs: what is written stays a wish. What needs containers is a journey.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn
from waiting import wait_until

from appliance import accounts, machine, schema
from appliance.config import Config
from appliance.db import Database, open_database
from appliance.records import SYSTEM, Role
from appliance.repos import Repos
from appliance.runtime.logs import LogStore
from appliance.store import Store
from appliance.web.app import create_app
from appliance.web.house import House


@dataclass
class Live:
    """`admin` and `member` are API keys."""

    url: str
    house: House
    app: Any
    admin: str
    member: str


@contextmanager
def live_web(folder: Path, **changes: Any) -> Iterator[Live]:
    """`changes` replace fields of the house."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config(data_dir=folder / "data", run_dir=folder / "run", free_floor_mib=0, http_port=port)
    for made in (config.data_dir, config.run_dir, config.store_dir, config.repos_dir, config.staging_dir):
        made.mkdir(parents=True, exist_ok=True)
    schema.migrate(config.db_path)
    db = open_database(config.db_path)
    with db.write() as tx:
        machine.take_stock(tx, ())
    store = Store(config.store_dir, reserve_mib=0, floor_bytes=0)
    try:
        house = House(
            config=config,
            db=db,
            store=store,
            repos=Repos(config.repos_dir),
            engine=None,  # type: ignore[arg-type]  # no handler asks it for anything
            logs=LogStore(config.logs_dir),
            wake=lambda: None,
            instance="test",
            health=lambda: None,
            doctor=list,
        )
        app = create_app(replace(house, **changes))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, 10, "uvicorn serves")
        try:
            admin, member = _key(db, "ada@example.org", Role.ADMIN), _key(db, "max@example.org", Role.MEMBER)
            yield Live(f"http://127.0.0.1:{port}", house, app, admin, member)
        finally:
            app.close_streams()
            server.should_exit = True
            thread.join(15)
    finally:
        store.close()
        db.close()
        listener.close()


def _key(db: Database, email: str, role: Role) -> str:
    with db.write() as tx:
        user = accounts.create_user(tx, SYSTEM, email, role)
        _, secret = accounts.create_key(tx, accounts.actor_of(user, "session"), "test")
    return secret
