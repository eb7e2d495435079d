"""API keys: `grad_<8 characters of id>_<43 random characters>`, shown once, kept as SHA-256.

What this keeps true: a key acts with its user's present role, and no longer than its user, its expiry and its revocation allow.

Why: the fixed beginning lets scanners for leaked secrets find a key; the id in it lets us look it up without a scan.
"""

from __future__ import annotations

import hmac
import re
import secrets
from datetime import datetime, timedelta

from appliance import clock, events, ids
from appliance.accounts.sessions import digest, note_use
from appliance.accounts.users import LOCAL_ADMIN, actor_of, create_user, user_of
from appliance.db import Database, Reader, Row, Tx
from appliance.errors import BadRequest, NotFound
from appliance.records import SYSTEM, Actor, ApiKey, Role

_KEY = re.compile(r"grad_([a-z0-9]{8})_[A-Za-z0-9_-]{43}")
_LOCAL = "the commands on this server"
_TOUCH_S = 60


def create_key(
    tx: Tx, actor: Actor, name: str, *, expires_at: datetime | None = None, run_id: str | None = None
) -> tuple[ApiKey, str]:
    """A new key of the actor, and its secret, which nobody can show again. `run_id`: made for one run."""
    name = " ".join(name.split())
    if not (1 <= len(name) <= 100 and name.isprintable()):
        raise BadRequest("A key needs a name of 1 to 100 characters, such as 'laptop'.")
    key_id = ids.random_text(8)
    secret = f"grad_{key_id}_{secrets.token_urlsafe(32)}"
    tx.insert(
        "api_keys",
        {
            "id": key_id,
            "user_id": actor.user_id,
            "name": name,
            "prefix": f"grad_{key_id}",
            "hash": digest(secret),
            "created_at": clock.stamp(),
            "expires_at": clock.stamp(expires_at) if expires_at else None,
            "run_id": run_id,
        },
    )
    events.record(tx, actor, "key.created", key_id, f"{actor.email} made the API key {name!r}.")
    return _key_of(_row(tx, key_id)), secret


def list_keys(db: Reader, actor: Actor) -> list[ApiKey]:
    """The actor's own keys that are not revoked, newest first."""
    rows = db.all(
        "SELECT * FROM api_keys WHERE user_id = ? AND revoked_at IS NULL AND run_id IS NULL ORDER BY created_at DESC, id",
        actor.user_id,
    )
    return [_key_of(row) for row in rows]


def revoke_key(tx: Tx, actor: Actor, key_id: str) -> ApiKey:
    """The key opens nothing any more. One's own, or (for an admin) anybody's; else NotFound. Twice is once."""
    row = tx.one("SELECT * FROM api_keys WHERE id = ?", key_id)
    if row is None or not (row["user_id"] == actor.user_id or actor.is_admin):
        raise NotFound(f"There is no API key {key_id!r}.")
    if row["revoked_at"] is None:
        tx.run("UPDATE api_keys SET revoked_at = ? WHERE id = ?", clock.stamp(), key_id)
        events.record(tx, actor, "key.revoked", key_id, f"{actor.email} revoked the API key {row['name']!r}.")
    return _key_of(_row(tx, key_id))


def key_actor(db: Database, secret: str) -> Actor | None:
    """Whose key this is; None when it is unknown, revoked, expired, or its user may not enter."""
    parts = _KEY.fullmatch(secret)
    if parts is None:
        return None
    with db.read() as r:
        row = r.one(
            "SELECT u.*, k.hash, k.expires_at, k.last_used_at, k.revoked_at FROM api_keys k "
            "JOIN users u ON u.id = k.user_id WHERE k.id = ?",
            parts[1],
        )
    if row is None or not hmac.compare_digest(row["hash"], digest(secret)):
        return None
    now = clock.now()
    if row["revoked_at"] or row["disabled_at"] or (row["expires_at"] and clock.parse(row["expires_at"]) <= now):
        return None
    used = row["last_used_at"]
    if used is None or now - clock.parse(used) > timedelta(seconds=_TOUCH_S):
        note_use(db, "UPDATE api_keys SET last_used_at = ? WHERE id = ?", clock.stamp(now), parts[1])
    return actor_of(user_of(row), "key")


def key_id_of(secret: str) -> str | None:
    """The id that a key's secret begins with; None when it is no key."""
    parts = _KEY.fullmatch(secret)
    return parts[1] if parts else None


def key_stands(db: Reader, key_id: str) -> bool:
    """Whether the key has been neither revoked nor deleted, and has not expired."""
    row = db.one("SELECT expires_at FROM api_keys WHERE id = ? AND revoked_at IS NULL", key_id)
    return row is not None and not (row["expires_at"] and clock.parse(row["expires_at"]) <= clock.now())


def local_admin_key(tx: Tx) -> str:
    """A new key for root on this server; the one made before it stops working.

    Its account has no password and is none of the team, so it does not count as the admin that setup makes.
    """
    row = tx.one("SELECT * FROM users WHERE email = ?", LOCAL_ADMIN)
    user = user_of(row) if row else create_user(tx, SYSTEM, LOCAL_ADMIN, Role.ADMIN)
    tx.run("DELETE FROM api_keys WHERE user_id = ? AND name = ?", user.id, _LOCAL)
    _, secret = create_key(tx, actor_of(user, "system"), _LOCAL)
    return secret


def _row(db: Reader, key_id: str) -> Row:
    row = db.one("SELECT * FROM api_keys WHERE id = ?", key_id)
    assert row is not None
    return row


def _key_of(row: Row) -> ApiKey:
    return ApiKey(
        row["id"],
        row["user_id"],
        row["name"],
        row["prefix"],
        row["created_at"],
        row["last_used_at"],
        row["revoked_at"],
    )
