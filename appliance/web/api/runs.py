"""/v1/runs and /v1/workflows. A run is named by its uuid, or by its workflow and its number in it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from appliance import projects, pushes, runs
from appliance.db import Reader
from appliance.records import Actor, Page, Run
from appliance.states import JOB_FINAL, gradient_phase
from appliance.web import live, render
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.house import House
from appliance.web.params import After, Limit, ProjectId, limited
from appliance.web.routes import Json, delete, get, post, put

AfterLine = Annotated[
    int, QueryParameter(name="after", ge=-1, description="The number of the last line that is known.")
]
MOST_LINES = 10_000


class NewRun(msgspec.Struct, rename="camel"):
    path: str | None = None
    ref: str | None = None
    spec_text: str | None = None
    name: str | None = None
    inputs: dict[str, Any] | None = None


class SpecRun(msgspec.Struct):
    spec: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None


class NewWorkflow(msgspec.Struct, rename="camel"):
    project_id: str
    name: str
    spec: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None
    run: bool = False


class WorkflowName(msgspec.Struct):
    name: str


# -- workflows ---------------------------------------------------------------------------------------------------------


@get("/v1/workflows")
def list_workflows(request: AnyRequest, project_id: ProjectId = None) -> list[Json]:
    """The workflows of a project, or of all that one may see; a bare array, as Gradient has it."""
    house, actor = who(request)
    with house.db.read() as r:
        return [render.workflow(each) for each in runs.list_workflows(r, actor, project_id)]


@get("/v1/projects/{project:str}/workflows")
def list_workflows_of_project(request: AnyRequest, project: FromPath[str]) -> Json:
    """The project's workflows, the one that ran last first."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.whole(runs.list_workflows(r, actor, project), render.workflow)


@post("/v1/workflows")
def create_workflow(request: AnyRequest, data: JSONBody[NewWorkflow]) -> Json:
    """A workflow, with its spec where it is given; with `run` it is started at once."""
    house, actor = who(request)
    spec = None if data.spec is None else {("on" if key == "true" else key): each for key, each in data.spec.items()}
    with house.db.write() as tx:
        text = None if spec is None else json.dumps(spec)
        made = runs.create_workflow(tx, actor, project_id=data.project_id, name=data.name, spec_text=text)
    shown = render.workflow(made, text)
    if data.run:
        shown["run"] = _submit(house, actor, project_id=made.project_id, workflow_id=made.id, inputs=data.inputs)
    return shown


@get("/v1/workflows/{workflow:str}")
def get_workflow(request: AnyRequest, workflow: FromPath[str]) -> Json:
    """One workflow, with the spec that it last ran with."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.workflow(runs.get_workflow(r, actor, workflow), runs.spec_of(r, actor, workflow))


@put("/v1/workflows/{workflow:str}")
def rename_workflow(request: AnyRequest, workflow: FromPath[str], data: JSONBody[WorkflowName]) -> Json:
    """Give the workflow another name."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.workflow(runs.rename_workflow(tx, actor, workflow, data.name))


@delete("/v1/workflows/{workflow:str}")
def delete_workflow(request: AnyRequest, workflow: FromPath[str]) -> Json:
    """The workflow and its runs are gone."""
    house, actor = who(request)
    with house.db.write() as tx:
        return {"id": runs.delete_workflow(tx, actor, workflow).id}


@get("/v1/workflows/{workflow:str}/runs")
def list_runs_of_workflow(request: AnyRequest, workflow: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The workflow's runs, newest first."""
    return _list(request, after, limit, workflow_id=workflow)


@post("/v1/workflows/{workflow:str}/runs")
def run_workflow(request: AnyRequest, workflow: FromPath[str], data: JSONBody[SpecRun]) -> Json:
    """Start the workflow: with a spec that is given, else from its file or its stored spec."""
    house, actor = who(request)
    with house.db.read() as r:
        found = runs.get_workflow(r, actor, workflow)
    return _submit(house, actor, project_id=found.project_id, workflow_id=found.id, spec=data.spec, inputs=data.inputs)


@get("/v1/workflows/{workflow:str}/runs/{run:str}")
def get_run_of_workflow(request: AnyRequest, workflow: FromPath[str], run: FromPath[str]) -> Json:
    """One run by its number in the workflow, or its uuid."""
    house, actor = who(request)
    with house.db.read() as r:
        return _shown(r, house, actor, runs.get_run_of(r, actor, workflow, run), with_spec=True)


@post("/v1/workflows/{workflow:str}/runs/{run:str}/cancel")
def cancel_run_of_workflow(request: AnyRequest, workflow: FromPath[str], run: FromPath[str]) -> Json:
    """Stop the run; what it has not committed is not kept."""
    house, actor = who(request)
    with house.db.write() as tx:
        found = runs.get_run_of(tx, actor, workflow, run)
        return _shown(tx, house, actor, runs.cancel(tx, actor, found.id))


@get("/v1/workflows/{workflow:str}/runs/{run:str}/logs")
def logs_of_workflow_run(request: AnyRequest, workflow: FromPath[str], run: FromPath[str]) -> list[Json]:
    """Every job's log, all lines inline; a bare array, as Gradient has it."""
    house, actor = who(request)
    with house.db.read() as r:
        found = runs.get_run_of(r, actor, workflow, run)
        keys = {job.name: runs.log_of(r, actor, found.id, job.name) for job in found.jobs}
    return [
        render.job_log(job, found.id, house.logs.read(key, limit=MOST_LINES) if (key := keys[job.name]) else ())
        for job in found.jobs
    ]


# -- runs --------------------------------------------------------------------------------------------------------------


@get("/v1/runs")
def list_runs(request: AnyRequest, project_id: ProjectId = None, after: After = None, limit: Limit = 50) -> Json:
    """The runs that one may see, newest first; of one project on request."""
    return _list(request, after, limit, project_id=project_id)


@get("/v1/projects/{project:str}/runs")
def list_runs_of_project(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The project's runs, newest first."""
    return _list(request, after, limit, project_id=project)


@post("/v1/projects/{project:str}/runs")
def submit_run(request: AnyRequest, project: FromPath[str], data: JSONBody[NewRun]) -> Json:
    """Start a run without a push: a workflow file of the repository, or the text of one."""
    house, actor = who(request)
    return _submit(
        house,
        actor,
        project_id=project,
        path=data.path,
        ref=data.ref,
        spec_text=data.spec_text,
        name=data.name,
        inputs=data.inputs,
    )


@get("/v1/runs/{run:str}")
def get_run(request: AnyRequest, run: FromPath[str]) -> Json:
    """One run, with its spec."""
    house, actor = who(request)
    with house.db.read() as r:
        return _shown(r, house, actor, runs.get_run(r, actor, run), with_spec=True)


@get("/v1/runs/{run:str}/removal")
def removal_of_run(request: AnyRequest, run: FromPath[str]) -> Json:
    """The sentence that says what deleting it takes away."""
    house, actor = who(request)
    with house.db.read() as r:
        return {"text": runs.removal(r, actor, run)}


@post("/v1/runs/{run:str}/cancel")
def cancel_run(request: AnyRequest, run: FromPath[str]) -> Json:
    """Stop the run; what it has not committed is not kept."""
    house, actor = who(request)
    with house.db.write() as tx:
        return _shown(tx, house, actor, runs.cancel(tx, actor, run))


@delete("/v1/runs/{run:str}")
def delete_run(request: AnyRequest, run: FromPath[str]) -> Json:
    """The run and its logs are gone; versions that it made stay."""
    house, actor = who(request)
    with house.db.write() as tx:
        runs.delete(tx, actor, run)
    return {"id": run}


@get("/v1/runs/{run:str}/stream")
async def stream_run(request: AnyRequest, run: FromPath[str]) -> Stream:
    """The run now and after each change (event `run`), until it has ended (event `end`)."""
    house, actor = who(request)
    before: list[Json] = [{}]

    def look() -> tuple[list[live.Event], bool]:
        with house.db.read() as r:
            live.insist(r, request)
            found = runs.get_run(r, actor, run)
            shown = _shown(r, house, actor, found)
        events: list[live.Event] = [("run", shown)] if shown != before[0] else []
        before[0] = shown
        if render.has_ended(found):
            events.append(("end", {"phase": gradient_phase(found.state), "message": found.message}))
        return events, render.has_ended(found)

    return await live.answer(request, look)


@get("/v1/runs/{run:str}/jobs/{job:str}/logs")
def read_job_log(
    request: AnyRequest, run: FromPath[str], job: FromPath[str], after: AfterLine = -1, limit: Limit = 1000
) -> Json:
    """The lines of the job's newest attempt after a line's number, and whether there will be more."""
    house, actor = who(request)
    with house.db.read() as r:
        found = runs.get_job(r, actor, run, job)
        key = runs.log_of(r, actor, run, job)
    lines = house.logs.read(key, after, limited(limit)) if key else []
    last = lines[-1].number if lines else after
    finished = found.state in JOB_FINAL and (key is None or house.logs.count(key) <= last + 1)
    return {"items": [render.log_line(line) for line in lines], "nextLine": last + 1, "finished": finished}


@get("/v1/runs/{run:str}/jobs/{job:str}/logs/stream")
async def stream_job_log(request: AnyRequest, run: FromPath[str], job: FromPath[str], after: AfterLine = -1) -> Stream:
    """The lines (event `line`) as they are written, until the job has ended (event `end`)."""
    house, actor = who(request)
    known: dict[str | None, int] = {}
    after = live.resumed(request, after)

    def look() -> tuple[list[live.Event], bool]:
        with house.db.read() as r:
            live.insist(r, request)
            found = runs.get_job(r, actor, run, job)
            key = runs.log_of(r, actor, run, job)
        seen = known.setdefault(key, -1 if any(known) else after)
        lines = house.logs.read(key, seen, live.MANY) if key else []
        if lines:
            known[key] = lines[-1].number
        events: list[live.Event] = [("line", render.log_line(line)) for line in lines]
        # A job ends after its log is complete, and its state was read first: fewer lines than asked for are the last.
        over = found.state in JOB_FINAL and len(lines) < live.MANY
        if over:
            events.append(("end", {"phase": gradient_phase(found.state), "message": found.message}))
        return events, over

    return await live.answer(request, look)


@get("/v1/projects/{project:str}/pushes")
def list_pushes(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """What was pushed, newest first."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.page(pushes.list_pushes(r, actor, project, after=after, limit=limited(limit)), render.push)


# -- inside ------------------------------------------------------------------------------------------------------------


def _submit(house: House, actor: Actor, *, inputs: dict[str, Any] | None, **wanted: Any) -> Json:
    # Clients send {name: …} or the whole file {"inputs": {name: …}}.
    given = (inputs or {}).get("inputs")
    plain = given if isinstance(given, dict) and len(inputs or {}) == 1 else inputs
    made = runs.submit(house.db, house.repos, actor, inputs=plain or {}, **wanted)
    with house.db.read() as r:
        return _shown(r, house, actor, made, with_spec=True)


def _list(
    request: AnyRequest, after: str | None, limit: int, *, project_id: str | None = None, workflow_id: str | None = None
) -> Json:
    house, actor = who(request)
    with house.db.read() as r:
        found: Page[Run] = runs.list_runs(
            r, actor, project_id=project_id, workflow_id=workflow_id, after=after, limit=limited(limit)
        )
        return render.page(found, lambda each: _shown(r, house, actor, each))


def _shown(db: Reader, house: House, actor: Actor, run: Run, *, with_spec: bool = False) -> Json:
    workflow = runs.get_workflow(db, actor, run.workflow_id)
    project = projects.get_project(db, actor, run.project_id)
    return render.run(run, workflow.name, project.name, house.config, with_spec=with_spec)


HANDLERS = [
    list_workflows,
    list_workflows_of_project,
    create_workflow,
    get_workflow,
    rename_workflow,
    delete_workflow,
    list_runs_of_workflow,
    run_workflow,
    get_run_of_workflow,
    cancel_run_of_workflow,
    logs_of_workflow_run,
    list_runs,
    list_runs_of_project,
    submit_run,
    get_run,
    removal_of_run,
    cancel_run,
    delete_run,
    stream_run,
    read_job_log,
    stream_job_log,
    list_pushes,
]
