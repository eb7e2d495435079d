"""Records as JSON: Gradient's v1 shapes where Gradient has them, with our own fields beside them.

What this keeps true: each function is pure; a field of Gradient's is present, spelled and typed as its published clients
expect (tests/test_web_render.py holds the keys); times are ISO 8601 text; a time that is not known is left out where
Gradient writes `name?` and null where it does not.

Why: handlers stay one call long, and the contract can be read on one page.
"""

from __future__ import annotations

from appliance.web.render.common import TEAM_ID, Json, base_url, camel, known, page, whole
from appliance.web.render.data import dataset, file_entry, model, version
from appliance.web.render.people import (
    api_key,
    collaborator,
    event,
    invitation,
    link,
    member,
    membership,
    project,
    push,
    session,
    user_ref,
)
from appliance.web.render.serving import deployment, deployment_key, deployment_run, instance, spec
from appliance.web.render.work import has_ended, job, job_log, log_line, run, run_status, spec_json, workflow

__all__ = [
    "TEAM_ID",
    "Json",
    "api_key",
    "base_url",
    "camel",
    "collaborator",
    "dataset",
    "deployment",
    "deployment_key",
    "deployment_run",
    "event",
    "file_entry",
    "has_ended",
    "instance",
    "invitation",
    "job",
    "job_log",
    "known",
    "link",
    "log_line",
    "member",
    "membership",
    "model",
    "page",
    "project",
    "push",
    "run",
    "run_status",
    "session",
    "spec",
    "spec_json",
    "user_ref",
    "version",
    "whole",
    "workflow",
]
