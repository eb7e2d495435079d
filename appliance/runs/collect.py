"""From a container that has ended to versions, strings and volumes; then the attempt, its job and its pins end.

What this keeps true: an attempt that did not succeed commits nothing; one that did commits all of its outputs in one
transaction, or (an output is missing or refused) none. A dataset output is a new version that holds what this job wrote
and nothing else. Collected twice (a crash between) it is one version: its origin is `ATTEMPT/OUTPUT`.

Order of effects: bytes into the store, then one transaction with versions, outputs and states, then the folders go. A
crash after the first leaves bytes that nobody names; after the second, folders that the janitor takes.

Why: what a job's success means is here, and only here.
"""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

from appliance import clock, containers, datasets, deployments, events, versions, workflows
from appliance.db import Reader, Tx
from appliance.errors import ApplianceError, BadRequest, Conflict, DiskFull, DurabilityLost, NotFound
from appliance.records import Attempt, Job, Run, Tree
from appliance.runs import course, rows
from appliance.runs.prepare import Workshop, actor_of, attempt_folder, say, volume_folder
from appliance.states import AttemptState, Reason, Seen
from appliance.store import failpoints, remove_folder
from appliance.workflows import IOType

STRING_LIMIT = 64 * 1024
Outputs = dict[str, dict[str, str]]


def ended(db: Reader) -> list[Attempt]:
    """The attempts that are stopping and whose container (if any) has ended."""
    found = []
    for attempt in rows.open_attempts(db):
        if attempt.state is not AttemptState.STOPPING:
            continue
        container = containers.find_container(db, attempt.container_id)
        if container is None or container.seen in (Seen.EXITED, Seen.REMOVED):
            found.append(attempt)
    return found


def collect(shop: Workshop, attempt_id: str) -> None:
    """The attempt is final afterwards."""
    with shop.db.read() as reader:
        attempt = rows.attempt_by_id(reader, attempt_id)
        if attempt.state is not AttemptState.STOPPING:
            return
        job = rows.job_by_id(reader, attempt.job_id)
        run = rows.run_by_id(reader, job.run_id)
    trees: dict[str, Tree] = {}
    if attempt.reason == Reason.FINISHED:
        try:
            trees = _take_in(shop, run, job, attempt)
            failpoints.hit("outputs.taken")
            _finish(shop, run, job, attempt, trees)
            for tree in trees.values():
                shop.store.publish(tree)
        except DurabilityLost:
            raise
        except ApplianceError as error:
            for tree in trees.values():
                shop.store.discard(tree)
            _refuse(shop, attempt, error)
    with shop.db.write() as tx:
        if rows.attempt_by_id(tx, attempt_id).state is AttemptState.STOPPING:
            _end(tx, shop, attempt, {})
    failpoints.hit("attempt.collected")
    shop.logs.seal(attempt_id)
    _tidy(shop, attempt)


def _end(tx: Tx, shop: Workshop, attempt: Attempt, outputs: Outputs) -> None:
    """The attempt is final, and its container is not wanted any longer than it is kept to be looked at."""
    course.finish(tx, attempt.id, outputs)
    if attempt.container_id is not None:
        keep = clock.now() + timedelta(seconds=shop.config.container_retention_s)
        containers.want_gone(tx, attempt.container_id, keep_until=clock.stamp(keep))


def _take_in(shop: Workshop, run: Run, job: Job, attempt: Attempt) -> dict[str, Tree]:
    """Every dataset output is durable in the store; a missing or empty one is refused before anything is taken."""
    plan = rows.plan_of(run).jobs[job.name]
    if isinstance(plan.with_, workflows.CreateModel | workflows.Deploy):
        return {}
    folder = attempt_folder(shop.config, attempt.id) / "outputs"
    _refuse_missing(folder, plan, shop.config.volumes_dir / run.id / job.name)
    trees = {}
    try:
        for name, output in plan.outputs.items():
            if output.type is IOType.DATASET:
                trees[name] = shop.store.put_tree(folder / name, move=True)
    except BaseException:
        for tree in trees.values():
            shop.store.discard(tree)
        raise
    return trees


def _refuse_missing(folder: Path, plan: workflows.JobPlan, kept: Path) -> None:
    for name, output in plan.outputs.items():
        path = folder / name
        if output.type is IOType.VOLUME and not path.exists() and (kept / name).exists():
            continue  # it was kept already, before a crash
        mode = path.lstat().st_mode if path.is_symlink() or path.exists() else 0
        if output.type is IOType.STRING:
            if not stat.S_ISREG(mode):
                raise NotFound(f"The job wrote no file /outputs/{name}; its string output is the text in that file.")
        elif not stat.S_ISDIR(mode):
            raise NotFound(f"The job replaced the folder /outputs/{name}; write the output's files into that folder.")
        elif not any(path.iterdir()):
            raise NotFound(f"The job wrote nothing into /outputs/{name}; an output has to hold at least one file.")


def _finish(shop: Workshop, run: Run, job: Job, attempt: Attempt, trees: dict[str, Tree]) -> None:
    plan = rows.plan_of(run).jobs[job.name]
    folder = attempt_folder(shop.config, attempt.id) / "outputs"
    outputs: Outputs = {}
    for name, output in plan.outputs.items():
        if isinstance(plan.with_, workflows.CreateModel | workflows.Deploy):
            continue
        if output.type is IOType.STRING:
            outputs[name] = {"type": "string", "value": _read_string(folder, name)}
        elif output.type is IOType.VOLUME:
            _keep_volume(folder / name, volume_folder(shop.config, run.id, job.name, name))
            outputs[name] = {"type": "volume"}
    failpoints.hit("volumes.kept")
    with shop.db.write() as tx:
        if isinstance(plan.with_, workflows.Deploy):
            spec = deployments.find_spec_of(tx, attempt.id)
            value = spec.deployment_id if spec else ""
            outputs |= {name: {"type": "string", "value": value} for name in plan.outputs}
        for name, tree in trees.items():
            outputs[name] = _version_of(tx, run, job, attempt, name, plan.outputs[name].ref or name, tree)
        _end(tx, shop, attempt, outputs)
    failpoints.hit("versions.committed")
    for name, made in outputs.items():
        if made["type"] == IOType.DATASET:
            say(shop, attempt.id, f"{name}: dataset {made['dataset_name']}, version {made['number']}.")


def _version_of(tx: Tx, run: Run, job: Job, attempt: Attempt, name: str, ref: str, tree: Tree) -> dict[str, str]:
    """The new version that holds what the job wrote, and where it went."""
    actor = actor_of(tx, run)
    wanted, _, tag = ref.partition(":")
    dataset = datasets.for_output(tx, actor, wanted.rpartition("/")[2], run.project_id)
    version = versions.add_committed(
        tx,
        datasets.CATALOG.owner(dataset),
        actor,
        tree,
        message=f"{job.name} of run {run.number}",
        run_id=run.id,
        job=job.name,
        origin=f"{attempt.id}/{name}",
    )
    if tag and tag != "latest":
        versions.tag(tx, datasets.CATALOG.owner(dataset), actor, tag, version.id)
    datasets.CATALOG.touched(tx, dataset.id)
    text = f"Version {version.number} of the dataset {dataset.name} was written by run {run.number} ({job.name})."
    events.record(tx, actor, "dataset.committed", dataset.id, text, project_id=run.project_id)
    return {
        "type": "dataset",
        "dataset": dataset.id,
        "dataset_name": dataset.name,
        "version": version.id,
        "number": str(version.number),
    }


def _read_string(folder: Path, name: str) -> str:
    """The text of a string output. Opened without following links: the job could have made one to anywhere."""
    descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadRequest(f"/outputs/{name} is not a plain file.")
        data = file.read(STRING_LIMIT + 1)
    if len(data) > STRING_LIMIT:
        raise BadRequest(
            f"/outputs/{name} holds more than {STRING_LIMIT // 1024} KiB; a string output is a short text."
        )
    try:
        return data.decode().strip("\n")
    except UnicodeDecodeError as error:
        raise BadRequest(f"/outputs/{name} is not UTF-8 text (byte {error.start}).") from error


def _keep_volume(source: Path, target: Path) -> None:
    """The folder is the run's volume now; done again after a crash it finds it there."""
    if target.exists() and not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_folder(target)
    source.rename(target)


def _refuse(shop: Workshop, attempt: Attempt, error: ApplianceError) -> None:
    """The attempt succeeded, its outputs did not: it fails, for a reason that says so."""
    match error:
        case NotFound():
            reason = Reason.OUTPUT_MISSING
        case DiskFull():
            reason = Reason.DISK_FULL
        case Conflict() | BadRequest() | _:
            reason = Reason.OUTPUT_REFUSED
    say(shop, attempt.id, error.message)
    with shop.db.write() as tx:
        tx.run(
            "UPDATE attempts SET reason = ?, message = ? WHERE id = ? AND state = 'stopping'",
            reason,
            error.message,
            attempt.id,
        )


def _tidy(shop: Workshop, attempt: Attempt) -> None:
    remove_folder(attempt_folder(shop.config, attempt.id))


def tidy_run(shop: Workshop, run_id: str) -> None:
    """The volumes of a run that has ended are gone."""
    remove_folder(shop.config.volumes_dir / run_id)
