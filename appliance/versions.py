"""Versions of datasets and models, their tags, and who needs them.

What this keeps true: a committed version never changes; its row is written in the transaction that makes it visible, after
its bytes are durable (`Store.put_tree`); the same origin (an attempt's output) makes one version however often it is
asked; a version that something needs (`pin`) is not deleted; each move of a tag is kept with who moved it.

Order of effects: bytes, then the row. A crash between leaves bytes that no row names, which `Store.collect` takes away.

Owns the tables `versions`, `version_numbers`, `tags`, `tag_moves` and `pins`. Who may do what is decided by datasets and models.

Why: a dataset and a model differ in what they mean, not in how their versions live.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import clock, ids
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import BadRequest, Conflict, NotFound
from appliance.records import Actor, Page, Tree, Version
from appliance.states import VersionState
from appliance.store import Stage, Store

_lock = threading.Lock()
_being_committed: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Whose version it is: `kind` is `dataset` or `model`; the name is for sentences."""

    kind: str
    id: str
    name: str


def create(
    tx: Tx,
    owner: Owner,
    actor: Actor,
    *,
    message: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Version:
    """A new uncommitted version: files may be put and deleted until it is committed."""
    return _insert(tx, owner, actor, message=message, metadata=metadata or {}, tree=None)


def add_committed(
    tx: Tx,
    owner: Owner,
    actor: Actor,
    tree: Tree,
    *,
    message: str = "",
    metadata: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    job: str | None = None,
    origin: str | None = None,
) -> Version:
    """A version that is committed from the start. Asked again with the same `origin` it is the one that is there."""
    if origin is not None:
        known = tx.one("SELECT * FROM versions WHERE origin = ?", origin)
        if known is not None:
            return _version(tx, known)
    return _insert(
        tx, owner, actor, message=message, metadata=metadata or {}, tree=tree, run_id=run_id, job=job, origin=origin
    )


def commit(tx: Tx, owner: Owner, version_id: str, tree: Tree, *, message: str | None = None) -> Version:
    """The uncommitted version becomes `tree`, for ever. Conflict when it is committed already."""
    version = get_version(tx, owner, version_id)
    now = clock.stamp()
    moved = tx.run(
        "UPDATE versions SET state = ?, root = ?, file_count = ?, size_bytes = ?, added_bytes = ?, message = ?,"
        " committed_at = ? WHERE id = ? AND state = ?",
        VersionState.COMMITTED,
        tree.root,
        tree.file_count,
        tree.size_bytes,
        tree.added_bytes,
        version.message if message is None else message,
        now,
        version.id,
        VersionState.UNCOMMITTED,
    )
    if not moved:
        raise Conflict(f"Version {version.number} of {owner.kind} {owner.name!r} is committed already; make a new one.")
    return get_version(tx, owner, version.id)


def commit_stage(
    db: Database, store: Store, staging_dir: Path, owner: Owner, version: Version, *, message: str | None = None
) -> Version:
    """Commit the files that were put into `version`. Bytes first, then the row, then the staging folder goes."""
    if version.state is VersionState.COMMITTED:
        raise Conflict(f"Version {version.number} of {owner.kind} {owner.name!r} is committed already; make a new one.")
    folder = staging_dir / version.id
    with _closing(version):
        folder.mkdir(parents=True, exist_ok=True)
        tree = store.put_tree(folder, move=False)
        try:
            with db.write() as tx:
                done = commit(tx, owner, version.id, tree, message=message)
        except BaseException:
            store.discard(tree)
            raise
        store.publish(tree)
        Stage(folder).remove()
        return done


@contextmanager
def _closing(version: Version) -> Iterator[None]:
    """Meanwhile the version counts as closed. Conflict when somebody else commits it just now."""
    with _lock:
        if version.id in _being_committed:
            raise Conflict(f"Version {version.number} is being committed just now.")
        _being_committed.add(version.id)
    try:
        yield
    finally:
        with _lock:
            _being_committed.discard(version.id)


def check_kept(db: Database, version_id: str) -> None:
    """What was put into the version before this call will be in it. Conflict when a commit may have come before it.

    Asked first is whether a commit goes on, then whether one has ended: so none slips through between the two.
    """
    with _lock:
        closing = version_id in _being_committed
    with db.read() as reader:
        version = find_by_id(reader, version_id)
    if version is None:
        raise NotFound("The version was deleted meanwhile, and what was put into it with it.")
    if closing or version.state is VersionState.COMMITTED:
        raise Conflict(
            f"Version {version.number} was committed meanwhile, so this change may not be in it; make a new version."
        )


def stage(staging_dir: Path, version: Version) -> Stage:
    """The folder in which the files of an uncommitted version gather. Conflict when it is committed."""
    if version.state is VersionState.COMMITTED:
        raise Conflict(
            f"Version {version.number} is committed and never changes; make a new version and put files there."
        )
    folder = staging_dir / version.id
    folder.mkdir(parents=True, exist_ok=True)
    return Stage(folder)


def get_version(db: Reader, owner: Owner, selector: str | None) -> Version:
    """The version that `selector` names: an id, a number, a tag, `latest` or None (the newest committed one)."""
    row = _find(db, owner, selector or ids.LATEST)
    if row is None:
        if selector in (None, ids.LATEST):
            raise NotFound(f"The {owner.kind} {owner.name!r} has no committed version yet.")
        raise NotFound(f"The {owner.kind} {owner.name!r} has no version or tag {selector!r}.")
    return _version(db, row)


def get_committed(db: Reader, owner: Owner, selector: str | None) -> Version:
    """As `get_version`, for whoever needs its files to stay: Conflict while the version is not committed."""
    version = get_version(db, owner, selector)
    if version.state is not VersionState.COMMITTED:
        raise Conflict(
            f"Version {version.number} of {owner.kind} {owner.name!r} is not committed yet; commit it first."
        )
    return version


def find_by_id(db: Reader, version_id: str) -> Version | None:
    row = db.one("SELECT * FROM versions WHERE id = ?", version_id)
    return None if row is None else _version(db, row)


def find_latest(db: Reader, owner_kind: str, owner_id: str) -> Version | None:
    row = _find(db, Owner(owner_kind, owner_id, ""), ids.LATEST)
    return None if row is None else _version(db, row)


def list_versions(
    db: Reader, owner: Owner, *, after: str | None = None, limit: int = 50, committed_only: bool = False
) -> Page[Version]:
    """The newest first. `after` is the number of the last one that was seen."""
    below = ids.cursor(after)
    rows = db.all(
        "SELECT * FROM versions WHERE owner_kind = ? AND owner_id = ? AND number < ? AND (NOT ? OR state = 'committed')"
        " ORDER BY number DESC LIMIT ?",
        owner.kind,
        owner.id,
        below,
        committed_only,
        limit + 1,
    )
    found = tuple(_version(db, row) for row in rows[:limit])
    return Page(found, str(found[-1].number) if len(rows) > limit else None)


def delete(tx: Tx, owner: Owner, selector: str) -> Version:
    """The version is gone; its bytes go with the next collection. Conflict while something needs it."""
    version = get_version(tx, owner, selector)
    _refuse_if_pinned(tx, owner, [version.id])
    tx.run("DELETE FROM versions WHERE id = ?", version.id)
    return version


def delete_all(tx: Tx, owner: Owner) -> int:
    """Every version of `owner` is gone, and its tags' history; how many there were."""
    found = [
        row["id"]
        for row in tx.all("SELECT id FROM versions WHERE owner_kind = ? AND owner_id = ?", owner.kind, owner.id)
    ]
    _refuse_if_pinned(tx, owner, found)
    tx.run("DELETE FROM versions WHERE owner_kind = ? AND owner_id = ?", owner.kind, owner.id)
    tx.run("DELETE FROM tag_moves WHERE owner_kind = ? AND owner_id = ?", owner.kind, owner.id)
    tx.run("DELETE FROM version_numbers WHERE owner_kind = ? AND owner_id = ?", owner.kind, owner.id)
    return len(found)


def totals(db: Reader, owner: Owner) -> tuple[int, int]:
    """How many versions there are, and the sum of their sizes in bytes (what is shared is counted each time)."""
    row = db.one(
        "SELECT count(*) AS n, coalesce(sum(size_bytes), 0) AS size FROM versions WHERE owner_kind = ? AND owner_id = ?",
        owner.kind,
        owner.id,
    )
    assert row is not None
    return row["n"], row["size"]


# -- tags --------------------------------------------------------------------------------------------------------------


def tag(tx: Tx, owner: Owner, actor: Actor, name: str, selector: str | None) -> Version:
    """The tag points at that committed version from now on, wherever it pointed before."""
    ids.tag(name)
    if name.isdigit():
        raise BadRequest(f"{name!r} cannot be a tag: numbers name versions.")
    version = get_version(tx, owner, selector)
    if version.state is not VersionState.COMMITTED:
        raise Conflict(f"Version {version.number} is not committed yet; commit it, then tag it.")
    before = tx.value(
        "SELECT version_id FROM tags WHERE owner_kind = ? AND owner_id = ? AND name = ?", owner.kind, owner.id, name
    )
    tx.run(
        "INSERT INTO tags VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (owner_kind, owner_id, name) DO UPDATE"
        " SET version_id = excluded.version_id, moved_at = excluded.moved_at, moved_by = excluded.moved_by",
        owner.kind,
        owner.id,
        name,
        version.id,
        clock.stamp(),
        actor.email,
    )
    _note_move(tx, owner, actor, name, before, version.id)
    return get_version(tx, owner, version.id)


def untag(tx: Tx, owner: Owner, actor: Actor, name: str) -> None:
    before = tx.value(
        "SELECT version_id FROM tags WHERE owner_kind = ? AND owner_id = ? AND name = ?", owner.kind, owner.id, name
    )
    if before is None:
        raise NotFound(f"The {owner.kind} {owner.name!r} has no tag {name!r}.")
    tx.run("DELETE FROM tags WHERE owner_kind = ? AND owner_id = ? AND name = ?", owner.kind, owner.id, name)
    _note_move(tx, owner, actor, name, before, None)


def list_tags(db: Reader, owner: Owner) -> dict[str, str]:
    """Each tag and the id of the version it points at."""
    rows = db.all(
        "SELECT name, version_id FROM tags WHERE owner_kind = ? AND owner_id = ? ORDER BY name", owner.kind, owner.id
    )
    return {row["name"]: row["version_id"] for row in rows}


# -- who needs it ------------------------------------------------------------------------------------------------------


def pin(tx: Tx, version_id: str, holder: str, text: str) -> None:
    """`holder` needs the version until `unpin`; `text` says so in a refusal ("deployment digits serves it")."""
    tx.run("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", version_id, holder, text)


def unpin(tx: Tx, holder: str) -> None:
    """`holder` needs nothing any more."""
    tx.run("DELETE FROM pins WHERE holder = ?", holder)


def live_roots(db: Reader) -> list[str]:
    """The roots of everything that the store must keep."""
    return [row["root"] for row in db.all("SELECT DISTINCT root FROM versions WHERE root IS NOT NULL")]


def open_ids(db: Reader) -> set[str]:
    """The versions into which files may still be put."""
    return {row["id"] for row in db.all("SELECT id FROM versions WHERE state = ?", VersionState.UNCOMMITTED)}


def pinned_roots(db: Reader) -> list[str]:
    """The roots whose views are in use."""
    return [
        row["root"]
        for row in db.all(
            "SELECT DISTINCT root FROM versions JOIN pins ON pins.version_id = versions.id WHERE root IS NOT NULL"
        )
    ]


# -- rows --------------------------------------------------------------------------------------------------------------


def _insert(
    tx: Tx,
    owner: Owner,
    actor: Actor,
    *,
    message: str,
    metadata: Mapping[str, Any],
    tree: Tree | None,
    run_id: str | None = None,
    job: str | None = None,
    origin: str | None = None,
) -> Version:
    now = clock.stamp()
    number = _next_number(tx, owner)
    version_id = ids.new_id("v", 11)
    tx.insert(
        "versions",
        {
            "id": version_id,
            "owner_kind": owner.kind,
            "owner_id": owner.id,
            "number": number,
            "state": VersionState.UNCOMMITTED if tree is None else VersionState.COMMITTED,
            "root": tree.root if tree else None,
            "file_count": tree.file_count if tree else 0,
            "size_bytes": tree.size_bytes if tree else 0,
            "added_bytes": tree.added_bytes if tree else 0,
            "message": message,
            "metadata": json.dumps(dict(metadata)),
            "created_by": actor.email,
            "created_at": now,
            "committed_at": now if tree else None,
            "run_id": run_id,
            "job": job,
            "origin": origin,
        },
    )
    return get_version(tx, owner, version_id)


def _next_number(tx: Tx, owner: Owner) -> int:
    """A number that no version of `owner` ever had, deleted ones included: a reference never changes its meaning."""
    tx.run(
        "INSERT INTO version_numbers VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET last = last + 1", owner.kind, owner.id
    )
    return int(tx.value("SELECT last FROM version_numbers WHERE owner_kind = ? AND owner_id = ?", owner.kind, owner.id))


def _find(db: Reader, owner: Owner, selector: str) -> Row | None:
    if selector == ids.LATEST:
        return db.one(
            "SELECT * FROM versions WHERE owner_kind = ? AND owner_id = ? AND state = 'committed'"
            " ORDER BY number DESC LIMIT 1",
            owner.kind,
            owner.id,
        )
    return db.one(
        "SELECT * FROM versions WHERE owner_kind = ?1 AND owner_id = ?2 AND (id = ?3 OR CAST(number AS TEXT) = ?3 OR id ="
        " (SELECT version_id FROM tags WHERE owner_kind = ?1 AND owner_id = ?2 AND name = ?3))",
        owner.kind,
        owner.id,
        selector,
    )


def _version(db: Reader, row: Row) -> Version:
    tags = tuple(
        found["name"] for found in db.all("SELECT name FROM tags WHERE version_id = ? ORDER BY name", row["id"])
    )
    values = {key: value for key, value in row.items() if key != "origin"}
    return Version(
        **{**values, "state": VersionState(row["state"]), "metadata": json.loads(row["metadata"])}, tags=tags
    )


def _refuse_if_pinned(tx: Tx, owner: Owner, version_ids: list[str]) -> None:
    for version_id in version_ids:
        text = tx.value("SELECT text FROM pins WHERE version_id = ? LIMIT 1", version_id)
        if text is not None:
            number = tx.value("SELECT number FROM versions WHERE id = ?", version_id)
            raise Conflict(f"Version {number} of {owner.kind} {owner.name!r} is in use: {text}.")


def _note_move(tx: Tx, owner: Owner, actor: Actor, name: str, before: str | None, after: str | None) -> None:
    tx.insert(
        "tag_moves",
        {
            "owner_kind": owner.kind,
            "owner_id": owner.id,
            "name": name,
            "from_version": before,
            "to_version": after,
            "moved_at": clock.stamp(),
            "moved_by": actor.email,
        },
    )
