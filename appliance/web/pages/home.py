"""The first page: every project that one may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Response
from litestar.params import URLEncodedBody

from appliance import events, projects, runs
from appliance.db import Reader
from appliance.records import Actor, Event, Project, Run
from appliance.states import RUN_FINAL
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.pages import changes
from appliance.web.pages.view import go, page
from appliance.web.params import After
from appliance.web.render import base_url
from appliance.web.routes import get, post

_LOOKED_AT = 20  # the newest runs of a project, among which those that go on are counted


class NewProject(msgspec.Struct):
    name: str


@dataclass(frozen=True)
class Line:
    """A project as the list shows it."""

    project: Project
    newest: Run | None
    unfinished: int
    last: Event | None


@get("/", include_in_schema=False)
def home(request: AnyRequest, after: After = None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        found = projects.list_projects(r, actor, after=after, limit=50)
        lines = [_line(r, actor, each) for each in found.items]
        listen = changes.address(r, actor, "projects")
    return page(
        request, "home.html", lines=lines, next_page=found.next_page, url=base_url(house.config), changes=listen
    )


@post("/projects", include_in_schema=False)
def create(request: AnyRequest, data: URLEncodedBody[NewProject]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        made = projects.create(tx, actor, data.name.strip())
    house.repos.create(made.id)
    return go(request, f"/projects/{quote(made.name)}")


def _line(r: Reader, actor: Actor, project: Project) -> Line:
    newest = runs.list_runs(r, actor, project_id=project.id, limit=_LOOKED_AT).items
    happened = events.list_events(r, project_id=project.id, limit=1)
    going = sum(run.state not in RUN_FINAL for run in newest)
    return Line(project, newest[0] if newest else None, going, happened[0] if happened else None)


HANDLERS = [home, create]
