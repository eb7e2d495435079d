"""Users and their roles. There is one team; an admin looks after the machine, a member works in projects.

What this keeps true: the last active admin with a password can be neither removed, disabled nor demoted; the account of
root on this server is none of the team and cannot be changed.

Why: a server whose last admin is gone can only be rescued by hand.
"""

from __future__ import annotations

from appliance import clock, events, ids
from appliance.db import Reader, Row, Tx
from appliance.errors import Conflict, Forbidden, NotFound
from appliance.records import Actor, Role, User

LOCAL_ADMIN = "root@localhost"


def user_of(row: Row) -> User:
    return User(row["id"], row["email"], Role(row["role"]), row["created_at"], row["disabled_at"])


def actor_of(user: User, via: str) -> Actor:
    """`user` as the one who acts through the door `via`."""
    return Actor(user.id, user.email, user.role, via)


def require_admin(actor: Actor) -> None:
    """Raises Forbidden for everyone but admins and the system."""
    if not actor.is_admin:
        raise Forbidden("Only an admin may do this; ask one of yours.")


def create_user(tx: Tx, actor: Actor, email: str, role: Role, *, password_hash: str | None = None) -> User:
    """A new user, who can sign in if there is a `password_hash` (see `hash_password`). Conflict when the address is taken."""
    email = ids.email(email)
    if tx.one("SELECT 1 FROM users WHERE email = ?", email):
        raise Conflict(
            f"There is already an account {email}; sign in, or ask an admin for a link that sets a new password."
        )
    user = User(ids.new_id("u"), email, Role(role), clock.stamp(), None)
    tx.insert(
        "users",
        {
            "id": user.id,
            "email": email,
            "password": password_hash,
            "role": user.role.value,
            "created_at": user.created_at,
        },
    )
    events.record(tx, actor, "user.created", user.id, f"{email} joined as {user.role.value}.")
    return user


def find_user(db: Reader, user_id_or_email: str) -> User | None:
    row = db.one("SELECT * FROM users WHERE id = ?1 OR email = lower(?1)", user_id_or_email)
    return user_of(row) if row else None


def get_user(db: Reader, user_id: str) -> User:
    """By id or address."""
    user = find_user(db, user_id)
    if user is None:
        raise NotFound(f"There is no user {user_id!r}.")
    return user


def list_users(db: Reader, actor: Actor) -> list[User]:
    """The team, oldest first; everyone signed in may see it. Root on this server is not part of it."""
    del actor
    return [user_of(row) for row in db.all("SELECT * FROM users WHERE email != ? ORDER BY created_at, id", LOCAL_ADMIN)]


def has_admin(db: Reader) -> bool:
    """Whether somebody can sign in who may do everything."""
    return bool(_admins(db))


def set_role(tx: Tx, actor: Actor, user_id: str, role: Role) -> User:
    """The user has the role; sessions and keys follow it at once, because the role is read with each request."""
    require_admin(actor)
    user = _changeable(tx, user_id)
    if user.role is role:
        return user
    if role is not Role.ADMIN:
        _keep_an_admin(tx, user)
    tx.run("UPDATE users SET role = ? WHERE id = ?", role.value, user.id)
    tx.run("DELETE FROM sessions WHERE user_id = ?", user.id)
    events.record(tx, actor, "user.role", user.id, f"{user.email} is now {role.value}.")
    return get_user(tx, user.id)


def disable_user(tx: Tx, actor: Actor, user_id: str) -> User:
    """The user can no longer sign in; sessions are ended, keys rest until `enable_user`."""
    require_admin(actor)
    user = _changeable(tx, user_id)
    _keep_an_admin(tx, user)
    tx.run("UPDATE users SET disabled_at = coalesce(disabled_at, ?) WHERE id = ?", clock.stamp(), user.id)
    tx.run("DELETE FROM sessions WHERE user_id = ?", user.id)
    events.record(tx, actor, "user.disabled", user.id, f"{user.email} was disabled.")
    return get_user(tx, user.id)


def enable_user(tx: Tx, actor: Actor, user_id: str) -> User:
    require_admin(actor)
    user = _changeable(tx, user_id)
    tx.run("UPDATE users SET disabled_at = NULL WHERE id = ?", user.id)
    events.record(tx, actor, "user.enabled", user.id, f"{user.email} was enabled again.")
    return get_user(tx, user.id)


def remove_user(tx: Tx, actor: Actor, user_id: str) -> User:
    """The user is gone, with sessions, keys, open links and memberships; what they made stays. The record as it was."""
    require_admin(actor)
    user = _changeable(tx, user_id)
    _keep_an_admin(tx, user)
    tx.run("DELETE FROM users WHERE id = ?", user.id)
    events.record(tx, actor, "user.removed", user.id, f"{user.email} was removed.")
    return user


def _changeable(db: Reader, user_id: str) -> User:
    user = get_user(db, user_id)
    if user.email == LOCAL_ADMIN:
        raise Conflict(f"{LOCAL_ADMIN} is root on this server; it cannot be changed or removed.")
    return user


def _admins(db: Reader) -> list[str]:
    sql = "SELECT id FROM users WHERE role = 'admin' AND password IS NOT NULL AND disabled_at IS NULL"
    return [row["id"] for row in db.all(sql)]


def _keep_an_admin(db: Reader, leaving: User) -> None:
    if _admins(db) == [leaving.id]:
        raise Conflict(f"{leaving.email} is the last admin; make somebody else an admin first.")
