"""What the tests of accounts, projects and the web share: a migrated database, people in it, a stopped clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance import accounts, clock, schema
from appliance.db import Database, open_database
from appliance.records import SYSTEM, Actor, Role

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
