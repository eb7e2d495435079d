"""Deployments, their specs and replicas."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.records import Container, Deployment, DeploymentKey, DeploymentSpec
from appliance.states import Seen, Want
from appliance.web.render.common import TEAM_ID, Json, known


def deployment(found: Deployment, *, url: str, local_url: str, model_name: str | None) -> Json:
    state = found.latest.state.value if found.latest else None
    return {
        "dtCreated": found.created_at,
        "endpoint": url.partition("://")[2],
        "id": found.id,
        "latestSpec": spec(found.latest) if found.latest else None,
        "latestSpecHash": found.latest.id if found.latest else None,
        "name": found.name,
        "projectId": found.project_id,
        "teamId": TEAM_ID,
        "url": url,
        "localUrl": local_url,
        "port": found.port,
        "enabled": found.enabled,
        "state": state,
        "servingSpec": spec(found.serving) if found.serving else None,
        "modelName": model_name,
        "createdBy": found.created_by,
    }


def spec(found: DeploymentSpec) -> Json:
    times = {"dtHealthy": found.healthy_at, "externalApplied": found.applied_at, "dtEnded": found.ended_at}
    return {
        "data": dict(found.config),
        "deploymentId": found.deployment_id,
        **known(times),
        "error": found.error,
        "id": found.id,
        "metadata": None,
        "userId": found.created_by,
        "number": found.number,
        "state": found.state.value,
        "replicas": found.replicas,
        "modelVersionId": found.model_version_id,
        "modelRef": found.config.get("model"),
        "createdBy": found.created_by,
        "runId": found.run_id,
        "dtCreated": found.created_at,
    }


def deployment_run(spec_id: str, wanted: int, replicas: Iterable[Container]) -> Json:
    """Gradient's DeploymentRun: what of one spec is there now."""
    instances = [instance(each) for each in replicas]
    running = sum(each["state"] == "running" for each in instances)
    return {
        "id": spec_id,
        "availableReplicas": 0,
        "readyReplicas": running,
        "replicas": wanted,
        "instances": instances,
    }


def instance(found: Container) -> Json:
    state = _instance_state(found)
    times = {"dtFinished": found.finished_at}
    return {
        "id": found.id,
        "instanceId": found.id,
        "dtCreated": found.created_at,
        **known(times),
        "state": state,
        "stateMessage": found.error,
        "history": [{"state": state, "message": found.error, "timestamp": found.started_at or found.created_at}],
    }


def _instance_state(found: Container) -> str:
    if found.error or (found.exit_code or 0) != 0:
        return "failed"
    if found.want is Want.GONE:
        return "stopping" if found.seen is not Seen.REMOVED else "stopped"
    return {"absent": "pending", "created": "pending", "running": "running"}.get(found.seen.value, "stopped")


def deployment_key(found: DeploymentKey) -> Json:
    return {"id": found.id, "name": found.name, "prefix": found.prefix, "dtCreated": found.created_at}
