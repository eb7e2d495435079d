"""/v1/projects and /v1/events. `{project}` is an id or a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec
from litestar.params import FromPath, JSONBody, QueryParameter

from appliance import events, projects, removal
from appliance.db import Reader
from appliance.errors import BadRequest, NotFound
from appliance.records import Page
from appliance.web import render
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.params import MOST, After, Limit, ProjectId, limited
from appliance.web.routes import Json, delete, get, post, put


class ProjectBody(msgspec.Struct):
    name: str


class NewCollaborator(msgspec.Struct, rename="camel"):
    user_id: str


@get("/v1/projects")
def list_projects(request: AnyRequest, after: After = None, limit: Limit = 50) -> Json:
    """The projects that one may see, newest first."""
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.list_projects(r, actor, after=after, limit=limited(limit))
    return render.page(found, lambda each: render.project(each, house.config))


@post("/v1/projects")
def create_project(request: AnyRequest, data: JSONBody[ProjectBody]) -> Json:
    """A new project with an empty repository to push to."""
    house, actor = who(request)
    with house.db.write() as tx:
        made = projects.create(tx, actor, data.name)
    house.repos.create(made.id)
    return render.project(made, house.config)


@get("/v1/projects/{project:str}")
def get_project(request: AnyRequest, project: FromPath[str]) -> Json:
    """One project."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.project(projects.get_project(r, actor, project), house.config)


@put("/v1/projects/{project:str}")
def rename_project(request: AnyRequest, project: FromPath[str], data: JSONBody[ProjectBody]) -> Json:
    """Give the project another name."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.project(projects.rename(tx, actor, project, data.name), house.config)


@get("/v1/projects/{project:str}/removal")
def removal_of_project(request: AnyRequest, project: FromPath[str]) -> Json:
    """The sentence that says what deleting it takes away."""
    house, actor = who(request)
    with house.db.read() as r:
        return {"text": removal.project_text(r, actor, project)}


@delete("/v1/projects/{project:str}")
def delete_project(request: AnyRequest, project: FromPath[str]) -> Json:
    """The project and all that it holds are gone; its creator and admins may."""
    house, actor = who(request)
    return render.project(removal.delete_project(house.db, house.repos, actor, project), house.config)


@get("/v1/projects/{project:str}/collaborators")
def list_collaborators(request: AnyRequest, project: FromPath[str]) -> Json:
    """Who works in the project."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.whole(projects.list_collaborators(r, actor, project), render.collaborator)


@post("/v1/projects/{project:str}/collaborators")
def add_collaborator(request: AnyRequest, project: FromPath[str], data: JSONBody[NewCollaborator]) -> Json:
    """Let somebody work in the project; its creator and admins may."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.collaborator(projects.add_collaborator(tx, actor, project, data.user_id))


@delete("/v1/projects/{project:str}/collaborators/{user_id:str}")
def remove_collaborator(request: AnyRequest, project: FromPath[str], user_id: FromPath[str]) -> Json:
    """They no longer see the project."""
    house, actor = who(request)
    with house.db.write() as tx:
        projects.remove_collaborator(tx, actor, project, user_id)
    return {"userId": user_id}


@get("/v1/projects/{project:str}/commits")
def list_commits(
    request: AnyRequest,
    project: FromPath[str],
    ref: Annotated[str | None, QueryParameter(name="ref")] = None,
    limit: Limit = 50,
) -> Json:
    """The newest commits of a branch, or of the one that is checked out by default."""
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
    try:
        commits = house.repos.log(found.id, ref or "HEAD", limited(limit))
    except NotFound:
        if ref is not None:
            raise
        commits = []  # nothing was pushed yet
    return render.whole(commits, render.camel)


@get("/v1/projects/{project:str}/events")
def list_project_events(request: AnyRequest, project: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """What happened in the project, newest first."""
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.get_project(r, actor, project)
        return _events(r, [found.id], after, limited(limit))


@get("/v1/events")
def list_events(request: AnyRequest, project_id: ProjectId = None, after: After = None, limit: Limit = 50) -> Json:
    """What happened, newest first: in one project, or in all that one may see (for admins: everywhere)."""
    house, actor = who(request)
    with house.db.read() as r:
        if project_id is not None:
            return _events(r, [projects.get_project(r, actor, project_id).id], after, limited(limit))
        if actor.is_admin:
            return _events(r, [None], after, limited(limit))
        mine = projects.list_projects(r, actor, limit=MOST).items
        return _events(r, [project.id for project in mine], after, limited(limit))


def _events(reader: Reader, project_ids: Sequence[str | None], after: str | None, limit: int) -> Json:
    if after is not None and not re.fullmatch("[0-9]{1,18}", after):
        raise BadRequest(f"{after[:40]!r} is no cursor; use the nextPage of the page before.")
    before = int(after) if after else None
    lists = [events.list_events(reader, project_id=each, before=before, limit=limit + 1) for each in project_ids]
    found = sorted((event for one in lists for event in one), key=lambda event: -event.id)
    page = Page(tuple(found[:limit]), str(found[limit - 1].id) if len(found) > limit else None)
    return render.page(page, render.event)


HANDLERS = [
    list_projects,
    create_project,
    get_project,
    rename_project,
    removal_of_project,
    delete_project,
    list_collaborators,
    add_collaborator,
    remove_collaborator,
    list_commits,
    list_project_events,
    list_events,
]
