"""What makes an open page look again: one stream of server-sent events for each kind of page.

What this keeps true: an event says only *that* something changed; the page then asks for itself anew, with its own rights.
The page carries a digest of what it showed, so nothing that happens between its making and the stream's opening is
missed. A stream looks after commits alone (see web/live.py), and ends with the account that opened it.

Why not the new content itself: the same template would have to be rendered for every reader of every change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from litestar.params import FromPath, QueryParameter
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
"""Records that a page shows, and whether they will never change again."""
SeenDigest = Annotated[str, QueryParameter(name="seen", description="What the page showed when it was made.")]


def _run(r: Reader, actor: Actor, run_id: str) -> Seen:
    found = runs.get_run(r, actor, run_id)
    return found, found.state in RUN_FINAL


def _project(r: Reader, actor: Actor, project_id: str) -> Seen:
    found = projects.get_project(r, actor, project_id)
    newest = runs.list_runs(r, actor, project_id=found.id, limit=_KNOWN).items
    serving = deployments.list_deployments(r, actor, project_id=found.id, limit=_KNOWN).items
    return (events.list_events(r, project_id=found.id, limit=1), newest, serving), False


def _projects(r: Reader, actor: Actor, _: str) -> Seen:
    newest = runs.list_runs(r, actor, limit=_KNOWN).items
    listed = projects.list_projects(r, actor).items
    return (listed, [(run.id, run.state) for run in newest]), False


def _deployment(r: Reader, actor: Actor, deployment_id: str) -> Seen:
    found = deployments.get_deployment(r, actor, deployment_id)
    history = deployments.history(r, actor, found.id, limit=_KNOWN).items
    return (found, history, deployments.replicas(r, actor, found.id)), False


Look = Callable[[Reader, Actor, str], Seen]
LOOKS: Mapping[str, Look] = {"run": _run, "project": _project, "projects": _projects, "deployment": _deployment}


def address(r: Reader, actor: Actor, kind: str, thing_id: str = "") -> str | None:
    """Where the page listens for changes of what it shows at this moment; None when there will be none."""
    seen, is_over = LOOKS[kind](r, actor, thing_id)
    place = f"{kind}/{thing_id}" if thing_id else kind
    return None if is_over else f"/changes/{place}?seen={digest(seen)}"


def digest(seen: Any) -> str:
    """Records are frozen and made of plain values, so equal ones have equal texts."""
    return hashlib.blake2b(repr(seen).encode("utf-8", "backslashreplace"), digest_size=12).hexdigest()


@get("/changes/run/{run:str}", include_in_schema=False)
async def of_run(request: AnyRequest, run: FromPath[str], seen: SeenDigest = "") -> Stream:
    return await _changes(request, _run, run, seen)


@get("/changes/project/{project:str}", include_in_schema=False)
async def of_project(request: AnyRequest, project: FromPath[str], seen: SeenDigest = "") -> Stream:
    return await _changes(request, _project, project, seen)


@get("/changes/projects", include_in_schema=False)
async def of_projects(request: AnyRequest, seen: SeenDigest = "") -> Stream:
    return await _changes(request, _projects, "", seen)


@get("/changes/deployment/{deployment:str}", include_in_schema=False)
async def of_deployment(request: AnyRequest, deployment: FromPath[str], seen: SeenDigest = "") -> Stream:
    return await _changes(request, _deployment, deployment, seen)


async def _changes(request: AnyRequest, look: Look, thing: str, seen: str) -> Stream:
    """An event `changed` whenever something else is to be seen than before; `over` after the last one."""
    house, actor = who(request)
    before = [seen]

    def events_since() -> live.Found:
        with house.db.read() as r:
            live.insist(r, request)
            found, is_over = look(r, actor, thing)
        now = digest(found)
        news: list[live.Event] = [("changed", {})] if before[0] not in ("", now) else []
        before[0] = now
        return ([*news, ("over", {})] if is_over else news), is_over

    return await live.answer(request, events_since)


HANDLERS = [of_run, of_project, of_projects, of_deployment]
