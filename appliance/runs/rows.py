"""The rows of workflows, runs, jobs and attempts: read as records, moved along the law of states.py.

What this keeps true: a move is one UPDATE guarded by the state it comes from; a lost race raises Stale.

Why: the rest of the package says what happens, this page how it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from appliance import clock, containers, workflows
from appliance.db import Reader, Row, Tx
from appliance.errors import Stale
from appliance.records import Attempt, Job, Run, Workflow
from appliance.states import (
    ATTEMPT_FINAL,
    ATTEMPT_MOVES,
    JOB_FINAL,
    JOB_MOVES,
    RUN_FINAL,
    RUN_MOVES,
    AttemptState,
    JobState,
    Reason,
    RunState,
)


def plan_of(run: Run, path: str | None = None) -> workflows.Plan:
    """The plan that the run was started with; it was good then, so it is good now."""
    return _plan(run.spec_text, path or "workflow.yaml")


@lru_cache(maxsize=128)
def _plan(text: str, path: str) -> workflows.Plan:
    """A spec that came as JSON is kept as `json.dumps` writes it, letter for letter; anything else is YAML."""
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError):
        return workflows.parse(text, path)
    return workflows.parse_mapping(spec, path) if json.dumps(spec) == text else workflows.parse(text, path)


def read_run(db: Reader, row: Row) -> Run:
    """The run of that row, with its jobs in the order of the plan and each job's attempts, the oldest first."""
    fields = {key: row[key] for key in Run.__dataclass_fields__ if key in row}
    jobs = tuple(
        read_job(db, found) for found in db.all("SELECT * FROM jobs WHERE run_id = ? ORDER BY position", row["id"])
    )
    return Run(**{**fields, "state": RunState(row["state"]), "inputs": json.loads(row["inputs"])}, jobs=jobs)


def read_job(db: Reader, row: Row) -> Job:
    attempts = tuple(
        read_attempt(db, found)
        for found in db.all("SELECT * FROM attempts WHERE job_id = ? ORDER BY number", row["id"])
    )
    fields = {key: row[key] for key in Job.__dataclass_fields__ if key in row}
    read = {
        "state": JobState(row["state"]),
        "needs": tuple(json.loads(row["needs"])),
        "outputs": json.loads(row["outputs"]),
    }
    return Job(**{**fields, **read}, attempts=attempts)


def read_attempt(db: Reader, row: Row) -> Attempt:
    fields = {key: row[key] for key in Attempt.__dataclass_fields__ if key in row}
    wait = containers.wait_of(db, row["container_id"]) if row["state"] == AttemptState.QUEUED else None
    return Attempt(**{**fields, "state": AttemptState(row["state"])}, wait=wait)


def read_workflow(row: Row) -> Workflow:
    return Workflow(**{key: row[key] for key in Workflow.__dataclass_fields__})


def find_run(db: Reader, run_id: str) -> Run | None:
    row = db.one("SELECT * FROM runs WHERE id = ?", run_id)
    return None if row is None else read_run(db, row)


def run_by_id(db: Reader, run_id: str) -> Run:
    run = find_run(db, run_id)
    assert run is not None, f"no run {run_id}"
    return run


def job_by_id(db: Reader, job_id: str) -> Job:
    row = db.one("SELECT * FROM jobs WHERE id = ?", job_id)
    assert row is not None, f"no job {job_id}"
    return read_job(db, row)


def attempt_by_id(db: Reader, attempt_id: str) -> Attempt:
    attempt = find_attempt(db, attempt_id)
    assert attempt is not None, f"no attempt {attempt_id}"
    return attempt


def find_attempt(db: Reader, attempt_id: str) -> Attempt | None:
    row = db.one("SELECT * FROM attempts WHERE id = ?", attempt_id)
    return None if row is None else read_attempt(db, row)


def open_attempts(db: Reader) -> list[Attempt]:
    return [
        read_attempt(db, row)
        for row in db.all("SELECT * FROM attempts WHERE finished_at IS NULL ORDER BY created_at, id")
    ]


def open_run_ids(db: Reader) -> list[str]:
    return [row["id"] for row in db.all("SELECT id FROM runs WHERE finished_at IS NULL ORDER BY created_at, id")]


def move_run(tx: Tx, run: Run, to: RunState, message: str | None = None) -> None:
    assert to in RUN_MOVES[run.state], f"a run never goes from {run.state} to {to}"
    now = clock.stamp()
    moved = tx.run(
        "UPDATE runs SET state = ?, message = coalesce(?, message), started_at = coalesce(started_at, ?), finished_at = ?"
        " WHERE id = ? AND state = ?",
        to,
        message,
        now,
        now if to in RUN_FINAL else None,
        run.id,
        run.state,
    )
    _insist(moved, "run", run.id)


def move_job(
    tx: Tx,
    job: Job,
    to: JobState,
    *,
    reason: Reason | None = None,
    message: str | None = None,
    outputs: Mapping[str, Any] | None = None,
) -> None:
    assert to in JOB_MOVES[job.state], f"a job never goes from {job.state} to {to}"
    now = clock.stamp()
    moved = tx.run(
        "UPDATE jobs SET state = ?, reason = ?, message = ?, outputs = coalesce(?, outputs),"
        " started_at = CASE WHEN ? THEN ? ELSE started_at END, finished_at = ? WHERE id = ? AND state = ?",
        to,
        reason,
        message,
        None if outputs is None else json.dumps(outputs),
        to is JobState.ACTIVE,
        now,
        now if to in JOB_FINAL else None,
        job.id,
        job.state,
    )
    _insist(moved, "job", job.id)


def move_attempt(
    tx: Tx,
    attempt: Attempt,
    to: AttemptState,
    *,
    reason: Reason | None = None,
    message: str | None = None,
    exit_code: int | None = None,
) -> Attempt:
    assert to in ATTEMPT_MOVES[attempt.state], f"an attempt never goes from {attempt.state} to {to}"
    now = clock.stamp()
    moved = tx.run(
        "UPDATE attempts SET state = ?, reason = coalesce(?, reason), message = coalesce(?, message),"
        " exit_code = coalesce(?, exit_code), started_at = CASE WHEN ? THEN ? ELSE started_at END, finished_at = ?"
        " WHERE id = ? AND state = ?",
        to,
        reason,
        message,
        exit_code,
        to is AttemptState.RUNNING,
        now,
        now if to in ATTEMPT_FINAL else None,
        attempt.id,
        attempt.state,
    )
    _insist(moved, "attempt", attempt.id)
    return attempt_by_id(tx, attempt.id)


def _insist(moved: int, what: str, thing_id: str) -> None:
    if moved != 1:
        raise Stale(f"The {what} {thing_id} was moved by somebody else at the same time; look at it again.")
