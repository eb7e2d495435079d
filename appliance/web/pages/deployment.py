"""One deployment: how it is, how to call it, what it served, who may; and trying it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import Response
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath, QueryParameter, URLEncodedBody
from litestar.response import Stream

from appliance import deployments, models, projects, tls
from appliance.errors import ApplianceError, NotFound
from appliance.records import Container, Deployment
from appliance.runtime.logs import printable
from appliance.states import Seen, SpecState, Want
from appliance.web import asking
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.house import House
from appliance.web.pages import changes, trying
from appliance.web.pages.view import go, is_partial, page
from appliance.web.routes import get, post

_PAGE = "/deployments/{deployment:str}"
_LOG_LINES = 200
TABS = ("overview", "try", "history", "keys", "log", "settings")
Tab = Annotated[str, QueryParameter(name="tab")]
Instance = Annotated[str | None, QueryParameter(name="instance")]


class NewDeployment(msgspec.Struct):
    project: str
    name: str
    model: str
    replicas: str = "1"


class Change(msgspec.Struct):
    enabled: str | None = None
    replicas: str | None = None
    model: str | None = None


class KeyName(msgspec.Struct):
    name: str = ""


class Question(msgspec.Struct):
    request: str


class Nothing(msgspec.Struct):
    confirm: str = ""


@get(_PAGE, include_in_schema=False)
def show(
    request: AnyRequest, deployment: FromPath[str], tab: Tab = "overview", instance: Instance = None
) -> Response[Any]:
    return _page(request, deployment, tab, instance=instance)


@post("/deployments", include_in_schema=False)
def create(request: AnyRequest, data: URLEncodedBody[NewDeployment]) -> Response[Any]:
    house, actor = who(request)
    config = {"name": data.name.strip(), "model": data.model.strip(), "replicas": _whole(data.replicas)}
    with house.db.write() as tx:
        made = deployments.apply(tx, actor, project_id=data.project, config=config)
    house.wake()
    return go(request, f"/deployments/{made.id}")


@post(f"{_PAGE}/change", include_in_schema=False)
def change(request: AnyRequest, deployment: FromPath[str], data: URLEncodedBody[Change]) -> Response[Any]:
    house, actor = who(request)
    enabled = None if data.enabled is None else data.enabled == "yes"
    replicas = None if not data.replicas else _whole(data.replicas)
    with house.db.write() as tx:
        deployments.change(tx, actor, deployment, enabled=enabled, replicas=replicas, model=data.model or None)
    house.wake()
    return go(request, f"/deployments/{deployment}")


@post(f"{_PAGE}/history/{{spec:str}}/apply", include_in_schema=False)
def apply_again(request: AnyRequest, deployment: FromPath[str], spec: FromPath[str]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        deployments.apply_again(tx, actor, deployment, spec)
    house.wake()
    return go(request, f"/deployments/{deployment}?tab=history")


@post(f"{_PAGE}/keys", include_in_schema=False)
def create_key(request: AnyRequest, deployment: FromPath[str], data: URLEncodedBody[KeyName]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        key, secret = deployments.create_key(tx, actor, deployment, data.name.strip() or "key")
    house.wake()
    if is_partial(request):
        return page(request, "parts/secret.html", secret=secret, what=f"The key {key.name}")
    return _page(request, deployment, "keys", secret=secret)


@post(f"{_PAGE}/keys/{{key:str}}/revoke", include_in_schema=False)
def revoke_key(request: AnyRequest, deployment: FromPath[str], key: FromPath[str]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        deployments.revoke_key(tx, actor, deployment, key)
    house.wake()
    return go(request, f"/deployments/{deployment}?tab=keys")


@post(f"{_PAGE}/try", include_in_schema=False)
def ask(request: AnyRequest, deployment: FromPath[str], data: URLEncodedBody[Question]) -> Response[Any]:
    """The answer beside the form; what is wrong with the request is said there as well."""
    house, actor = who(request)
    with house.db.read() as r:
        found = deployments.get_deployment(r, actor, deployment)
    answer, problem = None, None
    try:
        answer = trying.outputs(trying.ask(house.config, found, data.request))
    except ApplianceError as error:
        problem = error.message
    if is_partial(request):
        return page(request, "deployment/answer.html", answer=answer, problem=problem)
    return _page(request, deployment, "try", asked=data.request, answer=answer, problem=problem)


@post(f"{_PAGE}/delete", include_in_schema=False)
def delete(request: AnyRequest, deployment: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.write() as tx:
        gone = deployments.delete(tx, actor, deployment)
        project = projects.require(tx, actor, gone.project_id)
    house.wake()
    return go(request, f"/projects/{quote(project.name)}/deployments")


@get(f"{_PAGE}/log.txt", include_in_schema=False)
def raw_log(request: AnyRequest, deployment: FromPath[str], instance: Instance = None) -> Stream:
    house, actor = who(request)
    with house.db.read() as r:
        known = [each.id for each in deployments.replicas(r, actor, deployment)]
    if instance not in known:
        raise NotFound("There is no such replica any more.")

    async def text() -> AsyncIterator[bytes]:
        after = -1
        while lines := await sync_to_thread(house.logs.read, instance, after, 5000):
            after = lines[-1].number
            yield "".join(f"{printable(line.text)}\n" for line in lines).encode()

    return Stream(text(), media_type="text/plain")


def replica_state(found: Container) -> str:
    """One word for what a replica is doing."""
    if found.seen in (Seen.EXITED, Seen.REMOVED):
        return "failed" if found.error or found.out_of_memory else "stopped"
    if found.want is Want.GONE:
        return "stopping"
    return "running" if found.seen is Seen.RUNNING else "waiting" if found.lease_id is None else "starting"


def _ready(replicas: Sequence[Container], spec_id: str) -> int:
    """How many replicas of that configuration run; while it is rolled out those of two configurations do."""
    return sum(each.owner_id == spec_id and replica_state(each) == "running" for each in replicas)


def state_of(found: Deployment) -> str:
    """One word for the whole: off, serving, or what its newest configuration is doing."""
    if not found.enabled:
        return "off"
    if found.latest is None:
        return "empty"
    newest = found.latest.state
    if found.serving is not None and newest in (SpecState.PENDING, SpecState.STARTING):
        return "rolling out"
    return str(newest)


def _page(
    request: AnyRequest,
    deployment_id: str,
    tab: str,
    *,
    instance: str | None = None,
    secret: str | None = None,
    asked: str | None = None,
    answer: list[trying.Output] | None = None,
    problem: str | None = None,
) -> Response[Any]:
    house, actor = who(request)
    tab = tab if tab in TABS else "overview"
    with house.db.read() as r:
        found = deployments.get_deployment(r, actor, deployment_id)
        project = projects.require(r, actor, found.project_id)
        history = deployments.history(r, actor, found.id, limit=50).items
        replicas = deployments.replicas(r, actor, found.id)
        keys = [key for key in deployments.list_keys(r, actor, found.id) if key.revoked_at is None]
        goes = deployments.removal(r, actor, found.id)
        versions = _versions(r, actor, found)
        listen = changes.address(r, actor, "deployment", found.id)
    there = [each for each in replicas if each.seen is not Seen.REMOVED]
    watched = instance if instance in {each.id for each in replicas} else (there[-1].id if there else None)
    return page(
        request,
        "deployment/deployment.html",
        deployment=found,
        project=project,
        state=state_of(found),
        tab=tab,
        tabs=TABS,
        history=history,
        replicas=[(each, replica_state(each)) for each in there],
        ready={spec.id: _ready(there, spec.id) for spec in history},
        keys=keys,
        secret=secret,
        removal=goes,
        changes=listen,
        versions=versions,
        watched=watched,
        lines=[(line.number, printable(line.text)) for line in _lines(house, watched)] if tab == "log" else [],
        url=deployments.url(house.config, found),
        own_ca=_has_own_ca(house),
        local_url=deployments.local_url(house.config, found),
        answer=answer,
        problem=problem,
        **(_form(house, found, asked) if tab in ("overview", "try") else {}),
    )


def _form(house: House, found: Deployment, asked: str | None) -> dict[str, Any]:
    """The model's inputs and outputs, and a request to begin with; the sentence when nothing answers."""
    empty: dict[str, Any] = {"model": None, "example": asked or "", "grid": None, "silent": None}
    if not found.enabled or found.serving is None:
        return {**empty, "silent": "Nothing serves at the moment, so there is nobody to ask."}
    try:
        model = asking.metadata(house.config, found)
    except ApplianceError as error:
        return {**empty, "silent": error.message}
    text = asked or trying.example_text(trying.example(model["inputs"]))
    return {"model": model, "example": text, "grid": trying.grid_of(model["inputs"]), "silent": None}


def _has_own_ca(house: House) -> bool:
    """Whether clients must be told of our authority, rather than trust the administrator's certificate already."""
    try:
        found = tls.find(house.config)
    except ApplianceError:
        return False  # the doctor says what is wrong with it
    return found is not None and found.ca is not None


def _versions(r: Any, actor: Any, found: Deployment) -> list[Any]:
    """The committed versions of the model that it serves, to choose another."""
    if found.latest is None:
        return []
    try:
        model_id = found.latest.config["modelId"]
        return list(models.list_versions(r, actor, model_id, limit=30, committed_only=True).items)
    except NotFound:
        return []


def _lines(house: House, container_id: str | None) -> list[Any]:
    """The last lines of a replica's log."""
    if container_id is None:
        return []
    count = house.logs.count(container_id)
    return house.logs.read(container_id, after=max(-1, count - _LOG_LINES - 1), limit=_LOG_LINES)


def _whole(text: str) -> int:
    return int(text) if text.strip().isdigit() else -1  # the verb says which numbers there are


HANDLERS = [show, create, change, apply_again, create_key, revoke_key, ask, delete, raw_log]
