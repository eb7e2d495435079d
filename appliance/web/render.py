"""Records as JSON: Gradient's v1 shapes where Gradient has them, with our own fields beside them.

What this keeps true: each function is pure; a field of Gradient's is present, spelled and typed as its published clients
expect (tests/test_web_render.py holds the keys); times are ISO 8601 text; a time that is not known is left out where
Gradient writes `name?` and null where it does not.

Why: handlers stay one call long, and the contract can be read on one page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar
from urllib.parse import quote

from appliance.config import Config
from appliance.errors import ApplianceError
from appliance.records import (
    ApiKey,
    Collaborator,
    Container,
    Dataset,
    Deployment,
    DeploymentKey,
    DeploymentSpec,
    Event,
    FileEntry,
    Invitation,
    Job,
    LogLine,
    Model,
    Page,
    Project,
    Push,
    Run,
    User,
    Version,
    Workflow,
)
from appliance.states import RUN_FINAL, Seen, VersionState, Want, gradient_phase
from appliance.workflows import yamltext

Json = dict[str, Any]
T = TypeVar("T")
TEAM_ID = "team"
_TEAM = {"id": TEAM_ID, "namespace": TEAM_ID}


def page(found: Page[T], of: Callable[[T], Json]) -> Json:
    return {
        "items": [of(item) for item in found.items],
        "hasMore": found.next_page is not None,
        "nextPage": found.next_page,
    }


def whole(items: Iterable[T], of: Callable[[T], Json]) -> Json:
    """A list that has one page."""
    return {"items": [of(item) for item in items], "hasMore": False, "nextPage": None}


def base_url(config: Config) -> str:
    """The dashboard's best address, which is the first of `config.dashboard_urls()` without looking at the network."""
    host = f"[{config.host_name}]" if ":" in config.host_name else config.host_name
    return f"https://{host}" + ("" if config.https_port == 443 else f":{config.https_port}")


# -- who ---------------------------------------------------------------------------------------------------------------


def session(user: User) -> Json:
    team = {**_TEAM, "analyticsId": 1, "isPrivate": True, "maxMachines": 1}
    membership_team = {**_TEAM, "dtCreated": user.created_at, "isUserTeam": False, "name": "Team"}
    return {
        "team": team,
        "user": {
            **user_ref(user),
            "analyticsId": 1,
            "dtConfirmed": user.created_at,
            "dtCreated": user.created_at,
            "isPasswordAuthEnabled": True,
            "isPhoneVerified": False,
            "isQrCodeBasedMfaConfirmed": False,
            "isQrCodeBasedMfaEnabled": False,
            "metadata": {},
            "preferences": None,
            "teamMemberships": [
                {"isAdmin": user.role == "admin", "isOwner": user.role == "admin", "team": membership_team}
            ],
        },
    }


def user_ref(user: User) -> Json:
    return {"email": user.email, "firstName": None, "id": user.id, "lastName": None, "publicProfileImageUrl": None}


def membership(user: User) -> Json:
    is_admin = user.role == "admin"
    known = {"dtConfirmed": user.created_at, "dtDeleted": user.disabled_at}
    return {**_known(known), "isAdmin": is_admin, "isOwner": is_admin}


def member(user: User) -> Json:
    return {**membership(user), "user": user_ref(user)}


def api_key(key: ApiKey) -> Json:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "dtCreated": key.created_at,
        "dtLastUsed": key.last_used_at,
    }


def invitation(found: Invitation) -> Json:
    return {
        "id": found.id,
        "kind": found.kind,
        "email": found.email,
        "role": found.role.value,
        "isAdmin": found.role == "admin",
        "dtCreated": found.created_at,
        "expires": found.expires_at,
    }


def link(config: Config, token: str) -> str:
    return f"{base_url(config)}/accept?token={token}"


# -- projects ----------------------------------------------------------------------------------------------------------


def project(found: Project, config: Config) -> Json:
    return {
        "dtCreated": found.created_at,
        "id": found.id,
        "name": found.name,
        "repoName": found.name,
        "repoNodeId": None,
        "repoUrl": f"{base_url(config)}/git/{quote(found.name)}.git",
        "repoPath": str(config.repos_dir / f"{found.id}.git"),
        "createdBy": found.created_by,
        "url": f"{base_url(config)}/projects/{quote(found.name)}",
    }


def collaborator(found: Collaborator) -> Json:
    return {"dtCreated": found.added_at, "user": user_ref(found.user)}


def event(found: Event) -> Json:
    return {
        "id": found.id,
        "dtCreated": found.at,
        "actor": found.actor,
        "kind": found.kind,
        "projectId": found.project_id,
        "subject": found.subject,
        "text": found.text,
    }


def push(found: Push) -> Json:
    return {
        "id": found.id,
        "projectId": found.project_id,
        "ref": found.ref,
        "old": found.old,
        "new": found.new,
        "pusher": found.pusher,
        "dtCreated": found.at,
    }


# -- datasets and models -----------------------------------------------------------------------------------------------


def dataset(found: Dataset) -> Json:
    return {
        "description": found.description,
        "dtCreated": found.created_at,
        "dtModified": found.modified_at,
        "id": found.id,
        "isPublic": found.is_public,
        "name": found.name,
        "storageProviderId": "appliance",
        "teamId": TEAM_ID,
        "projectId": found.project_id,
        "createdBy": found.created_by,
        "latestVersion": version(found.latest) if found.latest else None,
    }


def model(found: Model) -> Json:
    return {
        "description": found.description,
        "dtCreated": found.created_at,
        "dtModified": found.modified_at,
        "id": found.id,
        "isPublic": found.is_public,
        "name": found.name,
        "projectId": found.project_id,
        "storageProviderId": "appliance",
        "teamId": TEAM_ID,
        "modelType": found.model_type,
        "createdBy": found.created_by,
        "latestVersion": version(found.latest) if found.latest else None,
    }


def version(found: Version) -> Json:
    """Gradient's DatasetVersion (its `version` is the id), and what we know besides; for models as well."""
    return {
        f"{found.owner_kind}Id": found.owner_id,
        "dtCreated": found.created_at,
        "dtModified": found.committed_at or found.created_at,
        "isCommitted": found.state is VersionState.COMMITTED,
        "message": found.message,
        "metadata": dict(found.metadata),
        "tags": list(found.tags),
        "url": f"/v1/{found.owner_kind}s/{found.owner_id}/versions/{found.id}/archive.tar",
        "usageBytes": str(found.size_bytes),
        "userId": found.created_by,
        "version": found.id,
        "number": found.number,
        "fileCount": found.file_count,
        "addedBytes": str(found.added_bytes),
        "root": found.root,
        "runId": found.run_id,
        "job": found.job,
    }


def file_entry(found: FileEntry) -> Json:
    return {
        "path": found.path,
        "kind": found.kind,
        "sizeBytes": found.size_bytes,
        "executable": found.executable,
        "hash": found.hash,
    }


# -- workflows and runs ------------------------------------------------------------------------------------------------


def workflow(found: Workflow, spec_text: str | None = None) -> Json:
    spec = spec_json(spec_text)
    return {
        "dtCreated": found.created_at,
        "dtModified": found.modified_at,
        "id": found.id,
        "name": found.name,
        "projectId": found.project_id,
        "path": found.path,
        **({"spec": spec} if spec is not None else {}),
    }


def run(found: Run, workflow_name: str, project_name: str, config: Config, *, with_spec: bool = False) -> Json:
    path = f"/projects/{quote(project_name)}/runs/{quote(workflow_name)}/{found.number}"
    more: Json = {"spec": spec_json(found.spec_text), "specText": found.spec_text} if with_spec else {}
    return {
        "id": found.number,
        "uuid": found.id,
        "cluster": {"id": "appliance"},
        "meta": {},
        "status": run_status(found),
        "workflowId": found.workflow_id,
        "workflowName": workflow_name,
        "projectId": found.project_id,
        "projectName": project_name,
        "ref": found.ref,
        "commit": found.commit,
        "commitMessage": found.commit_message,
        "startedBy": found.started_by,
        "inputs": dict(found.inputs),
        "dtCreated": found.created_at,
        "url": base_url(config) + path,
        **more,
    }


def run_status(found: Run) -> Json:
    times = {"started": found.started_at, "finished": found.finished_at, "message": found.message}
    return {
        "phase": gradient_phase(found.state),
        "logId": found.id,
        **_known(times),
        "inputs": dict(found.inputs),
        "jobs": {each.name: job(each) for each in found.jobs},
    }


def job(found: Job) -> Json:
    newest = found.attempts[-1] if found.attempts else None
    known = {"started": found.started_at, "finished": found.finished_at, "message": found.message}
    return {
        "phase": gradient_phase(found.state),
        "logId": newest.id if newest else found.id,
        **_known(known),
        "outputs": {name: dict(value) for name, value in found.outputs.items()},
        "needs": list(found.needs),
        "uses": found.uses,
        "wait": newest.wait if newest else None,
        "reason": found.reason,
        "exitCode": newest.exit_code if newest else None,
    }


def job_log(found: Job, run_id: str, lines: Iterable[LogLine]) -> Json:
    """Gradient's JobLog: all lines inline."""
    known = {"dtStarted": found.started_at, "dtFinished": found.finished_at}
    return {
        "id": found.id,
        "name": found.name,
        "phase": gradient_phase(found.state),
        "message": found.message,
        "workflowRunId": run_id,
        "dtCreated": found.created_at,
        **_known(known),
        "logs": [
            {
                "id": f"{found.id}-{line.number}",
                "jobId": found.id,
                "dtCreated": line.at,
                "message": line.text,
                "instanceId": None,
                "uuid": None,
            }
            for line in lines
        ],
    }


def log_line(line: LogLine) -> Json:
    return {"line": line.number, "at": line.at, "stream": line.stream, "message": line.text}


def has_ended(found: Run) -> bool:
    return found.state in RUN_FINAL


def spec_json(text: str | None) -> Any:
    """A stored spec as JSON, as Gradient shows it; None for one that cannot be read."""
    if text is None:
        return None
    try:
        return json.loads(text) if text.lstrip().startswith("{") else _plain(yamltext.load(text))
    except (yamltext.YamlProblem, ApplianceError, ValueError):
        return None


def _plain(node: yamltext.Node) -> Any:
    if isinstance(node, yamltext.Table):
        return {name: _plain(entry.value) for name, entry in node.entries.items()}
    if isinstance(node, yamltext.Listing):
        return [_plain(each) for each in node.items]
    match node.kind:
        case "null":
            return None
        case "bool":
            return node.text == "true"
        case "int" | "float":
            try:
                return _whole(node.text) if node.kind == "int" else float(node.text)
            except ValueError:
                return node.text
    return node.text


def _whole(text: str) -> int:
    # YAML's core schema: 0o17 and 0xF are octal and hexadecimal, 017 is seventeen.
    return int(text, 0) if text.lstrip("+-")[:2] in ("0o", "0x") else int(text)


# -- deployments -------------------------------------------------------------------------------------------------------


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
        **_known(times),
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
        **_known(times),
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


# -- the machine -------------------------------------------------------------------------------------------------------


def camel(record: Any) -> Json:
    """A plain record of ours with its own field names in camelCase."""
    return {_camel(name): value for name, value in asdict(record).items()}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _known(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}
