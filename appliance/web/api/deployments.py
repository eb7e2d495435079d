"""/v1/deployments."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from appliance import deployments
from appliance.db import Reader
from appliance.errors import NotFound
from appliance.records import Actor, Container, Deployment, LogLine
from appliance.states import Seen
from appliance.web import asking, live, render
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.house import House
from appliance.web.params import After, Limit, ProjectId, limited
from appliance.web.routes import Json, delete, get, patch, post

InstanceId = Annotated[str | None, QueryParameter(name="instanceId", description="One replica; default the newest.")]
AfterLine = Annotated[
    int, QueryParameter(name="after", ge=-1, description="The number of the last line that is known.")
]


class Wish(msgspec.Struct, rename="camel"):
    project_id: str
    config: dict[str, Any]
    deployment_id: str | None = None


class Change(msgspec.Struct):
    enabled: bool | None = None
    replicas: int | None = None
    model: str | None = None


class KeyName(msgspec.Struct):
    name: str = "key"


@get("/v1/deployments")
def list_deployments(request: AnyRequest, project_id: ProjectId = None, after: After = None, limit: Limit = 50) -> Json:
    """The deployments that one may see, newest first; of one project on request."""
    return _list(request, project_id, after, limit)


@get("/v1/projects/{project:str}/deployments")
def list_of_project(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The project's deployments, newest first."""
    return _list(request, project, after, limit)


@post("/v1/deployments")
def apply_deployment(request: AnyRequest, data: JSONBody[Wish]) -> Json:
    """Make the deployment that `config` names, or roll it over to `config`."""
    house, actor = who(request)
    with house.db.write() as tx:
        made = deployments.apply(
            tx, actor, project_id=data.project_id, config=data.config, deployment_id=data.deployment_id
        )
    return {"deploymentId": made.id}


@get("/v1/deployments/{deployment:str}")
def get_deployment(request: AnyRequest, deployment: FromPath[str]) -> Json:
    """One deployment: what is wanted, and what serves."""
    house, actor = who(request)
    with house.db.read() as r:
        return _shown(house, deployments.get_deployment(r, actor, deployment))


@patch("/v1/deployments/{deployment:str}")
def change_deployment(request: AnyRequest, deployment: FromPath[str], data: JSONBody[Change]) -> Json:
    """What is given is changed and rolled out."""
    house, actor = who(request)
    with house.db.write() as tx:
        changes = {"enabled": data.enabled, "replicas": data.replicas, "model": data.model}
        return _shown(house, deployments.change(tx, actor, deployment, **changes))  # type: ignore[arg-type]


@get("/v1/deployments/{deployment:str}/removal")
def removal_of_deployment(request: AnyRequest, deployment: FromPath[str]) -> Json:
    """The sentence that says what deleting it takes away."""
    house, actor = who(request)
    with house.db.read() as r:
        return {"text": deployments.removal(r, actor, deployment)}


@delete("/v1/deployments/{deployment:str}")
def delete_deployment(request: AnyRequest, deployment: FromPath[str]) -> Json:
    """The deployment, its keys and its history are gone."""
    house, actor = who(request)
    with house.db.write() as tx:
        return {"id": deployments.delete(tx, actor, deployment).id}


@get("/v1/deployments/{deployment:str}/history")
def list_history(request: AnyRequest, deployment: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """Every spec that was applied, newest first."""
    house, actor = who(request)
    with house.db.read() as r:
        found = deployments.history(r, actor, deployment, after=after, limit=limited(limit))
    return render.page(found, lambda each: {**render.spec(each), "workflowRun": None})


@post("/v1/deployments/{deployment:str}/history/{spec:str}/apply")
def apply_again(request: AnyRequest, deployment: FromPath[str], spec: FromPath[str]) -> Json:
    """Roll back (or forward) to that spec, as a new one."""
    house, actor = who(request)
    with house.db.write() as tx:
        return _shown(house, deployments.apply_again(tx, actor, deployment, spec))


@get("/v1/deployments/{deployment:str}/runs")
def list_replicas(request: AnyRequest, deployment: FromPath[str], limit: Limit = 10) -> list[Json]:
    """The newest specs with the replicas that are still known, newest first; a bare array, as Gradient has it."""
    house, actor = who(request)
    with house.db.read() as r:
        specs = deployments.history(r, actor, deployment, limit=limited(limit)).items
        replicas = deployments.replicas(r, actor, deployment)
    of_spec = {spec.id: [each for each in replicas if each.owner_id == spec.id] for spec in specs}
    return [
        render.deployment_run(spec.id, spec.replicas, of_spec[spec.id])
        for at, spec in enumerate(specs)
        if at == 0 or of_spec[spec.id]
    ]


@get("/v1/deployments/{deployment:str}/logs")
def read_logs(
    request: AnyRequest,
    deployment: FromPath[str],
    instance_id: InstanceId = None,
    after: AfterLine = -1,
    limit: Limit = 1000,
) -> Json:
    """What one replica wrote."""
    house, actor = who(request)
    with house.db.read() as r:
        chosen = _replica(r, actor, deployment, instance_id)
    most = limited(limit)
    lines = house.logs.read(chosen.id, after, most) if chosen else []
    more = str(lines[-1].number) if len(lines) == most else None
    return {
        "items": [_log_line(line, chosen) for line in lines if chosen],
        "hasMore": more is not None,
        "nextPage": more,
    }


@get("/v1/deployments/{deployment:str}/logs/stream")
async def stream_logs(
    request: AnyRequest, deployment: FromPath[str], instance_id: InstanceId = None, after: AfterLine = -1
) -> Stream:
    """What one replica writes (event `line`), until it has ended (event `end`)."""
    house, actor = who(request)
    chosen: list[str | None] = [instance_id]
    seen = [live.resumed(request, after)]

    def look() -> tuple[list[live.Event], bool]:
        with house.db.read() as r:
            live.insist(r, request)
            replica = _replica(r, actor, deployment, chosen[0])
        if replica is None:
            return [], False
        chosen[0] = replica.id
        ended = replica.seen in (Seen.EXITED, Seen.REMOVED)
        lines = house.logs.read(replica.id, seen[0], live.MANY)
        events: list[live.Event] = [("line", {**render.log_line(line), "instanceId": replica.id}) for line in lines]
        seen[0] = lines[-1].number if lines else seen[0]
        over = ended and len(lines) < live.MANY and house.logs.is_sealed(replica.id)
        return [*events, *([("end", {"phase": "stopped", "message": replica.error})] if over else [])], over

    return await live.answer(request, look)


@get("/v1/deployments/{deployment:str}/keys")
def list_keys(request: AnyRequest, deployment: FromPath[str]) -> Json:
    """The keys that may call it, without their secrets."""
    house, actor = who(request)
    with house.db.read() as r:
        found = [key for key in deployments.list_keys(r, actor, deployment) if key.revoked_at is None]
    return render.whole(found, render.deployment_key)


@post("/v1/deployments/{deployment:str}/keys")
def create_key(request: AnyRequest, deployment: FromPath[str], data: JSONBody[KeyName]) -> Json:
    """A key that may call this deployment and nothing else; `key` is its secret, shown this once."""
    house, actor = who(request)
    with house.db.write() as tx:
        key, secret = deployments.create_key(tx, actor, deployment, data.name)
    return {**render.deployment_key(key), "key": secret}


@delete("/v1/deployments/{deployment:str}/keys/{key_id:str}")
def revoke_key(request: AnyRequest, deployment: FromPath[str], key_id: FromPath[str]) -> Json:
    """The key opens nothing any more."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.deployment_key(deployments.revoke_key(tx, actor, deployment, key_id))


@get("/v1/deployments/{deployment:str}/metadata")
def show_metadata(request: AnyRequest, deployment: FromPath[str]) -> Any:
    """The served model's inputs and outputs."""
    house, actor = who(request)
    with house.db.read() as r:
        found = deployments.get_deployment(r, actor, deployment)
    return asking.metadata(house.config, found)


@post("/v1/deployments/{deployment:str}/try")
def try_deployment(request: AnyRequest, deployment: FromPath[str], data: JSONBody[dict[str, Any]]) -> Any:
    """One Open Inference request, forwarded to what serves; for trying out, not for traffic."""
    house, actor = who(request)
    with house.db.read() as r:
        found = deployments.get_deployment(r, actor, deployment)
    return asking.infer(house.config, found, data)


def _list(request: AnyRequest, project_id: str | None, after: str | None, limit: int) -> Json:
    house, actor = who(request)
    with house.db.read() as r:
        found = deployments.list_deployments(r, actor, project_id=project_id, after=after, limit=limited(limit))
    return render.page(found, lambda each: _shown(house, each))


def _shown(house: House, found: Deployment) -> Json:
    newest = found.serving or found.latest
    name = newest.config.get("modelName") if newest else None
    return render.deployment(
        found,
        url=deployments.url(house.config, found),
        local_url=deployments.local_url(house.config, found),
        model_name=name,
    )


def _replica(db: Reader, actor: Actor, deployment: str, instance_id: str | None) -> Container | None:
    """The replica of that id, else the newest one; None when there is none yet."""
    found = deployments.replicas(db, actor, deployment)
    if instance_id is None:
        return found[-1] if found else None
    for each in found:
        if each.id == instance_id:
            return each
    raise NotFound(f"The deployment has no instance {instance_id!r}.")


def _log_line(line: LogLine, replica: Container) -> Json:
    shown = {"id": f"{replica.id}-{line.number}", "dtCreated": line.at, "instanceId": replica.id}
    return {**render.log_line(line), **shown, "jobId": replica.owner_id, "uuid": None}


HANDLERS = [
    list_deployments,
    list_of_project,
    apply_deployment,
    get_deployment,
    change_deployment,
    removal_of_deployment,
    delete_deployment,
    list_history,
    apply_again,
    list_replicas,
    read_logs,
    stream_logs,
    list_keys,
    create_key,
    revoke_key,
    show_metadata,
    try_deployment,
]
