"""One run: its state, its jobs as a picture, each job's log and data; starting, cancelling, deleting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from litestar import Response
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath, QueryParameter, URLEncodedBody
from litestar.response import Stream

from appliance import projects, runs, versions, workflows
from appliance.db import Reader
from appliance.errors import ApplianceError, BadRequest, NotFound
from appliance.records import Actor, Job, Project, Run, Version, Workflow
from appliance.runtime.logs import LogStore, printable
from appliance.states import JOB_FINAL, RUN_FINAL, JobState
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.pages import changes
from appliance.web.pages.graph import HEIGHT, WIDTH, layout
from appliance.web.pages.project import run_url
from appliance.web.pages.view import go, page
from appliance.web.routes import get, post

_PAGE = "/projects/{project:str}/runs/{workflow:str}/{number:str}"
_GIVEN = "input."
_LINES = 5000
JobName = Annotated[str | None, QueryParameter(name="job")]
Tab = Annotated[str, QueryParameter(name="tab")]


@dataclass(frozen=True)
class Output:
    """An output of a job: a version that can be opened, or a text, or neither (a volume, or not written yet)."""

    name: str
    kind: str
    text: str | None
    version: Version | None
    url: str | None


@get(_PAGE, include_in_schema=False)
def show(
    request: AnyRequest,
    project: FromPath[str],
    workflow: FromPath[str],
    number: FromPath[str],
    job: JobName = None,
    tab: Tab = "log",
) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found, made_by, run = _find(r, actor, project, workflow, number)
        chosen = _chosen(run, job)
        outputs = [_output(r, name, value) for name, value in chosen.outputs.items()] if chosen else []
        goes = runs.removal(r, actor, run.id)
        listen = changes.address(r, actor, "run", run.id)
    return page(
        request,
        "run/run.html",
        project=found,
        workflow=made_by,
        run=run,
        is_over=run.state in RUN_FINAL,
        graph=layout({each.name: each.needs for each in run.jobs}),
        box=(WIDTH, HEIGHT),
        jobs={each.name: each for each in run.jobs},
        job=chosen,
        wait=_wait(run, chosen) if chosen else None,
        tab=tab if tab in ("log", "data", "file") else "log",
        inputs=_inputs(run, chosen) if chosen else {},
        outputs=outputs,
        removal=goes,
        changes=listen,
        url=run_url(found, made_by.name, run),
    )


@post("/projects/{project:str}/runs", include_in_schema=False)
def start(request: AnyRequest, project: FromPath[str], data: URLEncodedBody[dict[str, Any]]) -> Response[Any]:
    house, actor = who(request)
    given = {name.removeprefix(_GIVEN): text for name, text in data.items() if name.startswith(_GIVEN) and text}
    path, ref = str(data.get("path") or ""), str(data.get("ref") or "").strip()
    if not path:
        raise BadRequest("Choose the workflow's file.")
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
    made = runs.submit(
        house.db, house.repos, actor, project_id=found.id, path=path, ref=ref or None, inputs=given or None
    )
    return _to_run(request, made)


@post(f"{_PAGE}/cancel", include_in_schema=False)
def cancel(
    request: AnyRequest, project: FromPath[str], workflow: FromPath[str], number: FromPath[str]
) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        _, _, run = _find(tx, actor, project, workflow, number)
        runs.cancel(tx, actor, run.id)
    house.wake()
    return _to_run(request, run)


@post(f"{_PAGE}/again", include_in_schema=False)
def again(request: AnyRequest, project: FromPath[str], workflow: FromPath[str], number: FromPath[str]) -> Response[Any]:
    """The same file at the same commit, or the same text, with the same inputs, as a new run."""
    house, actor = who(request)
    with house.db.read() as r:
        found, made_by, run = _find(r, actor, project, workflow, number)
    inputs = {name: value.get("ref") or value.get("value") for name, value in run.inputs.items()}
    source: dict[str, Any] = {"spec_text": run.spec_text}
    if run.commit and made_by.path:
        source = {"path": made_by.path, "ref": run.commit}
    made = runs.submit(
        house.db, house.repos, actor, project_id=found.id, name=made_by.name, inputs=inputs or None, **source
    )
    return _to_run(request, made)


@post(f"{_PAGE}/delete", include_in_schema=False)
def delete(
    request: AnyRequest, project: FromPath[str], workflow: FromPath[str], number: FromPath[str]
) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        found, _, run = _find(tx, actor, project, workflow, number)
        runs.delete(tx, actor, run.id)
    return go(request, f"/projects/{quote(found.name)}/workflows")


@get(f"{_PAGE}/jobs/{{job:str}}/log.txt", include_in_schema=False)
def raw_log(
    request: AnyRequest, project: FromPath[str], workflow: FromPath[str], number: FromPath[str], job: FromPath[str]
) -> Stream:
    """The whole log so far as plain text."""
    house, actor = who(request)
    with house.db.read() as r:
        _, _, run = _find(r, actor, project, workflow, number)
        key = runs.log_of(r, actor, run.id, job)
    return Stream(_text(house.logs, key), media_type="text/plain")


async def _text(logs: LogStore, key: str | None) -> AsyncIterator[bytes]:
    pieces = _pieces(logs, key) if key else iter(())
    while (piece := await sync_to_thread(next, pieces, None)) is not None:
        yield piece


def _pieces(logs: LogStore, key: str) -> Iterator[bytes]:
    after = -1
    while lines := logs.read(key, after, _LINES):
        after = lines[-1].number
        yield "".join(f"{printable(line.text)}\n" for line in lines).encode()


def _to_run(request: AnyRequest, run: Run) -> Response[Any]:
    house, actor = who(request)
    house.wake()
    with house.db.read() as r:
        project = projects.get_project(r, actor, run.project_id)
        return go(request, run_url(project, runs.get_workflow(r, actor, run.workflow_id).name, run))


def _find(r: Reader, actor: Actor, project: str, workflow: str, number: str) -> tuple[Project, Workflow, Run]:
    found = projects.get_project(r, actor, project)
    made_by = runs.find_workflow(r, actor, found.id, workflow)
    return found, made_by, runs.get_run_of(r, actor, made_by.id, number)


def _chosen(run: Run, name: str | None) -> Job | None:
    """The job that was asked for; else the one that failed, goes on or is next; else the last."""
    if name is not None:
        for job in run.jobs:
            if job.name == name:
                return job
        raise NotFound(f"The run has no job {name!r}.")
    for wanted in (JobState.FAILED, JobState.ACTIVE, JobState.READY, JobState.BLOCKED):
        for job in run.jobs:
            if job.state is wanted:
                return job
    return run.jobs[-1] if run.jobs else None


def _wait(run: Run, job: Job) -> str | None:
    """Why it has not begun: the scheduler's own sentence, or those that it needs."""
    if job.state in JOB_FINAL:
        return None
    if job.attempts and job.attempts[-1].wait:
        return job.attempts[-1].wait
    if job.state is JobState.BLOCKED:
        states = {each.name: each.state for each in run.jobs}
        left = [name for name in job.needs if states.get(name) is not JobState.SUCCEEDED]
        return f"It waits for {', '.join(left)}." if left else None
    return "It waits for its turn." if job.state is JobState.READY else None


def _inputs(run: Run, job: Job) -> dict[str, str]:
    """Each input of the job and where it comes from, in the workflow's words."""
    try:
        plan = workflows.parse(run.spec_text, "spec").jobs.get(job.name)
    except ApplianceError:
        return {}
    return {name: _source(each) for name, each in plan.inputs.items()} if plan else {}


def _source(found: workflows.Reference | workflows.InputDecl) -> str:
    if isinstance(found, workflows.Reference):
        return f"{found.job}.outputs.{found.name}" if found.job else f"workflow.inputs.{found.name}"
    return found.ref or found.value or ""


def _output(r: Reader, name: str, value: Any) -> Output:
    version = versions.find_by_id(r, value["version"]) if value.get("version") else None
    url = f"/{version.owner_kind}s/{version.owner_id}/versions/{version.number}" if version else None
    text = value.get("value") or value.get("dataset_name")
    return Output(name, value["type"], text, version, url)


HANDLERS = [show, start, cancel, again, delete, raw_log]
