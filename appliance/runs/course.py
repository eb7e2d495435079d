"""The course of a run: which job is next, what an ending means, when the run itself has ended.

What this keeps true: a job starts when all that it needs succeeded; a job behind one that ended otherwise is skipped;
every attempt ends through `stopping` with a reason; the run ends when all its jobs have.

Each function is one transaction or part of one, and may be called again at any time: it changes only what is due.

Why: after a crash the same calls find the same rows and go on.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from appliance import clock, containers, deployments, events, ids, versions, workflows
from appliance.db import Database, Reader, Tx
from appliance.errors import ApplianceError, DurabilityLost
from appliance.records import SYSTEM, Attempt, Container, Job, Run
from appliance.runs import rows
from appliance.states import (
    ATTEMPT_FINAL,
    JOB_FINAL,
    AttemptState,
    JobState,
    Reason,
    RunState,
    Seen,
    SpecState,
    final_of,
)
from appliance.store import failpoints

_LOG = logging.getLogger(__name__)


def settle(db: Database) -> list[str]:
    """Move every run that has not ended as far as its rows allow; the ids of the runs that ended by it."""
    with db.read() as reader:
        due = [run_id for run_id in rows.open_run_ids(reader) if _is_due(reader, run_id)]
    ended = []
    for run_id in due:
        try:
            with db.write() as tx:
                if _settle_run(tx, run_id):
                    ended.append(run_id)
        except DurabilityLost:
            raise
        except Exception:
            # One run's trouble holds no other up.
            _LOG.exception("run %s could not be settled; it is tried again", run_id)
        failpoints.hit("run.settled")
    return ended


def _is_due(db: Reader, run_id: str) -> bool:
    """Whether settling would change anything; a look costs no commit."""
    run = rows.run_by_id(db, run_id)
    if all(job.state in JOB_FINAL for job in run.jobs):
        return True
    try:
        plan = rows.plan_of(run)
    except ApplianceError:
        return True
    readiness = workflows.ready_jobs(plan, {job.name: job.state for job in run.jobs})
    if readiness.ready or readiness.skipped:
        return True
    return any(job.state is JobState.READY for job in run.jobs) or bool(_overdue(db, run)) or bool(_rolled(db, run))


def _settle_run(tx: Tx, run_id: str) -> bool:
    run = rows.find_run(tx, run_id)
    if run is None or run.finished_at is not None:
        return False
    try:
        plan = rows.plan_of(run)
    except ApplianceError as error:
        rows.move_run(tx, run, RunState.FAILED, f"Its workflow cannot be read any more: {error.message}")
        return True
    readiness = workflows.ready_jobs(plan, {job.name: job.state for job in run.jobs})
    by_name = {job.name: job for job in run.jobs}
    for name in readiness.skipped:
        failed = [need for need in by_name[name].needs if by_name[need].state is not JobState.SUCCEEDED]
        rows.move_job(tx, by_name[name], JobState.SKIPPED, message=f"Skipped, because it needs {', '.join(failed)}.")
    for name in readiness.ready:
        rows.move_job(tx, by_name[name], JobState.READY)
    for job in rows.run_by_id(tx, run_id).jobs:
        if job.state is JobState.READY:
            _attempt(tx, run, job)
    for attempt, sentence in _overdue(tx, rows.run_by_id(tx, run_id)):
        stop(tx, attempt, Reason.TIMEOUT, sentence)
    for attempt, reason, sentence in _rolled(tx, rows.run_by_id(tx, run_id)):
        stop(tx, attempt, reason, sentence)
    return _end(tx, rows.run_by_id(tx, run_id))


def _attempt(tx: Tx, run: Run, job: Job) -> None:
    if run.state is RunState.PENDING:
        rows.move_run(tx, rows.run_by_id(tx, run.id), RunState.RUNNING) if _still_pending(tx, run.id) else None
    rows.move_job(tx, job, JobState.ACTIVE)
    tx.insert(
        "attempts",
        {
            "id": ids.new_id("at", 16),
            "job_id": job.id,
            "number": len(job.attempts) + 1,
            "state": AttemptState.QUEUED,
            "created_at": clock.stamp(),
        },
    )


def _still_pending(tx: Tx, run_id: str) -> bool:
    return rows.run_by_id(tx, run_id).state is RunState.PENDING


def _overdue(db: Reader, run: Run) -> list[tuple[Attempt, str]]:
    now = clock.stamp()
    found = []
    of_run = rows.plan_of(run).timeout_s
    over = of_run is not None and clock.stamp(clock.parse(run.created_at) + timedelta(seconds=of_run)) <= now
    for job in run.jobs:
        for attempt in job.attempts:
            if attempt.state not in (AttemptState.QUEUED, AttemptState.LEASED, AttemptState.RUNNING):
                continue
            deadline = db.value("SELECT deadline_at FROM attempts WHERE id = ?", attempt.id)
            if deadline is not None and deadline <= now:
                found.append((attempt, "It was stopped because it ran longer than its timeout."))
            elif over:
                found.append((attempt, "It was stopped because the run took longer than the workflow's timeout."))
    return found


def _rolled(db: Reader, run: Run) -> list[tuple[Attempt, Reason, str]]:
    """Attempts of deploy jobs whose roll-out has come to an end."""
    found = []
    for job in run.jobs:
        if not job.uses.startswith("deploy@"):
            continue
        for attempt in job.attempts:
            if attempt.state is not AttemptState.RUNNING:
                continue
            spec = deployments.find_spec_of(db, attempt.id)
            if spec is None:
                found.append((attempt, Reason.ACTION, "The deployment was deleted before it served."))
            elif spec.state in (SpecState.SERVING, SpecState.ASLEEP, SpecState.DRAINING, SpecState.RETIRED):
                found.append((attempt, Reason.FINISHED, "It serves."))
            elif spec.state is SpecState.FAILED:
                found.append((attempt, Reason.ACTION, f"The deployment did not start: {spec.error}"))
    return found


def _end(tx: Tx, run: Run) -> bool:
    if not all(job.state in JOB_FINAL for job in run.jobs):
        return False
    cancelled = tx.value("SELECT cancel_asked_by FROM runs WHERE id = ?", run.id)
    failed = [job for job in run.jobs if job.state is JobState.FAILED]
    if failed:
        state, message = RunState.FAILED, f"{failed[0].name}: {failed[0].message}"
    elif cancelled is not None and any(job.state is not JobState.SUCCEEDED for job in run.jobs):
        state, message = RunState.CANCELLED, f"Cancelled by {cancelled}."
    else:
        state, message = RunState.SUCCEEDED, None
    if run.state is RunState.PENDING and state is RunState.SUCCEEDED:
        rows.move_run(tx, run, RunState.RUNNING)
        run = rows.run_by_id(tx, run.id)
    rows.move_run(tx, run, state, message)
    events.record(tx, SYSTEM, f"run.{state}", run.id, f"Run {run.number} {state}.", project_id=run.project_id)
    return True


def stop(tx: Tx, attempt: Attempt, reason: Reason, message: str) -> None:
    """The attempt stops for `reason`; its container, if it has one, is wanted gone."""
    if attempt.state in ATTEMPT_FINAL or attempt.state is AttemptState.STOPPING:
        return
    rows.move_attempt(tx, attempt, AttemptState.STOPPING, reason=reason, message=message)
    if attempt.container_id is not None:
        containers.want_gone(tx, attempt.container_id)
    if reason in (Reason.CANCELLED, Reason.TIMEOUT):
        deployments.give_up(tx, attempt.id, message)


def finish(tx: Tx, attempt_id: str, outputs: dict[str, dict[str, str]]) -> Job:
    """The attempt and its job end as the attempt's reason says; `outputs` are the job's if it succeeded."""
    attempt = rows.attempt_by_id(tx, attempt_id)
    assert attempt.state is AttemptState.STOPPING
    assert attempt.reason is not None
    to = final_of(Reason(attempt.reason))
    attempt = rows.move_attempt(tx, attempt, to)
    versions.unpin(tx, attempt.id)
    job = rows.job_by_id(tx, attempt.job_id)
    reason = Reason(attempt.reason or Reason.FINISHED)
    if to is AttemptState.SUCCEEDED:
        rows.move_job(tx, job, JobState.SUCCEEDED, outputs=outputs)
    else:
        state = JobState.CANCELLED if to is AttemptState.CANCELLED else JobState.FAILED
        rows.move_job(tx, job, state, reason=reason, message=attempt.message)
    return rows.job_by_id(tx, job.id)


# -- what the reconciler tells -----------------------------------------------------------------------------------------


def leased(tx: Tx, container: Container) -> None:
    """The attempt's container has its lease."""
    attempt = rows.find_attempt(tx, container.owner_id)
    if attempt is not None and attempt.state is AttemptState.QUEUED:
        rows.move_attempt(tx, attempt, AttemptState.LEASED)


def container_started(tx: Tx, container: Container) -> None:
    """The attempt runs, and its job's timeout counts from now."""
    attempt = rows.find_attempt(tx, container.owner_id)
    if attempt is None or attempt.state is not AttemptState.LEASED:
        return
    rows.move_attempt(tx, attempt, AttemptState.RUNNING)
    set_deadline(tx, attempt)


def set_deadline(tx: Tx, attempt: Attempt) -> None:
    """The attempt has begun: its job's timeout counts from now. (The workflow's counts from the run's own beginning.)"""
    job = rows.job_by_id(tx, attempt.job_id)
    of_job = rows.plan_of(rows.run_by_id(tx, job.run_id)).jobs[job.name].timeout_s
    if of_job is not None:
        at = clock.stamp(clock.now() + timedelta(seconds=of_job))
        tx.run("UPDATE attempts SET deadline_at = ? WHERE id = ?", at, attempt.id)


def container_ended(tx: Tx, container: Container, reason: Reason | None = None) -> None:
    """The attempt's container has ended (or could not be made, for `reason`): the attempt stops, and says why.

    Nothing happens for an attempt that was deleted with its run meanwhile.
    """
    attempt = rows.find_attempt(tx, container.owner_id)
    if attempt is None or attempt.state in ATTEMPT_FINAL or attempt.state is AttemptState.STOPPING:
        return
    if attempt.state is AttemptState.LEASED and container.seen is Seen.EXITED:
        attempt = rows.move_attempt(tx, attempt, AttemptState.RUNNING)
    why, sentence = _ending(container, reason)
    rows.move_attempt(tx, attempt, AttemptState.STOPPING, reason=why, message=sentence, exit_code=container.exit_code)


def _ending(container: Container, reason: Reason | None) -> tuple[Reason, str | None]:
    if reason is not None:
        return reason, container.error
    if container.out_of_memory:
        limit = container.spec.memory_mib
        return Reason.OUT_OF_MEMORY, f"It ran out of memory: its limit is {limit} MiB; ask for a larger instance-type."
    match container.exit_code:
        case 0:
            return Reason.FINISHED, None
        case None:
            return Reason.LOST, container.error or "Its container is gone; somebody removed it, or the engine lost it."
        case 126 | 127:
            hint = "the command was not found in the image, or cannot be executed"
            return Reason.EXIT_CODE, f"It exited with code {container.exit_code}: {hint}."
        case code:
            return Reason.EXIT_CODE, f"It exited with code {code}; its log says why."
