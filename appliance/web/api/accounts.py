"""/v1/auth, /v1/api-keys, /v1/teams: who there is and how they get in. There is one team; any id of it is accepted."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import MediaType, Response
from litestar.params import FromPath, JSONBody, QueryParameter

from appliance import accounts
from appliance.records import Role
from appliance.web import render
from appliance.web.auth import find_actor, house_of, peer_of, session_cookie, session_token, who
from appliance.web.errors import AnyRequest
from appliance.web.params import After, Limit
from appliance.web.routes import Json, delete, get, post, put


class Login(msgspec.Struct):
    email: str
    password: str


class Accept(msgspec.Struct):
    token: str
    password: str
    email: str | None = None


class NewKey(msgspec.Struct):
    name: str


class Membership(msgspec.Struct, rename="camel"):
    is_admin: bool = False


class Invite(msgspec.Struct, rename="camel"):
    email: str
    is_admin: bool = False


@get("/v1/auth/session", perm="public")
def session(request: AnyRequest) -> Response[Any]:
    """Who is asking; null for a stranger."""
    actor = find_actor(request)
    if actor is None:
        return Response(b"null", media_type=MediaType.JSON)
    with house_of(request).db.read() as r:
        return Response(render.session(accounts.get_user(r, actor.user_id)))


@post("/v1/auth/login", perm="public")
def login(request: AnyRequest, data: JSONBody[Login]) -> Response[Json]:
    """Sign in with a password; the answer sets the session's cookie."""
    house = house_of(request)
    user, token = accounts.sign_in(
        house.db, data.email, data.password, peer_of(request), max_days=house.config.session_max_days
    )
    return Response(render.session(user), cookies=[session_cookie(request, token)])


@post("/v1/auth/logout", perm="public")
def logout(request: AnyRequest) -> Response[Json]:
    """The session is over; nothing happens without one."""
    token = session_token(request)
    if token is not None:
        with house_of(request).db.write() as tx:
            accounts.end_session(tx, token)
    return Response({"signedOut": True}, cookies=[session_cookie(request, None)])


@get("/v1/auth/invitation", perm="public")
def invitation(request: AnyRequest, token: Annotated[str, QueryParameter(name="token")]) -> Json:
    """What a one-time link is for."""
    with house_of(request).db.read() as r:
        return render.invitation(accounts.invitation(r, token))


@post("/v1/auth/accept", perm="public")
def accept(request: AnyRequest, data: JSONBody[Accept]) -> Response[Json]:
    """Use a one-time link: the account has the password, and the browser is signed in."""
    house = house_of(request)
    user = accounts.accept(house.db, data.token, data.email, data.password)
    with house.db.write() as tx:
        token = accounts.open_session(tx, user, max_days=house.config.session_max_days)
    return Response(render.session(user), cookies=[session_cookie(request, token)])


@get("/v1/billing/account-standing")
def account_standing() -> Json:
    """Always good: Gradient's clients ask before they create anything."""
    return {"hasPaymentMethod": True, "isAdminLocked": False, "isInGoodStanding": True, "messages": []}


@get("/v1/api-keys")
def list_keys(request: AnyRequest) -> Json:
    """One's own API keys, without their secrets."""
    house, actor = who(request)
    with house.db.read() as r:
        return render.whole(accounts.list_keys(r, actor), render.api_key)


@post("/v1/api-keys")
def create_key(request: AnyRequest, data: JSONBody[NewKey]) -> Json:
    """A new API key; `key` is its secret, shown this once."""
    house, actor = who(request)
    with house.db.write() as tx:
        key, secret = accounts.create_key(tx, actor, data.name)
    return {**render.api_key(key), "key": secret}


@delete("/v1/api-keys/{key_id:str}")
def revoke_key(request: AnyRequest, key_id: FromPath[str]) -> Json:
    """The key opens nothing any more."""
    house, actor = who(request)
    with house.db.write() as tx:
        return render.api_key(accounts.revoke_key(tx, actor, key_id))


@get("/v1/teams/{team:str}/users")
def list_users(request: AnyRequest, team: FromPath[str], after: After = None, limit: Limit = 50) -> Json:
    """The team, oldest first."""
    del team, after, limit
    house, actor = who(request)
    with house.db.read() as r:
        return render.whole(accounts.list_users(r, actor), render.member)


@put("/v1/teams/{team:str}/users/{user_id:str}", perm="admin")
def set_role(request: AnyRequest, team: FromPath[str], user_id: FromPath[str], data: JSONBody[Membership]) -> Json:
    """Make a member an admin, or an admin a member."""
    del team
    house, actor = who(request)
    with house.db.write() as tx:
        role = Role.ADMIN if data.is_admin else Role.MEMBER
        return render.membership(accounts.set_role(tx, actor, user_id, role))


@delete("/v1/teams/{team:str}/users/{user_id:str}", perm="admin")
def remove_user(request: AnyRequest, team: FromPath[str], user_id: FromPath[str]) -> Json:
    """The member is gone, with sessions and keys."""
    del team
    house, actor = who(request)
    with house.db.write() as tx:
        return render.membership(accounts.remove_user(tx, actor, user_id))


@post("/v1/teams/{team:str}/users/{user_id:str}/reset", perm="admin")
def reset_user(request: AnyRequest, team: FromPath[str], user_id: FromPath[str]) -> Json:
    """A one-time link with which the member sets a new password."""
    del team
    house, actor = who(request)
    with house.db.write() as tx:
        made, token = accounts.reset_link(tx, actor, user_id)
    return {**render.invitation(made), "url": render.link(house.config, token)}


@get("/v1/teams/{team:str}/invitations", perm="admin")
def list_invitations(request: AnyRequest, team: FromPath[str]) -> Json:
    """The open invitations."""
    del team
    house, actor = who(request)
    with house.db.read() as r:
        return render.whole(accounts.list_invitations(r, actor), render.invitation)


@post("/v1/teams/{team:str}/invitations", perm="admin")
def invite(request: AnyRequest, team: FromPath[str], data: JSONBody[Invite]) -> Json:
    """A one-time link for a new member; hand it over yourself, nothing is sent."""
    del team
    house, actor = who(request)
    with house.db.write() as tx:
        made, token = accounts.invite(tx, actor, data.email, Role.ADMIN if data.is_admin else Role.MEMBER)
    return {**render.invitation(made), "url": render.link(house.config, token)}


@delete("/v1/teams/{team:str}/invitations/{invitation_id:str}", perm="admin")
def withdraw_invitation(request: AnyRequest, team: FromPath[str], invitation_id: FromPath[str]) -> Json:
    """The link no longer works."""
    del team
    house, actor = who(request)
    with house.db.write() as tx:
        return render.invitation(accounts.withdraw_invitation(tx, actor, invitation_id))


HANDLERS = [
    session,
    login,
    logout,
    invitation,
    accept,
    account_standing,
    list_keys,
    create_key,
    revoke_key,
    list_users,
    set_role,
    remove_user,
    reset_user,
    list_invitations,
    invite,
    withdraw_invitation,
]
