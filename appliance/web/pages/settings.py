"""Members, one's own API keys, and the machine: what it has and who holds what of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.params import FromPath, QueryParameter, URLEncodedBody

from appliance import accounts, containers, deployments, leases, machine, projects, runs
from appliance.db import Reader
from appliance.errors import ApplianceError
from appliance.records import Actor, Lease, Role
from appliance.web.auth import who
from appliance.web.errors import AnyRequest
from appliance.web.pages.project import run_url
from appliance.web.pages.view import go, is_partial, page
from appliance.web.render import base_url, link
from appliance.web.routes import get, post

Doctor = Annotated[bool, QueryParameter(name="doctor")]
TABS = ("members", "keys", "machine")


class Invite(msgspec.Struct):
    email: str
    role: str = "member"


class NewRole(msgspec.Struct):
    role: str


class KeyName(msgspec.Struct):
    name: str


class Nothing(msgspec.Struct):
    confirm: str = ""


@get(["/settings", "/settings/members"], include_in_schema=False)
def members(request: AnyRequest) -> Response[Any]:
    return _members(request)


@post("/settings/invitations", perm="admin", include_in_schema=False)
def invite(request: AnyRequest, data: URLEncodedBody[Invite]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        made, token = accounts.invite(tx, actor, data.email, _role(data.role))
    return _secret_or_page(request, link(house.config, token), f"The link for {made.email}")


@post("/settings/invitations/{invitation:str}/withdraw", perm="admin", include_in_schema=False)
def withdraw(request: AnyRequest, invitation: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.write() as tx:
        accounts.withdraw_invitation(tx, actor, invitation)
    return go(request, "/settings/members")


@post("/settings/members/{user:str}/role", perm="admin", include_in_schema=False)
def set_role(request: AnyRequest, user: FromPath[str], data: URLEncodedBody[NewRole]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        accounts.set_role(tx, actor, user, _role(data.role))
    return go(request, "/settings/members")


@post("/settings/members/{user:str}/reset", perm="admin", include_in_schema=False)
def reset(request: AnyRequest, user: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.write() as tx:
        made, token = accounts.reset_link(tx, actor, user)
    return _secret_or_page(request, link(house.config, token), f"The link for a new password of {made.email}")


@post("/settings/members/{user:str}/remove", perm="admin", include_in_schema=False)
def remove(request: AnyRequest, user: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.write() as tx:
        accounts.remove_user(tx, actor, user)
    return go(request, "/settings/members")


@get("/settings/keys", include_in_schema=False)
def keys(request: AnyRequest) -> Response[Any]:
    return _keys(request, None)


@post("/settings/keys", include_in_schema=False)
def create_key(request: AnyRequest, data: URLEncodedBody[KeyName]) -> Response[Any]:
    house, actor = who(request)
    with house.db.write() as tx:
        key, secret = accounts.create_key(tx, actor, data.name)
    if is_partial(request):
        return page(request, "parts/secret.html", secret=secret, what=f"The key {key.name}")
    return _keys(request, secret)


@post("/settings/keys/{key:str}/revoke", include_in_schema=False)
def revoke_key(request: AnyRequest, key: FromPath[str], data: URLEncodedBody[Nothing]) -> Response[Any]:
    house, actor = who(request)
    del data
    with house.db.write() as tx:
        accounts.revoke_key(tx, actor, key)
    return go(request, "/settings/keys")


@get("/settings/machine", include_in_schema=False)
def show_machine(request: AnyRequest, doctor: Doctor = False) -> Response[Any]:
    """With `doctor` an admin sees its findings, which take seconds; the page asks for them once it is there."""
    house, actor = who(request)
    with house.db.read() as r:
        kinds = machine.machine_types(r)
        held = leases.held(r)
        holders = [(lease, *_holder(r, actor, lease)) for lease in leases.list_open(r)]
    findings = house.doctor() if doctor and actor.is_admin else None
    has = {"cpus": machine.cores(), "shares": machine.cores() * machine.CPU_SHARES, "memory": machine.memory_mib()}
    shown = {"has": has, "usage": house.store.usage(), "cards": list(house.cards()), "findings": findings}
    return _tab(request, "machine", kinds=kinds, held=held, holders=holders, **shown)


def _members(request: AnyRequest, secret: str | None = None, what: str = "") -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        team = accounts.list_users(r, actor)
        invited = accounts.list_invitations(r, actor) if actor.is_admin else []
    return _tab(request, "members", members=team, invitations=invited, secret=secret, what=what)


def _keys(request: AnyRequest, secret: str | None) -> Response[Any]:
    house, actor = who(request)
    with house.db.read() as r:
        own = [key for key in accounts.list_keys(r, actor) if key.revoked_at is None]
    return _tab(request, "keys", keys=own, secret=secret, base=base_url(house.config))


def _secret_or_page(request: AnyRequest, secret: str, what: str) -> Response[Any]:
    if is_partial(request):
        return page(request, "parts/secret.html", secret=secret, what=what)
    return _members(request, secret, what)


def _holder(r: Reader, actor: Actor, lease: Lease) -> tuple[str, str | None]:
    """Who holds a lease, in words, and where to look; for what the reader may not see only that it is somebody's."""
    container = containers.find_container(r, lease.container_id)
    project = projects.find_project(r, actor, container.project_id) if container else None
    if container is None or project is None:
        return "another project", None
    if container.kind == "replica":
        for each in deployments.list_deployments(r, actor, project_id=project.id, limit=500).items:
            if container.id in {replica.id for replica in deployments.replicas(r, actor, each.id)}:
                return f"deployment {each.name} of {project.name}", f"/deployments/{each.id}"
    try:
        for run in runs.list_runs(r, actor, project_id=project.id, limit=100).items:
            for job in run.jobs:
                if any(attempt.container_id == container.id for attempt in job.attempts):
                    name = runs.get_workflow(r, actor, run.workflow_id).name
                    return f"{job.name} of {name} #{run.number}, {project.name}", run_url(project, name, run)
    except ApplianceError:
        pass
    return f"project {project.name}", f"/projects/{project.name}"


def _role(text: str) -> Role:
    return Role.ADMIN if text == "admin" else Role.MEMBER


def _tab(request: AnyRequest, tab: str, **values: Any) -> Response[Any]:
    return page(request, f"settings/{tab}.html", tab=tab, tabs=TABS, **values)


HANDLERS = [
    members,
    invite,
    withdraw,
    set_role,
    reset,
    remove,
    keys,
    create_key,
    revoke_key,
    show_machine,
]
