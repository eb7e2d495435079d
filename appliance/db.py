"""The SQLite file: one writer, many readers, durable when `write` returns, and a wake-up for the loops.

What this keeps true: a `with db.write() as tx:` block is one atomic change; when the block has ended its change is on the
disk (WAL, synchronous=FULL) or nothing of it happened. No block does Docker, git, network or store work. Only this
process opens the file, and only through here.

Group commit: a FULL commit costs one fsync (some 3 ms). Blocks run one at a time on one connection, each in a savepoint;
a block that ends while others already wait leaves the COMMIT to the last of them (at most `GROUP` blocks or until nobody
waits), and every block returns only after the COMMIT that holds it. A failed COMMIT fails all of the group.

Versions of SQLite up to 3.51.2 can corrupt a WAL database when two connections write and checkpoint at once; the
`pysqlite3` package brings a newer one, and `open_database` refuses an older library.

Why: with one writer there is no "database is locked", no half-ordered pair of writes, and no retry code anywhere.
"""

from __future__ import annotations

import sqlite3 as stdlib_sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite

from appliance.errors import ApplianceError, DiskFull, DurabilityLost, PreconditionFailed

OLDEST_SQLITE = (3, 51, 3)
GROUP = 64

Row = Mapping[str, Any]

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=5000",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA mmap_size=0",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA journal_size_limit=67108864",
)


class Reader:
    """Reads rows. Handed to every function that only looks; a `Tx` is one too, and sees its own changes."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def all(self, sql: str, *values: Any) -> list[Row]:
        return [dict(row) for row in self._connection.execute(sql, values)]

    def one(self, sql: str, *values: Any) -> Row | None:
        """The first row, or None."""
        row = self._connection.execute(sql, values).fetchone()
        return None if row is None else dict(row)

    def value(self, sql: str, *values: Any) -> Any:
        """The first column of the first row, or None."""
        row = self._connection.execute(sql, values).fetchone()
        return None if row is None else row[0]


class Tx(Reader):
    """One atomic change that is being made. Valid only inside its `with` block and its thread."""

    def run(self, sql: str, *values: Any) -> int:
        """Execute one statement; the number of rows it changed."""
        return int(self._connection.execute(sql, values).rowcount)

    def insert(self, table: str, row: Mapping[str, Any]) -> int:
        """Insert `row`; its rowid. Names come from our own code, never from a user."""
        columns = ", ".join(row)
        marks = ", ".join("?" * len(row))
        cursor = self._connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})",  # noqa: S608 - table and columns are literals of ours
            tuple(row.values()),
        )
        return int(cursor.lastrowid)


class _Group:
    """The blocks that share one COMMIT."""

    def __init__(self) -> None:
        self.size = 0
        self.done = threading.Event()
        self.error: BaseException | None = None


class Database:
    """The open file. `write` and `read` may be used from any thread; one `write` inside another is a defect."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = _connect(path)
        self._lock = threading.Lock()
        self._waiting = 0
        self._count = threading.Lock()
        self._group = _Group()
        self._changes = 0
        self._mine = threading.local()
        self._readers: list[Any] = []
        self._listeners: list[Callable[[], None]] = []
        self._failure_listeners: list[Callable[[BaseException], None]] = []
        self._lost: DurabilityLost | None = None
        self._closed = False

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every commit that changed a row, in the committing thread; it must only set a flag."""
        self._listeners.append(listener)

    def on_failure(self, listener: Callable[[BaseException], None]) -> None:
        """Call `listener` when the disk failed while a change was written; it must only set a flag."""
        self._failure_listeners.append(listener)

    @contextmanager
    def write(self) -> Iterator[Tx]:
        """One atomic, durable change: all of the block, or (when it raises) nothing of it.

        DurabilityLost says that this is not known: the disk failed under the change. No later change is taken.
        """
        if self._lost is not None:
            raise DurabilityLost(self._lost.message)
        assert not getattr(self._mine, "writing", False), "a write inside a write"
        with self._count:
            self._waiting += 1
        self._lock.acquire()
        with self._count:
            self._waiting -= 1
        self._mine.writing = True
        group = self._group
        try:
            try:
                if group.size == 0:
                    self._writer.execute("BEGIN IMMEDIATE")
                    self._changes = self._writer.total_changes
                group.size += 1
                self._writer.execute("SAVEPOINT block")
                try:
                    yield Tx(self._writer)
                    self._writer.execute("RELEASE block")
                except BaseException as error:
                    self._undo_block(group, error)
                    raise
            except sqlite.Error as error:
                raise self._told(_translated(error)) from error
            finally:
                self._end_block(group)
        finally:
            self._mine.writing = False
            self._lock.release()
        group.done.wait()
        if group.error is not None:
            raise self._told(group.error)

    def _told(self, error: BaseException) -> BaseException:
        """`error`, of which the listeners know if the daemon has to end."""
        if isinstance(error, DurabilityLost) and self._lost is None:
            self._lost = error
            for listener in self._failure_listeners:
                listener(error)
        return error

    def _undo_block(self, group: _Group, error: BaseException) -> None:
        """Take back one block. SQLite itself takes back the whole transaction on a full disk: then all of the group failed."""
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK TO block")
            self._writer.execute("RELEASE block")
        else:
            self._group = _Group()
            group.error = _translated(error)
            group.done.set()

    def _end_block(self, group: _Group) -> None:
        """Commit unless somebody else is about to add to the group. Runs with the lock held."""
        if group is not self._group:
            return
        with self._count:
            more = self._waiting > 0 and group.size < GROUP
        if more:
            return
        self._group = _Group()
        try:
            if self._writer.in_transaction:
                self._writer.execute("COMMIT")
        except sqlite.Error as error:
            group.error = _translated(error)
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        group.done.set()
        if self._writer.total_changes != self._changes:
            for listener in self._listeners:
                listener()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A consistent view of the newest commit; never waits for a writer."""
        connection = getattr(self._mine, "reader", None)
        if connection is None:
            connection = _connect(self.path, read_only=True)
            self._mine.reader = connection
            with self._count:
                self._readers.append(connection)
        if connection.in_transaction:
            yield Reader(connection)
            return
        connection.execute("BEGIN")
        try:
            yield Reader(connection)
        except sqlite.Error as error:
            raise _translated(error, reading=True) from error
        finally:
            connection.execute("COMMIT")

    def backup(self, target: Path) -> None:
        """A consistent copy at `target`, which must not exist."""
        connection = _connect(self.path, read_only=True)
        try:
            connection.execute("PRAGMA query_only=0")  # the copy is a write, though not of this file
            connection.execute("VACUUM INTO ?", (str(target),))
        finally:
            connection.close()

    def close(self) -> None:
        """Wait for the block that is running, then close everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for connection in self._readers:
                connection.close()
            with suppress(sqlite.Error):  # what is not carried over stays in the WAL, and the next start reads it there
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()


def _connect(path: Path, *, read_only: bool = False) -> Any:
    uri = f"file:{path}?mode=ro" if read_only else f"file:{path}"
    connection = sqlite.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite.Row
    if read_only:
        connection.execute("PRAGMA query_only=1")
        connection.execute("PRAGMA busy_timeout=5000")
        connection.execute("PRAGMA temp_store=MEMORY")
    else:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    return connection


def _translated(error: BaseException, *, reading: bool = False) -> ApplianceError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite.SQLITE_FULL:
        return DiskFull(
            "The disk that holds the database is full; free some space, and nothing that was saved is lost."
        )
    if code == sqlite.SQLITE_IOERR:
        what = f"({error}); check the disk and the system's log."
        if reading:
            return ApplianceError(f"The disk that holds the database could not be read {what}")
        return DurabilityLost(f"The disk that holds the database failed while a change was written {what}")
    return ApplianceError(f"The database refused a change: {error}.")


def open_database(path: Path) -> Database:
    """Open or create the file. Refuses an SQLite that can corrupt it, and a file that is not a database."""
    if sqlite.sqlite_version_info < OLDEST_SQLITE:
        raise PreconditionFailed(
            f"SQLite {sqlite.sqlite_version} can corrupt the database; install pysqlite3 0.6.1 or newer "
            f"(the standard library has {stdlib_sqlite3.sqlite_version})."
        )
    if path.is_dir():
        raise PreconditionFailed(f"{path} is a folder, not the appliance's database; move it away or restore a backup.")
    try:
        return Database(path)
    except sqlite.DatabaseError as error:
        raise PreconditionFailed(
            f"{path} cannot be opened as the appliance's database ({error}); restore a backup or move it away."
        ) from error


def placeholders(values: Sequence[Any]) -> str:
    """`?, ?, ?` for an IN list of as many values."""
    return ", ".join("?" * len(values))
