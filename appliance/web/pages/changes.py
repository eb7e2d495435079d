"""What makes an open page look again: one stream of server-sent events for each kind of page.

What this keeps true: an event says only *that* something changed; the page then asks for itself anew with its own
rights. A stream looks after commits alone (see web/live.py), and ends with the account that opened it.

Why not the new content itself: the same template would have to be rendered for every reader of every change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar.params import FromPath
from litestar.response import Stream

from appliance import deployments, events, projects, runs
from appliance.db import Reader
from appliance.records import Actor
from appliance.states import RUN_FINAL
from appliance.web import live
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.routes import get

_KNOWN = 50
Seen = tuple[Any, bool]
"""What a page shows, in a form that can be compared, and whether it will never change again."""


@get("/changes/run/{run:str}", include_in_schema=False)
async def of_run(request: AnyRequest, run: FromPath[str]) -> Stream:
    def look(r: Reader, actor: Actor) -> Seen:
        found = runs.get_run(r, actor, run)
        return found, found.state in RUN_FINAL

    return await _changes(request, look)


@get("/changes/project/{project:str}", include_in_schema=False)
async def of_project(request: AnyRequest, project: FromPath[str]) -> Stream:
    def look(r: Reader, actor: Actor) -> Seen:
        found = projects.get_project(r, actor, project)
        newest = runs.list_runs(r, actor, project_id=found.id, limit=_KNOWN).items
        serving = deployments.list_deployments(r, actor, project_id=found.id, limit=_KNOWN).items
        return (events.list_events(r, project_id=found.id, limit=1), newest, serving), False

    return await _changes(request, look)


@get("/changes/projects", include_in_schema=False)
async def of_projects(request: AnyRequest) -> Stream:
    def look(r: Reader, actor: Actor) -> Seen:
        newest = runs.list_runs(r, actor, limit=_KNOWN).items
        return (projects.list_projects(r, actor), [(run.id, run.state) for run in newest]), False

    return await _changes(request, look)


@get("/changes/deployment/{deployment:str}", include_in_schema=False)
async def of_deployment(request: AnyRequest, deployment: FromPath[str]) -> Stream:
    def look(r: Reader, actor: Actor) -> Seen:
        found = deployments.get_deployment(r, actor, deployment)
        history = deployments.history(r, actor, deployment, limit=_KNOWN)
        return (found, history, deployments.replicas(r, actor, deployment)), False

    return await _changes(request, look)


async def _changes(request: AnyRequest, look: Callable[[Reader, Actor], Seen]) -> Stream:
    """An event `changed` whenever `look` sees something else than before; `over` after the last one."""
    house, actor = who(request)
    before: list[Any] = []

    def events_since() -> live.Found:
        with house.db.read() as r:
            live.insist(r, actor)
            seen, is_over = look(r, actor)
        is_news = bool(before) and before[0] != seen
        before[:] = [seen]
        news: list[live.Event] = [("changed", {})] if is_news else []
        return ([*news, ("over", {})] if is_over else news), is_over

    return await live.answer(request, events_since)


HANDLERS = [of_run, of_project, of_projects, of_deployment]
