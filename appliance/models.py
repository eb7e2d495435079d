"""Models: named, versioned trees with a type and metrics, that deployments serve.

What this keeps true: a name is unique in its project; a version's metrics are those that its files bring in
`gradient-model-metadata.json` (Gradient's file), read when the version is made.

Owns the table `models`. The verbs on versions are `catalog.Catalog`'s.

Why: a model is a dataset version with a meaning; the meaning is here, the bytes are shared with the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from appliance import clock, events, ids, projects, versions
from appliance.catalog import Catalog, list_visible, may_see
from appliance.db import Reader, Row, Tx
from appliance.errors import ApplianceError, BadRequest, Conflict, NotFound
from appliance.records import Actor, Model, Page, Tree, Version
from appliance.store import Store

TYPES = ("Tensorflow", "ONNX", "Custom")
METADATA_FILE = "gradient-model-metadata.json"
_METADATA_LIMIT = 256 * 1024


def create(
    tx: Tx,
    actor: Actor,
    *,
    name: str,
    model_type: str = "Custom",
    description: str | None = None,
    is_public: bool = False,
    project_id: str | None = None,
) -> Model:
    """A model without versions. Conflict when the project has one of that name."""
    ids.name(name, "model", not_like="mo")
    model_type = _known_type(model_type)
    if project_id is not None:
        project_id = projects.require(tx, actor, project_id).id
    if tx.one("SELECT 1 AS found FROM models WHERE project_id IS ? AND name = ?", project_id, name):
        raise Conflict(f"A model named {name!r} is there already; choose another name or add a version to it.")
    now = clock.stamp()
    model_id = ids.new_id("mo")
    tx.insert(
        "models",
        {
            "id": model_id,
            "name": name,
            "model_type": model_type,
            "description": description,
            "is_public": int(is_public),
            "project_id": project_id,
            "created_by": actor.email,
            "created_at": now,
            "modified_at": now,
        },
    )
    events.record(
        tx, actor, "model.created", model_id, f"{actor.email} created the model {name}.", project_id=project_id
    )
    return get_model(tx, actor, model_id)


def get_model(db: Reader, actor: Actor, name_or_id: str, *, project_id: str | None = None) -> Model:
    """The model of that id, or of that name in the project (or, without one, the only one of that name)."""
    wanted = ids.ref(name_or_id, "model").name
    rows = [
        row
        for row in db.all("SELECT * FROM models WHERE id = ? OR name = ? ORDER BY created_at", wanted, wanted)
        if may_see(db, actor, row)
    ]
    exact = [row for row in rows if row["id"] == wanted]
    own = [row for row in rows if project_id is not None and row["project_id"] == project_id]
    chosen = exact or own or rows
    if not chosen:
        raise NotFound(f"There is no model {wanted!r} that you can see.")
    if len(chosen) > 1:
        listed = ", ".join(row["id"] for row in chosen)
        raise BadRequest(f"{len(chosen)} models are named {wanted!r}; say which by its id: {listed}.")
    return _model(db, chosen[0])


def list_models(
    db: Reader, actor: Actor, *, project_id: str | None = None, after: str | None = None, limit: int = 50
) -> Page[Model]:
    """The newest first: those of one project, or all that `actor` may see."""
    rows, more = list_visible(db, "models", actor, project_id=project_id, after=after, limit=limit)
    return Page(tuple(_model(db, row) for row in rows), more)


def update(
    tx: Tx,
    actor: Actor,
    model_id: str,
    *,
    name: str | None = None,
    description: str | None = None,
    is_public: bool | None = None,
) -> Model:
    """What is given is changed, the rest stays."""
    model = CATALOG.get_to_change(tx, actor, model_id)
    if name is not None and name != model.name:
        ids.name(name, "model", not_like="mo")
        if tx.one("SELECT 1 AS found FROM models WHERE project_id IS ? AND name = ?", model.project_id, name):
            raise Conflict(f"A model named {name!r} is there already; choose another name.")
    tx.run(
        "UPDATE models SET name = ?, description = ?, is_public = ?, modified_at = ? WHERE id = ?",
        model.name if name is None else name,
        model.description if description is None else description,
        int(model.is_public if is_public is None else is_public),
        clock.stamp(),
        model.id,
    )
    return get_model(tx, actor, model.id)


def delete(tx: Tx, actor: Actor, model_id: str) -> Model:
    """The model and all its versions are gone; Conflict while a deployment serves one of them."""
    model = CATALOG.get_to_change(tx, actor, model_id)
    versions.delete_all(tx, CATALOG.owner(model))
    tx.run("DELETE FROM models WHERE id = ?", model.id)
    text = f"{actor.email} deleted the model {model.name}."
    events.record(tx, actor, "model.deleted", model.id, text, project_id=model.project_id)
    return model


def resolve(db: Reader, actor: Actor, ref: str, *, project_id: str | None = None) -> tuple[Model, Version]:
    """What `name`, `name:version`, `name:tag`, `name:latest` or the same with an id means at this moment."""
    parsed = ids.ref(ref, "model")
    model = get_model(db, actor, parsed.name, project_id=project_id)
    return model, versions.get_committed(db, CATALOG.owner(model), parsed.selector)


def add_version(
    tx: Tx,
    actor: Actor,
    *,
    name: str,
    model_type: str,
    project_id: str,
    tree: Tree,
    metadata: Mapping[str, Any],
    run_id: str,
    job: str,
    origin: str,
) -> tuple[Model, Version]:
    """What `create-model@v1` does: a new version of the project's model `name`, which is created when missing."""
    row = tx.one("SELECT id FROM models WHERE project_id = ? AND name = ?", project_id, name)
    if row is None:
        model = create(tx, actor, name=name, model_type=model_type, project_id=project_id)
    else:
        model = CATALOG.get_to_change(tx, actor, row["id"])
        tx.run("UPDATE models SET model_type = ? WHERE id = ?", _known_type(model_type), model.id)
    version = versions.add_committed(
        tx, CATALOG.owner(model), actor, tree, metadata=metadata, run_id=run_id, job=job, origin=origin
    )
    CATALOG.touched(tx, model.id)
    return model, version


def metadata_of(store: Store, root: str) -> dict[str, Any]:
    """What the files say about themselves: `{"metrics": {NAME: NUMBER}}` from Gradient's metadata file, or nothing.

    Reads both Gradient's form (`{"metrics": [{"name", "numberValue"}]}`) and a plain `{"metrics": {NAME: NUMBER}}`. A file
    that cannot be read makes no version fail: the sentence is kept under `metadataProblem`.
    """
    try:
        text = b"".join(store.read(root, METADATA_FILE, length=_METADATA_LIMIT + 1))
    except NotFound:
        return {}
    except ApplianceError as error:
        return {"metadataProblem": error.message}
    try:
        if len(text) > _METADATA_LIMIT:
            raise ValueError("it is larger than 256 KiB")
        return {"metrics": _metrics(json.loads(text))}
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        return {"metadataProblem": f"{METADATA_FILE} could not be read: {str(error)[:200]}"}


def _metrics(document: Any) -> dict[str, float]:
    listed = document.get("metrics", {})
    pairs = listed.items() if isinstance(listed, dict) else ((row["name"], row["numberValue"]) for row in listed)
    return {str(name)[:200]: float(value) for name, value in pairs}


def _known_type(text: str) -> str:
    for known in TYPES:
        if known.lower() == text.lower():
            return known
    raise BadRequest(f"{text!r} is no type of model; choose one of {', '.join(TYPES)}.")


def _model(db: Reader, row: Row) -> Model:
    latest = versions.find_latest(db, "model", row["id"])
    return Model(**{**row, "is_public": bool(row["is_public"])}, latest=latest)


CATALOG: Catalog[Model] = Catalog("model", "models", get_model)
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
