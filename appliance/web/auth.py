"""Who asks, and the permission that each route declares.

What this keeps true: a route without a permission stops the start of the daemon, naming it; nothing is decided by a path;
a session is a cookie that scripts cannot read and other sites do not send; two session cookies are refused, since
one of them was planted. The guard says who it is; what they may see is asked of the verb.

    public   whoever, signed in or not          member   whoever is signed in
    admin    admins                             git      an API key as the password of basic authentication

Why: Litestar's own session and CSRF parts have holes that matter here (a client chooses its session's id; the token is
bound to no session; `exclude` is a pattern over the decoded path).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Any

from litestar import Litestar
from litestar.concurrency import sync_to_thread
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie
from litestar.handlers import BaseRouteHandler

from appliance import accounts
from appliance.db import Reader
from appliance.errors import BadRequest, Forbidden, Unauthorized
from appliance.records import Actor
from appliance.web.errors import AnyRequest
from appliance.web.house import House
from appliance.web.origin import values

PERMISSIONS = ("public", "member", "admin", "git")
Connection = ASGIConnection[Any, Any, Any, Any]


class BasicWanted(Unauthorized):
    """git asks for the password only when it is told to."""

    headers = {"WWW-Authenticate": 'Basic realm="appliance", charset="UTF-8"'}  # noqa: RUF012 - never written


async def permit(connection: Connection, handler: BaseRouteHandler) -> None:
    """The guard of every route: afterwards `actor_of` answers, and the one who asks has the route's permission."""
    perm = handler.opt.get("perm")
    assert perm in PERMISSIONS, f"{handler} has no permission"
    if perm == "git":
        connection.scope["state"]["actor"] = await sync_to_thread(_git_actor, connection)
        return
    actor = None if handler.opt.get("blind") else await authenticate(connection)
    connection.scope["state"]["actor"] = actor
    if perm == "public":
        return
    if actor is None:
        raise Unauthorized("Sign in first, or send an API key (Authorization: Bearer KEY).")
    if perm == "admin" and not actor.is_admin:
        raise Forbidden("Only an admin may do this; ask one of yours.")


def check_permissions(app: Litestar) -> None:
    """Every route has declared its permission, or the start fails naming the one that has not."""
    for path, method, handler in routes(app):
        if handler.opt.get("perm") not in PERMISSIONS:
            raise AssertionError(f"the route {method} {path} declares no permission (opt['perm'])")


def routes(app: Litestar) -> Iterable[tuple[str, str, BaseRouteHandler]]:
    """(path, method, handler) of every route of ours; a websocket's method is WS. OPTIONS is answered outside of the app."""
    for route in app.routes:
        for handler in getattr(route, "route_handlers", None) or [route.route_handler]:  # type: ignore[union-attr]
            for method in sorted(getattr(handler, "http_methods", {"WS"})):
                if method != "OPTIONS":
                    yield route.path, method, handler


async def authenticate(connection: Connection) -> Actor | None:
    """Who asks: by key, else by session cookie; None for a stranger. A wrong key is an error, an old cookie is nobody."""
    house: House = connection.app.state.house
    keys = values(connection.scope["headers"], "authorization")
    if keys:
        scheme, _, secret = keys[0].partition(" ")
        actor = None
        if len(keys) == 1 and scheme.lower() == "bearer":
            actor = await sync_to_thread(accounts.key_actor, house.db, secret.strip())
        if actor is None:
            raise Unauthorized("The API key is wrong, has expired or was revoked.")
        connection.scope["state"]["proof"] = ("key", accounts.key_id_of(secret.strip()))
        return actor
    token = session_token(connection)
    if token is None:
        return None
    connection.scope["state"]["proof"] = ("session", accounts.digest(token))
    return await sync_to_thread(_session_actor, house, token)


def _session_actor(house: House, token: str) -> Actor | None:
    return accounts.session_actor(house.db, token, idle_hours=house.config.session_idle_hours)


def session_token(connection: Connection) -> str | None:
    """The session cookie's value. BadRequest when there are two."""
    name = cookie_name(connection) + "="
    pairs = [pair.strip() for header in values(connection.scope["headers"], "cookie") for pair in header.split(";")]
    found = [pair.removeprefix(name) for pair in pairs if pair.startswith(name)]
    if len(found) > 1:
        raise BadRequest("The browser sent two session cookies; clear the cookies of this site and sign in again.")
    return found[0] if found and found[0] else None


def session_cookie(connection: Connection, token: str | None) -> Cookie:
    """The cookie that carries `token`; None: that removes it."""
    return Cookie(
        key=cookie_name(connection),
        value=token or "",
        path="/",
        max_age=None if token else 0,
        secure=is_https(connection),
        httponly=True,
        samesite="strict",
    )


def cookie_name(connection: Connection) -> str:
    # Browsers take a __Host- cookie only over HTTPS, for no other host and for the whole site.
    return "__Host-appliance" if is_https(connection) else "appliance"


def is_https(connection: Connection) -> bool:
    """Whether the client spoke HTTPS; nginx alone can reach our socket, and always says it."""
    told = values(connection.scope["headers"], "x-forwarded-proto")
    return told == ["https"] if told else connection.scope["scheme"] in ("https", "wss")


def peer_of(connection: Connection) -> str:
    """The client's address, which nginx puts into X-Forwarded-For in place of whatever was there."""
    told = values(connection.scope["headers"], "x-forwarded-for")
    if told:
        return told[-1].split(",")[-1].strip()
    return connection.client.host if connection.client else "local"


def house_of(connection: Connection) -> House:
    house: House = connection.app.state.house
    return house


def find_actor(connection: Connection) -> Actor | None:
    actor: Actor | None = connection.scope["state"].get("actor")
    return actor


def who(request: AnyRequest) -> tuple[House, Actor]:
    """The house, and who asks; for routes that are not public."""
    actor = find_actor(request)
    assert actor is not None, "a public route asked who it is"
    return house_of(request), actor


def proof_stands(db: Reader, connection: Connection) -> bool:
    """Whether the key or session by which the request came in would still let it in."""
    kind, name = connection.scope["state"].get("proof", ("none", ""))
    if kind == "key":
        return accounts.key_stands(db, name)
    return kind == "session" and accounts.session_stands(db, name)


def _git_actor(connection: Connection) -> Actor:
    keys = values(connection.scope["headers"], "authorization")
    secret = basic_password(keys[0]) if len(keys) == 1 else None
    actor = accounts.key_actor(house_of(connection).db, secret) if secret else None
    if actor is None:
        raise BasicWanted("git needs an API key as the password (any user name); make one under Settings.")
    return actor


def basic_password(header: str) -> str | None:
    """The password of a basic authentication, or the token of a bearer one, which some git clients can be told to send."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None
