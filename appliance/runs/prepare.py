"""From a job that is ready to a container that is wanted: inputs found, folders made, the spec written.

What this keeps true: what a job reads is fixed (and pinned) before its container is wanted; `/inputs` is read-only;
`/outputs` is a folder of this attempt alone; nothing of the host but these and, for a checkout of the project's own
repository, that repository read-only is in the container.

Order of effects: the pins, the folders, the row. A crash between leaves an attempt that is queued without a container:
the next round prepares it again, into the same folders.

Why: a user's YAML decides names and commands; where things lie on the host is decided here alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance import accounts, containers, datasets, deployments, events, machine, models, versions, workflows
from appliance.config import Config
from appliance.db import Database, Reader, Tx
from appliance.errors import ApplianceError, BadRequest, DiskFull, DurabilityLost, NotFound, Stale
from appliance.records import SYSTEM, Actor, Attempt, ContainerSpec, Job, Mount, Role, Run, Tree
from appliance.repos import Repos
from appliance.runs import course, rows
from appliance.runtime.logs import LogStore
from appliance.states import AttemptState, Reason
from appliance.store import Store, failpoints, remove_folder
from appliance.workflows import IOType

SCRIPT = "/.appliance/script"
REPOSITORY = "/.appliance/repository.git"
_CHECKOUT = """\
set -eu
mkdir -p "$DESTINATION"
if [ -n "${GIT_PASSWORD:-}${GIT_USERNAME:-}" ]; then
  git config --global credential.helper '!f() { echo "username=$GIT_USERNAME"; echo "password=$GIT_PASSWORD"; }; f'
fi
git clone --no-hardlinks -- "$SOURCE" "$DESTINATION"
if [ -n "${REVISION:-}" ]; then
  git -C "$DESTINATION" -c advice.detachedHead=false checkout --detach "$REVISION"
fi
git -C "$DESTINATION" log -1 --format='%H %s'
"""


@dataclass(frozen=True)
class Workshop:
    """What the work on runs needs of the house."""

    config: Config
    db: Database
    store: Store
    repos: Repos
    logs: LogStore


@dataclass(frozen=True)
class Found:
    """An input with what it is: a version's root, a text, or the folder of a volume."""

    type: IOType
    version_id: str | None = None
    root: str | None = None
    text: str | None = None
    folder: Path | None = None


def pending(db: Reader) -> list[Attempt]:
    """The attempts that wait to be prepared."""
    return [
        attempt
        for attempt in rows.open_attempts(db)
        if attempt.state is AttemptState.QUEUED and attempt.container_id is None
    ]


def prepare(shop: Workshop, attempt_id: str) -> None:
    """The attempt's container is wanted; or, for an action of ours, the action was done; or the attempt stops."""
    with shop.db.read() as reader:
        attempt = rows.attempt_by_id(reader, attempt_id)
        if attempt.state is not AttemptState.QUEUED or attempt.container_id is not None:
            return
        job = rows.job_by_id(reader, attempt.job_id)
        run = rows.run_by_id(reader, job.run_id)
    plan = rows.plan_of(run).jobs[job.name]
    try:
        found = _find_inputs(shop, run, plan, attempt)
        match plan.with_:
            case workflows.CreateModel():
                _create_model(shop, run, job, attempt, plan.with_, found)
            case workflows.Deploy():
                _deploy(shop, run, attempt, plan.with_, found)
            case action:
                _want_container(shop, run, job, attempt, plan, action, found)
    except (DurabilityLost, Stale):
        raise
    except ApplianceError as error:
        _refuse(shop, attempt.id, _reason_of(error), error.message)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        sentence = "The disk is full." if full else f"Its folders could not be made: {error.strerror}."
        _refuse(shop, attempt.id, Reason.DISK_FULL if full else Reason.ACTION, sentence)


def _reason_of(error: ApplianceError) -> Reason:
    match error:
        case NotFound():
            return Reason.INPUT_MISSING
        case DiskFull():
            return Reason.DISK_FULL
        case _:
            return Reason.ACTION


def _refuse(shop: Workshop, attempt_id: str, reason: Reason, sentence: str) -> None:
    """The attempt stops before it began, and says why."""
    with shop.db.write() as tx:
        course.stop(tx, rows.attempt_by_id(tx, attempt_id), reason, sentence)
    with contextlib.suppress(OSError):
        say(shop, attempt_id, sentence)


def actor_of(db: Reader, run: Run) -> Actor:
    """The person who started the run, with today's rights; whoever has no account any more sees what is public.

    Root on the server (a push over a path) acts as the server's own admin.
    """
    user = accounts.find_user(db, run.started_by)
    if user is None:
        own = run.started_by in (SYSTEM.email, accounts.LOCAL_ADMIN)
        return SYSTEM if own else Actor("", run.started_by, Role.MEMBER, "run")
    return accounts.actor_of(user, "run")


def say(shop: Workshop, attempt_id: str, text: str) -> None:
    """A line of ours in the attempt's log."""
    shop.logs.note(attempt_id, text)


# -- inputs ------------------------------------------------------------------------------------------------------------


def _find_inputs(shop: Workshop, run: Run, plan: workflows.JobPlan, attempt: Attempt) -> dict[str, Found]:
    """Every input of the job as it is at this moment; dataset versions are pinned for the attempt."""
    with shop.db.write() as tx:
        found = {}
        for name, wanted in plan.inputs.items():
            one = _find_input(shop, tx, run, wanted)
            if one is None:
                continue
            found[name] = one
            if one.version_id is not None:
                versions.pin(tx, one.version_id, attempt.id, f"job {plan.name} of run {run.number} reads it")
        return found


def _find_input(
    shop: Workshop, db: Reader, run: Run, wanted: workflows.Reference | workflows.InputDecl
) -> Found | None:
    if isinstance(wanted, workflows.InputDecl):
        return _from_outside(db, run, wanted.type, wanted.ref, wanted.value, optional=wanted.optional)
    if wanted.kind == "workflow_input":
        bound = run.inputs.get(wanted.name)
        if bound is None:
            return None
        return _from_outside(db, run, IOType(bound["type"]), bound["ref"], bound["value"], optional=False)
    assert wanted.job is not None
    source = next(job for job in run.jobs if job.name == wanted.job)
    output = source.outputs[wanted.name]
    if output["type"] == IOType.DATASET:
        version = versions.find_by_id(db, output["version"])
        if version is None:
            raise NotFound(f"The version that {source.name} wrote to {wanted.name} was deleted meanwhile.")
        return Found(IOType.DATASET, version_id=version.id, root=version.root)
    if output["type"] == IOType.STRING:
        return Found(IOType.STRING, text=output["value"])
    return Found(IOType.VOLUME, folder=volume_folder(shop.config, run.id, source.name, wanted.name))


def _from_outside(
    db: Reader, run: Run, kind: IOType, ref: str | None, value: str | None, *, optional: bool
) -> Found | None:
    if kind is IOType.STRING:
        return Found(IOType.STRING, text=value or "")
    if kind is IOType.VOLUME:
        raise BadRequest("A volume cannot come from outside; a job of this workflow has to make it.")
    assert ref is not None
    try:
        _, version = datasets.resolve(db, actor_of(db, run), ref)
    except NotFound:
        if optional:
            return None
        raise
    return Found(IOType.DATASET, version_id=version.id, root=version.root)


def volume_folder(config: Config, run_id: str, job: str, name: str) -> Path:
    return config.volumes_dir / run_id / job / name


def attempt_folder(config: Config, attempt_id: str) -> Path:
    return config.work_dir / attempt_id


# -- containers --------------------------------------------------------------------------------------------------------


def _want_container(
    shop: Workshop,
    run: Run,
    job: Job,
    attempt: Attempt,
    plan: workflows.JobPlan,
    action: workflows.Container | workflows.Script | workflows.GitCheckout,
    found: Mapping[str, Found],
) -> None:
    folder = attempt_folder(shop.config, attempt.id)
    remove_folder(folder)
    (folder / "inputs").mkdir(parents=True)
    (folder / "outputs").mkdir()
    for name, output in plan.outputs.items():
        if output.type is not IOType.STRING:
            (folder / "outputs" / name).mkdir()
    mounts = [_input_mount(shop, folder, name, one) for name, one in found.items()]
    mounts.append(Mount(str(folder / "outputs"), "/outputs", read_only=False))
    env = {**plan.env, "PROJECT_ID": run.project_id, "APPLIANCE_RUN": run.id, "APPLIANCE_JOB": job.name}
    image, entrypoint, command = _program(shop, folder, run, action, mounts, env)
    failpoints.hit("attempt.prepared")
    with shop.db.write() as tx:
        kind = machine.resolve_type(tx, plan.machine_type)
        spec = ContainerSpec(
            id=attempt.id,
            kind="attempt",
            profile="workload",
            image=image,
            command=command,
            entrypoint=entrypoint,
            env=env,
            mounts=tuple(mounts),
            cpus=kind.cpus,
            memory_mib=kind.memory_mib,
            network=run.id,
        )
        current = rows.attempt_by_id(tx, attempt.id)
        if current.state is not AttemptState.QUEUED:
            return
        containers.add(tx, spec, owner_id=attempt.id, project_id=run.project_id, machine_type=kind.name)
        tx.run("UPDATE attempts SET container_id = ? WHERE id = ?", spec.id, attempt.id)
    failpoints.hit("attempt.wanted")


def _required(found: Mapping[str, Found], name: str) -> Found:
    """An input that may be left out in general, but not for this action."""
    if name not in found:
        raise NotFound(f"The job's input {name!r} is not there, and the action cannot do without it.")
    return found[name]


def _input_mount(shop: Workshop, folder: Path, name: str, one: Found) -> Mount:
    target = f"/inputs/{name}"
    if one.root is not None:
        return Mount(str(shop.store.mount_of(one.root)), target, read_only=True)
    if one.folder is not None:
        return Mount(str(one.folder), target, read_only=True)
    path = folder / "inputs" / name
    path.write_text(one.text or "")
    return Mount(str(path), target, read_only=True)


def _program(
    shop: Workshop,
    folder: Path,
    run: Run,
    action: workflows.Container | workflows.Script | workflows.GitCheckout,
    mounts: list[Mount],
    env: dict[str, str],
) -> tuple[str, tuple[str, ...] | None, tuple[str, ...] | None]:
    """Image, entrypoint and command of the action; what it needs besides is added to `mounts` and `env`."""
    match action:
        case workflows.Container():
            return action.image, action.command, action.args or None
        case workflows.Script():
            _add_script(folder, action.script, mounts)
            return action.image, ("bash", SCRIPT), None
        case workflows.GitCheckout():
            _add_script(folder, _CHECKOUT, mounts)
            env["DESTINATION"] = "/".join(part for part in ("/outputs", action.output, action.path) if part)
            env["GIT_USERNAME"], env["GIT_PASSWORD"] = action.username or "", action.password or ""
            env["GIT_TERMINAL_PROMPT"] = "0"
            own = action.ref is None or action.ref == workflows.CONTEXT_REF
            if action.is_own:
                mounts.append(Mount(str(shop.repos.path(run.project_id)), REPOSITORY, read_only=True))
                env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
                env["SOURCE"] = REPOSITORY
                env["REVISION"] = (run.commit or "") if own else (action.ref or "")
            else:
                env["SOURCE"] = action.url or ""
                env["REVISION"] = (run.ref or "") if action.ref == workflows.CONTEXT_REF else (action.ref or "")
            return shop.config.base_image, ("bash", SCRIPT), None


def _add_script(folder: Path, text: str, mounts: list[Mount]) -> None:
    path = folder / "script"
    path.write_text(text)
    mounts.append(Mount(str(path), SCRIPT, read_only=True))


# -- our own actions ---------------------------------------------------------------------------------------------------


def _create_model(
    shop: Workshop, run: Run, job: Job, attempt: Attempt, action: workflows.CreateModel, found: Mapping[str, Found]
) -> None:
    """The dataset version in input `model` becomes a version of the model; one transaction with the job's end."""
    root = _required(found, "model").root
    assert root is not None
    metadata = models.metadata_of(shop.store, root)
    with shop.db.write() as tx:
        source = versions.find_by_id(tx, found["model"].version_id or "")
        assert source is not None
        tree = Tree(root, source.file_count, source.size_bytes, added_bytes=0)
        model, version = models.add_version(
            tx,
            actor_of(tx, run),
            name=action.name,
            model_type=action.model_type,
            project_id=run.project_id,
            tree=tree,
            metadata={**metadata, "dataset_version": source.id},
            run_id=run.id,
            job=job.name,
            origin=f"{attempt.id}/model",
        )
        ref = f"{model.id}:{version.id}"
        _pass_through(tx, attempt)
        names = rows.plan_of(run).jobs[job.name].outputs
        course.finish(tx, attempt.id, {name: {"type": "string", "value": ref} for name in names})
        text = f"Version {version.number} of the model {model.name} was made by run {run.number}."
        events.record(tx, SYSTEM, "model.committed", model.id, text, project_id=run.project_id)
    failpoints.hit("model.committed")
    say(shop, attempt.id, f"Model {model.name} ({model.id}) has version {version.number}: {json.dumps(metadata)}")
    shop.logs.seal(attempt.id)


def _pass_through(tx: Tx, attempt: Attempt) -> None:
    """An action without a container runs and finishes in one go."""
    moved = rows.attempt_by_id(tx, attempt.id)
    for state in (AttemptState.LEASED, AttemptState.RUNNING):
        moved = rows.move_attempt(tx, moved, state)
    rows.move_attempt(tx, moved, AttemptState.STOPPING, reason=Reason.FINISHED)


def _deploy(shop: Workshop, run: Run, attempt: Attempt, action: workflows.Deploy, found: Mapping[str, Found]) -> None:
    """A new spec of the deployment; the attempt runs until the roll-out has ended (course.settle sees to it)."""
    ref = (_required(found, "model").text or "").strip()
    config = {"name": action.name, "model": ref, "replicas": action.replicas, "threads": action.threads or 1}
    if action.machine_type is not None:
        config["machineType"] = action.machine_type
    with shop.db.write() as tx:
        deployment = deployments.apply(
            tx, actor_of(tx, run), project_id=run.project_id, config=config, run_id=run.id, origin=attempt.id
        )
        moved = rows.attempt_by_id(tx, attempt.id)
        for state in (AttemptState.LEASED, AttemptState.RUNNING):
            moved = rows.move_attempt(tx, moved, state)
        course.set_deadline(tx, moved)
    failpoints.hit("spec.applied")
    say(shop, attempt.id, f"Rolling out the deployment {deployment.name} with model {ref} …")
