"""One project: its overview, its workflows and their runs, models, deployments, data and settings."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Response
from litestar.params import FromPath, URLEncodedBody

from appliance import accounts, datasets, deployments, events, models, projects, removal, runs, workflows
from appliance.db import Reader
from appliance.errors import ApplianceError, NotFound
from appliance.records import Actor, Project, Run
from appliance.repos import Repos
from appliance.runs.verbs import FOLDER
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.house import House
from appliance.web.pages import changes
from appliance.web.pages.view import go, page
from appliance.web.params import After
from appliance.web.render import base_url
from appliance.web.routes import get, post

TABS = ("overview", "workflows", "models", "deployments", "data", "settings")


class Name(msgspec.Struct):
    name: str


class Someone(msgspec.Struct):
    user: str


class Confirmed(msgspec.Struct):
    name: str = ""


@get("/projects/{project:str}", include_in_schema=False)
def overview(request: AnyRequest, project: FromPath[str]) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        listen = changes.address(r, actor, "project", found.id)
        newest = runs.list_runs(r, actor, project_id=found.id, limit=5).items
        happened = events.list_events(r, project_id=found.id, limit=12)
        names = workflow_names(r, actor, found.id)
        serving = deployments.list_deployments(r, actor, project_id=found.id, limit=5).items
    shown = {"runs": newest, "events": happened, "workflow_names": names, "deployments": serving}
    return _tab(
        request,
        found,
        "overview",
        commits=commits_of(house.repos, found.id),
        changes=listen,
        **_urls(house, found),
        **shown,
    )


@get("/projects/{project:str}/workflows", include_in_schema=False)
def show_workflows(request: AnyRequest, project: FromPath[str], after: After = None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        listen = changes.address(r, actor, "project", found.id)
        listed = runs.list_runs(r, actor, project_id=found.id, after=after, limit=30)
        names = workflow_names(r, actor, found.id)
    files, problem = _files(house.repos, found.id)
    shown = {"runs": listed.items, "next_page": listed.next_page, "workflow_names": names, "problem": problem}
    return _tab(request, found, "workflows", files=files, folder=FOLDER, changes=listen, **_urls(house, found), **shown)


@get("/projects/{project:str}/models", include_in_schema=False)
def show_models(request: AnyRequest, project: FromPath[str], after: After = None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        listed = models.list_models(r, actor, project_id=found.id, after=after)
    return _tab(request, found, "models", models=listed.items, next_page=listed.next_page)


@get("/projects/{project:str}/deployments", include_in_schema=False)
def show_deployments(request: AnyRequest, project: FromPath[str], after: After = None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        listen = changes.address(r, actor, "project", found.id)
        listed = deployments.list_deployments(r, actor, project_id=found.id, after=after)
        served = models.list_models(r, actor, project_id=found.id, limit=100).items
    urls = {each.id: deployments.url(house.config, each) for each in listed.items}
    shown = {"deployments": listed.items, "next_page": listed.next_page, "urls": urls, "models": served}
    return _tab(request, found, "deployments", changes=listen, **shown)


@get("/projects/{project:str}/data", include_in_schema=False)
def show_data(request: AnyRequest, project: FromPath[str], after: After = None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        listed = datasets.list_datasets(r, actor, project_id=found.id, after=after)
    return _tab(request, found, "data", datasets=listed.items, next_page=listed.next_page)


@get("/projects/{project:str}/settings", include_in_schema=False)
def show_settings(request: AnyRequest, project: FromPath[str]) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        working = projects.list_collaborators(r, actor, found.id)
        there = {each.user.id for each in working}
        others = [user for user in accounts.list_users(r, actor) if user.id not in there]
        goes = removal.project_text(r, actor, found.id)
    owns = actor.is_admin or actor.email == found.created_by
    return _tab(request, found, "settings", collaborators=working, others=others, removal=goes, owns=owns)


@post("/projects/{project:str}/rename", include_in_schema=False)
def rename(request: AnyRequest, project: FromPath[str], data: URLEncodedBody[Name]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        renamed = projects.rename(tx, actor, project, data.name.strip())
    return go(request, f"/projects/{quote(renamed.name)}/settings")


@post("/projects/{project:str}/collaborators", include_in_schema=False)
def add_collaborator(request: AnyRequest, project: FromPath[str], data: URLEncodedBody[Someone]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        projects.add_collaborator(tx, actor, project, data.user)
    return go(request, f"/projects/{quote(project)}/settings")


@post("/projects/{project:str}/collaborators/remove", include_in_schema=False)
def remove_collaborator(request: AnyRequest, project: FromPath[str], data: URLEncodedBody[Someone]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        projects.remove_collaborator(tx, actor, project, data.user)
    return go(request, f"/projects/{quote(project)}/settings" if data.user != actor.user_id else "/")


@post("/projects/{project:str}/delete", include_in_schema=False)
def delete(request: AnyRequest, project: FromPath[str], data: URLEncodedBody[Confirmed]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
    removal.delete_project(house.db, house.repos, actor, found.id)
    house.wake()
    return go(request, "/")


def workflow_names(r: Reader, actor: Actor, project_id: str) -> dict[str, str]:
    return {each.id: each.name for each in runs.list_workflows(r, actor, project_id)}


def run_url(project: Project, workflow_name: str, run: Run) -> str:
    return f"/projects/{quote(project.name)}/runs/{quote(workflow_name)}/{run.number}"


def commits_of(repos: Repos, project_id: str, limit: int = 5) -> list[Any]:
    """The newest commits of the default branch; none before the first push."""
    try:
        return list(repos.log(project_id, "HEAD", limit))
    except NotFound:
        return []


def _files(repos: Repos, project_id: str) -> tuple[dict[str, Any], str | None]:
    """The workflow files of the default branch, each with its declared inputs; and why they cannot be read, if so."""
    try:
        found = repos.workflow_files(project_id, repos.resolve(project_id, "HEAD"))
    except NotFound:
        return {}, None
    except ApplianceError as error:
        return {}, error.message
    return {path: _inputs(text, path) for path, text in found.files}, None


def _inputs(text: bytes | str, path: str) -> dict[str, Any]:
    try:
        return dict(workflows.parse(text, path).inputs)
    except ApplianceError:
        return {}  # starting it will say what is wrong, line by line


def _urls(house: House, project: Project) -> dict[str, str]:
    url = base_url(house.config)
    return {"base": url, "remote": f"{url}/git/{quote(project.name)}.git"}


def _tab(request: AnyRequest, project: Project, tab: str, **values: Any) -> Response[Any]:
    return page(request, f"project/{tab}.html", project=project, tab=tab, tabs=TABS, **values)


HANDLERS = [
    overview,
    show_workflows,
    show_models,
    show_deployments,
    show_data,
    show_settings,
    rename,
    add_collaborator,
    remove_collaborator,
    delete,
]
