"""The schema repeats the law of states.py, each table has one owner, and what was released never changes."""

from __future__ import annotations

import ast
import hashlib
import re
from enum import StrEnum
from pathlib import Path

import pysqlite3.dbapi2 as sqlite
import pytest
import sqlite_utils

import appliance
from appliance import schema, states
from appliance.db import Database
from appliance.errors import ApplianceError, PreconditionFailed

pytestmark = pytest.mark.fast

ROOT = Path(appliance.__file__).parent
# A released migration is frozen: a change to it changes its hash. A new one is appended with its own line. The first is
# frozen with release 0.1.0.
FROZEN: dict[str, str] = {}

CHECKS = {
    ("versions", "state"): states.VersionState,
    ("containers", "want"): states.Want,
    ("containers", "seen"): states.Seen,
    ("leases", "state"): states.LeaseState,
    ("runs", "state"): states.RunState,
    ("jobs", "state"): states.JobState,
    ("attempts", "state"): states.AttemptState,
    ("attempts", "reason"): states.Reason,
    ("deployment_specs", "state"): states.SpecState,
}


@pytest.mark.parametrize(("table", "column"), CHECKS)
def test_a_column_takes_exactly_the_states_of_the_law(db: Database, table: str, column: str) -> None:
    with db.read() as reader:
        sql = reader.value("SELECT sql FROM sqlite_master WHERE name = ?", table)

    listed = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", sql)

    assert listed is not None
    assert set(re.findall(r"'([^']*)'", listed[1])) == {state.value for state in CHECKS[table, column]}


@pytest.mark.parametrize(
    "moves",
    [
        states.JOB_MOVES,
        states.RUN_MOVES,
        states.ATTEMPT_MOVES,
        states.SEEN_MOVES,
        states.VERSION_MOVES,
        states.SPEC_MOVES,
        states.LEASE_MOVES,
    ],
)
def test_every_state_has_its_moves_and_all_but_sleep_go_forward(moves: dict[StrEnum, frozenset[StrEnum]]) -> None:
    assert set(moves) == set(type(next(iter(moves))))

    def reaches(start: StrEnum) -> set[StrEnum]:
        found: set[StrEnum] = set()
        todo = set(moves[start])
        while todo:
            state = todo.pop()
            if state not in found:
                found.add(state)
                todo |= moves[state]
        return found

    sleepers = {states.SpecState.SERVING, states.SpecState.ASLEEP}
    assert all(state not in reaches(state) for state in moves if state not in sleepers)


def test_every_reason_decides_a_final_state() -> None:
    assert {states.final_of(reason) for reason in states.Reason} == set(states.ATTEMPT_FINAL)


def test_an_ending_without_its_time_cannot_be_written(db: Database) -> None:
    lease = {
        "id": "l",
        "container_id": "c",
        "owner_id": "o",
        "state": "released",
        "machine_type": "C1",
        "cpus": 1.0,
        "memory_mib": 1,
        "created_at": "now",
    }

    with pytest.raises(ApplianceError, match="CHECK"), db.write() as tx:
        tx.insert("leases", lease)


def test_every_table_is_strict_and_has_an_owner(db: Database) -> None:
    with db.read() as reader:
        tables = {
            row["name"]: row["sql"]
            for row in reader.all("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            if not row["name"].startswith(("sqlite_", "_sqlite"))
        }

    assert set(tables) == set(schema.OWNERS)
    assert all("STRICT" in sql for sql in tables.values())


def test_only_its_owner_writes_a_table() -> None:
    written = re.compile(r"(?:INSERT(?: OR \w+)? INTO|UPDATE|DELETE FROM)\s+([a-z_]+)|\binsert\(\s*\"([a-z_]+)\"")
    offences = []
    for path in ROOT.rglob("*.py"):
        module = path.relative_to(ROOT).parts[0].removesuffix(".py")
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found = {table for text in texts if isinstance(text, str) for table, _ in written.findall(text)}
        found |= {table for _, table in written.findall(path.read_text()) if table}
        for table in found & set(schema.OWNERS):
            if module not in (schema.OWNERS[table], "schema"):
                offences.append(f"{path.name} writes {table}, which belongs to {schema.OWNERS[table]}")

    assert offences == []


def test_released_migrations_are_frozen() -> None:
    assert {name: hashlib.sha256(schema.FIRST.encode()).hexdigest() for name in FROZEN} == FROZEN


def test_a_second_migration_finds_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    assert schema.migrate(path) == ["m0001_first"]
    assert schema.migrate(path) == []


def test_a_migration_that_is_cut_off_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.db"
    schema.migrate(path)
    set_ = sqlite_utils.Migrations("appliance")
    for migration in schema.migrations._migrations:
        set_(name=migration.name)(migration.fn)

    @set_(name="m0002_broken")
    def broken(db: sqlite_utils.Database) -> None:
        db.execute("CREATE TABLE halfway (a)")
        raise sqlite.OperationalError("cut off")

    monkeypatch.setattr(schema, "migrations", set_)

    with pytest.raises(PreconditionFailed, match="cut off"):
        schema.migrate(path)

    connection = sqlite.connect(str(path))
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'halfway'").fetchone() == (0,)
    connection.close()
    assert list(tmp_path.glob("a.db.before-m0002_broken-*"))


def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    schema.migrate(path)
    connection = sqlite.connect(str(path))
    connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('appliance', 'm9999_future', 'x')"
    )
    connection.commit()
    connection.close()

    with pytest.raises(PreconditionFailed, match="newer release"):
        schema.migrate(path)
