"""The doors cannot drift apart: every verb of the SDK calls a route that there is, with parameters that it knows."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.params import QueryParameter
from live_web import live_web

from appliance.client import Client
from appliance.web import auth

COMPOSED = {"put", "fetch", "find", "wait"}
"""Verbs that are made of other verbs."""

WITHOUT_A_VERB = {
    "/v1/billing/account-standing": "Gradient's own clients ask it",
    "/v1/projects/{}/events": "events.list(project)",
    "/v1/projects/{}/datasets": "datasets.list(project)",
    "/v1/projects/{}/models": "models.list(project)",
    "/v1/projects/{}/workflows": "workflows.list(project)",
    "/v1/projects/{}/runs": "runs.list(project); starting one has its verb",
    "/v1/projects/{}/deployments": "deployments.list(project)",
    "/v1/datasets/{}/versions/{}/archive.tar": "fetch; the archive is for browsers",
    "/v1/models/{}/versions/{}/archive.tar": "fetch; the archive is for browsers",
    "/v1/datasets/{}/tags/{}": "tags and version; moving and removing have their verbs",
    "/v1/models/{}/tags/{}": "tags and version; moving and removing have their verbs",
    "/v1/workflows/{}/runs": "Gradient's way to start a run; ours is runs.submit",
    "/v1/workflows/{}/runs/{}/cancel": "runs.cancel",
    "/v1/workflows/{}/runs/{}/logs": "runs.logs",
}
"""Routes that the SDK leaves alone, and what it has instead."""


class Recorder:
    """In a Transport's place: what was called, with which names in query and body."""

    url = "http://127.0.0.1"

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, set[str], set[str]]] = []

    def note(self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        self.calls.append((method, path, set(query or {}), set(body or {})))
        return {"text": "", "deploymentId": "", "items": []}

    def get(self, path: str, /, **query: Any) -> Any:
        return self.note("GET", path, query)

    def post(self, path: str, /, **body: Any) -> Any:
        return self.note("POST", path, None, body)

    def put(self, path: str, /, **body: Any) -> Any:
        return self.note("PUT", path, None, body)

    def patch(self, path: str, /, **body: Any) -> Any:
        return self.note("PATCH", path, None, body)

    def delete(self, path: str, /) -> Any:
        return self.note("DELETE", path)

    def call(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        return self.note(method, path, query, None if path.endswith("/try") else body)

    def pages(self, path: str, /, **query: Any) -> Iterator[Any]:
        self.note("GET", path, query)
        return iter(())

    def follow(self, path: str, query: Any, **_: Any) -> Iterator[Any]:
        self.note("GET", path, query())
        return iter(())

    def upload(self, path: str, _: Path) -> None:
        self.note("PUT", path)

    def download(self, path: str, _: Any) -> int:
        self.note("GET", path)
        return 0


def arguments(verb: Any) -> dict[str, Any]:
    """Something for every parameter, the optional ones too."""
    made: dict[str, Any] = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        kind = str(parameter.annotation)
        if "Mapping" in kind:
            made[name] = {"a": "b"}
        elif "Path" in kind:
            made[name] = Path("x")
        elif "float" in kind:
            made[name] = 1.0
        elif kind.startswith("bool"):
            made[name] = True
        elif kind == "int":
            made[name] = 0
        else:
            made[name] = "x"
    return made


def verbs() -> Iterator[tuple[str, Recorder, Any]]:
    recorder = Recorder()
    with Client("http://127.0.0.1") as client:
        for noun, space in vars(client).items():
            if noun in ("transport", "url"):
                continue
            space._at = recorder
            for name, verb in inspect.getmembers(space, inspect.ismethod):
                if not name.startswith("_") and name not in COMPOSED:
                    yield f"{noun}.{name}", recorder, verb


def recorded() -> list[tuple[str, tuple[str, str, set[str], set[str]]]]:
    found = []
    for name, recorder, verb in verbs():
        recorder.calls.clear()
        given = arguments(verb)
        if name == "runs.submit":
            given["spec_text"] = None
        answer = verb(**given)
        if inspect.isgenerator(answer) or isinstance(answer, Iterator):
            list(answer)
        assert recorder.calls, f"{name} calls nothing"
        found += [(name, call) for call in recorder.calls]
    return found


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[str], Any]]:
    with live_web(tmp_path_factory.mktemp("web")) as web:
        return [(method, path.split("/"), handler) for path, method, handler in auth.routes(web.app)]


def match(routes: list[tuple[str, list[str], Any]], method: str, path: str) -> Any:
    """The handler; a literal segment beats a parameter."""
    parts = path.split("/")
    best, score = None, -1
    for known, pattern, handler in routes:
        ends_open = pattern[-1].endswith(":path}")
        if known != method or (len(pattern) > len(parts) if ends_open else len(pattern) != len(parts)):
            continue
        pairs = list(zip(pattern, parts, strict=False))
        if all(wanted.startswith("{") or wanted == part for wanted, part in pairs):
            literal = sum(not wanted.startswith("{") for wanted, _ in pairs)
            if literal > score:
                best, score = handler, literal
    return best


def known_names(handler: Any) -> tuple[set[str], set[str]]:
    """The query parameters and the body's fields that a handler takes."""
    hints = typing.get_type_hints(inspect.unwrap(handler.fn), include_extras=True)
    query: set[str] = set()
    for name, hint in hints.items():
        marks = [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, QueryParameter)]
        query |= {mark.name or name for mark in marks}
    body: set[str] = set()
    if "data" in hints:
        struct = typing.get_args(hints["data"])[0]
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            body = {field.encode_name for field in msgspec.structs.fields(struct)}
    return query, body


def test_every_verb_of_the_sdk_has_its_route_and_every_name_is_known_there(
    routes: list[tuple[str, list[str], Any]],
) -> None:
    wrong = []
    for name, (method, path, query, body) in recorded():
        handler = match(routes, method, path)
        if handler is None:
            wrong.append(f"{name}: there is no route {method} {path}")
            continue
        known_query, known_body = known_names(handler)
        wrong += [f"{name}: {method} {path} does not know ?{each}" for each in query - known_query]
        wrong += [f"{name}: {method} {path} does not know the field {each}" for each in body - known_body]

    assert wrong == []


def test_every_route_has_its_verb_or_a_reason_for_having_none(routes: list[tuple[str, list[str], Any]]) -> None:
    called = {id(match(routes, method, path)) for _, (method, path, _, _) in recorded()}

    missing = {
        f"{method} {shown}"
        for method, pattern, handler in routes
        if (shown := "/".join("{}" if part.startswith("{") else part for part in pattern)).startswith("/v1/")
        and id(handler) not in called
        and shown not in WITHOUT_A_VERB
    }

    assert missing == set()
