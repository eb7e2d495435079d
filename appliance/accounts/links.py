"""One-time links: `setup` makes the first admin, `invite` a member, `reset` a new password.

What this keeps true: a link's token is kept only as SHA-256, works once, and expires (7 days; a reset after one). There
is at most one open setup link, and none works once an admin can sign in. A new password ends all sessions of its user.

Why: the appliance sends no mail. Whoever makes the link hands it over, and nobody ever types another one's password.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from appliance import clock, events, ids
from appliance.accounts.passwords import hash_password
from appliance.accounts.sessions import digest, end_sessions
from appliance.accounts.users import LOCAL_ADMIN, actor_of, create_user, get_user, has_admin, require_admin
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import BadRequest, Conflict, NotFound
from appliance.records import SYSTEM, Actor, Invitation, Role, User

LIFETIME = {"setup": timedelta(days=7), "invite": timedelta(days=7), "reset": timedelta(days=1)}


def invite(tx: Tx, actor: Actor, email: str, role: Role) -> tuple[Invitation, str]:
    """A link by which `email` joins with `role`; an older open one for the address stops working."""
    require_admin(actor)
    email = ids.email(email)
    if tx.one("SELECT 1 FROM users WHERE email = ?", email):
        raise Conflict(f"{email} is already a member.")
    tx.run("DELETE FROM invitations WHERE kind = 'invite' AND email = ? AND used_at IS NULL", email)
    made = _make(tx, actor, "invite", Role(role), email=email)
    events.record(tx, actor, "user.invited", made[0].id, f"{actor.email} invited {email} as {Role(role).value}.")
    return made


def reset_link(tx: Tx, actor: Actor, user_id: str) -> tuple[Invitation, str]:
    """A link by which the user sets a new password. Their old one works until they do."""
    require_admin(actor)
    user = get_user(tx, user_id)
    if user.email == LOCAL_ADMIN:
        raise Conflict(f"{LOCAL_ADMIN} is root on this server and has no password.")
    tx.run("DELETE FROM invitations WHERE kind = 'reset' AND user_id = ? AND used_at IS NULL", user.id)
    made = _make(tx, actor, "reset", user.role, email=user.email, user_id=user.id)
    events.record(tx, actor, "user.reset", user.id, f"{actor.email} made a link for a new password of {user.email}.")
    return made


def setup_token(tx: Tx) -> str:
    """The token of the one open setup link; an older one stops working. Conflict when an admin can sign in."""
    if has_admin(tx):
        raise Conflict("There is already an admin; ask them for an invitation, or for a link that sets a new password.")
    tx.run("DELETE FROM invitations WHERE kind = 'setup' AND used_at IS NULL")
    made, token = _make(tx, SYSTEM, "setup", Role.ADMIN)
    events.record(tx, SYSTEM, "setup.opened", made.id, "A link that makes the first admin was made.")
    return token


def invitation(db: Reader, token: str) -> Invitation:
    """What the link is for. NotFound when it never was, was used, has expired or was withdrawn."""
    return _invitation_of(_open_row(db, token))


def accept(db: Database, token: str, email: str | None, password: str) -> User:
    """Use the link: afterwards the user exists (with the role that the link says) and has the password.

    `email` is needed by a setup link only; the others know theirs. Takes the database and not a transaction because
    hashing takes 50 ms, for which no writer should wait.
    """
    with db.read() as r:
        _open_row(r, token)
    password_hash = hash_password(password)
    with db.write() as tx:
        row = _open_row(tx, token)
        tx.run("UPDATE invitations SET used_at = ? WHERE id = ?", clock.stamp(), row["id"])
        if row["kind"] == "reset":
            return _reset(tx, row["user_id"], password_hash)
        address = row["email"] or email
        if not address:
            raise BadRequest("Say the e-mail address by which you want to sign in.")
        if row["kind"] == "setup" and has_admin(tx):
            raise Conflict("There is already an admin; sign in, or ask them for an invitation.")
        maker = SYSTEM if row["kind"] == "setup" else Actor("", ids.email(address), Role(row["role"]), "link")
        return create_user(tx, maker, address, Role(row["role"]), password_hash=password_hash)


def list_invitations(db: Reader, actor: Actor) -> list[Invitation]:
    """The open invitations, newest first, for admins."""
    require_admin(actor)
    rows = db.all(
        "SELECT * FROM invitations WHERE kind = 'invite' AND used_at IS NULL AND expires_at > ? "
        "ORDER BY created_at DESC, id",
        clock.stamp(),
    )
    return [_invitation_of(row) for row in rows]


def withdraw_invitation(tx: Tx, actor: Actor, invitation_id: str) -> Invitation:
    """The link no longer works. The record as it was."""
    require_admin(actor)
    row = tx.one("SELECT * FROM invitations WHERE id = ? AND used_at IS NULL", invitation_id)
    if row is None:
        raise NotFound(f"There is no open invitation {invitation_id!r}.")
    tx.run("DELETE FROM invitations WHERE id = ?", invitation_id)
    whom = row["email"] or "the first admin"
    events.record(tx, actor, "user.uninvited", invitation_id, f"{actor.email} withdrew the link for {whom}.")
    return _invitation_of(row)


def _reset(tx: Tx, user_id: str, password_hash: str) -> User:
    user = get_user(tx, user_id)
    tx.run("UPDATE users SET password = ? WHERE id = ?", password_hash, user_id)
    end_sessions(tx, user)
    events.record(tx, actor_of(user, "link"), "user.password", user.id, f"{user.email} set a new password.")
    return user


def _make(
    tx: Tx, actor: Actor, kind: str, role: Role, *, email: str | None = None, user_id: str | None = None
) -> tuple[Invitation, str]:
    token = secrets.token_urlsafe(32)
    now = clock.now()
    row = {
        "id": ids.new_id("inv"),
        "kind": kind,
        "token_hash": digest(token),
        "email": email,
        "user_id": user_id,
        "role": role.value,
        "created_by": actor.email,
        "created_at": clock.stamp(now),
        "expires_at": clock.stamp(now + LIFETIME[kind]),
    }
    tx.insert("invitations", row)
    return _invitation_of({**row, "used_at": None}), token


def _open_row(db: Reader, token: str) -> Row:
    row = db.one(
        "SELECT * FROM invitations WHERE token_hash = ? AND used_at IS NULL AND expires_at > ?",
        digest(token),
        clock.stamp(),
    )
    if row is None:
        raise NotFound("This link was used already, has expired or was withdrawn; ask for a new one.")
    return row


def _invitation_of(row: Row) -> Invitation:
    return Invitation(
        row["id"],
        row["kind"],
        row["email"],
        Role(row["role"]),
        row["created_at"],
        row["expires_at"],
        row["used_at"],
    )
