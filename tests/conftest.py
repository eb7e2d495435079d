"""What every test may ask for: a database, a store, repositories, a clock; and a whole appliance on real Docker.

A tool that is missing fails the test that needs it; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, require_engine

from appliance import machine, schema
from appliance.db import Database, open_database
from appliance.repos import Repos
from appliance.store import Store


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """A migrated database with this machine's types in it."""
    path = tmp_path / "appliance.db"
    schema.migrate(path)
    database = open_database(path)
    with database.write() as tx:
        machine.instance(tx)
        machine.take_stock(tx, [])
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", reserve_mib=1, floor_bytes=0)
    yield opened
    opened.close()


@pytest.fixture
def repos(tmp_path: Path) -> Repos:
    return Repos(tmp_path / "repos")


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine answers; else the test fails."""
    require_engine()


@pytest.fixture(scope="module")
def running(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A whole appliance of its own: holder, daemon, nginx; its containers are removed afterwards."""
    house = Running(tmp_path_factory.mktemp("appliance"))
    try:
        house.start()
        yield house
    finally:
        house.destroy()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A journey that failed shows what the appliance said."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    for house in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(house, Running):
            report.sections.append(("the appliance", house.story()))
