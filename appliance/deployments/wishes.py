"""What people want deployed: deployments, their specs, their keys.

What this keeps true: each accepted configuration is a new immutable spec under the same deployment; the model's version is
fixed when the spec is made and pinned while the spec lives; a key is shown once and kept as a hash; a port belongs to one
deployment for its whole life.

Why: "what should serve" is rows here, "what serves" is the business of roll.py.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from appliance import clock, containers, events, ids, machine, models, projects, versions
from appliance.config import Config
from appliance.db import Reader, Row, Tx
from appliance.errors import BadRequest, Conflict, NotFound
from appliance.records import Actor, Container, Deployment, DeploymentKey, DeploymentSpec, Page, Project
from appliance.states import SPEC_FINAL, SPEC_MOVES, SpecState

MOST_REPLICAS = 16
_KNOWN = {"apiVersion", "name", "enabled", "model", "replicas", "machineType", "threads", "resources"}


def normalised(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in our flat form: name, model, replicas, machineType, threads, enabled. Pure.

    Reads Gradient's nesting (`resources.replicas`, `resources.machineType` or `instanceType`) too. BadRequest names the key.
    """
    unknown = sorted(set(config) - _KNOWN)
    if unknown:
        more = (
            " A deployment serves an ONNX model here; containers of your own come later." if "image" in unknown else ""
        )
        raise BadRequest(f"The deployment's configuration has an unknown key {unknown[0]!r}.{more}")
    resources = config.get("resources") or {}
    if not isinstance(resources, Mapping):
        raise BadRequest("The deployment's 'resources' is not a mapping.")
    model = config.get("model")
    if isinstance(model, Mapping):
        model = model.get("ref") or model.get("id")
    if not isinstance(model, str) or not model.strip():
        raise BadRequest("The deployment's configuration names no model; add model: NAME, NAME:VERSION or NAME:TAG.")
    name = config.get("name")
    if not isinstance(name, str):
        raise BadRequest("The deployment's configuration has no name.")
    kind = config.get("machineType") or resources.get("machineType") or resources.get("instanceType")
    enabled = config.get("enabled", True)
    if not isinstance(enabled, bool) or not isinstance(kind, str | None):
        raise BadRequest("In a deployment's configuration 'enabled' is true or false and 'machineType' is a name.")
    return {
        "name": ids.name(name, "deployment"),
        "model": model.strip(),
        "replicas": _whole(config.get("replicas", resources.get("replicas", 1)), "replicas", 0, MOST_REPLICAS),
        "machineType": kind,
        "threads": _whole(config.get("threads", 1), "threads", 1, 256),
        "enabled": enabled,
    }


def _whole(value: Any, key: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"The deployment's {key!r} is {str(value)[:40]!r}; give a whole number from {low} to {high}.")
    return value


def apply(
    tx: Tx,
    actor: Actor,
    *,
    project_id: str,
    config: Mapping[str, Any],
    ports: tuple[int, int] | None = None,
    deployment_id: str | None = None,
    run_id: str | None = None,
    origin: str | None = None,
) -> Deployment:
    """The deployment of that id, or of that name in the project, is to serve `config`; made when missing.

    Asked again with the same `origin` it changes nothing.
    """
    project = projects.require(tx, actor, project_id)
    if origin is not None and (known := find_spec_of(tx, origin)) is not None:
        return get_deployment(tx, actor, known.deployment_id)
    wanted = normalised(config)
    machine.resolve_type(tx, wanted["machineType"])
    model, version = models.resolve(tx, actor, wanted["model"], project_id=project.id)
    row = (
        tx.one("SELECT * FROM deployments WHERE id = ? AND project_id = ?", deployment_id, project.id)
        if deployment_id
        else tx.one("SELECT * FROM deployments WHERE project_id = ? AND name = ?", project.id, wanted["name"])
    )
    if row is None and deployment_id:
        raise NotFound(f"There is no deployment {deployment_id!r} in the project {project.name!r}.")
    if row is not None and row["name"] != wanted["name"]:
        _refuse_taken(tx, project, wanted["name"])
    found_id = row["id"] if row else _insert(tx, actor, project.id, wanted["name"], ports)
    enabled = wanted["enabled"] and wanted["replicas"] > 0
    tx.run("UPDATE deployments SET enabled = ?, name = ? WHERE id = ?", int(enabled), wanted["name"], found_id)
    spec_id = ids.new_uuid()
    tx.insert(
        "deployment_specs",
        {
            "id": spec_id,
            "deployment_id": found_id,
            "number": 1 + tx.value("SELECT count(*) FROM deployment_specs WHERE deployment_id = ?", found_id),
            "state": SpecState.PENDING,
            "config": json.dumps(
                {**wanted, "modelId": model.id, "modelName": model.name, "modelVersion": version.number}
            ),
            "model_version_id": version.id,
            "replicas": max(wanted["replicas"], 1),
            "run_id": run_id,
            "origin": origin,
            "created_by": actor.email,
            "created_at": clock.stamp(),
        },
    )
    versions.pin(tx, version.id, spec_id, f"the deployment {wanted['name']} serves it")
    text = (
        f"{actor.email} applied version {version.number} of the model {model.name} to the deployment {wanted['name']}."
    )
    events.record(tx, actor, "deployment.updated", found_id, text, project_id=project.id)
    return get_deployment(tx, actor, found_id)


def _refuse_taken(tx: Tx, project: Project, name: str) -> None:
    if tx.one("SELECT 1 AS found FROM deployments WHERE project_id = ? AND name = ?", project.id, name):
        raise Conflict(f"The project {project.name!r} has a deployment {name!r} already; choose another name.")


def _insert(tx: Tx, actor: Actor, project_id: str, name: str, ports: tuple[int, int] | None) -> str:
    deployment_id = ids.new_uuid()
    first, last = ports or port_range(tx)
    taken = {row["port"] for row in tx.all("SELECT port FROM deployments")}
    port = next((number for number in range(first, last + 1) if number not in taken), None)
    if port is None:
        raise Conflict(
            f"All ports from {first} to {last} are given to deployments; delete one or widen deployment_ports."
        )
    now = clock.stamp()
    tx.insert(
        "deployments",
        {
            "id": deployment_id,
            "project_id": project_id,
            "name": name,
            "port": port,
            "created_by": actor.email,
            "created_at": now,
        },
    )
    text = f"{actor.email} created the deployment {name}."
    events.record(tx, actor, "deployment.created", deployment_id, text, project_id=project_id)
    return deployment_id


def take_another_port(tx: Tx, deployment_id: str) -> bool:
    """A deployment that no client can know yet gets the next port; False for one that has served."""
    if tx.one("SELECT 1 FROM deployment_specs WHERE deployment_id = ? AND healthy_at IS NOT NULL", deployment_id):
        return False
    first, last = port_range(tx)
    taken = {row["port"] for row in tx.all("SELECT port FROM deployments")}
    now = int(tx.value("SELECT port FROM deployments WHERE id = ?", deployment_id))
    after = [*range(now + 1, last + 1), *range(first, now)]
    free = next((port for port in after if port not in taken), None)
    if free is None:
        return False
    tx.run("UPDATE deployments SET port = ? WHERE id = ?", free, deployment_id)
    return True


def port_range(db: Reader) -> tuple[int, int]:
    """The ports for deployments, as the daemon noted them at its start."""
    first, last = (machine.setting(db, "deployment_ports") or "9400-9799").split("-")
    return int(first), int(last)


def get_deployment(db: Reader, actor: Actor, deployment_id: str) -> Deployment:
    row = db.one("SELECT * FROM deployments WHERE id = ?", deployment_id)
    if row is None or not projects.may_see(db, actor, row["project_id"]):
        raise NotFound(f"There is no deployment {deployment_id!r} that you can see.")
    return _deployment(db, row)


def find_by_name(db: Reader, actor: Actor, project_id: str, name: str) -> Deployment:
    """The project's deployment of that name; NotFound."""
    project = projects.require(db, actor, project_id)
    row = db.one("SELECT * FROM deployments WHERE project_id = ? AND name = ?", project.id, name)
    if row is None:
        raise NotFound(f"The project {project.name!r} has no deployment {name!r}.")
    return _deployment(db, row)


def list_deployments(
    db: Reader, actor: Actor, *, project_id: str | None = None, after: str | None = None, limit: int = 50
) -> Page[Deployment]:
    """The newest first: those of one project, or all that `actor` may see."""
    if project_id is not None:
        project_id = projects.require(db, actor, project_id).id
    rows = db.all(
        "SELECT rowid AS cursor, * FROM deployments WHERE (?1 IS NULL OR project_id = ?1) AND (?2 OR project_id IN"
        " (SELECT project_id FROM collaborators WHERE user_id = ?3)) AND rowid < ?4 ORDER BY rowid DESC LIMIT ?5",
        project_id,
        actor.is_admin,
        actor.user_id,
        ids.cursor(after),
        limit + 1,
    )
    more = str(rows[limit - 1]["cursor"]) if len(rows) > limit else None
    return Page(tuple(_deployment(db, row) for row in rows[:limit]), more)


def history(
    db: Reader, actor: Actor, deployment_id: str, *, after: str | None = None, limit: int = 50
) -> Page[DeploymentSpec]:
    """Every spec that was ever applied, the newest first."""
    deployment = get_deployment(db, actor, deployment_id)
    rows = db.all(
        "SELECT * FROM deployment_specs WHERE deployment_id = ? AND number < ? ORDER BY number DESC LIMIT ?",
        deployment.id,
        ids.cursor(after),
        limit + 1,
    )
    found = tuple(read_spec(row) for row in rows[:limit])
    return Page(found, str(found[-1].number) if len(rows) > limit else None)


def apply_again(tx: Tx, actor: Actor, deployment_id: str, spec_id: str) -> Deployment:
    """An old spec's configuration, with the very version it served, becomes a new spec: the way back."""
    deployment = get_deployment(tx, actor, deployment_id)
    row = tx.one("SELECT * FROM deployment_specs WHERE id = ? AND deployment_id = ?", spec_id, deployment.id)
    if row is None:
        raise NotFound(f"The deployment {deployment.name!r} never had a spec {spec_id!r}.")
    spec = read_spec(row)
    config = {key: spec.config[key] for key in ("name", "replicas", "machineType", "threads") if key in spec.config}
    config |= {"model": f"{spec.config['modelId']}:{spec.model_version_id}", "enabled": True}
    config["replicas"] = max(1, int(config["replicas"]))
    return apply(tx, actor, project_id=deployment.project_id, config=config, deployment_id=deployment.id)


def change(
    tx: Tx,
    actor: Actor,
    deployment_id: str,
    *,
    enabled: bool | None = None,
    replicas: int | None = None,
    model: str | None = None,
) -> Deployment:
    """What is given is changed and rolled out as a new spec.

    Switched off, nothing serves but everything is kept; that alone makes no new spec.
    """
    deployment = get_deployment(tx, actor, deployment_id)
    if enabled is False and replicas is None and model is None:
        return _switch_off(tx, actor, deployment)
    if deployment.latest is None:
        raise Conflict(f"The deployment {deployment.name!r} has no configuration yet; apply one.")
    config = {key: deployment.latest.config[key] for key in ("name", "replicas", "machineType", "threads")}
    config["model"] = model or f"{deployment.latest.config['modelId']}:{deployment.latest.model_version_id}"
    config["replicas"] = config["replicas"] if replicas is None else replicas
    config["enabled"] = deployment.enabled if enabled is None else enabled
    if enabled and config["replicas"] == 0:
        config["replicas"] = 1
    return apply(tx, actor, project_id=deployment.project_id, config=config, deployment_id=deployment.id)


def _switch_off(tx: Tx, actor: Actor, deployment: Deployment) -> Deployment:
    """Nothing is resolved, so it works whatever became of the model."""
    if deployment.enabled:
        tx.run("UPDATE deployments SET enabled = 0 WHERE id = ?", deployment.id)
        text = f"{actor.email} switched the deployment {deployment.name} off."
        events.record(tx, actor, "deployment.updated", deployment.id, text, project_id=deployment.project_id)
    return get_deployment(tx, actor, deployment.id)


def set_enabled(tx: Tx, actor: Actor, deployment_id: str, enabled: bool) -> Deployment:
    return change(tx, actor, deployment_id, enabled=enabled)


def removal(db: Reader, actor: Actor, deployment_id: str) -> str:
    """The sentence that says what goes when the deployment is deleted."""
    deployment = get_deployment(db, actor, deployment_id)
    return (
        f"The deployment {deployment.name}, its endpoint, its keys and its history go for good; "
        "clients are refused at once. The model stays."
    )


def delete(tx: Tx, actor: Actor, deployment_id: str) -> Deployment:
    """The deployment is gone; its replicas are stopped."""
    deployment = get_deployment(tx, actor, deployment_id)
    for row in tx.all("SELECT id FROM deployment_specs WHERE deployment_id = ?", deployment.id):
        versions.unpin(tx, row["id"])
        for container in containers.list_of(tx, row["id"]):
            containers.want_gone(tx, container.id)
    tx.run("DELETE FROM deployments WHERE id = ?", deployment.id)
    text = f"{actor.email} deleted the deployment {deployment.name}."
    events.record(tx, actor, "deployment.deleted", deployment.id, text, project_id=deployment.project_id)
    return deployment


def replicas(db: Reader, actor: Actor, deployment_id: str) -> list[Container]:
    """The containers of all its specs that are still known, the oldest first."""
    deployment = get_deployment(db, actor, deployment_id)
    rows = db.all("SELECT id FROM deployment_specs WHERE deployment_id = ? ORDER BY number", deployment.id)
    return [container for row in rows for container in containers.list_of(db, row["id"])]


# -- keys --------------------------------------------------------------------------------------------------------------


def create_key(tx: Tx, actor: Actor, deployment_id: str, name: str) -> tuple[DeploymentKey, str]:
    """A new key and its secret, which is never to be had again."""
    deployment = get_deployment(tx, actor, deployment_id)
    secret = f"dep_{secrets.token_urlsafe(32)}"
    key_id = ids.new_id("dk", 12)
    tx.insert(
        "deployment_keys",
        {
            "id": key_id,
            "deployment_id": deployment.id,
            "name": name[:100] or "key",
            "prefix": secret[:9],
            "hash": hash_of(secret),
            "created_at": clock.stamp(),
        },
    )
    text = f"{actor.email} made the key {name[:100]} for the deployment {deployment.name}."
    events.record(tx, actor, "deployment.key_created", deployment.id, text, project_id=deployment.project_id)
    return next(key for key in list_keys(tx, actor, deployment.id) if key.id == key_id), secret


def list_keys(db: Reader, actor: Actor, deployment_id: str) -> list[DeploymentKey]:
    """Every key, revoked ones too, the newest first."""
    deployment = get_deployment(db, actor, deployment_id)
    rows = db.all("SELECT * FROM deployment_keys WHERE deployment_id = ? ORDER BY created_at DESC, id", deployment.id)
    return [DeploymentKey(**{key: value for key, value in row.items() if key != "hash"}) for row in rows]


def revoke_key(tx: Tx, actor: Actor, deployment_id: str, key_id: str) -> DeploymentKey:
    """The key opens nothing any more, as soon as the replicas have heard of it (within a second)."""
    for key in list_keys(tx, actor, deployment_id):
        if key.id == key_id:
            tx.run(
                "UPDATE deployment_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", clock.stamp(), key_id
            )
            return next(key for key in list_keys(tx, actor, deployment_id) if key.id == key_id)
    raise NotFound(f"The deployment has no key {key_id!r}.")


def key_hashes(db: Reader, deployment_id: str) -> list[str]:
    rows = db.all(
        "SELECT hash FROM deployment_keys WHERE deployment_id = ? AND revoked_at IS NULL ORDER BY id", deployment_id
    )
    return [row["hash"] for row in rows]


def hash_of(secret: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


# -- addresses and rows ------------------------------------------------------------------------------------------------


def url(config: Config, deployment: Deployment) -> str:
    """Where clients on the network reach it: through the gateway, with TLS."""
    return f"{config.dashboard_urls()[0]}/serving/{deployment.id}"


def local_url(config: Config, deployment: Deployment) -> str:
    """Where clients on the server itself reach it: straight into a replica."""
    host = "127.0.0.1" if config.deployment_address in ("0.0.0.0", "::") else config.deployment_address  # noqa: S104 - compared, not bound
    return f"http://{host}:{deployment.port}"


def find_spec_of(db: Reader, origin: str) -> DeploymentSpec | None:
    """The spec that a deploy job's attempt made."""
    row = db.one("SELECT * FROM deployment_specs WHERE origin = ?", origin)
    return None if row is None else read_spec(row)


def give_up(tx: Tx, origin: str, message: str) -> None:
    """The spec that a deploy job's attempt made does not come to serve, if it does not yet: what served goes on."""
    spec = find_spec_of(tx, origin)
    if spec is None or spec.state not in (SpecState.PENDING, SpecState.STARTING):
        return
    if move_spec(tx, spec, SpecState.FAILED, error=message):
        for container in containers.list_of(tx, spec.id):
            containers.want_gone(tx, container.id)


def all_deployments(db: Reader) -> list[Deployment]:
    return [_deployment(db, row) for row in db.all("SELECT * FROM deployments ORDER BY created_at, id")]


def open_specs(db: Reader, deployment_id: str) -> list[DeploymentSpec]:
    """Those that have not ended, the oldest first."""
    rows = db.all(
        "SELECT * FROM deployment_specs WHERE deployment_id = ? AND finished_at IS NULL ORDER BY number", deployment_id
    )
    return [read_spec(row) for row in rows]


def move_spec(tx: Tx, spec: DeploymentSpec, to: SpecState, *, error: str | None = None) -> bool:
    """Along the law; False when the spec was moved or deleted meanwhile."""
    assert to in SPEC_MOVES[spec.state], f"a spec never goes from {spec.state} to {to}"
    now = clock.stamp()
    moved = tx.run(
        "UPDATE deployment_specs SET state = ?, error = coalesce(?, error),"
        " applied_at = CASE WHEN ? THEN coalesce(applied_at, ?) ELSE applied_at END,"
        " healthy_at = CASE WHEN ? THEN coalesce(healthy_at, ?) ELSE healthy_at END, finished_at = ?"
        " WHERE id = ? AND state = ?",
        to,
        error,
        to is SpecState.STARTING,
        now,
        to is SpecState.SERVING,
        now,
        now if to in SPEC_FINAL else None,
        spec.id,
        spec.state,
    )
    if moved and to in SPEC_FINAL:
        versions.unpin(tx, spec.id)
    return moved == 1


def read_spec(row: Row) -> DeploymentSpec:
    fields = {key: row[key] for key in DeploymentSpec.__dataclass_fields__ if key in row}
    read = {"state": SpecState(row["state"]), "config": json.loads(row["config"]), "ended_at": row["finished_at"]}
    return DeploymentSpec(**{**fields, **read})


def _deployment(db: Reader, row: Row) -> Deployment:
    newest = db.one("SELECT * FROM deployment_specs WHERE deployment_id = ? ORDER BY number DESC LIMIT 1", row["id"])
    serving = db.one(
        "SELECT * FROM deployment_specs WHERE deployment_id = ? AND state IN ('serving', 'asleep')"
        " ORDER BY number DESC LIMIT 1",
        row["id"],
    )
    fields = {key: row[key] for key in Deployment.__dataclass_fields__ if key in row}
    return Deployment(
        **{**fields, "enabled": bool(row["enabled"])},
        latest=None if newest is None else read_spec(newest),
        serving=None if serving is None else read_spec(serving),
    )
