"""What datasets and models have in common: a named thing with versions, who may see it, and the verbs on its versions.

What this keeps true: whoever may not see a thing is told that there is none. Seeing: admins, everybody for a public thing
or one that belongs to no project, else who sees its project. Changing: admins, who made it, and the project's people.

The owners of the tables are datasets and models; each hands its reading function to its `Catalog`.

Why: one rule of access and one set of verbs, so a model's versions can never be opener than a dataset's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from appliance import clock, events, ids, projects, versions
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import Forbidden
from appliance.records import Actor, Dataset, Model, Page, Version
from appliance.store import Stage, Store
from appliance.versions import Owner

Thing = TypeVar("Thing", Dataset, Model)


@dataclass(frozen=True)
class Catalog(Generic[Thing]):
    """The verbs on the versions of one kind of thing. `get` finds a thing for an actor or raises NotFound."""

    kind: str
    table: str
    get: Callable[[Reader, Actor, str], Thing]

    def owner(self, thing: Thing) -> Owner:
        return Owner(self.kind, thing.id, thing.name)

    def get_to_change(self, db: Reader, actor: Actor, thing_id: str) -> Thing:
        """The thing, if `actor` may change it."""
        thing = self.get(db, actor, thing_id)
        if not may_change(db, actor, thing):
            raise Forbidden(
                f"You may read the {self.kind} {thing.name!r} but not change it; ask {thing.created_by} or an admin."
            )
        return thing

    def create_version(
        self, tx: Tx, actor: Actor, thing_id: str, *, message: str = "", metadata: Mapping[str, Any] | None = None
    ) -> Version:
        """A new uncommitted version."""
        thing = self.get_to_change(tx, actor, thing_id)
        return versions.create(tx, self.owner(thing), actor, message=message, metadata=metadata)

    def get_version(self, db: Reader, actor: Actor, thing_id: str, selector: str | None) -> Version:
        return versions.get_version(db, self.owner(self.get(db, actor, thing_id)), selector)

    def list_versions(
        self,
        db: Reader,
        actor: Actor,
        thing_id: str,
        *,
        after: str | None = None,
        limit: int = 50,
        committed_only: bool = False,
    ) -> Page[Version]:
        owner = self.owner(self.get(db, actor, thing_id))
        return versions.list_versions(db, owner, after=after, limit=limit, committed_only=committed_only)

    def stage(self, db: Reader, actor: Actor, staging_dir: Path, thing_id: str, selector: str) -> Stage:
        """The files of an uncommitted version, to put into and delete from. Conflict when it is committed."""
        thing = self.get_to_change(db, actor, thing_id)
        return versions.stage(staging_dir, versions.get_version(db, self.owner(thing), selector))

    def commit_version(
        self,
        db: Database,
        store: Store,
        staging_dir: Path,
        actor: Actor,
        thing_id: str,
        selector: str,
        *,
        message: str | None = None,
    ) -> Version:
        """The uncommitted version is immutable from now on, and the newest."""
        with db.read() as reader:
            thing = self.get_to_change(reader, actor, thing_id)
            version = versions.get_version(reader, self.owner(thing), selector)
        done = versions.commit_stage(db, store, staging_dir, self.owner(thing), version, message=message)
        with db.write() as tx:
            self.touched(tx, thing.id)
            text = f"{actor.email} committed version {done.number} of the {self.kind} {thing.name}."
            events.record(tx, actor, f"{self.kind}.committed", thing.id, text, project_id=thing.project_id)
        return done

    def delete_version(self, tx: Tx, actor: Actor, thing_id: str, selector: str) -> Version:
        thing = self.get_to_change(tx, actor, thing_id)
        version = versions.delete(tx, self.owner(thing), selector)
        text = f"{actor.email} deleted version {version.number} of the {self.kind} {thing.name}."
        events.record(tx, actor, f"{self.kind}.version_deleted", thing.id, text, project_id=thing.project_id)
        return version

    def tag(self, tx: Tx, actor: Actor, thing_id: str, name: str, selector: str | None) -> Version:
        thing = self.get_to_change(tx, actor, thing_id)
        version = versions.tag(tx, self.owner(thing), actor, name, selector)
        text = f"{actor.email} tagged version {version.number} of the {self.kind} {thing.name} as {name}."
        events.record(tx, actor, f"{self.kind}.tagged", thing.id, text, project_id=thing.project_id)
        return version

    def untag(self, tx: Tx, actor: Actor, thing_id: str, name: str) -> None:
        thing = self.get_to_change(tx, actor, thing_id)
        versions.untag(tx, self.owner(thing), actor, name)

    def list_tags(self, db: Reader, actor: Actor, thing_id: str) -> dict[str, str]:
        return versions.list_tags(db, self.owner(self.get(db, actor, thing_id)))

    def removal(self, db: Reader, actor: Actor, thing_id: str) -> str:
        """The sentence that says what goes when the thing is deleted."""
        thing = self.get_to_change(db, actor, thing_id)
        count, size = versions.totals(db, self.owner(thing))
        plural = "" if count == 1 else "s"
        return f"The {self.kind} {thing.name} and its {count} version{plural} ({size:,} bytes as seen from outside) go for good."

    def touched(self, tx: Tx, thing_id: str) -> None:
        tx.run(f"UPDATE {self.table} SET modified_at = ? WHERE id = ?", clock.stamp(), thing_id)  # noqa: S608 - our own table's name


def may_see(db: Reader, actor: Actor, row: Row) -> bool:
    """Whether `actor` may know of the thing whose row this is."""
    if actor.is_admin or row["is_public"] or row["project_id"] is None:
        return True
    return projects.may_see(db, actor, row["project_id"])


def may_change(db: Reader, actor: Actor, thing: Dataset | Model) -> bool:
    if actor.is_admin or thing.created_by == actor.email:
        return True
    return thing.project_id is not None and projects.may_see(db, actor, thing.project_id)


VISIBLE = (
    "(? OR is_public OR project_id IS NULL OR project_id IN (SELECT project_id FROM collaborators WHERE user_id = ?))"
)


def list_visible(
    db: Reader, table: str, actor: Actor, *, project_id: str | None, after: str | None, limit: int
) -> tuple[list[Row], str | None]:
    """One page of rows that `actor` may see, newest first, and the next page's cursor."""
    rows = db.all(
        f"SELECT rowid AS cursor, * FROM {table} WHERE {VISIBLE} AND (? IS NULL OR project_id = ?) AND rowid < ?"  # noqa: S608 - our own table's name
        " ORDER BY rowid DESC LIMIT ?",
        actor.is_admin,
        actor.user_id,
        project_id,
        project_id,
        ids.cursor(after),
        limit + 1,
    )
    more = str(rows[limit - 1]["cursor"]) if len(rows) > limit else None
    return [{key: value for key, value in row.items() if key != "cursor"} for row in rows[:limit]], more
