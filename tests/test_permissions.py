"""Every route, for everyone: what a stranger, a wrong key, a member outside of the project, a member and an admin get.

The table names each route of the application; one that is not in it fails, and so does an entry without a route. Objects
belong to ana's project; bob is the member who is not in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from web_support import PASSWORD, Web, running_web

from appliance.web import auth

# What each of (stranger, wrong key, outsider, collaborator, admin) is answered. A collaborator who gets past every check
# meets the handler, which may still say 400, 409, 412 (the body is empty, nothing serves): "through" stands for those.
PUBLIC = ("through", 401, "through", "through", "through")
BLIND = ("through", "through", "through", "through", "through")
MEMBERS = (401, 401, "through", "through", "through")
ADMINS = (401, 401, 403, 403, "through")
HIDDEN = (401, 401, 404, "through", "through")
OWN_KEY = (401, 401, 404, "through", "through")
GIT = (401, 401, 404, "through", "through")

TABLE: dict[str, tuple[Any, ...]] = {
    "GET /health": BLIND,
    "GET /v1/health": BLIND,
    "GET /schema": BLIND,
    "GET /schema/openapi.json": BLIND,
    "GET /schema/{path:str}": BLIND,
    "GET /v1/auth/session": PUBLIC,
    "POST /v1/auth/login": PUBLIC,
    "POST /v1/auth/logout": PUBLIC,
    "POST /v1/auth/accept": PUBLIC,
    "GET /v1/auth/invitation": PUBLIC,
    "GET /v1/billing/account-standing": MEMBERS,
    "GET /v1/api-keys": MEMBERS,
    "POST /v1/api-keys": MEMBERS,
    "DELETE /v1/api-keys/{key_id:str}": OWN_KEY,
    "GET /v1/teams/{team:str}/users": MEMBERS,
    "PUT /v1/teams/{team:str}/users/{user_id:str}": ADMINS,
    "DELETE /v1/teams/{team:str}/users/{user_id:str}": ADMINS,
    "POST /v1/teams/{team:str}/users/{user_id:str}/reset": ADMINS,
    "GET /v1/teams/{team:str}/invitations": ADMINS,
    "POST /v1/teams/{team:str}/invitations": ADMINS,
    "DELETE /v1/teams/{team:str}/invitations/{invitation_id:str}": ADMINS,
    "GET /v1/machine": MEMBERS,
    "GET /v1/doctor": ADMINS,
    "GET /v1/storage-providers/utilization": MEMBERS,
    "GET /v1/events": MEMBERS,
    "GET /v1/projects": MEMBERS,
    "POST /v1/projects": MEMBERS,
    "GET /v1/datasets": MEMBERS,
    "POST /v1/datasets": MEMBERS,
    "GET /v1/models": MEMBERS,
    "POST /v1/models": MEMBERS,
    "GET /v1/workflows": MEMBERS,
    "POST /v1/workflows": MEMBERS,
    "GET /v1/runs": MEMBERS,
    "GET /v1/deployments": MEMBERS,
    "POST /v1/deployments": MEMBERS,
    "GET /git/{repo:str}/info/refs": GIT,
    "POST /git/{repo:str}/git-upload-pack": GIT,
    "POST /git/{repo:str}/git-receive-pack": GIT,
}

# Everything under one object: hidden from whoever is not in its project.
OBJECTS = {
    "/v1/projects/{project:str}": "GET PUT DELETE",
    "/v1/projects/{project:str}/removal": "GET",
    "/v1/projects/{project:str}/collaborators": "GET POST",
    "/v1/projects/{project:str}/collaborators/{user_id:str}": "DELETE",
    "/v1/projects/{project:str}/commits": "GET",
    "/v1/projects/{project:str}/events": "GET",
    "/v1/projects/{project:str}/datasets": "GET",
    "/v1/projects/{project:str}/models": "GET",
    "/v1/projects/{project:str}/workflows": "GET",
    "/v1/projects/{project:str}/runs": "GET POST",
    "/v1/projects/{project:str}/pushes": "GET",
    "/v1/projects/{project:str}/deployments": "GET",
    "/v1/workflows/{workflow:str}": "GET PUT DELETE",
    "/v1/workflows/{workflow:str}/runs": "GET POST",
    "/v1/workflows/{workflow:str}/runs/{run:str}": "GET",
    "/v1/workflows/{workflow:str}/runs/{run:str}/cancel": "POST",
    "/v1/workflows/{workflow:str}/runs/{run:str}/logs": "GET",
    "/v1/runs/{run:str}": "GET DELETE",
    "/v1/runs/{run:str}/removal": "GET",
    "/v1/runs/{run:str}/cancel": "POST",
    "/v1/runs/{run:str}/stream": "GET",
    "/v1/runs/{run:str}/jobs/{job:str}/logs": "GET",
    "/v1/runs/{run:str}/jobs/{job:str}/logs/stream": "GET",
    "/v1/deployments/{deployment:str}": "GET PATCH DELETE",
    "/v1/deployments/{deployment:str}/removal": "GET",
    "/v1/deployments/{deployment:str}/history": "GET",
    "/v1/deployments/{deployment:str}/history/{spec:str}/apply": "POST",
    "/v1/deployments/{deployment:str}/runs": "GET",
    "/v1/deployments/{deployment:str}/logs": "GET",
    "/v1/deployments/{deployment:str}/logs/stream": "GET",
    "/v1/deployments/{deployment:str}/keys": "GET POST",
    "/v1/deployments/{deployment:str}/keys/{key_id:str}": "DELETE",
    "/v1/deployments/{deployment:str}/metadata": "GET",
    "/v1/deployments/{deployment:str}/try": "POST",
}
for _noun in ("dataset", "model"):
    OBJECTS |= {
        f"/v1/{_noun}s/{{thing:str}}": "GET PUT DELETE",
        f"/v1/{_noun}s/{{thing:str}}/removal": "GET",
        f"/v1/{_noun}s/{{thing:str}}/diff": "GET",
        f"/v1/{_noun}s/{{thing:str}}/tags": "GET",
        f"/v1/{_noun}s/{{thing:str}}/tags/{{name:str}}": "GET PUT DELETE",
        f"/v1/{_noun}s/{{thing:str}}/versions": "GET POST",
        f"/v1/{_noun}s/{{thing:str}}/versions/{{selector:str}}": "GET PUT DELETE",
        f"/v1/{_noun}s/{{thing:str}}/versions/{{selector:str}}/archive.tar": "GET",
        f"/v1/{_noun}s/{{thing:str}}/versions/{{selector:str}}/files": "GET",
        f"/v1/{_noun}s/{{thing:str}}/versions/{{selector:str}}/files/{{path:path}}": "GET PUT DELETE",
    }
TABLE |= {f"{method} {path}": HIDDEN for path, methods in OBJECTS.items() for method in methods.split()}

# The pages. What a stranger is answered here is for programs; a browser (Accept: text/html) is led to the sign-in.
TABLE |= {
    "GET /static/{digest:str}/{name:path}": BLIND,
    "GET /login": PUBLIC,
    "POST /login": PUBLIC,
    "POST /logout": PUBLIC,
    "GET /accept": PUBLIC,
    "POST /accept": PUBLIC,
    "GET /": MEMBERS,
    "POST /projects": MEMBERS,
    "GET /changes/projects": MEMBERS,
    "GET /settings": MEMBERS,
    "GET /settings/machine": MEMBERS,
    "GET /settings/members": MEMBERS,
    "GET /settings/keys": MEMBERS,
    "POST /settings/keys": MEMBERS,
    "POST /settings/keys/{key:str}/revoke": OWN_KEY,
    "POST /settings/invitations": ADMINS,
    "POST /settings/invitations/{invitation:str}/withdraw": ADMINS,
    "POST /settings/members/{user:str}/role": ADMINS,
    "POST /settings/members/{user:str}/reset": ADMINS,
    "POST /settings/members/{user:str}/remove": ADMINS,
    "POST /deployments": MEMBERS,
}
PAGES = {
    "/changes/run/{run:str}": "GET",
    "/changes/project/{project:str}": "GET",
    "/changes/deployment/{deployment:str}": "GET",
    "/projects/{project:str}": "GET",
    "/projects/{project:str}/collaborators": "POST",
    "/projects/{project:str}/collaborators/remove": "POST",
    "/projects/{project:str}/data": "GET",
    "/projects/{project:str}/delete": "POST",
    "/projects/{project:str}/deployments": "GET",
    "/projects/{project:str}/models": "GET",
    "/projects/{project:str}/rename": "POST",
    "/projects/{project:str}/runs": "POST",
    "/projects/{project:str}/settings": "GET",
    "/projects/{project:str}/workflows": "GET",
    "/projects/{project:str}/runs/{workflow:str}/{number:str}": "GET",
    "/projects/{project:str}/runs/{workflow:str}/{number:str}/again": "POST",
    "/projects/{project:str}/runs/{workflow:str}/{number:str}/cancel": "POST",
    "/projects/{project:str}/runs/{workflow:str}/{number:str}/delete": "POST",
    "/projects/{project:str}/runs/{workflow:str}/{number:str}/jobs/{job:str}/log.txt": "GET",
    "/deployments/{deployment:str}": "GET",
    "/deployments/{deployment:str}/change": "POST",
    "/deployments/{deployment:str}/delete": "POST",
    "/deployments/{deployment:str}/history/{spec:str}/apply": "POST",
    "/deployments/{deployment:str}/keys": "POST",
    "/deployments/{deployment:str}/keys/{key:str}/revoke": "POST",
    "/deployments/{deployment:str}/log.txt": "GET",
    "/deployments/{deployment:str}/try": "POST",
}
for _noun in ("dataset", "model"):
    TABLE |= {f"GET /{_noun}s": MEMBERS, f"POST /{_noun}s": MEMBERS}
    PAGES |= {
        f"/{_noun}s/{{thing:str}}": "GET",
        f"/{_noun}s/{{thing:str}}/change": "POST",
        f"/{_noun}s/{{thing:str}}/delete": "POST",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}": "GET",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/delete": "POST",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/diff": "GET",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/file": "GET",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/image": "GET",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/tags": "POST",
        f"/{_noun}s/{{thing:str}}/versions/{{selector:str}}/tags/remove": "POST",
    }
TABLE |= {f"{method} {path}": HIDDEN for path, method in PAGES.items()}

# Bodies that are complete, so that what is answered is about the permission; and the objects' names.
BODIES: dict[str, Any] = {
    "POST /v1/auth/login": {"email": "ana@x.org", "password": PASSWORD},
    "POST /v1/auth/accept": {"token": "none", "password": "a long password"},
    "PUT /v1/projects/{project:str}": {"name": "theirs"},
    "POST /v1/projects/{project:str}/collaborators": {"userId": "nobody"},
    "PUT /v1/workflows/{workflow:str}": {"name": "train"},
    "POST /v1/workflows/{workflow:str}/runs": {"spec": {"jobs": {}}},
    "POST /v1/projects/{project:str}/runs": {"specText": "jobs: {}"},
    "POST /v1/deployments/{deployment:str}/keys": {"name": "app"},
    "POST /v1/deployments/{deployment:str}/try": {"inputs": []},
}
ROLES = ("stranger", "wrong key", "outsider", "collaborator", "admin")
# What the handler itself may answer once everyone has been let through, for wants of the body or the object's state.
BEYOND = frozenset({200, 303, 400, 404, 405, 409, 412, 422})


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with running_web(tmp_path_factory.mktemp("web")) as running:
        yield running


@pytest.fixture(scope="module")
def names(web: Web) -> dict[str, str]:
    """One object of each kind in ana's project."""
    ana = web.client("ana")
    project = ana.post("/v1/projects", json={"name": "theirs"}).json()["id"]
    found = {
        "project": project,
        "repo": f"{project}.git",
        "team": "team",
        "path": "file",
        "selector": "1",
        "name": "gold",
    }
    for noun in ("dataset", "model"):
        thing = ana.post(f"/v1/{noun}s", json={"name": f"their-{noun}", "projectId": project}).json()["id"]
        version = ana.post(f"/v1/{noun}s/{thing}/versions", json={}).json()["version"]
        ana.put(f"/v1/{noun}s/{thing}/versions/{version}/files/file", content=b"x").raise_for_status()
        ana.put(
            f"/v1/{noun}s/{thing}/versions/{version}", json={"isCommitted": True, "tags": "gold"}
        ).raise_for_status()
        found[noun] = thing
    spec = {"jobs": {"a": {"uses": "script@v1", "with": {"script": "true"}, "resources": {"instance-type": "C1"}}}}
    workflow = ana.post("/v1/workflows", json={"name": "train", "projectId": project, "spec": spec, "run": True})
    workflow.raise_for_status()
    config = {"name": "net", "model": f"{found['model']}:1"}
    deployment = ana.post("/v1/deployments", json={"projectId": project, "config": config})
    deployment.raise_for_status()
    found |= {
        "workflow": workflow.json()["id"],
        "run": workflow.json()["run"]["uuid"],
        "job": "a",
        "deployment": deployment.json()["deploymentId"],
        "key_id": ana.get("/v1/api-keys").json()["items"][0]["id"],
        "user_id": web.ana.user_id,
        "spec": "none",
        "number": "1",
        "key": ana.get("/v1/api-keys").json()["items"][0]["id"],
        "user": web.ana.user_id,
        "invitation": "none",
        "digest": "none",
        "invitation_id": "none",
    }
    return found


def test_every_route_is_in_the_table_and_every_entry_has_a_route(web: Web) -> None:
    found = {f"{method} {path}" for path, method, _ in auth.routes(web.app)}

    assert found - set(TABLE) == set(), "routes without an entry"
    assert set(TABLE) - found == set(), "entries without a route"


def test_a_route_without_a_permission_stops_the_start_and_is_named(web: Web) -> None:
    _, _, handler = next(iter(auth.routes(web.app)))
    declared = handler.opt.pop("perm")
    try:
        with pytest.raises(AssertionError, match="declares no permission"):
            auth.check_permissions(web.app)
    finally:
        handler.opt["perm"] = declared


def mutates(route: str) -> bool:
    return not route.startswith("GET ")


@pytest.mark.parametrize("route", sorted(TABLE))
def test_everyone_is_answered_as_the_table_says(web: Web, names: dict[str, str], route: str) -> None:
    """What changes something is tried by those alone who are refused, so the objects stay as they are."""
    method, _, path = route.partition(" ")
    for role, expected in zip(ROLES, TABLE[route], strict=True):
        if expected == "through" and mutates(route) and role in ("collaborator", "admin"):
            continue

        status = status_of(web, role, method, path_of(path, names), BODIES.get(route, {}))

        fits = status in BEYOND if expected == "through" else status == expected
        assert fits, f"{role} got {status} and not {expected}"


@pytest.mark.parametrize("path", sorted(path for path in OBJECTS if path.count("{") == 1 and path.endswith(":str}")))
def test_what_is_hidden_is_answered_as_what_is_missing(web: Web, names: dict[str, str], path: str) -> None:
    bob = web.client("bob")
    address = path_of(path, names)
    name = address.rpartition("/")[2]

    hidden, missing = bob.get(address), bob.get(address.replace(name, "missing"))

    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["message"].replace(name, "missing") == missing.json()["message"]


JUNK = [
    "%C2%B2",
    "9" * 30,
    "-1",
    "%00",
    "%FF",
    "%ED%A0%80",
    "'\"",
    "%2e%2e",
    "a" * 3000,
    "\u202e",
    "1e5",
    "true",
    "~_~",
]
BODY_JUNK = [
    b"null",
    b"[]",
    b'"x"',
    b"1e999",
    b'{"name": "\\ud800"}',
    b'{"name": "a\\u0000b"}',
    b'{"name": 1' + b"0" * 400 + b"}",
]


@pytest.mark.parametrize("route", sorted(TABLE))
def test_junk_in_any_place_is_refused_and_never_a_defect(web: Web, names: dict[str, str], route: str) -> None:
    method, _, path = route.partition(" ")
    admin = {"Authorization": f"Bearer {web.keys['boss']}"}
    words = _query_words(web, method, path)
    fine = "from=1&token=x"
    addresses = [f"{path_of(path, names)}?{fine}&{word}={junk}" for word in words for junk in JUNK]
    addresses += [re.sub(r"\{[^}]*\}", junk, path) for junk in JUNK if "{" in path]
    if mutates(route):
        addresses = [address for address in addresses if "?" not in address]

    for address in addresses:
        answered = _answered(web, method, address, {"headers": admin, **({} if method == "GET" else {"json": {}})})
        assert answered < 500, f"{answered} for {address[:200]}"
    if method in ("POST", "PUT", "PATCH") and "/files/" not in path and not path.startswith("/git"):
        for body in BODY_JUNK:
            answered = _answered(web, method, re.sub(r"\{[^}]*\}", "none", path), {"headers": admin, "content": body})
            assert answered < 500, f"{answered} for {body!r}"


def _query_words(web: Web, method: str, path: str) -> list[str]:
    """The query parameters that the route says it has."""
    described = web.app.openapi_schema.to_schema()["paths"].get(re.sub(":[a-z]+}", "}", path), {})
    parameters = described.get(method.lower(), {}).get("parameters", [])
    return [each["name"] for each in parameters if each["in"] == "query"]


def _answered(web: Web, method: str, address: str, sent: dict[str, Any]) -> int:
    web.stranger.cookies.clear()
    with web.stranger.stream(method, address, **sent) as answer:
        return int(answer.status_code)


def path_of(path: str, names: dict[str, str]) -> str:
    if path.startswith("/projects/"):  # a run's page is named by its workflow's name
        names = {**names, "workflow": "train"}
    thing = names["dataset" if "/datasets/" in path else "model"]
    for word, kind in [("thing", thing), *names.items()]:
        path = path.replace(f"{{{word}:str}}", kind).replace(f"{{{word}:path}}", kind)
    return path


def status_of(web: Web, role: str, method: str, address: str, body: Any) -> int:
    who = {"outsider": "bob", "collaborator": "ana", "admin": "boss"}.get(role)
    key = web.keys[who] if who else "grad_wrongwro_" + "x" * 43
    is_git = address.startswith("/git/")
    query = {"service": "git-upload-pack"} if is_git and method == "GET" else {}
    query |= {"from": "1"} if address.endswith("/diff") else {}
    query |= {"token": "none"} if address.endswith("/invitation") else {}
    query |= {"path": "file"} if address.endswith(("/file", "/image")) else {}
    sent: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": body}
    if method == "POST" and not address.startswith(("/v1", "/git")):
        sent = {"data": {"name": "x", "email": "x@x.org", "user": "nobody", "request": "{}", "path": "a.yaml"}}
        sent["data"] |= {"email": "ana@x.org", "password": PASSWORD} if address == "/login" else {}
    if method == ("POST" if is_git else "PUT") and (is_git or "/files/" in address):
        sent = {"content": b"0000"}
    if role != "stranger" and is_git:
        sent["auth"] = ("anyone", key)
    elif role != "stranger":
        sent["headers"] = {"Authorization": f"Bearer {key}"}
    web.stranger.cookies.clear()
    with web.stranger.stream(method, address, params=query, **sent) as answer:
        return int(answer.status_code)
