"""Runs of workflows: what people ask of them, their course, and the work that each job's attempt takes.

What this keeps true: a run goes from its plan to its end by its rows alone, so it goes on after any crash; a job that did
not succeed leaves no version.

    verbs     start, look, cancel, delete           rows      the rows, and moves along states.py
    course    which job is next, what an end means  prepare   a ready job becomes a wanted container
    collect   an ended container becomes versions

Owns the tables `workflows`, `runs`, `jobs` and `attempts`.

Why: deciding (course) is apart from touching the world (prepare, collect), and both from asking (verbs).
"""

from __future__ import annotations

from appliance.runs.collect import collect, ended, tidy_run
from appliance.runs.course import container_ended, container_started, leased, settle
from appliance.runs.prepare import Workshop, attempt_folder, pending, prepare
from appliance.runs.rows import open_attempts, open_run_ids
from appliance.runs.verbs import (
    FOLDER,
    cancel,
    create_workflow,
    delete,
    delete_of_project,
    delete_workflow,
    find_workflow,
    get_job,
    get_run,
    get_run_of,
    get_workflow,
    list_runs,
    list_workflows,
    log_of,
    removal,
    rename_workflow,
    spec_of,
    start,
    submit,
    unfinished,
)

__all__ = [
    "FOLDER",
    "Workshop",
    "attempt_folder",
    "cancel",
    "collect",
    "container_ended",
    "container_started",
    "create_workflow",
    "delete",
    "delete_of_project",
    "delete_workflow",
    "ended",
    "find_workflow",
    "get_job",
    "get_run",
    "get_run_of",
    "get_workflow",
    "leased",
    "list_runs",
    "list_workflows",
    "log_of",
    "open_attempts",
    "open_run_ids",
    "pending",
    "prepare",
    "removal",
    "rename_workflow",
    "settle",
    "spec_of",
    "start",
    "submit",
    "tidy_run",
    "unfinished",
]
