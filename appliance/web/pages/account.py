"""Signing in and out, and the one-time links: the first admin, an invitation, a new password."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.params import QueryParameter, URLEncodedBody

from appliance import accounts
from appliance.errors import ApplianceError, BadRequest, TooManyRequests, Unauthorized
from appliance.web.auth import find_actor, house_of, peer_of, session_cookie, session_token
from appliance.web.errors import AnyRequest
from appliance.web.pages.view import go, own_path, page
from appliance.web.routes import get, post

Next = Annotated[str | None, QueryParameter(name="next")]
Token = Annotated[str, QueryParameter(name="token")]


class SignIn(msgspec.Struct):
    email: str = ""
    password: str = ""
    next: str = "/"


class Accept(msgspec.Struct):
    token: str
    password: str = ""
    again: str = ""
    email: str | None = None


@get("/login", perm="public", include_in_schema=False)
def show_login(request: AnyRequest, after: Next = None) -> Response[Any]:
    if find_actor(request) is not None:
        return go(request, own_path(after))
    with house_of(request).db.read() as r:
        is_new = not accounts.has_admin(r)
    return page(request, "account/login.html", next=own_path(after), email="", problem=None, is_new=is_new)


@post("/login", perm="public", include_in_schema=False)
def sign_in(request: AnyRequest, data: URLEncodedBody[SignIn]) -> Response[Any]:
    house = house_of(request)
    max_days = house.config.session_max_days
    try:
        _, token = accounts.sign_in(house.db, data.email, data.password, peer_of(request), max_days=max_days)
    except (Unauthorized, BadRequest, TooManyRequests) as error:
        # Here the form itself says it: a page of its own would lose what was typed.
        shown = {"next": own_path(data.next), "email": data.email, "problem": error.message, "is_new": False}
        status = 429 if isinstance(error, TooManyRequests) else 401
        return page(request, "account/login.html", status=status, **shown)
    return go(request, own_path(data.next), [session_cookie(request, token)])


@post("/logout", perm="public", include_in_schema=False)
def sign_out(request: AnyRequest) -> Response[Any]:
    token = session_token(request)
    if token is not None:
        with house_of(request).db.write() as tx:
            accounts.end_session(tx, token)
    return go(request, "/login", [session_cookie(request, None)])


@get("/accept", perm="public", include_in_schema=False)
def show_link(request: AnyRequest, token: Token) -> Response[Any]:
    with house_of(request).db.read() as r:
        found = accounts.invitation(r, token)
    return page(request, "account/accept.html", token=token, link=found, email=found.email or "", problem=None)


@post("/accept", perm="public", include_in_schema=False)
def use_link(request: AnyRequest, data: URLEncodedBody[Accept]) -> Response[Any]:
    house = house_of(request)
    with house.db.read() as r:
        found = accounts.invitation(r, data.token)
    try:
        if data.password != data.again:
            raise BadRequest("The two passwords differ; type the same one twice.")
        user = accounts.accept(house.db, data.token, data.email, data.password)
    except ApplianceError as error:
        shown = {"token": data.token, "link": found, "email": data.email or found.email or ""}
        return page(request, "account/accept.html", status=400, problem=error.message, **shown)
    with house.db.write() as tx:
        token = accounts.open_session(tx, user, max_days=house.config.session_max_days)
    return go(request, "/", [session_cookie(request, token)])


HANDLERS = [show_login, sign_in, sign_out, show_link, use_link]
