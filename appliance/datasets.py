"""Datasets: named, versioned trees of files, known to the whole team by one name.

What this keeps true: a name is unique on the appliance; what a workflow writes to `ref: NAME` lands in that dataset,
which is created when missing; deleting a dataset takes its versions, never one that something uses.

Owns the table `datasets`. The verbs on versions are `catalog.Catalog`'s.

Why: Gradient's datasets belong to the team, so that two projects can share one; ours do too, and a dataset that a
project's workflow made is seen by that project's people alone unless it is made public.
"""

from __future__ import annotations

from appliance import clock, events, ids, projects, versions
from appliance.catalog import Catalog, list_visible, may_change, may_see
from appliance.db import Reader, Row, Tx
from appliance.errors import Conflict, NotFound
from appliance.records import Actor, Dataset, Page, Version


def create(
    tx: Tx,
    actor: Actor,
    *,
    name: str,
    description: str | None = None,
    is_public: bool = False,
    project_id: str | None = None,
) -> Dataset:
    """A dataset without versions. Conflict when the name is taken."""
    ids.name(name, "dataset", not_like="ds")
    if project_id is not None:
        project_id = projects.require(tx, actor, project_id).id
    _refuse_taken(tx, name)
    now = clock.stamp()
    dataset_id = ids.new_id("ds")
    tx.insert(
        "datasets",
        {
            "id": dataset_id,
            "name": name,
            "description": description,
            "is_public": int(is_public),
            "project_id": project_id,
            "created_by": actor.email,
            "created_at": now,
            "modified_at": now,
        },
    )
    events.record(
        tx, actor, "dataset.created", dataset_id, f"{actor.email} created the dataset {name}.", project_id=project_id
    )
    return get_dataset(tx, actor, dataset_id)


def get_dataset(db: Reader, actor: Actor, name_or_id: str) -> Dataset:
    """The dataset of that id or name (a version in the reference is passed over)."""
    wanted = ids.ref(name_or_id, "dataset").name
    row = db.one("SELECT * FROM datasets WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", wanted)
    if row is None or not may_see(db, actor, row):
        raise NotFound(f"There is no dataset {wanted!r} that you can see.")
    return _dataset(db, row)


def list_datasets(
    db: Reader, actor: Actor, *, project_id: str | None = None, after: str | None = None, limit: int = 50
) -> Page[Dataset]:
    """The newest first: those of one project, or all that `actor` may see."""
    rows, more = list_visible(db, "datasets", actor, project_id=project_id, after=after, limit=limit)
    return Page(tuple(_dataset(db, row) for row in rows), more)


def update(
    tx: Tx,
    actor: Actor,
    dataset_id: str,
    *,
    name: str | None = None,
    description: str | None = None,
    is_public: bool | None = None,
) -> Dataset:
    """What is given is changed, the rest stays. References by the old name find nothing afterwards."""
    dataset = CATALOG.get_to_change(tx, actor, dataset_id)
    if name is not None and name != dataset.name:
        ids.name(name, "dataset", not_like="ds")
        _refuse_taken(tx, name)
    tx.run(
        "UPDATE datasets SET name = ?, description = ?, is_public = ?, modified_at = ? WHERE id = ?",
        dataset.name if name is None else name,
        dataset.description if description is None else description,
        int(dataset.is_public if is_public is None else is_public),
        clock.stamp(),
        dataset.id,
    )
    return get_dataset(tx, actor, dataset.id)


def delete(tx: Tx, actor: Actor, dataset_id: str) -> Dataset:
    """The dataset and all its versions are gone; Conflict while something uses one of them."""
    dataset = CATALOG.get_to_change(tx, actor, dataset_id)
    versions.delete_all(tx, CATALOG.owner(dataset))
    tx.run("DELETE FROM datasets WHERE id = ?", dataset.id)
    text = f"{actor.email} deleted the dataset {dataset.name}."
    events.record(tx, actor, "dataset.deleted", dataset.id, text, project_id=dataset.project_id)
    return dataset


def resolve(db: Reader, actor: Actor, ref: str) -> tuple[Dataset, Version]:
    """What `name`, `name:version`, `name:tag` or `name:latest` means at this moment."""
    parsed = ids.ref(ref, "dataset")
    dataset = get_dataset(db, actor, parsed.name)
    return dataset, versions.get_committed(db, CATALOG.owner(dataset), parsed.selector)


def refusal(db: Reader, actor: Actor, name: str) -> str | None:
    """The sentence that says why a job that `actor` starts may not write to the dataset `name`, or None."""
    row = db.one("SELECT * FROM datasets WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", name)
    if row is None:
        return None
    if not may_see(db, actor, row):
        return f"The dataset name {name!r} is taken by a project that you cannot see; choose another name."
    if not may_change(db, actor, _dataset(db, row)):
        return f"You may read the dataset {name!r} but not write to it; choose another name."
    return None


def for_output(tx: Tx, actor: Actor, name: str, project_id: str) -> Dataset:
    """The dataset that a job of `project_id` writes to: found, or created in the project."""
    row = tx.one("SELECT * FROM datasets WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC", name)
    if row is None:
        return create(tx, actor, name=name, project_id=project_id)
    if (why := refusal(tx, actor, name)) is not None:
        raise Conflict(why)
    return _dataset(tx, row)


def _refuse_taken(tx: Tx, name: str) -> None:
    if tx.one("SELECT 1 AS found FROM datasets WHERE name = ?", name):
        raise Conflict(f"A dataset named {name!r} is there already; choose another name or put a new version into it.")


def _dataset(db: Reader, row: Row) -> Dataset:
    latest = versions.find_latest(db, "dataset", row["id"])
    return Dataset(**{**row, "is_public": bool(row["is_public"])}, latest=latest)


CATALOG: Catalog[Dataset] = Catalog("dataset", "datasets", get_dataset)
create_version = CATALOG.create_version
get_version = CATALOG.get_version
list_versions = CATALOG.list_versions
stage = CATALOG.stage
commit_version = CATALOG.commit_version
delete_version = CATALOG.delete_version
tag = CATALOG.tag
untag = CATALOG.untag
list_tags = CATALOG.list_tags
removal = CATALOG.removal
