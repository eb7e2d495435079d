"""The database: atomic, grouped, durable, and honest when it fails."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from appliance import db as database
from appliance import schema
from appliance.db import Database, open_database
from appliance.errors import ApplianceError, DiskFull, DurabilityLost, PreconditionFailed

pytestmark = pytest.mark.fast


def count(db: Database) -> int:
    with db.read() as reader:
        return int(reader.value("SELECT count(*) FROM settings WHERE name LIKE 't-%'"))


def test_a_block_that_raises_leaves_nothing(db: Database) -> None:
    def half() -> None:
        with db.write() as tx:
            tx.insert("settings", {"name": "t-1", "value": "x"})
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()

    assert count(db) == 0


def test_blocks_of_many_threads_each_happen_whole_and_once(db: Database) -> None:
    def work(number: int) -> None:
        for turn in range(25):
            with db.write() as tx:
                tx.insert("settings", {"name": f"t-{number}-{turn}", "value": "x"})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert count(db) == 200


def test_a_block_that_fails_in_a_group_takes_no_neighbour_with_it(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()
    failures: list[str] = []

    def first() -> None:
        with db.write() as tx:
            tx.insert("settings", {"name": "t-first", "value": "x"})
            begun.set()
            go_on.wait(5)

    def second() -> None:
        try:
            with db.write() as tx:
                tx.insert("settings", {"name": "t-second", "value": "x"})
                raise ValueError("only mine")
        except ValueError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(5)
    threads[1].start()
    wait_until(lambda: db._waiting == 1, 5, "the second block waits")
    go_on.set()
    for thread in threads:
        thread.join()

    assert failures == ["only mine"]
    with db.read() as reader:
        assert [row["name"] for row in reader.all("SELECT name FROM settings WHERE name LIKE 't-%'")] == ["t-first"]


def test_a_reader_sees_one_moment_and_never_waits_for_a_writer(db: Database) -> None:
    with db.read() as reader:
        before = reader.value("SELECT count(*) FROM settings")
        done = threading.Event()

        def write() -> None:
            with db.write() as tx:
                tx.insert("settings", {"name": "t-later", "value": "x"})
            done.set()

        threading.Thread(target=write).start()

        assert done.wait(5)
        assert reader.value("SELECT count(*) FROM settings") == before
    assert count(db) == 1


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    schema.migrate(path)
    program = (
        "import os, sys; from pathlib import Path; from appliance.db import open_database\n"
        f"db = open_database(Path({str(path)!r}))\n"
        "for number in range(20):\n"
        "    with db.write() as tx: tx.insert('settings', {'name': f't-{number}', 'value': 'x'})\n"
        "    print(number, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == -9
    opened = open_database(path)
    try:
        assert count(opened) == len(done.stdout.split()) == 20
        with opened.read() as reader:
            assert reader.value("PRAGMA integrity_check") == "ok"
    finally:
        opened.close()


def test_a_refused_statement_is_an_error_of_ours(db: Database) -> None:
    with pytest.raises(ApplianceError, match="refused a change"), db.write() as tx:
        tx.insert("machine_types", {"name": "x", "cpus": -1, "memory_mib": 1})

    assert count(db) == 0


@contextmanager
def failing_disk(path: Path) -> Iterator[None]:
    """The kernel refuses every byte that would make a file of this process larger than the database's log is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fails_under_a_commit_ends_the_writing_and_is_no_full_disk(db: Database) -> None:
    heard: list[BaseException] = []
    db.on_failure(heard.append)

    with pytest.raises(DurabilityLost, match="failed while"), failing_disk(db.path), db.write() as tx:
        tx.insert("settings", {"name": "t-1", "value": "x"})
    with pytest.raises(DurabilityLost), db.write() as tx:
        tx.insert("settings", {"name": "t-2", "value": "x"})

    assert len(heard) == 1
    assert count(db) == 0


def test_a_full_disk_is_no_lost_write_and_what_comes_after_it_is_taken(db: Database) -> None:
    heard: list[BaseException] = []
    db.on_failure(heard.append)
    pages = db._writer.execute("PRAGMA page_count").fetchone()[0]

    db._writer.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskFull), db.write() as tx:
        tx.insert("settings", {"name": "t-1", "value": "x" * 100_000})
    db._writer.execute("PRAGMA max_page_count=1000000")
    with db.write() as tx:
        tx.insert("settings", {"name": "t-2", "value": "x" * 100_000})

    assert heard == []
    assert count(db) == 1


def test_a_backup_is_a_whole_copy_made_beside_the_writer(db: Database, tmp_path: Path) -> None:
    with db.write() as tx:
        tx.insert("settings", {"name": "t-1", "value": "x"})

    db.backup(tmp_path / "copy.db")

    copy = open_database(tmp_path / "copy.db")
    try:
        assert count(copy) == 1
    finally:
        copy.close()


def test_readers_cannot_write(db: Database) -> None:
    with pytest.raises(ApplianceError), db.read() as reader:
        reader.all("DELETE FROM settings")


def test_a_listener_hears_of_every_commit(db: Database) -> None:
    heard: list[int] = []
    db.on_commit(lambda: heard.append(1))

    with db.write() as tx:
        tx.insert("settings", {"name": "t-1", "value": "x"})

    assert heard == [1]


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(database, "OLDEST_SQLITE", (99, 0, 0))

    with pytest.raises(PreconditionFailed, match="can corrupt the database; install pysqlite3"):
        open_database(tmp_path / "a.db")


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"not a database" * 100)])
def test_what_is_no_database_is_left_alone_and_named(tmp_path: Path, make: object) -> None:
    path = tmp_path / "a.db"
    make(path)  # type: ignore[operator]

    with pytest.raises(PreconditionFailed, match=r"a\.db"):
        (schema.migrate if path.is_file() else open_database)(path)

    assert path.is_dir() or path.read_bytes().startswith(b"not a database")
