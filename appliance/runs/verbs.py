"""What people do with workflows and runs: start, look, cancel, delete.

What this keeps true: a run is started whole (its row and its jobs in one transaction) or not at all; a push starts a
workflow at most once (`UNIQUE (workflow_id, push_id)`); a workflow that cannot be read makes a failed run that says why,
file, line and key; a run's number is never used again.

Why: every door (push, REST, CLI, page) starts a run through `start`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

from appliance import clock, containers, datasets, events, ids, machine, projects, workflows
from appliance.db import Database, Reader, Tx
from appliance.errors import BadRequest, Conflict, NotFound, ParseError
from appliance.records import Actor, Job, Page, Run, Workflow
from appliance.repos import Repos
from appliance.runs import course, rows
from appliance.states import RUN_FINAL, AttemptState, JobState, Reason, RunState

FOLDER = ".gradient/workflows"


def start(
    tx: Tx,
    actor: Actor,
    *,
    project_id: str,
    name: str,
    path: str | None,
    spec_text: str,
    plan: workflows.Plan | None,
    problem: str | None = None,
    ref: str | None = None,
    commit: str | None = None,
    commit_message: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    push_id: str | None = None,
) -> Run:
    """A run of the workflow `name`, which is created when missing. `plan` None: it fails at once, `problem` says why.

    Asked again with the same push it is the run that is there.
    """
    workflow = _workflow_for(tx, project_id, name, path)
    if push_id is not None:
        known = tx.one("SELECT * FROM runs WHERE workflow_id = ? AND push_id = ?", workflow.id, push_id)
        if known is not None:
            return rows.read_run(tx, known)
    bound: Mapping[str, workflows.BoundInput] = {}
    if plan is not None:
        problem = _unsatisfiable(tx, actor, plan)
        bound = workflows.bind_inputs(plan, inputs or {}) if problem is None else {}
    now = clock.stamp()
    run_id = ids.new_uuid()
    tx.run("UPDATE workflows SET runs_made = runs_made + 1, modified_at = ? WHERE id = ?", now, workflow.id)
    tx.insert(
        "runs",
        {
            "id": run_id,
            "workflow_id": workflow.id,
            "project_id": project_id,
            "number": tx.value("SELECT runs_made FROM workflows WHERE id = ?", workflow.id),
            "state": RunState.PENDING if problem is None else RunState.FAILED,
            "message": problem,
            "ref": ref,
            '"commit"': commit,
            "commit_message": commit_message,
            "spec_text": spec_text,
            "inputs": json.dumps({key: asdict(value) for key, value in bound.items()}),
            "started_by": actor.email,
            "push_id": push_id,
            "created_at": now,
            "finished_at": None if problem is None else now,
        },
    )
    if plan is not None and problem is None:
        _insert_jobs(tx, run_id, plan, now)
    run = rows.run_by_id(tx, run_id)
    verb = "started" if problem is None else "could not start"
    text = f"{actor.email} {verb} run {run.number} of the workflow {workflow.name}."
    events.record(tx, actor, "run.started" if problem is None else "run.refused", run_id, text, project_id=project_id)
    return run


def submit(
    db: Database,
    repos: Repos,
    actor: Actor,
    *,
    project_id: str,
    path: str | None = None,
    ref: str | None = None,
    spec_text: str | None = None,
    spec: Mapping[str, Any] | None = None,
    name: str | None = None,
    workflow_id: str | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Run:
    """Start a run without a push: a file of the project's repository at `ref`, or a spec that is given.

    Raises ParseError (all problems at once) where the push would have made a failed run: here somebody waits for the
    answer. `workflow_id` alone starts that workflow again, from its file on `ref` or its stored spec.
    """
    with db.read() as reader:
        project = projects.require(reader, actor, project_id)
        stored = None if workflow_id is None else _stored(reader, actor, workflow_id)
    if stored is not None:
        name, path = name or stored[0].name, path or stored[0].path
        spec_text = spec_text if spec_text is not None or spec is not None or path is not None else stored[1]
    commit = message = None
    if spec is not None:
        spec_text = json.dumps({("on" if key == "true" else key): value for key, value in spec.items()})
        plan = workflows.parse_mapping(json.loads(spec_text), name or "spec")
    elif spec_text is not None:
        plan = workflows.parse(spec_text, path or name or "spec")
    elif path is not None:
        found = repos.commit(project.id, repos.resolve(project.id, ref or "HEAD"))
        commit, message = found.sha, found.message
        spec_text = _text_of(repos, project.id, commit, path)
        plan = workflows.parse(spec_text, path)
    else:
        raise BadRequest(f"Say what to run: a path such as {FOLDER}/train.yaml, or a spec.")
    chosen = name or (PurePosixPath(path).stem if path else None) or plan.name
    with db.write() as tx:
        if (problem := _unsatisfiable(tx, actor, plan)) is not None:
            raise BadRequest(problem)
        return start(
            tx,
            actor,
            project_id=project.id,
            name=ids.name(chosen, "workflow"),
            path=path,
            spec_text=spec_text,
            plan=plan,
            ref=ref,
            commit=commit,
            commit_message=message,
            inputs=inputs,
        )


def get_run(db: Reader, actor: Actor, run_id: str) -> Run:
    run = rows.find_run(db, run_id)
    if run is None or not projects.may_see(db, actor, run.project_id):
        raise NotFound(f"There is no run {run_id!r} that you can see.")
    return run


def get_run_of(db: Reader, actor: Actor, workflow_id: str, number_or_id: str) -> Run:
    """The run of that number (or id) of that workflow."""
    workflow = get_workflow(db, actor, workflow_id)
    row = db.one(
        "SELECT * FROM runs WHERE workflow_id = ? AND (id = ? OR CAST(number AS TEXT) = ?)",
        workflow.id,
        number_or_id,
        number_or_id,
    )
    if row is None:
        raise NotFound(f"The workflow {workflow.name!r} has no run {number_or_id!r}.")
    return rows.read_run(db, row)


def list_runs(
    db: Reader,
    actor: Actor,
    *,
    project_id: str | None = None,
    workflow_id: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page[Run]:
    """The newest first: of one workflow, of one project, or all that `actor` may see."""
    if workflow_id is not None:
        workflow_id = get_workflow(db, actor, workflow_id).id
    if project_id is not None:
        project_id = projects.require(db, actor, project_id).id
    found = db.all(
        "SELECT rowid AS cursor, * FROM runs WHERE (?1 IS NULL OR project_id = ?1) AND (?2 IS NULL OR workflow_id = ?2)"
        " AND (?3 OR project_id IN (SELECT project_id FROM collaborators WHERE user_id = ?4)) AND rowid < ?5"
        " ORDER BY rowid DESC LIMIT ?6",
        project_id,
        workflow_id,
        actor.is_admin,
        actor.user_id,
        ids.cursor(after),
        limit + 1,
    )
    more = str(found[limit - 1]["cursor"]) if len(found) > limit else None
    return Page(tuple(rows.read_run(db, row) for row in found[:limit]), more)


def get_job(db: Reader, actor: Actor, run_id: str, name: str) -> Job:
    for job in get_run(db, actor, run_id).jobs:
        if name in (job.name, job.id):
            return job
    raise NotFound(f"The run has no job {name!r}.")


def log_of(db: Reader, actor: Actor, run_id: str, job_name: str) -> str | None:
    """The key under which the log of the job's newest attempt is kept; None while there is none."""
    attempts = get_job(db, actor, run_id, job_name).attempts
    return attempts[-1].id if attempts else None


def cancel(tx: Tx, actor: Actor, run_id: str) -> Run:
    """Nothing more is started; what runs is stopped and commits nothing. Conflict when the run has ended."""
    run = get_run(tx, actor, run_id)
    if run.state in RUN_FINAL:
        raise Conflict(f"Run {run.number} has ended already: it {run.state}.")
    tx.run("UPDATE runs SET cancel_asked_by = coalesce(cancel_asked_by, ?) WHERE id = ?", actor.email, run.id)
    sentence = f"Cancelled by {actor.email}."
    for job in run.jobs:
        if job.state in (JobState.BLOCKED, JobState.READY):
            rows.move_job(tx, job, JobState.CANCELLED, reason=Reason.CANCELLED, message=sentence)
        for attempt in job.attempts:
            if attempt.state in (AttemptState.QUEUED, AttemptState.LEASED, AttemptState.RUNNING):
                course.stop(tx, attempt, Reason.CANCELLED, sentence)
    events.record(
        tx, actor, "run.cancelled", run.id, f"{actor.email} cancelled run {run.number}.", project_id=run.project_id
    )
    return rows.run_by_id(tx, run.id)


def removal(db: Reader, actor: Actor, run_id: str) -> str:
    """The sentence that says what goes when the run is deleted."""
    run = get_run(db, actor, run_id)
    return f"Run {run.number} with its {len(run.jobs)} jobs and their logs goes for good; versions that it made stay."


def delete(tx: Tx, actor: Actor, run_id: str) -> Run:
    """The run is gone from every list; its logs go with the next round of the janitor. Conflict while it runs."""
    run = get_run(tx, actor, run_id)
    if run.state not in RUN_FINAL:
        raise Conflict(f"Run {run.number} is {run.state}; cancel it first.")
    for attempt in (attempt for job in run.jobs for attempt in job.attempts):
        if attempt.container_id is not None:
            containers.remove_now(tx, attempt.container_id)
    tx.run("DELETE FROM runs WHERE id = ?", run.id)
    text = f"{actor.email} deleted run {run.number}."
    events.record(tx, actor, "run.deleted", run.id, text, project_id=run.project_id)
    return run


# -- workflows ---------------------------------------------------------------------------------------------------------


def list_workflows(db: Reader, actor: Actor, project_id: str | None = None) -> list[Workflow]:
    """Those of the project, the one that ran last first; None: of every project that `actor` may see."""
    if project_id is not None:
        project_id = projects.require(db, actor, project_id).id
    found = db.all(
        "SELECT * FROM workflows WHERE (?1 IS NULL OR project_id = ?1) AND (?2 OR project_id IN"
        " (SELECT project_id FROM collaborators WHERE user_id = ?3)) ORDER BY modified_at DESC, id",
        project_id,
        actor.is_admin,
        actor.user_id,
    )
    return [rows.read_workflow(row) for row in found]


def get_workflow(db: Reader, actor: Actor, workflow_id: str) -> Workflow:
    return _stored(db, actor, workflow_id)[0]


def find_workflow(db: Reader, actor: Actor, project_id: str, name: str) -> Workflow:
    """The project's workflow of that name; NotFound."""
    project = projects.require(db, actor, project_id)
    row = db.one("SELECT * FROM workflows WHERE project_id = ? AND name = ?", project.id, name)
    if row is None:
        raise NotFound(f"The project {project.name!r} has no workflow {name!r}.")
    return rows.read_workflow(row)


def spec_of(db: Reader, actor: Actor, workflow_id: str) -> str | None:
    """The text of the workflow's stored spec, or of its newest run."""
    workflow, text = _stored(db, actor, workflow_id)
    newest = db.value("SELECT spec_text FROM runs WHERE workflow_id = ? ORDER BY number DESC LIMIT 1", workflow.id)
    return text or newest


def create_workflow(tx: Tx, actor: Actor, *, project_id: str, name: str, spec_text: str | None = None) -> Workflow:
    """A workflow without runs. Conflict when the project has one of that name; ParseError for a bad spec."""
    project = projects.require(tx, actor, project_id)
    ids.name(name, "workflow")
    if tx.one("SELECT 1 AS found FROM workflows WHERE project_id = ? AND name = ?", project.id, name):
        raise Conflict(f"The project {project.name!r} has a workflow {name!r} already.")
    if spec_text is not None:
        workflows.parse(spec_text, name)
    workflow = _workflow_for(tx, project.id, name, None)
    tx.run("UPDATE workflows SET spec_text = ? WHERE id = ?", spec_text, workflow.id)
    return workflow


def rename_workflow(tx: Tx, actor: Actor, workflow_id: str, name: str) -> Workflow:
    workflow = get_workflow(tx, actor, workflow_id)
    ids.name(name, "workflow")
    if tx.one(
        "SELECT 1 AS found FROM workflows WHERE project_id = ? AND name = ? AND id != ?",
        workflow.project_id,
        name,
        workflow.id,
    ):
        raise Conflict(f"The project has a workflow {name!r} already.")
    tx.run("UPDATE workflows SET name = ?, modified_at = ? WHERE id = ?", name, clock.stamp(), workflow.id)
    return get_workflow(tx, actor, workflow.id)


def delete_workflow(tx: Tx, actor: Actor, workflow_id: str) -> Workflow:
    """The workflow and its runs are gone; Conflict while one of them runs."""
    workflow = get_workflow(tx, actor, workflow_id)
    if tx.one("SELECT 1 AS found FROM runs WHERE workflow_id = ? AND finished_at IS NULL", workflow.id):
        raise Conflict(f"A run of the workflow {workflow.name!r} has not ended; cancel it first.")
    tx.run("DELETE FROM workflows WHERE id = ?", workflow.id)
    text = f"{actor.email} deleted the workflow {workflow.name}."
    events.record(tx, actor, "workflow.deleted", workflow.id, text, project_id=workflow.project_id)
    return workflow


def _stored(db: Reader, actor: Actor, workflow_id: str) -> tuple[Workflow, str | None]:
    row = db.one("SELECT * FROM workflows WHERE id = ?", workflow_id)
    if row is None or not projects.may_see(db, actor, row["project_id"]):
        raise NotFound(f"There is no workflow {workflow_id!r} that you can see.")
    return rows.read_workflow(row), row["spec_text"]


def _workflow_for(tx: Tx, project_id: str, name: str, path: str | None) -> Workflow:
    now = clock.stamp()
    tx.run(
        "INSERT INTO workflows (id, project_id, name, path, created_at, modified_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (project_id, name) DO UPDATE SET path = coalesce(excluded.path, path)",
        ids.new_uuid(),
        project_id,
        name,
        path,
        now,
        now,
    )
    row = tx.one("SELECT * FROM workflows WHERE project_id = ? AND name = ?", project_id, name)
    assert row is not None
    return rows.read_workflow(row)


def _insert_jobs(tx: Tx, run_id: str, plan: workflows.Plan, now: str) -> None:
    for position, name in enumerate(workflows.order(plan)):
        job = plan.jobs[name]
        tx.insert(
            "jobs",
            {
                "id": ids.new_uuid(),
                "run_id": run_id,
                "name": name,
                "position": position,
                "uses": job.uses,
                "needs": json.dumps(list(job.needs)),
                "state": JobState.BLOCKED,
                "created_at": now,
            },
        )


def _unsatisfiable(db: Reader, actor: Actor, plan: workflows.Plan) -> str | None:
    """The sentence that says which job asks for what it cannot have (a machine type, a dataset's name), or None."""
    for name, job in plan.jobs.items():
        where = f"{plan.path}, line {job.line}, jobs.{name}"
        try:
            machine.resolve_type(db, job.machine_type)
        except BadRequest as error:
            return f"{where}.resources: {error.message}"
        for output, declared in job.outputs.items():
            if declared.ref is not None and (why := datasets.refusal(db, actor, declared.ref.rpartition("/")[2])):
                return f"{where}.outputs.{output}: {why}"
    return None


def _text_of(repos: Repos, project_id: str, commit: str, path: str) -> str:
    try:
        return repos.read(project_id, commit, path).decode()
    except UnicodeDecodeError as error:
        raise ParseError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def unfinished(db: Reader, project_id: str) -> int:
    """How many runs of the project have not ended."""
    return int(db.value("SELECT count(*) FROM runs WHERE project_id = ? AND finished_at IS NULL", project_id))


def delete_of_project(tx: Tx, project_id: str) -> int:
    """Every workflow of the project, and so every run, is gone; how many runs. They have ended: the caller saw to it."""
    assert not unfinished(tx, project_id)
    count = int(tx.value("SELECT count(*) FROM runs WHERE project_id = ?", project_id))
    tx.run("DELETE FROM workflows WHERE project_id = ?", project_id)
    return count
