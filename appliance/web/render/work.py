"""Workflows, runs, jobs and their logs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from appliance.config import Config
from appliance.errors import ApplianceError
from appliance.records import Job, LogLine, Run, Workflow
from appliance.states import RUN_FINAL, gradient_phase
from appliance.web.render.common import Json, base_url, known
from appliance.workflows import yamltext


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
        **known(times),
        "inputs": dict(found.inputs),
        "jobs": {each.name: job(each) for each in found.jobs},
    }


def job(found: Job) -> Json:
    newest = found.attempts[-1] if found.attempts else None
    times = {"started": found.started_at, "finished": found.finished_at, "message": found.message}
    return {
        "phase": gradient_phase(found.state),
        "logId": newest.id if newest else found.id,
        **known(times),
        "outputs": {name: dict(value) for name, value in found.outputs.items()},
        "needs": list(found.needs),
        "uses": found.uses,
        "wait": newest.wait if newest else None,
        "reason": found.reason,
        "exitCode": newest.exit_code if newest else None,
    }


def job_log(found: Job, run_id: str, lines: Iterable[LogLine]) -> Json:
    """Gradient's JobLog: all lines inline."""
    times = {"dtStarted": found.started_at, "dtFinished": found.finished_at}
    return {
        "id": found.id,
        "name": found.name,
        "phase": gradient_phase(found.state),
        "message": found.message,
        "workflowRunId": run_id,
        "dtCreated": found.created_at,
        **known(times),
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
